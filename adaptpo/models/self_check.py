"""Checks fast paths on a run's own model: log-probs and gradients of one real group against separate rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from adaptpo.choices.objectives import Objective
from adaptpo.errors import ModelError
from adaptpo.models.collate import Batch, GroupCollator, padded_rows
from adaptpo.models.inference import to_device
from adaptpo.models.loading import first_line
from adaptpo.models.logps import chunked_logps, pair_logps, whole_logps
from adaptpo.models.packing import PADDED, RowPacking
from adaptpo.models.shared_prompt.attention import base_model, sharing_prompts
from adaptpo.types import PairLogps, PromptGroup

WORTH_SHARING = 0.15
"""Share of the tokens that sharing must save. On small models, its overhead can exceed a smaller saving."""

LONGEST_CHECKED = 1536
COST = 8 / 0.05
"""Data's tokens per token of the checked group: the check computes it about 32 times as a forward pass, a run computes
the data at least 4 times, and the check may take 5 % of that."""
TOLERANCES = {torch.float32: (1e-3, 1e-3), torch.float64: (1e-3, 1e-3)}
LOW_PRECISION = (0.1, 0.1)
"""Tolerances: nats, and norm of the difference over the norm of the gradient."""

SMALL_PARAMETER = 2**20
"""Maximum size of the trainable parameters whose gradients are compared: norms and biases in every layer of a large
model, adapters, all parameters of a small model."""

Facts = dict[str, Any]
TokenLogps = Callable[[nn.Module, Batch], Tensor]
Precision = Callable[[], AbstractContextManager]


@dataclass(frozen=True)
class Measured:
    """Log-probs of the n responses of a group (`logps` [n], nats), and `gradients` of a fixed combination of them."""

    logps: Tensor
    gradients: list[Tensor]


@dataclass(frozen=True)
class Difference:
    """Difference of two measurements: `logps`, the largest in nats; `gradients`, its norm over the gradient's norm."""

    logps: float
    gradients: float

    def within(self, tolerance: Difference) -> bool:
        # A NaN is within no tolerance.
        return self.logps <= tolerance.logps and self.gradients <= tolerance.gradients


def checked_parameters(model: nn.Module) -> list[nn.Parameter]:
    trainable = sorted((p for p in model.parameters() if p.requires_grad), key=lambda p: p.numel())
    return [p for p in trainable if p.numel() <= SMALL_PARAMETER] or trainable[:1]


def difference(one: Measured, other: Measured) -> Difference:
    apart = sum(((a - b) ** 2).sum().item() for a, b in zip(one.gradients, other.gradients, strict=True)) ** 0.5
    norm = sum((a**2).sum().item() for a in one.gradients) ** 0.5
    return Difference((one.logps - other.logps).abs().max().item(), apart / norm if norm else apart)


def tolerance_for(dtype: torch.dtype) -> Difference:
    return Difference(*TOLERANCES.get(dtype, LOW_PRECISION))


def representative(tokens: NDArray[np.integer]) -> int:
    """Index of the longest group whose gradient should still fit into memory and whose check takes little of the run's
    time; of few groups, one of ordinary length. `tokens` [n] are the groups' lengths."""
    limit = min(LONGEST_CHECKED, max(float(tokens.sum()) / COST, float(np.median(tokens))))
    short = np.flatnonzero(tokens <= limit)
    return int(short[tokens[short].argmax()] if len(short) else tokens.argmin())


