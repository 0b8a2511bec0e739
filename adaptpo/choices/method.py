"""A method: four choices (selection, pairing, objective and weighting), and how the policy trains on their result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from adaptpo.choices.described import choice_name, code_digests
from adaptpo.choices.filters import KEEP_ALL, Filter
from adaptpo.choices.hold_out import Validation
from adaptpo.choices.iteration import Iteration
from adaptpo.choices.learners.base import Estimator, Gather, Learner, Schedule, TakenStep
from adaptpo.choices.learners.pair_features import PairFeature
from adaptpo.choices.objectives import DPO, OBJECTIVES, Objective
from adaptpo.choices.pairing import Offline, Online, Pairing
from adaptpo.choices.policy_update import OnPairs, PolicyTrainer
from adaptpo.choices.reference import Reference
from adaptpo.choices.selection import Selection, SelectNone
from adaptpo.choices.weighting import LearnedBlend, Uniform, Weighting
from adaptpo.config.numbers import CountOrZero, Positive, Ranged
from adaptpo.errors import ConfigError
from adaptpo.types import PairBatch


@dataclass(frozen=True)
class Method(Ranged):
    """The four choices and the settings around them.

    `warmup_epochs`: epochs of offline training before the first iteration. `num_train_epochs`: epochs of an iteration's
    training on pairs, unless the recipe sets `training.num_train_epochs`. `reference`: whose log-probs the loss
    compares with, those of the initial model, of the policy that started the iteration, or of a model that follows it
    in training. `filter`: which offline pairs are used. `validation`: which of those are held out from training, for
    learners that look ahead. `trainer`: what trains the policy, by default the objective on the pairs. Under another
    trainer, the objective serves only a warm-up and the margins that selection and evaluation see.

    A method may hold learners, and two choices may share one. The trainer copies the method at the start of a run, so
    one `Method` object can be used for many runs.
    """

    selection: Selection
    pairing: Pairing
    objective: Objective
    weighting: Weighting
    warmup_epochs: CountOrZero = 0
    num_train_epochs: Positive = 1
    reference: Reference = "initial"
    filter: Filter = KEEP_ALL
    validation: Validation | None = None
    trainer: PolicyTrainer = OnPairs()  # noqa: RUF009 (frozen)
    name: str = "custom"
    usual_objective: type[Objective] | None = field(default=None, compare=False, repr=False)
    """The kind of objective that the named method has by default; None for a method without a name."""

    def __post_init__(self) -> None:
        """Raises ConfigError if the trainer needs more responses than the pairing generates."""
        super().__post_init__()
        count, fewest = self.pairing.num_generations, self.trainer.fewest_responses
        if count < fewest:
            raise ConfigError(f"num_generations is {count}, but this policy trainer needs {fewest} or more")

    def learners(self) -> tuple[Learner, ...]:
        """The learners of all choices; one that several choices share appears once."""
        parts = (self.selection, self.objective, self.weighting)
        found = {id(learner): learner for part in parts for learner in part.learners()}
        return tuple(found.values())

    def features(self) -> tuple[PairFeature, ...]:
        """The features that learners request, each once.

        Raises ConfigError if two learners request different features of one name.
        """
        asked = [feature for learner in self.learners() for feature in learner.needed_features()]
        found = {feature.name: feature for feature in asked}
        for feature in asked:
            if feature != found[feature.name]:
                raise ConfigError(
                    f"two learners request different features '{feature.name}': {feature!r} and "
                    f"{found[feature.name]!r}; let them share one"
                )
        return tuple(found.values())

    def refuse_impossible(self) -> None:
        """Raises ConfigError for choices that do not fit together: an objective that needs a fresh response beside each
        pair, which the pairing does not keep; gradients of sums of log-probs, for an objective of their parts."""
        if self.objective.needs_sample and not self.pairing.keep_sample:
            raise ConfigError(
                f"the objective {self.objective!r} needs a fresh response beside each pair, but method "
                f"'{self.name}' keeps none; use the method selm, or another objective"
            )
        if self.objective.needs_shared and self._differentiates_sums:
            raise ConfigError(
                f"method '{self.name}' measures gradients by way of the log-probs of whole responses, which "
                "method.objective.ld_alpha divides; leave ld_alpha out, or gradient norms out of the method"
            )

    @property
    def _differentiates_sums(self) -> bool:
        """Whether gradients of the loss are computed in closed form from those by the two log-probs of a pair."""
        measured = "head_gradient_norm" in self.weighting.measures
        return measured or any(feature.needs_head for feature in self.features())

    @property
    def takes_unpaired(self) -> bool:
        """Whether offline data may have one response and a verdict in each row: nothing may compare two responses."""
        compares = self.selection.needs_margins or not self.filter.keeps_all or self.validation is not None
        measures = self.weighting.measures or self.weighting.needs_reference_tokens or self.features()
        fresh = self.pairing.num_generations > 0 or not self.trainer.uses_pairs
        return self.objective.takes_unpaired and not (compares or measures or fresh)

    def updates(self) -> dict[str, int]:
        """The number of updates of each learner that counts them, by title."""
        return {learner.title: learner.updates for learner in self.learners() if learner.updates is not None}

    def doubts(self, schedule: Schedule) -> list[str]:
        """Choices without effect, and reasons why the learners could learn little or nothing in this training."""
        learning = [doubt for learner in self.learners() for doubt in learner.doubts(schedule)]
        return [*self._idle(), *(learning if self.trainer.uses_pairs else [])]

    def _idle(self) -> Iterator[str]:
        """The choices that change nothing beside the others, and an objective that makes the method another one."""
        kinds = [type(part) for part in getattr(self.objective, "parts", (self.objective,))]
        if self.usual_objective is not None and self.usual_objective not in (DPO, *kinds):
            own = self.usual_objective
            usual = next((name for name, kind in OBJECTIVES.items() if kind is own), own.__name__)
            trained = choice_name(OBJECTIVES, self.objective)
            yield (
                f"method '{self.name}' trains with the objective {trained} in place of its own, {usual}: leave "
                "method.objective out, or give that one with your settings"
            )
        if not (self.trainer.uses_pairs or isinstance(self.weighting, Uniform)):
            yield "method.weighting has no effect: this policy trainer learns from rewards and not pairs; leave it out"
        if self.trainer.uses_pairs and isinstance(self.pairing, Offline) and not isinstance(self.selection, SelectNone):
            yield (
                "method.selection has no effect: the pairing uses no fresh responses; leave it out, or set "
                "method.pairing to online or offline_and_online"
            )
        if isinstance(self.weighting, LearnedBlend) and isinstance(self.pairing, Offline | Online):
            yield (
                "method.weighting has no effect, and its learner never learns: each prompt has one pair, which counts "
                "1; set method.pairing to offline_and_online, or method.weighting to uniform"
            )

    @property
    def looks_ahead(self) -> Estimator | None:
        """How learners differentiate through the policy's optimizer steps; None if none does."""
        wanted = [estimator for learner in self.learners() if (estimator := learner.looks_ahead)]
        return wanted[0] if wanted else None

    def external_inputs(self) -> dict[str, str]:
        """The learners' inputs beside the run's model and data: name -> path or hub id."""
        return {name: path for learner in self.learners() for name, path in learner.external_inputs().items()}

    def needs_stage(self, iteration: int) -> bool:
        """Whether the alignment stage of the policy is measured before this iteration."""
        choices = (self.selection, self.pairing, self.weighting)
        asked = [choice.needs_stage(iteration) for choice in choices]
        return any(asked) or any(learner.needs_stage(iteration) for learner in self.learners())

    def annotates(self, iterations: int) -> bool:
        """Whether a run of so many iterations needs rewards before any evaluation."""
        measures = any(map(self.needs_stage, range(iterations)))
        return self.pairing.num_generations > 0 or measures or "reward_gap" in self.filter.needs

    def at(self, now: Iteration) -> Method:
        """The method for an iteration, with the same learner objects."""
        return replace(
            self, selection=self.selection.at(now), pairing=self.pairing.at(now), weighting=self.weighting.at(now)
        )

    @property
    def takes_prompts(self) -> bool:
        """Whether it makes use of prompts without an offline pair, by generating for every one of them."""
        return self.pairing.takes_prompts and self.filter.keeps_all

    def uses_of_pairs(self, iterations: int) -> list[str]:
        """What cannot work if no prompt has an offline pair, in words; empty if the method needs none."""
        uses = {
            "its selection scores them": self.selection.needs_margins,
            "it measures the policy's alignment stage on them": any(map(self.needs_stage, range(iterations))),
            "its weights are learned on held-out ones": self.validation is not None,
            "its learner reads their features": bool(self.features()),
        }
        return [use for use, needed in uses.items() if needed]

    @property
    def needs_reference(self) -> bool:
        """Whether the run stores the initial model's log-probs of the offline pairs."""
        split = self.validation is not None and self.validation.needs_reference
        return self.objective.needs_reference or self.weighting.needs_reference_tokens or split

    def warmup(self) -> Method:
        """The warm-up: plain offline training with the same objective."""
        return Method(SelectNone(), Offline(), self.objective, Uniform(), name=f"{self.name} warm-up")

    def choices(self) -> dict[str, str]:
        """The four choices as text, by axis."""
        return {axis: repr(getattr(self, axis)) for axis in ("selection", "pairing", "objective", "weighting")}

    def code(self) -> dict[str, str]:
        """Hashes of the choices that are not this package's, by class."""
        return code_digests(self.selection, self.pairing, self.objective, self.weighting)

    def opening(self) -> dict[str, Any]:
        """The properties that the phases before the first iteration depend on, as text and numbers."""
        return {
            "objective": repr(self.objective),
            "filter": repr(self.filter),
            "validation": repr(self.validation),
            "needs_data_weight": self.weighting.needs_data_weight,
            "needs_reference_tokens": self.weighting.needs_reference_tokens,
            "uses_offline_pairs": self.trainer.uses_pairs or self.selection.needs_margins,
            "takes_prompts": self.takes_prompts,
            "features": [repr(feature) for feature in self.features() if not feature.follows_policy],
            "code": code_digests(self.objective),
        }

    def reset(self, seed: int) -> None:
        """Starts all learners afresh."""
        for learner in self.learners():
            learner.reset(seed)

    def start_iteration(self, now: Iteration) -> None:
        """Tells all learners that an iteration starts."""
        for learner in self.learners():
            learner.start_iteration(now)

    def start_training(self, steps: int) -> None:
        """Tells all learners how many optimizer steps the coming training has."""
        for learner in self.learners():
            learner.start_training(steps)

    def observe(self, batch: PairBatch) -> None:
        """Shows a micro-batch to all learners."""
        for learner in self.learners():
            learner.observe(batch)

    def look_ahead(self) -> Estimator | None:
        """How the next optimizer step is to be differentiated; None if no learner asks for it."""
        wanted = [estimator for learner in self.learners() if (estimator := learner.look_ahead())]
        return wanted[0] if wanted else None

    def learn_ahead(self, step: TakenStep, gather: Gather) -> None:
        """Lets the learners that asked for it learn from the step that was just taken."""
        for learner in self.learners():
            if learner.look_ahead():
                learner.learn_ahead(step, gather)

    def update(self, gather: Gather) -> None:
        """Lets all learners update after an optimizer step; `gather` concatenates rows of all ranks."""
        for learner in self.learners():
            learner.update(gather)

    def state_dict(self) -> dict[str, Any]:
        """The state of all learners, for a checkpoint."""
        return {"learners": [learner.state_dict() for learner in self.learners()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        for learner, saved in zip(self.learners(), state["learners"], strict=True):
            learner.load_state_dict(saved)

    def metrics(self) -> dict[str, float]:
        """The metrics of all learners."""
        return {name: value for learner in self.learners() for name, value in learner.metrics().items()}

    def snapshot(self) -> dict[str, Any]:
        """What the report shows of all learners."""
        return {name: value for learner in self.learners() for name, value in learner.snapshot().items()}
