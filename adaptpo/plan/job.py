"""The job to plan: settings, method, and facts about model, data and annotator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from adaptpo.choices.learners.trust import Share
from adaptpo.choices.method import Method
from adaptpo.config.recipe import AlignmentConfig
from adaptpo.plan.arithmetic import Lengths, Passes, Shape, shared_prompt
from adaptpo.plan.choices import CHOSEN, REJECTED, method_in
from adaptpo.plan.data import DataFacts

OFFLINE_PAIR = (CHOSEN, REJECTED)
LABELS = {CHOSEN: "chosen", REJECTED: "rejected", "fresh": "fresh"}


@dataclass(frozen=True)
class AnnotatorFacts:
    """`shape` is None if annotating takes none of the machine's time: a function, a judge, a server. `trained`: whether
    the run trains it. `opponents`: for annotators that compare, what each response is compared with, in both orders.
    `number_bytes`: the size of its weights and numbers."""

    shape: Shape | None = None
    trained: bool = False
    number_bytes: int = 2
    opponents: Literal["first", "all"] | None = None

    def calls(self, responses: int, matches: int | None = None) -> int:
        """Number of calls for this many responses to one prompt, or for this many `matches` of two of them (see
        `adaptpo.annotation.tournament`)."""
        if self.opponents is None:
            return responses
        if matches is not None:
            return 2 * matches
        return 2 * (responses - 1) if self.opponents == "first" else responses * (responses - 1)


@dataclass(frozen=True)
class Job:
    """`fresh` is the expected length of a fresh response in tokens. `share` overrides the selection's expected share.
    `eval_prompts` is the number of held-out prompts; `eval_pairs` says whether they have offline pairs. `weight_bytes`
    is the size of a weight in memory, `number_bytes` that of a number in computation."""

    config: AlignmentConfig
    method: Method
    shape: Shape
    data: DataFacts
    fresh: float
    annotator: AnnotatorFacts = AnnotatorFacts()
    share: float | None = None
    eval_prompts: int = 0
    eval_pairs: bool = False
    weight_bytes: int = 4
    number_bytes: int = 4

    # Settings with the method's defaults

    @property
    def iterations(self) -> int:
        return self.config.num_iterations

    @property
    def has_pairs(self) -> bool:
        """Whether its prompts have offline pairs."""
        return self.data.has_pairs

    @property
    def alone(self) -> Job | None:
        """The job of the prompts without an offline pair, if there are some beside pairs."""
        return replace(self, data=self.data.alone) if self.data.alone else None

    @property
    def warmup_epochs(self) -> int:
        if not self.has_pairs:
            return 0
        chosen = self.config.warmup_epochs
        return self.method.warmup_epochs if chosen is None else chosen

    @property
    def mixed(self) -> bool:
        """Whether matrix products are in another precision than the weights."""
        return self.number_bytes != self.weight_bytes

    @property
    def reading_bytes(self) -> float:
        """Bytes of a model that only reads: the layers in the precision of the computation, embedding and head in that
        of the weights (`adaptpo.models.precision.keep_linear_layers`)."""
        ends = self.shape.parameters - self.shape.body
        return self.shape.body * self.number_bytes + ends * self.weight_bytes

    @property
    def accumulates(self) -> bool:
        return int(self.config.training.get("gradient_accumulation_steps", 1)) > 1

    @property
    def epochs(self) -> float:
        return float(self.config.training.get("num_train_epochs", self.method.num_train_epochs))

    @property
    def recomputes(self) -> bool:
        names = ("gradient_checkpointing", "activation_checkpointing")
        return any(self.config.training.get(name) for name in names)

    @property
    def reference(self) -> Literal["initial", "previous", "synced"]:
        chosen = self.config.reference or self.method.reference
        return chosen if isinstance(chosen, str) else "synced"

    @property
    def second_model(self) -> bool:
        """Whether training needs a reference model in memory that is not the policy without its adapter."""
        if self.reference == "synced":
            return True
        measured = "divergence" in self.method.weighting.measures
        return measured and (self.config.peft is None or self.reference == "previous")

    def method_in(self, iteration: int) -> Method:
        return method_in(self.method, iteration, self.iterations)

    def expected_share(self, iteration: int) -> Share:
        if not self.has_pairs:
            return Share(1.0, "prompts without an offline pair")
        if self.share is not None:
            return Share(self.share, "given")
        return self.method_in(iteration).selection.expected_share()

    # Prompts and tokens

    @property
    def kept(self) -> float:
        """Number of pairs that the method's filter keeps."""
        return self.data.pairs * self.method.filter.share

    @property
    def part(self) -> float:
        """Number of prompts in an iteration."""
        return self.kept / self.iterations

    def lengths(self, side: str) -> Lengths:
        known = {CHOSEN: self.data.chosen, REJECTED: self.data.rejected}
        return known.get(side, 0 * self.data.prompt + self.fresh)

    def longest(self, responses: float) -> float:
        """Expected maximum length of this many fresh responses, whose lengths are spread as those of the chosen ones
        are; the limit if no length is known."""
        limit = self.config.generation.max_new_tokens
        if not self.data.chosen.sum():
            return float(limit)
        lengths = np.sort(self.data.chosen) * (self.fresh / self.data.chosen.mean())
        below = np.linspace(0, 1, len(lengths) + 1) ** max(1.0, responses)
        return float((np.minimum(lengths, limit) * np.diff(below)).sum())

    def groups(self, prompts: float, sides: Sequence[str]) -> Passes:
        """Passes over this many prompts, each with these responses; the prompt is computed once."""
        return shared_prompt(self.data.prompt, [self.lengths(s) for s in sides]) * (prompts / self.data.sampled)

    def told(self, prompts: float, sides: Sequence[str]) -> str:
        """The arithmetic of `groups` in words."""
        parts = [f"{self.data.prompt.mean():.1f} prompt"]
        for side in dict.fromkeys(sides):
            count = sides.count(side)
            parts.append(f"{f'{count} x ' if count > 1 else ''}{self.lengths(side).mean():.1f} {LABELS[side]}")
        return f"{prompts:,.0f} x ({' + '.join(parts)} - {len(sides)})"
