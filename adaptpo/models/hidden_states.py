"""Hidden states of the responses of pairs, from a policy after the prompt or from an encoder on the responses alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainingArguments

from adaptpo.choices.learners.pair_features import PairStates, Predictions
from adaptpo.choices.objectives import Objective
from adaptpo.data.conversation import spoken
from adaptpo.models.collate import Batch, GroupCollator
from adaptpo.models.head import head_inputs
from adaptpo.models.inference import PromptedPair, autocast, to_device
from adaptpo.models.logps import model_arguments
from adaptpo.models.packing import RowPacking, token_batches
from adaptpo.models.positions import longest_row
from adaptpo.models.shared_prompt.attention import base_model
from adaptpo.types import PromptGroup, Text

ENCODED_TOGETHER = 16
"""Responses per forward pass of an encoder."""


@torch.no_grad()
def policy_states(
    model: nn.Module,
    pad_id: int,
    items: Sequence[PromptedPair],
    args: TrainingArguments,
    rows: RowPacking,
    objective: Objective,
) -> Iterator[tuple[int, PairStates]]:
    """Yields each pair's index in `items` and its states under a policy, grouped by similar length."""
    model.eval()
    collate, head = GroupCollator(pad_id, rows), base_model(model).get_output_embeddings()
    groups = [PromptGroup(prompt, (pair,)) for prompt, pair in items]
    for indices in token_batches(groups, rows):
        batch = to_device(collate([groups[i] for i in indices]), args.device)
        with autocast(args):
            states = response_states(model, head, batch)
        lengths = batch["response_mask"].sum(dim=1).tolist()
        tokens, sides = batch["targets"][batch["target_mask"]].split(lengths), states.split(lengths)
        half = len(indices)
        for place, (chosen, rejected) in enumerate(zip(tokens[:half], tokens[half:], strict=True)):
            made = Predictions(chosen, rejected, head, objective.loss, items[indices[place]][1].reference_logps)
            yield indices[place], PairStates(sides[place], sides[half + place], made)


def response_states(model: nn.Module, head: nn.Module, batch: Batch) -> Tensor:
    """The last hidden states that predict response tokens, [tokens, hidden], in the order of the responses."""
    arguments = model_arguments(model, batch)
    with head_inputs(head) as inputs:
        model(**arguments)
    states = inputs[0].states if "logits_to_keep" in arguments else inputs[0].states[:, batch["columns"]]
    return states[batch["target_mask"]]


@torch.no_grad()
def encoder_states(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, items: Sequence[PromptedPair], device: torch.device
) -> Iterator[tuple[int, PairStates]]:
    """Yields each pair's index in `items` and its states under an encoder; responses beyond its positions are cut."""
    texts = [response_text(side.text) for _, pair in items for side in (pair.chosen, pair.rejected)]
    encoded = [found for start in range(0, len(texts), ENCODED_TOGETHER)
               for found in encode(model, tokenizer, texts[start : start + ENCODED_TOGETHER], device)]  # fmt: skip
    for index, ((chosen, cut), (rejected, also)) in enumerate(zip(encoded[::2], encoded[1::2], strict=True)):
        yield index, PairStates(chosen, rejected, truncated=cut or also)


def encode(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: list[str], device: torch.device
) -> list[tuple[Tensor, bool]]:
    """Returns the last hidden states [tokens, hidden] of each text, and whether the text was cut."""
    limit = min(longest_row(model) or tokenizer.model_max_length, tokenizer.model_max_length)
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    batch = tokenizer(
        texts, padding=True, truncation=True, max_length=limit, padding_side="right", return_tensors="pt"
    ).to(device)
    states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    rows = zip(states, batch["attention_mask"].bool(), lengths, strict=True)
    return [(row[mask].float(), length > limit) for row, mask, length in rows]


def response_text(text: Text) -> str:
    return text if isinstance(text, str) else "\n".join(map(spoken, text))
