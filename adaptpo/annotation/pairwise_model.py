"""PairRM (LLM-Blender, Jiang et al. 2023, arXiv 2306.02561): a cross-encoder that compares two responses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, DebertaV2Config, DebertaV2Model, DebertaV2PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from adaptpo.annotation.reward_model import length_batches
from adaptpo.annotation.tournament import Match
from adaptpo.errors import ModelError
from adaptpo.models.collate import pad
from adaptpo.models.loading import first_line
from adaptpo.remote.usage import Usage

SOURCE, FIRST, SECOND = "<|source|>", "<|candidate1|>", "<|candidate2|>"
Encode = Callable[[str, str, int], list[int]]
"""Encodes a marker and a text within a maximum number of tokens."""
MARKERS = {SOURCE: "source_prefix_id", FIRST: "cand1_prefix_id", SECOND: "cand2_prefix_id"}
"""Each marker's token and the key of `config.json` that holds its id."""


class PairRM(DebertaV2PreTrainedModel):
    """A DeBERTa-v2 encoder whose states at the three markers are scored: `score_i = head([h_source; h_candidate_i])`.

    Module names are those of the published checkpoint.
    """

    def __init__(self, config: DebertaV2Config) -> None:
        super().__init__(config)
        self.pretrained_model = DebertaV2Model(config)
        self.head_layer = nn.Sequential(
            nn.Dropout(config.drop_out),
            nn.Linear(2 * config.hidden_size, config.hidden_size),
            nn.Tanh(),
            nn.Dropout(config.drop_out),
            nn.Linear(config.hidden_size, config.n_tasks),
        )
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, markers: Tensor) -> Tensor:
        """Logit [rows] that the first candidate is better; `markers` [rows, 3]: positions of source and candidates."""
        states = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.compare(states[torch.arange(len(states), device=states.device)[:, None], markers])

    def compare(self, states: Tensor) -> Tensor:
        """Logit [rows] from the states [rows, 3, hidden] of source and candidates: the mean over tasks of
        `score_1 - score_2`."""
        source, first, second = states.unbind(dim=1)
        scores = [self.head_layer(torch.cat([source, candidate], dim=-1)) for candidate in (first, second)]
        return (scores[0] - scores[1]).mean(dim=-1)


def load_pairwise_model(path: str) -> tuple[PairRM, Tokenizer]:
    """Loads a model in the layout of `llm-blender/PairRM-hf`, and its tokenizer; raises ModelError for any other."""
    try:
        config = DebertaV2Config.from_pretrained(path)
        check_pairwise_config(path, config)
        model, loaded = PairRM.from_pretrained(path, config=config, dtype=torch.float32, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"cannot load a pairwise model from '{path}': {first_line(error)}") from error
    if missing := sorted(loaded["missing_keys"]):
        raise ModelError(f"the model at '{path}' is not a trained pairwise model: it has no {', '.join(missing[:3])}")
    check_markers(path, config, tokenizer)
    return model.eval(), tokenizer


def check_pairwise_config(path: str, config: DebertaV2Config) -> None:
    absent = [name for name in (*MARKERS.values(), "n_tasks", "drop_out") if not hasattr(config, name)]
    if absent:
        raise ModelError(
            f"the model at '{path}' is not a pairwise model like PairRM: its config has no {', '.join(absent)}; "
            "give llm-blender/PairRM-hf (not llm-blender/PairRM, which has a different layout), or, for a reward model "
            "with one label, set reward: PATH"
        )


def check_markers(path: str, config: DebertaV2Config, tokenizer: Tokenizer) -> None:
    for token, name in MARKERS.items():
        found, expected = tokenizer.convert_tokens_to_ids(token), getattr(config, name)
        if found != expected:
            raise ModelError(
                f"the tokenizer of '{path}' has id {found} for {token} and the model expects {expected}; "
                "give the tokenizer that the model was trained with"
            )


@dataclass(frozen=True)
class PairwiseRow:
    ids: list[int]
    markers: tuple[int, int, int]


class PairwiseModel:
    """Compares two responses with PairRM; the value is its logit.

    A row is `[CLS] <|source|> prompt [SEP] [CLS] <|candidate1|> response [SEP] [CLS] <|candidate2|> response [SEP]`.
    Prompts are cut after `source_tokens`; each candidate may take half of what the prompt leaves of
    `source_tokens + 2 candidate_tokens`. `usage` counts the texts that are cut.
    """

    def __init__(
        self,
        model: PairRM,
        tokenizer: Tokenizer,
        max_tokens: int = 16384,
        source_tokens: int = 1224,
        candidate_tokens: int = 412,
    ) -> None:
        self.model, self.tokenizer, self.max_tokens = model, tokenizer, max_tokens
        self.source_tokens, self.longest_row = source_tokens, source_tokens + 2 * candidate_tokens
        self.usage: Usage = Counter()
        # The mask hides padding: any token will do for a tokenizer without one.
        self.pad_id: int = tokenizer.pad_token_id or model.config.pad_token_id or 0

    def compare(self, matches: Sequence[Match]) -> list[float | None]:
        encode = cache(self._encode)
        rows = [self.row(match, encode) for match in matches]
        self.usage["comparisons"] += len(rows)
        logits: dict[int, float] = {}
        for batch in length_batches([row.ids for row in rows], self.max_tokens, self.longest_row):
            logits |= zip(batch, self._forward([rows[i] for i in batch]), strict=True)
        return [logits[index] for index in range(len(rows))]

    def probe(self) -> None:
        """Does nothing: loading has already checked the model."""

    def row(self, match: Match, encode: Encode | None = None) -> PairwiseRow:
        read = encode or self._encode
        request, first, second = match.in_words
        source = read(SOURCE, request, self.source_tokens)
        room = (self.longest_row - len(source)) // 2
        parts = [source, read(FIRST, first, room), read(SECOND, second, room)]
        starts = (0, len(parts[0]), len(parts[0]) + len(parts[1]))
        found = [s + part.index(self._id(t)) for s, part, t in zip(starts, parts, MARKERS, strict=True)]
        return PairwiseRow([token for part in parts for token in part], (found[0], found[1], found[2]))

    def _id(self, token: str) -> int:
        return self.tokenizer.convert_tokens_to_ids(token)

    def _encode(self, marker: str, text: str, limit: int) -> list[int]:
        found = self.tokenizer(f"{marker}{text}", truncation=True, max_length=limit)["input_ids"]
        if len(found) == limit and len(self.tokenizer(f"{marker}{text}", truncation=False)["input_ids"]) > limit:
            self.usage["texts_read_in_part"] += 1
        return found

    @torch.inference_mode()
    def _forward(self, rows: Sequence[PairwiseRow]) -> list[float]:
        device = self.model.device
        ids = pad([row.ids for row in rows], self.pad_id).to(device)
        mask = pad([[1] * len(row.ids) for row in rows], 0).to(device)
        markers = torch.tensor([row.markers for row in rows], device=device)
        return self.model(ids, mask, markers).float().tolist()