class SelfCheck:
    """Chooses how a run computes log-probs with a model, by trying each way on one of the run's groups.

    `dtype` is that of the matrix products; `precision` creates the context in which the model runs, such as autocast.
    """

    def __init__(
        self, model: nn.Module, group: PromptGroup, pad_id: int, dtype: torch.dtype, precision: Precision
    ) -> None:
        self.model, self.group, self.pad_id, self.precision = model.eval(), group, pad_id, precision
        self.name = type(base_model(model)).__name__
        self.exact = self.measure(self.separate_rows(), whole_logps)
        self.padded = difference(self.exact, self.measure([self.batch(PADDED)], whole_logps))
        self.limit = tolerance_for(dtype)

    def separate_rows(self) -> list[Batch]:
        """One batch with a single row per response, in the collator's order."""
        pairs = self.group.pairs
        responses = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        return [padded_rows([self.group.prompt.ids], [response], self.pad_id) for response in responses]

    def batch(self, rows: RowPacking) -> Batch:
        return GroupCollator(self.pad_id, rows)([self.group])

    def measure(self, batches: Sequence[Batch], token_logps: TokenLogps) -> Measured:
        """Measures batches in the order of the responses; gradients of `sum_i c_i logp_i` with c_i of both signs."""
        parameters = checked_parameters(self.model)
        with recomputing(self.model):
            return self._measured(batches, token_logps, parameters)

    def _measured(
        self, batches: Sequence[Batch], token_logps: TokenLogps, parameters: Sequence[nn.Parameter]
    ) -> Measured:
        total = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        logps: list[Tensor] = []
        for batch in batches:
            sums = self.response_sums(batch, token_logps)
            places = torch.arange(len(logps), len(logps) + len(sums), device=sums.device)
            loss = ((1 + places / 8) * (1 - 2 * (places % 2)) * sums).sum()
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            total = [t if g is None else t + g.float() for t, g in zip(total, gradients, strict=True)]
            logps += sums.detach().unbind()
        return Measured(torch.stack(logps), total)

    def response_sums(self, batch: Batch, token_logps: TokenLogps) -> Tensor:
        batch = to_device(batch, next(self.model.parameters()).device)
        with self.precision():
            tokens = token_logps(self.model, batch)
        mask = batch["response_mask"]
        return tokens.new_zeros(mask.shape).masked_scatter(mask, tokens).sum(dim=1)

    def accepts(self, found: Difference) -> bool:
        # In low precision, rounding differs between any two shapes: a difference that padding also makes is no error.
        logps, gradients = 2 * self.padded.logps, 2 * self.padded.gradients
        return found.within(Difference(max(self.limit.logps, logps), max(self.limit.gradients, gradients)))

    def refuse_dependence_on_padding(self) -> None:
        """Raises ModelError for a model whose log-probs depend on the padding after a response."""
        if not self.padded.within(Difference(10 * self.limit.logps, 10 * self.limit.gradients)):
            raise ModelError(
                f"{self.name}: log-probs of a response change by {self.padded.logps:.2g} nats (and gradients by "
                f"{self.padded.gradients:.1%}) when rows are padded on the right. The model cannot be trained in "
                "batches; use a causal model, or another attn_implementation (model_init_kwargs)"
            )

    def sharing(self) -> Facts:
        """Returns `rows` (`shared` or `padded`), the error of shared prompts, and the reason if they are not used."""
        try:
            with sharing_prompts(self.model) as possible:
                if not possible:
                    return padded_because(f"{self.name} has layers or attention that cannot share a prompt")
                found = difference(self.exact, self.measure([self.batch(RowPacking(shared_prompts=True))], whole_logps))
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, RuntimeError) as error:
            return padded_because(f"{self.name} cannot share a prompt: {first_line(error)}")
        facts: Facts = {"logps_difference": found.logps, "gradient_difference": found.gradients}
        if self.accepts(found):
            return facts | {"rows": "shared"}
        return facts | padded_because(
            f"with a shared prompt, log-probs of {self.name} are off by {found.logps:.2g} nats and gradients by "
            f"{found.gradients:.1%}"
        )

    def chunks_are_exact(self) -> bool:
        """Whether the model's logits are its head's output, so that the head may run in chunks."""
        batch = self.batch(PADDED)
        size = max(1, batch["targets"].numel() // 3)
        try:
            found = self.measure([batch], lambda model, batch: chunked_logps(model, batch, size))
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, IndexError, TypeError, ValueError, RuntimeError):
            return False
        return self.accepts(difference(self.exact, found))


@contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """Recomputes the activations of each layer in the backward pass, also of a model in evaluation mode.

    The layers alone are in training mode, not what they contain, which stays without dropout."""
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer) and not m.gradient_checkpointing]
    before = [layer.training for layer in layers]
    for layer in layers:
        layer.training = layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    try:
        yield
    finally:
        for layer, training in zip(layers, before, strict=True):
            layer.training, layer.gradient_checkpointing = training, False
            del layer._gradient_checkpointing_func


@torch.no_grad()
def loss_at_reference(
    model: nn.Module, group: PromptGroup, pad_id: int, dtype: torch.dtype, precision: Precision, objective: Objective
) -> float:
    """Returns the mean loss of a group's pairs in training mode, with the model itself as reference: ln 2 for DPO.

    Raises ModelError if training mode changes the log-probs: the policy would be trained on noise.
    """
    batch = to_device(GroupCollator(pad_id)([group]), next(model.parameters()).device)
    with precision():
        still, moving = pair_logps(model.eval(), batch), pair_logps(model.train(), batch)
    model.eval()
    expected, found = (objective.loss(with_reference(one, still)).mean().item() for one in (still, moving))
    apart = torch.cat([moving.chosen - still.chosen, moving.rejected - still.rejected]).abs().max().item()
    if not apart <= tolerance_for(dtype).logps:
        raise ModelError(
            f"{type(base_model(model)).__name__} adds noise in training mode that disable_dropout does not reach: "
            f"where policy and reference are the same, the loss is {found:.6f} instead of {expected:.6f} (log-probs "
            f"differ by {apart:.2g} nats). Set the rates of its configuration to 0, for instance "
            "model_init_kwargs: {attention_dropout: 0.0}, or accept the noise with disable_dropout: false"
        )
    return found


def with_reference(logps: PairLogps, reference: PairLogps) -> PairLogps:
    return replace(
        logps,
        reference_chosen=reference.chosen,
        reference_rejected=reference.rejected,
        reference_shared=reference.shared,
    )


def padded_because(reason: str) -> Facts:
    return {"rows": "padded", "reason": reason}


def choose_rows(
    model: nn.Module, group: PromptGroup, saved: float, pad_id: int, dtype: torch.dtype, precision: Precision
) -> Facts:
    """Returns how a run computes log-probs (`rows`, `chunked_head`) and the findings of the check, ready for JSON.

    `saved`: the share of the data's tokens that sharing prompts saves, compared with padding each group by itself.
    """
    check = SelfCheck(model, group, pad_id, dtype, precision)
    check.refuse_dependence_on_padding()
    worth = saved >= WORTH_SHARING
    facts = check.sharing() if worth else padded_because(f"sharing prompts would save {saved:.0%} of the tokens")
    return {"tokens_saved": round(saved, 3), "chunked_head": check.chunks_are_exact(), **facts}
