"""A sequence-classification reward model as annotator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from adaptpo.annotation.base import Annotator, Request, asked_and_answered, valid_reward
from adaptpo.annotation.shared_forward import (
    Family,
    family_batches,
    family_of,
    scores_last_token,
    shared_rewards,
    worth_sharing,
)
from adaptpo.data.encoding import encode_rendered
from adaptpo.data.templates import TemplateOptions, TemplateProblem, options_of, render
from adaptpo.data.vocabulary import check_tokenizer_fits
from adaptpo.errors import ModelError
from adaptpo.models.adapters import adapter_settings, adapter_shapes, base_of, base_options, merged, refuse_other_task
from adaptpo.models.collate import pad
from adaptpo.models.loading import HAS_NO_MODEL, LOAD_ERRORS, Options, cannot_load, refuse_missing, stored_tokenizer
from adaptpo.models.positions import longest_row
from adaptpo.models.shared_prompt.attention import sharing_prompts
from adaptpo.types import Message, Prompt, Response


def load_reward_model(path: str, options: Options) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Loads a reward model with one label, and its tokenizer. An adapter is merged into the model it was trained on.

    The configuration's `pad_token_id` is then the one by which the model's rows end (see `RewardModelAnnotator`), or
    None. Raises ModelError if `path` holds no such model.
    """
    is_adapter = base_of(path, options) is not None
    model: Any = (adapted_classifier if is_adapter else load_classifier)(path, options)
    if model.config.num_labels != 1:
        raise ModelError(
            f"the model at '{path}' has {model.config.num_labels} labels; a reward model has one "
            "(AutoModelForSequenceClassification with num_labels=1). For a classifier, write a Python function that "
            "turns its logits into a reward: reward: python:module:function"
        )
    tokenizer = stored_tokenizer(path, options)
    check_tokenizer_fits(tokenizer, model.config)
    set_pad_id(model, stored_pad_id(model, tokenizer, is_adapter))
    score_in_float32(model)
    return model.eval(), tokenizer


def score_in_float32(model: Any) -> None:
    """In bfloat16, which has 8 bits, scores that differ by less than a percent would be equal."""
    if (layer := scoring_layer(model)) is not None:
        layer.float()
        layer.register_forward_pre_hook(lambda _, arguments: (arguments[0].float(),))


def scoring_layer(model: Any) -> nn.Linear | None:
    """The last layer, whose output is the score: a decoder's `score`, an encoder's `classifier` or `out_proj` in it."""
    head = next((getattr(model, name) for name in HEADS if hasattr(model, name)), None)
    last = getattr(head, "out_proj", head)
    return last if isinstance(last, nn.Linear) else None


def load_classifier(path: str, options: Options, trained_elsewhere: tuple[str, ...] = ()) -> nn.Module:
    """Loads a model that classifies sequences, in float32 unless the options set another dtype. Its weights are all
    there, except for those of modules named in `trained_elsewhere`."""
    defaults = {"dtype": torch.float32, "trust_remote_code": False}
    arguments = {**defaults, **options, "output_loading_info": True}
    try:
        model, loaded = AutoModelForSequenceClassification.from_pretrained(path, **arguments)
    except LOAD_ERRORS as error:
        raise cannot_load("a reward model", path, error, HAS_NO_MODEL, options) from error
    absent = [name for name in loaded["missing_keys"] if name.split(".")[0] not in trained_elsewhere]
    remedy = "give the folder of a trained reward model, or set reward: train"
    refuse_missing(path, absent, "is not a trained reward model", remedy)
    return model


HEADS = ("score", "classifier")
"""Names under which an adapter holds its trained head."""
LABELS = ("score.weight", "classifier.weight", "out_proj.weight")
"""Ends of the names of a head's last weight, with one row per label."""


