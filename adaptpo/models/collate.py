"""Collates prompt groups into the tensors of a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from adaptpo.data.pair_numbers import data_weight
from adaptpo.models.packing import PADDED, ResponseGroup, RowPacking, token_batches
from adaptpo.models.shared_prompt.layout import positions, shared_prompts
from adaptpo.types import SOURCES, PairBatch, PairLogps, PreferencePair, PromptGroup, Response

Batch = dict[str, Any]
"""Tensors, the `SharedPrompts` of a row with shared prompts, and the `pairs` of preference data as `PairFacts`.

`input_ids` [rows, tokens]; `columns` [c], the columns whose logits predict response tokens; `targets` [rows, c], the
tokens that they predict; `target_mask` [rows, c], true where that is a trained token of the response;
`target_places` [tokens], the places of its true entries in `targets`, row after row; `response_mask`
[n, longest], true for each of the trained tokens of the n responses. In reading order, the true entries of both masks
mark the same tokens. An absent response has a row of `response_mask`, without a true entry, and takes no part in the
forward pass.
"""


@dataclass(frozen=True)
class PairFacts:
    """What is known of n pairs before the forward pass, as `PairBatch` names it, [n] each. It stays on the host, where
    weights are computed: to read it must not wait for a GPU."""

    prompt_id: Tensor
    group: Tensor
    group_size: Tensor
    source: Tensor
    reward_gap: Tensor
    data_weight: Tensor
    features: dict[str, Tensor]

    def to(self, *_: Any, **__: Any) -> PairFacts:
        return self


FILLER = "filler"
"""Key of a batch that counts for nothing: a rank computes it while other ranks have more batches left."""


def pad(rows: Sequence[Sequence[int]], value: int, left: bool = False) -> Tensor:
    """Pads rows with `value` to a tensor [rows, longest], int64."""
    width = max(len(row) for row in rows)
    padded = torch.full((len(rows), width), value, dtype=torch.long)
    for target, row in zip(padded, rows, strict=True):
        start = width - len(row) if left else 0
        target[start : start + len(row)] = torch.tensor(row, dtype=torch.long)
    return padded


def token_mask(lengths: Sequence[int]) -> Tensor:
    """A mask [rows, longest], bool, true where a row has a token."""
    counts = torch.tensor(lengths)
    return torch.arange(int(counts.max())) < counts[:, None]


def trained(response: Response) -> list[bool]:
    """Which tokens of a response count."""
    return [True] * len(response.ids) if response.mask is None else response.mask


def padded_rows(prompts: Sequence[Sequence[int]], responses: Sequence[Response], pad_id: int) -> Batch:
    """One row per response, padded on the right.

    No token sees what follows it. No mask is needed, and models that ignore masks are exact as well.
    """
    present = [(prompt, response) for prompt, response in zip(prompts, responses, strict=True) if response.ids]
    input_ids = pad([[*prompt, *response.ids] for prompt, response in present], pad_id)
    counts = pad([[False] * len(prompt) + trained(response) for prompt, response in present], False).bool()
    columns = torch.arange(min(len(prompt) for prompt, _ in present) - 1, input_ids.shape[1] - 1)
    return {
        "input_ids": input_ids,
        "columns": columns,
        "targets": input_ids[:, columns + 1],
        **targets_at(counts[:, columns + 1]),
        "response_mask": token_mask([sum(trained(response)) for response in responses]),
    }


def shared_rows(prompts: Sequence[Sequence[int]], responses: Sequence[Response], prompt_of: Sequence[int]) -> Batch:
    """One row `[prompt | response | response | ... | prompt | ...]`; response i follows `prompts[prompt_of[i]]`.

    A response's last token predicts nothing and is not in the row.
    """
    members: list[list[int]] = [[] for _ in prompts]
    for index, prompt in enumerate(prompt_of):
        if responses[index].ids:
            members[prompt].append(index)
    lengths = [[len(responses[i].ids) - 1 for i in inside] for inside in members]
    tokens: list[int] = []
    predictors: dict[int, list[int]] = {}
    for ids, inside in zip(prompts, members, strict=True):
        tokens += ids
        last = len(tokens) - 1
        for index in inside:
            start = len(tokens)
            tokens += responses[index].ids[:-1]
            predictors[index] = list(compress([last, *range(start, len(tokens))], trained(responses[index])))
    prompt_lengths = [len(prompt) for prompt in prompts]
    targets = torch.tensor([[token for r in responses for token in compress(r.ids, trained(r))]])
    return {
        "input_ids": torch.tensor([tokens]),
        "position_ids": positions(prompt_lengths, lengths)[None],
        "shared_prompts": shared_prompts(prompt_lengths, lengths),
        "columns": torch.tensor([column for i in range(len(responses)) for column in predictors.get(i, [])]),
        "targets": targets,
        **targets_at(torch.ones_like(targets, dtype=torch.bool)),
        "response_mask": token_mask([sum(trained(response)) for response in responses]),
    }


def targets_at(mask: Tensor) -> Batch:
    """`target_mask`, and `target_places`: a GPU would have to wait to learn how many entries of a mask are true."""
    return {"target_mask": mask, "target_places": mask.flatten().nonzero()[:, 0]}


def num_tokens(groups: Sequence[ResponseGroup], responses: Sequence[Response], prompt_of: Sequence[int]) -> int:
    """The tokens of all responses, each with its prompt, which is how TRL counts them."""
    lengths = [len(group.prompt.ids) for group in groups]
    return sum(lengths[prompt] for prompt in prompt_of) + sum(len(r.ids) for r in responses)


def response_rows(
    groups: Sequence[ResponseGroup],
    responses: Sequence[Response],
    prompt_of: Sequence[int],
    pad_id: int,
    rows: RowPacking,
) -> Batch:
    """The rows of a forward pass; response i follows the prompt of `groups[prompt_of[i]]`."""
    prompts = [group.prompt.ids for group in groups]
    count = {"num_tokens": num_tokens(groups, responses, prompt_of)}
    if rows.shared_prompts:
        return shared_rows(prompts, responses, prompt_of) | count
    return padded_rows([prompts[i] for i in prompt_of], responses, pad_id) | count


def reference_tensors(pairs: Sequence[PreferencePair]) -> Batch:
    """`reference_chosen` and `reference_rejected` [n] float32, or nothing if the objective needs no reference."""
    logps = [pair.reference_logps for pair in pairs if pair.reference_logps is not None]
    if len(logps) < len(pairs):
        return {}
    chosen, rejected = torch.tensor(logps, dtype=torch.float32).unbind(dim=1)
    sums = {"reference_chosen": chosen, "reference_rejected": rejected}
    return {**sums, **reference_shared(pairs), **reference_tokens(pairs)}


def reference_shared(pairs: Sequence[PreferencePair]) -> Batch:
    """`reference_shared` [n, 2] float32."""
    kept = [pair.reference_shared for pair in pairs if pair.reference_shared is not None]
    return {"reference_shared": torch.tensor(kept, dtype=torch.float32)} if len(kept) == len(pairs) else {}


def reference_tokens(pairs: Sequence[PreferencePair]) -> Batch:
    """`reference_tokens` [2n, longest] float32, laid out like `response_mask`, 0 after the end of a response."""
    kept = [pair.reference_tokens for pair in pairs if pair.reference_tokens is not None]
    if len(kept) < len(pairs):
        return {}
    rows = [torch.frombuffer(tokens, dtype=torch.float32) for side in zip(*kept, strict=True) for tokens in side]
    return {"reference_tokens": pad_sequence(rows, batch_first=True)}


def pair_facts(members: Sequence[tuple[int, PromptGroup, PreferencePair]]) -> PairFacts:
    """Of pairs, given with their group and its index."""
    groups, pairs = [group for _, group, _ in members], [pair for _, _, pair in members]
    nan = float("nan")
    return PairFacts(
        prompt_id=torch.tensor([pair.prompt_id for pair in pairs]),
        group=torch.tensor([index for index, _, _ in members]),
        group_size=torch.tensor([len(group.pairs) for group in groups]),
        source=torch.tensor([SOURCES.index(pair.source) for pair in pairs]),
        reward_gap=torch.tensor([nan if pair.reward_gap is None else pair.reward_gap for pair in pairs]),
        data_weight=torch.tensor([data_weight(group.prompt.columns) or 0.0 for group in groups]),
        features={name: torch.tensor([group.features[name] for group in groups]) for name in groups[0].features},
    )


@dataclass(frozen=True)
class GroupCollator:
    """Turns whole prompt groups into one batch. Its responses are all chosen ones, then all rejected ones, then the
    samples of the pairs that have one."""

    pad_id: int
    rows: RowPacking = PADDED

    def __call__(self, groups: Sequence[PromptGroup]) -> Batch:
        members = [(index, group, pair) for index, group in enumerate(groups) for pair in group.pairs]
        pairs = [pair for _, _, pair in members]
        samples = [(index, pair.sample) for index, _, pair in members if pair.sample is not None]
        responses = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        prompt_of = [index for index, _, _ in members] * 2 + [index for index, _ in samples]
        return {
            **response_rows(groups, responses + [made for _, made in samples], prompt_of, self.pad_id, self.rows),
            **reference_tensors(pairs),
            **({"has_sample": torch.tensor([pair.sample is not None for pair in pairs])} if samples else {}),
            "pairs": pair_facts(members),
        }

    def batches(self, groups: Sequence[PromptGroup]) -> list[Batch]:
        """Batches of whole groups within `rows.max_tokens`."""
        return [self([groups[i] for i in indices]) for indices in token_batches(groups, self.rows)]


def pair_batch(facts: PairFacts, logps: PairLogps, margin: Tensor, **measured: Tensor) -> PairBatch:
    """What weightings and learners see; `logps` and `margin` are on the host, and so are `measured`, which a
    `VocabularyProbe` adds."""
    absent = torch.stack([logps.chosen_tokens, logps.rejected_tokens], dim=1) == 0
    return PairBatch(
        **vars(facts),
        margin=margin.detach().float(),
        ratios=logps.ratios().detach().float().masked_fill(absent, float("nan")),
        **{"divergence": logps.divergence, **measured},
    )


def count_prompts(batch: Batch) -> int:
    return int(batch["pairs"].group.max()) + 1
