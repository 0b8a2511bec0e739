"""In-process generation: one prefill per prompt, its cache expanded to K rows, finished rows dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from adaptpo.data.tokenization import decode_response
from adaptpo.data.vocabulary import foreign_ids
from adaptpo.generation.base import Sampling
from adaptpo.models.collate import pad
from adaptpo.types import Prompt, Response

COMPACT_BELOW = 0.75
"""Finished rows are dropped once less than this share is unfinished: dropping copies the cache."""


def expands_cache(model: Any) -> bool:
    """Whether a prompt's cache can be repeated for its responses; that of state-space and hybrid models cannot."""
    stateful = getattr(model, "_is_stateful", False)
    layers = [] if stateful else DynamicCache(config=model.config).layers
    return not stateful and all(hasattr(layer, "batch_repeat_interleave") for layer in layers)


def default_memory(device: torch.device) -> int:
    """Maximum bytes of a batch, besides the model: 40 % of a GPU's memory; 1 GiB elsewhere.

    The share is of total memory, not of free memory: a resumed run must make the same batches.
    """
    if device.type == "cuda":
        return int(0.4 * torch.cuda.get_device_properties(device).total_memory)
    return 2**30


def row_bytes(model: nn.Module, tokens: int) -> int:
    """Number of bytes of a response row of `tokens` tokens of this model; see `reserved_bytes`."""
    config: Any = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    itemsize = next(model.parameters()).element_size()
    return reserved_bytes(tokens, config.num_hidden_layers * 2 * heads * width, config.vocab_size, itemsize)


def reserved_bytes(tokens: int, cached: int, vocabulary: int, itemsize: int) -> int:
    """Number of bytes of a response row: its cache of `cached` numbers a token, twice while a step extends it, and the
    float32 and float64 copies of its next-token distribution."""
    return 2 * tokens * cached * itemsize + 32 * vocabulary


def prompt_batches(costs: Sequence[int], limit: int) -> list[list[int]]:
    """Indices sorted by cost, in batches whose size times the largest cost is at most `limit` (or of one prompt)."""
    batches: list[list[int]] = []
    for index in sorted(range(len(costs)), key=lambda i: costs[i]):
        if not batches or (len(batches[-1]) + 1) * costs[index] > limit:
            batches.append([])
        batches[-1].append(index)
    return batches


def logits_warpers(sampling: Sampling) -> LogitsProcessorList:
    """The warpers of `sampling`, in the order of transformers' `generate`."""
    warpers = LogitsProcessorList()
    if sampling.temperature not in (0.0, 1.0):
        warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k > 0:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return warpers


def uniform_draws(seeds: Sequence[int], count: int, steps: int) -> Tensor:
    """Uniform numbers in [0, 1), [len(seeds) * count, steps], each prompt's from its own generator."""
    draws = [
        torch.rand(count, steps, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in seeds
    ]
    return torch.cat(draws)


def draw_tokens(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Samples tokens [rows] by inverse CDF: those at which the cumulative probability passes `uniforms` [rows]."""
    cumulated = logits.double().softmax(dim=-1).cumsum(dim=-1)
    # Strictly below the total: rounding must never pick a token of probability 0 after the last possible one.
    target = uniforms.to(cumulated.device) * (cumulated[:, -1] * (1 - 1e-12))
    return torch.searchsorted(cumulated, target[:, None], right=True)[:, 0]


def where_sums_work(logits: Tensor) -> Tensor:
    """The logits where probabilities can be added up: not on a GPU in the deterministic mode, as a GPU adds in no fixed
    order, and not on MPS, which has no float64."""
    kind = logits.device.type
    unfit = kind == "mps" or (kind == "cuda" and torch.are_deterministic_algorithms_enabled())
    return logits.cpu() if unfit else logits


class DecodingRows:
    """The unfinished rows of a batch: their original indices, and the cache that holds their past."""

    def __init__(self, model: nn.Module, prompts: Sequence[Prompt], count: int, pad_id: int) -> None:
        self.model, self.pad_id = model, pad_id
        device = next(model.parameters()).device
        lengths = [len(prompt.ids) for prompt in prompts]
        ids = pad([prompt.ids for prompt in prompts], pad_id, left=True).to(device)
        mask = pad([[1] * length for length in lengths], 0, left=True).to(device)
        self.cache: Any = DynamicCache(config=model.config)
        self.logits = self._forward(ids, mask, (mask.cumsum(dim=1) - 1).clamp(min=0)).repeat_interleave(count, dim=0)
        self.cache.batch_repeat_interleave(count)
        self.mask = mask.repeat_interleave(count, dim=0)
        self.position = torch.tensor(lengths, device=device).repeat_interleave(count)
        self.row = torch.arange(len(prompts) * count, device=device)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    def advance(self, tokens: Tensor) -> None:
        """Appends one token to every row and computes the logits of the next."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.logits = self._forward(tokens[:, None], self.mask, self.position[:, None])
        self.position = self.position + 1

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.mask, self.position, self.row = self.mask[rows], self.position[rows], self.row[rows]


class UncachedRows:
    """Like `DecodingRows`, for models whose cache cannot be expanded: every step computes all tokens."""

    def __init__(self, model: nn.Module, prompt: Prompt, count: int) -> None:
        self.model = model
        device = next(model.parameters()).device
        self.ids = torch.tensor([prompt.ids] * count, device=device)
        self.row = torch.arange(count, device=device)
        self.logits = self._forward()

    def _forward(self) -> Tensor:
        return self.model(input_ids=self.ids, use_cache=False).logits[:, -1].float()

    def advance(self, tokens: Tensor) -> None:
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        self.logits = self._forward()

    def keep(self, rows: Tensor) -> None:
        self.ids, self.row = self.ids[rows], self.row[rows]


def decode(
    rows: DecodingRows | UncachedRows, sampling: Sampling, uniforms: Tensor, never: Sequence[int] = ()
) -> list[list[int]]:
    """Returns the token ids of every row, up to and including a stop token, or up to `max_new_tokens`; ids of `never`
    have probability 0."""
    warpers, stops = logits_warpers(sampling), torch.tensor(sorted(sampling.stop_ids), dtype=torch.long)
    outputs: list[list[int]] = [[] for _ in range(len(uniforms))]
    alive = torch.ones(len(rows.row), dtype=torch.bool)
    banned = torch.tensor(never, dtype=torch.long, device=rows.logits.device)
    for step in range(sampling.max_new_tokens):
        logits = rows.logits.index_fill(1, banned, -torch.inf) if never else rows.logits
        if sampling.temperature == 0:
            tokens = logits.argmax(dim=-1)
        else:
            summable = where_sums_work(logits)
            tokens = draw_tokens(warpers(None, summable), uniforms[rows.row.cpu(), step]).to(logits.device)
        chosen = tokens.cpu()
        for row, token, living in zip(rows.row.tolist(), chosen.tolist(), alive.tolist(), strict=True):
            if living:
                outputs[row].append(token)
        alive &= ~torch.isin(chosen, stops)
        if not alive.any() or step + 1 == sampling.max_new_tokens:
            break
        if alive.float().mean() < COMPACT_BELOW:
            rows.keep(alive.nonzero()[:, 0].to(tokens.device))
            tokens, alive = tokens[alive.to(tokens.device)], alive[alive]
        rows.advance(tokens)
    return outputs


class TransformersGenerator:
    """Samples from a transformers causal language model in this process.

    The distribution is that of `generate` with the same temperature, top-k and top-p, over the tokens that the
    tokenizer has: an embedding is often longer. No other setting of a `generation_config` counts. `batch_size` counts
    prompts; None takes as many as fit into `memory` bytes. `precision` creates the context in which the model runs,
    such as autocast.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        batch_size: int | None = None,
        memory: int | None = None,
        precision: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self.precision = precision
        self.model, self.tokenizer = model, tokenizer
        self.sampling, self.batch_size = sampling, batch_size
        self.memory = memory or default_memory(next(model.parameters()).device)
        self.expands_cache = expands_cache(model)
        config: Any = model.config
        self.never = foreign_ids(tokenizer, config.get_text_config().vocab_size, sampling.stop_ids)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt], count: int, seeds: Sequence[int]) -> list[list[Response]]:
        was_training = self.model.training
        self.model.eval()
        responses: dict[int, list[Response]] = {}
        for batch in self.batches(prompts, count):
            uniforms = uniform_draws([seeds[i] for i in batch], count, self.sampling.max_new_tokens)
            with self.precision():
                tokens = decode(self._rows([prompts[i] for i in batch], count), self.sampling, uniforms, self.never)
            outputs = [self._response(ids) for ids in tokens]
            responses |= {index: outputs[n * count : (n + 1) * count] for n, index in enumerate(batch)}
        self.model.train(was_training)
        return [responses[i] for i in range(len(prompts))]

    def batches(self, prompts: Sequence[Prompt], count: int) -> list[list[int]]:
        """Indices of the prompts that are sampled together, batch by batch, sorted by length."""
        lengths = [len(prompt.ids) for prompt in prompts]
        if not self.expands_cache:
            return [[index] for index in range(len(prompts))]
        if self.batch_size is None:
            new = self.sampling.max_new_tokens
            return prompt_batches([count * row_bytes(self.model, length + new) for length in lengths], self.memory)
        order = sorted(range(len(prompts)), key=lambda i: lengths[i])
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

    def _rows(self, prompts: Sequence[Prompt], count: int) -> DecodingRows | UncachedRows:
        if self.expands_cache:
            return DecodingRows(self.model, prompts, count, self.tokenizer.pad_token_id)
        return UncachedRows(self.model, prompts[0], count)

    def _response(self, ids: list[int]) -> Response:
        ended = bool(ids) and ids[-1] in self.sampling.stop_ids
        return Response(text=decode_response(self.tokenizer, ids, self.sampling.stop_ids), ids=ids, ended=ended)