def adapted_classifier(path: str, options: Options) -> nn.Module:
    """The model that a reward model's adapter was trained on, with the adapter and its head merged in."""
    settings, base = adapter_settings(path, options) or {}, base_of(path, options) or ""
    refuse_other_task(path, settings, "SEQ_CLS", "give the adapter of a reward model, or the folder of a whole one")
    shapes = adapter_shapes(path, options).items()
    heads = {name: shape for name, shape in shapes if set(HEADS) & set(name.split(".")) and "lora_" not in name}
    labels = next((shape[0] for name, shape in heads.items() if name.endswith(LABELS)), None)
    own = base_options(settings, options) | ({} if labels is None else {"num_labels": labels})
    return merged(load_classifier(base, own, HEADS if heads else ()), path, options)


def stored_pad_id(model: Any, tokenizer: PreTrainedTokenizerBase, is_adapter: bool = False) -> int | None:
    """The padding token that a reward model was saved with: its configuration's, or else its tokenizer's. With an
    adapter, the tokenizer was saved and the configuration is the base model's, so the tokenizer's comes first.

    If it is EOS, as TRL's `RewardTrainer` stores it, the model was trained to be read before its final EOS. EOS must
    not stand in for a padding token that neither of them has.
    """
    saved = [getattr(text_config(model), "pad_token_id", None), tokenizer.pad_token_id]
    return next((id_ for id_ in (reversed(saved) if is_adapter else saved) if id_ is not None), None)


def text_config(model: Any) -> Any:
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def set_pad_id(model: Any, pad_id: int | None) -> None:
    # Models look for it in one of the two.
    model.config.pad_token_id = text_config(model).pad_token_id = pad_id


def padding_for(rows: Sequence[Sequence[int]], stored: int | None, vocabulary: int) -> int:
    """The token to pad `rows` with: the stored one, or else the first one that ends no row, so that none is cut."""
    if stored is not None and 0 <= stored < vocabulary:
        return stored
    ends = {row[-1] for row in rows}
    return next(token for token in range(len(ends) + 1) if token not in ends)


class RewardModelAnnotator(Annotator):
    """Scores prompt and response together, as TRL's `RewardTrainer` presents them: through the reward model's own chat
    template, or as plain text, with the end-of-sequence token if the response ended.

    A row is scored where the model, as saved, scores it alone: at its last token other than the configuration's
    `pad_token_id`, or at its last token if there is no such id. The template's arguments are `template_options`,
    overridden by the row's `tools` and `chat_template_kwargs`.

    Responses that do not fit into the model's positions get no reward. `max_tokens` bounds the tokens of a batch,
    padding included. Responses to one prompt share its computation if this leaves a first prompt's rewards unchanged.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int = 16384,
        template_options: TemplateOptions | None = None,
    ) -> None:
        self.model, self.tokenizer, self.max_tokens = model, tokenizer, max_tokens
        self.template_options = options_of({}, template_options)
        self.limit = longest_row(model) or 1 << 30
        self.shares: bool | None = None
        self.pad_id: int | None = getattr(text_config(model), "pad_token_id", None)
        self.vocabulary: int = getattr(text_config(model), "vocab_size", 1 << 30)

    def rewards(self, requests: Sequence[Request]) -> list[float | None]:
        rows = [self.token_ids(prompt, response) for prompt, response in requests]
        families = self._families(requests, rows)
        computed = self._shared(families) if worth_sharing(families) and self._may_share(families) else None
        rewards = self._padded(rows) if computed is None else computed
        return [valid_reward(rewards.get(index)) for index in range(len(rows))]

    def _families(self, requests: Sequence[Request], rows: Sequence[list[int]]) -> list[Family]:
        """Groups the rows that fit into the model by prompt."""
        places: dict[int, list[int]] = defaultdict(list)
        for place, (prompt, _) in enumerate(requests):
            if len(rows[place]) <= self.limit:
                places[prompt.id].append(place)
        return [family_of([rows[i] for i in members], members, self.pad_id) for members in places.values()]

    def _may_share(self, families: Sequence[Family]) -> bool:
        """Whether sharing gives the same rewards; decided once, on one prompt."""
        if self.shares is None:
            probe = max(families, key=lambda family: len(family.prefix))
            self.shares = scores_last_token(self.model) and self._agrees(probe)
        return self.shares

    @torch.inference_mode()
    def _agrees(self, family: Family) -> bool:
        plain = self._forward([[*family.prefix, *ending] for ending in family.endings])
        try:
            with sharing_prompts(self.model) as possible:
                shared = shared_rewards(self.model, [family]) if possible else []
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, RuntimeError):
            return False
        tolerance = 1e-3 if next(self.model.parameters()).dtype == torch.float32 else 5e-2
        close = [abs(a - b) <= tolerance * (1 + abs(a)) for a, b in zip(plain, shared, strict=False)]
        return len(shared) == len(plain) and all(close)

    @torch.inference_mode()
    def _shared(self, families: Sequence[Family]) -> dict[int, float]:
        rewards: dict[int, float] = {}
        with sharing_prompts(self.model):
            for batch in family_batches(families, self.max_tokens):
                places = [place for family in batch for place in family.places]
                rewards |= zip(places, shared_rewards(self.model, batch), strict=True)
        return rewards

    def _padded(self, rows: Sequence[list[int]]) -> dict[int, float]:
        rewards: dict[int, float] = {}
        for batch in length_batches(rows, self.max_tokens, self.limit):
            rewards |= zip(batch, self._forward([rows[i] for i in batch]), strict=True)
        return rewards

    def token_ids(self, prompt: Prompt, response: Response) -> list[int]:
        try:
            return scored_ids(self.tokenizer, prompt, response, self.template_options)
        except TemplateProblem as problem:
            raise ModelError(
                f"the reward model cannot read prompt {prompt.id}: {problem}; leave such prompts out of the data, or "
                "use another reward model"
            ) from problem

    @torch.inference_mode()
    def _forward(self, rows: Sequence[Sequence[int]]) -> list[float]:
        device = next(self.model.parameters()).device
        filler = padding_for(rows, self.pad_id, self.vocabulary)
        ids, mask = pad(rows, filler).to(device), pad([[1] * len(row) for row in rows], 0).to(device)
        return self._logits(ids, mask, filler)[:, 0].float().tolist()

    def _logits(self, ids: Tensor, mask: Tensor, filler: int) -> Tensor:
        """The logits [rows, 1], with `filler` as the padding token that the model looks for."""
        set_pad_id(self.model, filler)
        try:
            return self.model(input_ids=ids, attention_mask=mask).logits
        finally:
            set_pad_id(self.model, self.pad_id)


def scored_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: Response, template_options: TemplateOptions
) -> list[int]:
    """The tokens by which a reward model reads a response.

    Raises:
        ModelError: the data is conversational, and the tokenizer has no chat template.
        TemplateProblem: the template refuses the conversation.
    """
    asked, answered = asked_and_answered(prompt, response)
    if isinstance(asked, str):
        ids, eos = list(tokenizer(f"{asked}{answered}")["input_ids"]), tokenizer.eos_token_id
        return [*ids, eos] if response.ended and eos not in (None, *ids[-1:]) else ids
    options = options_of(prompt.columns, template_options)
    return encode_rendered(tokenizer, scored_text(tokenizer, [*asked, *answered], options))


def scored_text(tokenizer: PreTrainedTokenizerBase, conversation: list[Message], options: TemplateOptions) -> str:
    """A conversation as a reward model reads it. Raises like `scored_ids`."""
    if tokenizer.chat_template is None:
        raise ModelError(
            "the data is conversational, but the reward model's tokenizer has no chat template; "
            "set `tokenizer.chat_template` of the reward model and save it beside the model"
        )
    return render(tokenizer, conversation, options)


def length_batches(rows: Sequence[Sequence[int]], max_tokens: int, limit: int) -> list[list[int]]:
    """Indices of rows of at most `limit` tokens, sorted by length, in batches of at most `max_tokens` padded tokens."""
    order = sorted((i for i, row in enumerate(rows) if len(row) <= limit), key=lambda i: len(rows[i]))
    batches: list[list[int]] = []
    for index in order:
        if not batches or (len(batches[-1]) + 1) * len(rows[index]) > max_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches
