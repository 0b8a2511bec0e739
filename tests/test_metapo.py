"""MetaPO: features against the stored history, the meta-gradient against the step itself, and runs that resume."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from peft import LoraConfig, get_peft_model

from adaptpo import AlignmentConfig, AlignmentTrainer, Method, methods
from adaptpo.choices.hold_out import Validation
from adaptpo.choices.iteration import Iteration
from adaptpo.choices.learners.base import Estimator, Influence
from adaptpo.choices.learners.temporal import FeatureSet, TemporalLearner, ValidationGoal, history
from adaptpo.choices.learners.temporal.cadence import Cadence
from adaptpo.choices.learners.temporal.features import BASE, CURRENT, GRADIENT, HIGHER
from adaptpo.choices.learners.temporal.goal import weight_entropy
from adaptpo.choices.learners.temporal.networks import NETWORKS, new_network
from adaptpo.choices.objectives import DPO
from adaptpo.choices.weighting import LearnedBlend, Temporal
from adaptpo.errors import ConfigError, TrainingError
from adaptpo.models.collate import Batch, GroupCollator
from adaptpo.models.logps import pair_logps, token_logps
from adaptpo.pipeline.phases.hold_out import difficulty
from adaptpo.run.files import JsonLines, read_rows
from adaptpo.training.look_ahead import LookAhead, PairLosses, Trained
from adaptpo.training.optimizer_rules import check_optimizer, update_rule
from adaptpo.training.step import preference_step
from adaptpo.types import OFFLINE, ONLINE, PairBatch, PreferencePair, Prompt, PromptGroup, Response
from tests.groups import random_groups, with_reference
from tests.runs import SETTINGS, assert_same_run, run_in_process, weights
from tests.tiny import byte_tokenizer, preference_rows, save_policy, tiny_model, vowel_reward


def identity(rows: torch.Tensor) -> torch.Tensor:
    return rows


def observed(
    ids: list[int],
    margins: list[float],
    divergences: list[float],
    source: int = OFFLINE,
    gradients: list[float] | None = None,
) -> PairBatch:
    """One pair a prompt."""
    number, one = torch.arange(len(ids)), torch.ones(len(ids))
    return PairBatch(
        prompt_id=torch.tensor(ids),
        group=number,
        group_size=one.long(),
        source=torch.full((len(ids),), source),
        reward_gap=one,
        data_weight=one,
        margin=torch.tensor(margins),
        ratios=torch.zeros(len(ids), 2),
        divergence=torch.tensor(divergences),
        head_gradient_norm=None if gradients is None else torch.tensor(gradients),
    )


# Features


def smoothed(values: list[float], decay: float) -> float:
    mean = values[0]
    for value in values[1:]:
        mean = decay * mean + (1 - decay) * value
    return mean


def plain_features(
    margins: list[float], divergences: list[float], gradients: list[float], features: FeatureSet
) -> dict[str, float]:
    """From the whole history, as the equations stand in the paper."""
    spreads = []
    for t in range(1, len(margins) + 1):
        seen = np.array(margins[:t])
        if features.centre == "mean":
            spreads.append(seen.std())
        else:
            centres = [smoothed(margins[:n], features.decay) for n in range(1, t)]
            spreads.append(math.sqrt(sum((m - c) ** 2 for m, c in zip(seen[1:], centres, strict=True)) / t))
    x = np.array(margins)
    z = (x - x.mean()) / x.std() if x.std() > 1e-5 else np.zeros(len(x))
    return {
        "margin": margins[-1],
        "margin_ema": smoothed(margins, features.decay),
        "volatility": spreads[-1],
        "volatility_ema": smoothed(spreads, features.decay),
        "divergence": divergences[-1],
        "divergence_ema": smoothed(divergences, features.decay),
        "skewness": (z**3).mean(),
        "kurtosis": (z**4).mean() - 3 if z.any() else 0.0,
        "change": margins[-1] - margins[-2] if len(margins) > 1 else 0.0,
        "head_gradient_norm": gradients[-1],
        "head_gradient_norm_ema": smoothed(gradients, features.decay),
    }


@pytest.mark.parametrize("centre", ["mean", "ema"])
def test_streaming_features_are_those_of_the_whole_history(centre: Any) -> None:
    """1000 pairs of random scales and lengths, in steps of random composition."""
    names = BASE + ((*HIGHER,) if centre == "mean" else ())
    features = FeatureSet(names, decay=0.8, centre=centre)
    learner = TemporalLearner(features=features)
    rng = np.random.default_rng(0)
    scales, offsets = 10 ** rng.uniform(-2, 1, 1000), rng.normal(0, 2, 1000)
    signals = [defaultdict[int, list[float]](list) for _ in range(3)]
    for _ in range(12):
        ids = rng.permutation(1000)[: rng.integers(100, 1000)].tolist()
        margins, divergences, gradients = (rng.normal(offsets[ids], scales[ids]).tolist() for _ in range(3))
        batch = observed(ids, margins, divergences, gradients=gradients)
        for seen, values in zip(signals, (batch.margin, batch.divergence, batch.head_gradient_norm), strict=True):
            for i, value in zip(ids, values.tolist(), strict=True):
                seen[i].append(value)
        ours = learner.features_of(batch).numpy()
        learner.observe(batch)
        learner.update(identity)
        plain = (plain_features(*(seen[i] for seen in signals), features) for i in ids)
        expected = [[values[name] for name in names] for values in plain]
        np.testing.assert_allclose(ours, np.array(expected), atol=2e-4, rtol=2e-3)
    assert max(map(len, signals[0].values())) >= 10


def test_features_by_hand() -> None:
    learner = TemporalLearner()
    first, second = observed([7], [1.0], [0.5]), observed([7], [3.0], [0.1])
    assert learner.features_of(first).tolist() == [[1.0, 1.0, 0.0, 0.0, 0.5, 0.5]]
    learner.observe(first)
    learner.update(identity)
    assert learner.features_of(second)[0].tolist() == pytest.approx([3.0, 1.2, 1.0, 0.1, 0.1, 0.46])


def test_looking_at_a_pair_leaves_its_history_alone() -> None:
    learner = TemporalLearner()
    batch = observed([3], [1.0], [0.5])
    assert torch.equal(learner.features_of(batch), learner.features_of(batch))
    learner.observe(batch)
    assert learner.features_of(observed([3], [2.0], [0.5]))[0, 2] == 0, "before the step is over nothing was seen"


def test_sources_of_a_prompt_have_histories_of_their_own() -> None:
    learner = TemporalLearner()
    learner.observe(observed([0], [5.0], [0.0]))
    learner.update(identity)
    assert learner.features_of(observed([0], [1.0], [0.0], ONLINE))[0, 1] == 1.0
    assert learner.features_of(observed([0], [1.0], [0.0]))[0, 1] == pytest.approx(4.6)


def test_pairs_of_one_prompt_and_source_have_histories_of_their_own() -> None:
    """Two pairs whose margins stay at 1 and at 5: no average moves, and nothing varies."""
    learner = TemporalLearner()
    one_prompt = {"group": torch.tensor([0, 0]), "group_size": torch.tensor([2, 2])}
    both = replace(observed([0, 0], [1.0, 5.0], [0.0, 0.0]), **one_prompt)
    for _ in range(2):
        learner.observe(both)
        learner.update(identity)
    assert learner.features_of(both)[:, :4].tolist() == [[1.0, 1.0, 0.0, 0.0], [5.0, 5.0, 0.0, 0.0]]


def test_difficulty_is_a_mean_over_trained_tokens() -> None:
    """Of ten chosen tokens two are trained, in turns of which the others are the prompt's."""
    chosen = Response("", [5] * 10, mask=[False] * 8 + [True] * 2)
    pair = PreferencePair(0, "offline", chosen, Response("", [5] * 3), reference_logps=(-4.0, -6.0))
    assert difficulty((Prompt(0, "", [1]), pair)) == -6.0 / 3 + 4.0 / 2


def test_ranks_and_micro_batches_make_one_history() -> None:
    """Another rank's pairs arrive by `gather`; a pair that two ranks have counts once."""
    alone, rank = TemporalLearner(), TemporalLearner()
    alone.observe(observed([0, 1, 2], [1.0, 2.0, 3.0], [0.1, 0.2, 0.3]))
    alone.update(identity)
    rank.observe(observed([0], [1.0], [0.1]))
    rank.observe(observed([1], [2.0], [0.2]))
    other = TemporalLearner()
    other.observe(observed([2, 0], [3.0, 1.0], [0.3, 0.1]))
    rank.update(lambda rows: torch.cat([rows, other.seen]))
    assert torch.equal(alone.history.state_dict()[OFFLINE], rank.history.state_dict()[OFFLINE][:3])
    assert torch.equal(alone.last_features, rank.last_features)


def test_a_pair_takes_24_bytes_also_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FeatureSet().dtype.itemsize == 24
    assert FeatureSet((*BASE, *GRADIENT)).dtype.itemsize == 28
    monkeypatch.setattr(history, "MEMORY", 100)
    learner, restored = TemporalLearner(), TemporalLearner()
    for number in range(3):
        learner.observe(observed([number, 40 * number], [1.0, 2.0], [0.0, 0.1]) if number else observed([0], [1], [0]))
        learner.update(identity)
    assert isinstance(learner.history.records[OFFLINE], np.memmap)
    restored.load_state_dict(learner.state_dict())
    batch = observed([0, 1, 2, 40, 79, 80, 999], [0.5] * 7, [0.2] * 7)
    assert torch.equal(restored.features_of(batch), learner.features_of(batch))


def test_unknown_features_and_missing_divergences_are_named() -> None:
    with pytest.raises(ConfigError, match="surprise"):
        FeatureSet(("margin", "surprise"))
    batch = replace(observed([0], [1.0], [0.0]), divergence=None)
    with pytest.raises(TrainingError, match="every token"):
        TemporalLearner().weight(batch)
    assert TemporalLearner(FeatureSet(("margin", "volatility"))).weight(batch).tolist() == [1.0]
    with pytest.raises(TrainingError, match="norm of the head's gradient"):
        TemporalLearner(FeatureSet(GRADIENT)).weight(batch)


def test_only_what_features_need_is_measured_and_kept() -> None:
    asked = {"divergence", "head_gradient_norm"}
    for features, divergence, measures in (
        (BASE, "k3", set()),
        (BASE, "exact", {"divergence"}),
        ((*BASE, "head_gradient_norm_ema"), "exact", asked),
        (("margin", "head_gradient_norm"), "exact", asked - {"divergence"}),
    ):
        weighting = methods.metapo(features=features, divergence=divergence).weighting
        assert weighting.measures == measures
        assert weighting.needs_reference_tokens == (divergence == "k3")


def test_features_can_be_left_out() -> None:
    """Rows of Table 6: the network has an input for each feature that is there, in their order."""
    learner, batch = TemporalLearner(FeatureSet(CURRENT)), observed([0], [2.0], [0.5])
    assert learner.features_of(batch).tolist() == [[2.0, 0.0, 0.5]]
    assert list(learner.coefficients()) == ["margin", "volatility", "divergence", "bias"]


# Divergence


def test_divergence_by_hand() -> None:
    """exp(g) - 1 - g with g = log pi_ref - log pi, as a mean over the tokens of both responses."""
    groups, model, reference = random_groups(3), tiny_model(byte_tokenizer()), tiny_model(byte_tokenizer(), seed=1)
    batch = GroupCollator(0)(groups)
    with torch.no_grad():
        ours, theirs = token_logps(model, batch), token_logps(reference, batch)
        found = pair_logps(model, batch | {"reference_tokens": theirs}).divergence
        same = pair_logps(model, batch | {"reference_tokens": ours}).divergence
    lengths = batch["response_mask"].sum(dim=1).tolist()
    pairs = len(lengths) // 2
    for i in range(pairs):
        gaps = [(theirs - ours)[row, : lengths[row]] for row in (i, pairs + i)]
        terms = [math.exp(g) - 1 - g for gap in gaps for g in gap.tolist()]
        assert found[i].item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)
    assert same.abs().max() == 0
    assert pair_logps(model, batch).divergence is None


# The weighting network


@pytest.mark.parametrize(("name", "parameters"), [("linear", 7), ("mlp", 257), ("deep_mlp", 2561), ("attention", 133)])
def test_networks_start_with_weights_of_exactly_one_and_learn(name: Any, parameters: int) -> None:
    assert set(NETWORKS) == {"linear", "mlp", "deep_mlp", "attention"}
    network, features = new_network(name, 6, seed=3), 5 * torch.randn(50, 6)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert torch.equal(network(features), torch.ones(50))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        (network(features) - torch.sigmoid(features[:, 3])).square().mean().backward()
        optimizer.step()
    weight = network(features)
    assert weight.min() > 0
    assert torch.corrcoef(torch.stack([weight, features[:, 3]]))[0, 1] > 0.7


# The meta-gradient


@dataclass
class Bench:
    """A tiny float64 policy in the middle of its training."""

    losses: PairLosses
    optimizer: torch.optim.Optimizer
    trained: list[Trained]
    validation: list[Batch]
    prompts: int
    max_norm: float

    @property
    def weights(self) -> torch.Tensor:
        return torch.cat([weights for _, _, weights in self.trained])

    def backward(self, weights: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        losses = torch.cat([self.losses(batch)[0] for batch, _, _ in self.trained])
        ((weights * losses).sum() / self.prompts).backward()

    def step(self) -> None:
        if self.max_norm:
            torch.nn.utils.clip_grad_norm_(self.losses.parameters(), self.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def influence(self, estimator: Estimator, goal: ValidationGoal = ValidationGoal()) -> Influence:  # noqa: B008
        self.backward(self.weights)
        step = LookAhead(
            losses=self.losses,
            optimizer=self.optimizer,
            trained=self.trained,
            prompts=self.prompts,
            max_norm=self.max_norm,
            validation=self.validation,
            estimator=estimator,
            precision=nullcontext,
        )
        self.step()
        influence = step.influence(goal)
        assert influence is not None
        return influence

    @torch.no_grad()
    def goal(self, goal: ValidationGoal) -> float:
        losses, margins = (torch.cat(parts) for parts in zip(*map(self.losses, self.validation), strict=True))
        return goal(losses, margins, len(losses), int((margins > 0).sum())).item()

    def by_brute_force(self, goal: ValidationGoal, change: float = 1e-4) -> torch.Tensor:
        """Take the step again with each weight a little larger and smaller, by torch's own optimizer."""
        model, optimizer = ({k: clone(v) for k, v in m.state_dict().items()} for m in (self.losses, self.optimizer))
        derivatives = []
        for number in range(len(self.weights)):
            values = []
            for sign in (1, -1):
                self.losses.load_state_dict(model)
                self.optimizer.load_state_dict({k: clone(v) for k, v in optimizer.items()})
                self.backward(self.weights + sign * change * torch.eye(len(self.weights))[number])
                self.step()
                values.append(self.goal(goal))
            derivatives.append((values[0] - values[1]) / (2 * change))
        self.losses.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        return torch.tensor(derivatives, dtype=torch.float64)


def clone(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: clone(part) for key, part in value.items()}
    return [clone(part) for part in value] if isinstance(value, list) else value


def with_wide_norms(model: torch.nn.Module) -> torch.nn.Module:
    """Llama's own compute in float32 whatever the model's dtype, too coarse for differences of whole steps."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "LlamaRMSNorm":
                norm = torch.nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon, dtype=torch.float64)
                norm.load_state_dict(child.state_dict())
                setattr(parent, name, norm)
    return model


def bench(optimizer: str, lora: bool = False, micro_batches: int = 1, max_norm: float = 0.0) -> Bench:
    tokenizer = byte_tokenizer()
    model = with_wide_norms(tiny_model(tokenizer).double())
    if lora:
        torch.manual_seed(5)
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
        model = model.double()
    groups = with_reference(random_groups(8), tiny_model(tokenizer, seed=1))
    losses = PairLosses(model, DPO())
    trainable = [p for p in model.parameters() if p.requires_grad]
    kinds: dict[str, Any] = {"adamw": (torch.optim.AdamW, {"weight_decay": 0.1}), "sgd": (torch.optim.SGD, {})}
    kind, settings = kinds[optimizer]
    made = kind(trainable, lr=1e-2 if optimizer == "sgd" else 1e-3, **settings)
    training, validation = groups[:4], groups[4:]
    size = len(training) // micro_batches
    batches = [GroupCollator(0)(training[i : i + size]) for i in range(0, len(training), size)]
    trained = [(batch, pairs_of(batch), 0.5 + torch.rand(len(batch["pairs"].group)).double()) for batch in batches]
    pieces = [GroupCollator(0)(validation[:1]), GroupCollator(0)(validation[1:])]
    result = Bench(losses, made, trained, pieces, prompts=4, max_norm=max_norm)
    for scale in (0.7, 1.3, 0.9):  # So that the moments are real ones.
        result.backward(scale * result.weights)
        result.step()
    return result


def pairs_of(batch: Batch) -> PairBatch:
    count = len(batch["pairs"].group)
    return replace(
        observed(batch["pairs"].prompt_id.tolist(), [0.1] * count, [0.0] * count),
        group=batch["pairs"].group,
        group_size=batch["pairs"].group_size,
    )


SETUPS: list[dict[str, Any]] = [
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "max_norm": 0.5},
    {"optimizer": "adamw"},
    {"optimizer": "adamw", "micro_batches": 2, "max_norm": 0.5},
    {"optimizer": "adamw", "lora": True},
    {"optimizer": "adamw", "lora": True, "micro_batches": 4},
]


@pytest.mark.parametrize("setup", SETUPS, ids=str)
def test_estimators_agree_with_double_backward(setup: dict[str, Any]) -> None:
    exact = bench(**setup).influence("exact")
    forward, central = (bench(**setup).influence(name) for name in ("jvp", "central"))
    size = exact.of_weights.norm()
    assert size > 0
    assert (forward.of_weights - exact.of_weights).norm() < 1e-5 * size
    assert (central.of_weights - exact.of_weights).norm() < 1e-2 * size
    assert torch.cosine_similarity(central.of_weights, exact.of_weights, dim=0) > 0.9999
    assert [forward.goal, central.goal] == pytest.approx([exact.goal] * 2, rel=1e-9)


def test_central_difference_survives_float32() -> None:
    """Adam's slope is large where gradients are small: directions must not be spent on weights that no pair moves."""
    exact = bench("adamw", max_norm=0.5).influence("exact").of_weights
    central = in_float32(bench("adamw", max_norm=0.5)).influence("central").of_weights
    assert (central - exact).norm() < 1e-2 * exact.norm()


def test_central_difference_survives_mixed_precision() -> None:
    """Accelerate puts autocast into the model's forward, where turning it off outside has no effect. The direction is
    that of training, in bfloat16; the derivative along it is not."""
    central, forward = (prepared(in_float32(bench("adamw", max_norm=0.5))) for _ in range(2))
    inside = central.losses.model.forward
    found, expected = central.influence("central").of_weights, forward.influence("jvp").of_weights
    assert (found - expected).norm() < 1e-2 * expected.norm()
    assert central.losses.model.forward is inside


def prepared(made: Bench) -> Bench:
    """As accelerate prepares a model for bf16."""
    model = made.losses.model
    model._original_forward = model.forward
    model.forward = convert_outputs_to_fp32(torch.autocast("cpu", torch.bfloat16)(model.forward))
    return made


def in_float32(made: Bench) -> Bench:
    made.losses.float()
    for state in made.optimizer.state.values():
        state.update({name: state[name].float() for name in ("exp_avg", "exp_avg_sq")})
    return made


@pytest.mark.parametrize("setup", [SETUPS[1], SETUPS[3], SETUPS[4]], ids=str)
def test_double_backward_agrees_with_steps_taken_again(setup: dict[str, Any]) -> None:
    goal = ValidationGoal(margin=0.3)
    expected = bench(**setup).by_brute_force(goal)
    found = bench(**setup).influence("exact", goal).of_weights
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_double_backward_in_float32_with_weights_that_no_token_reaches() -> None:
    """Rows of the embeddings without a gradient have second moments of 0, whose root has no derivative."""
    coarse, exact = (made.influence("exact").of_weights for made in (in_float32(bench("adamw")), bench("adamw")))
    assert (coarse - exact).norm() < 1e-2 * exact.norm()


@pytest.mark.parametrize("estimator", ["central", "jvp", "exact"])
def test_looking_ahead_leaves_no_trace(estimator: Estimator) -> None:
    """The policy, its optimizer and torch's random numbers are bit for bit what the step alone makes of them."""
    plain, looking = bench("adamw", micro_batches=2), bench("adamw", micro_batches=2)
    plain.backward(plain.weights)
    plain.step()
    torch.manual_seed(0)
    looking.losses.train()
    looking.influence(estimator)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(3))
    assert all(part.training for part in looking.losses.modules())
    for one, other in zip(plain.losses.parameters(), looking.losses.parameters(), strict=True):
        assert torch.equal(one, other) and other.grad is None
        left, right = plain.optimizer.state[one], looking.optimizer.state[other]
        assert all(torch.equal(left[name], right[name]) for name in ("step", "exp_avg", "exp_avg_sq"))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.AdamW, {"weight_decay": 0.1}),
        (torch.optim.SGD, {"weight_decay": 0.1}),
        (torch.optim.SGD, {"weight_decay": 0.1, "momentum": 0.9}),
    ],
)
def test_a_step_is_undone(kind: type[torch.optim.Optimizer], settings: dict[str, float]) -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5, dtype=torch.float64))
    optimizer = kind([weight], lr=0.1, **settings)
    for _ in range(3):
        weight.grad, before = torch.randn(5, dtype=torch.float64), weight.detach().clone()
        optimizer.step()
    place = weight.grad.clone()
    update_rule(optimizer, optimizer.param_groups[0]).undo(weight.detach(), place, optimizer.state[weight])
    assert (weight - before).abs().min() > 1e-3
    torch.testing.assert_close(place, before, rtol=1e-12, atol=1e-12)


def test_weights_come_back_when_a_pass_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, looking = bench("sgd"), bench("sgd")
    plain.influence("central")
    original = LookAhead._losses_at

    def fail(self: LookAhead, *arguments: Any) -> None:
        original(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(LookAhead, "_losses_at", fail)
    with pytest.raises(KeyboardInterrupt):
        looking.influence("central")
    for one, other in zip(plain.losses.parameters(), looking.losses.parameters(), strict=True):
        assert torch.equal(one, other)


def test_goal_by_hand() -> None:
    losses, margins = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([-1.0, 2.0, 4.0])
    assert ValidationGoal(0.1)(losses, margins, 3, 2).item() == pytest.approx(3.0 - 0.1 * 3.0)
    parts = [ValidationGoal(0.1)(losses[i : i + 1], margins[i : i + 1], 3, 2) for i in range(3)]
    assert sum(parts).item() == pytest.approx(2.7)
    assert weight_entropy(torch.tensor([2.0, 2.0])).item() == pytest.approx(math.log(2))


@dataclass
class KnownStep:
    """A step whose influence is given."""

    batches: list[tuple[PairBatch, torch.Tensor]]
    of_weights: torch.Tensor

    def influence(self, goal: Any) -> Influence:
        return Influence(0.25, self.of_weights)


def test_learner_descends_the_gradient_through_its_weights() -> None:
    """d goal / d phi = sum_i (d goal / d weight_i) * share_i * d softplus(a . s_i + b) / d phi, in one Adam step."""
    learner = TemporalLearner(learning_rate=0.1, cadence=Cadence(2))
    batch = observed([0, 1, 2], [1.0, -1.0, 0.3], [0.1, 0.2, 0.0])
    shares, influence = torch.tensor([1.0, 0.5, 0.25]), torch.tensor([0.3, -0.2, 0.4])
    learner.learn_ahead(KnownStep([(batch, shares * learner.weight(batch))], influence), identity)
    slope = torch.sigmoid(learner.network.last.bias.detach() * 0 + math.log(math.e - 1))
    inputs = learner.features_of(batch)
    expected = slope * (influence * shares) @ inputs
    torch.testing.assert_close(learner.network.last.weight.grad[0], expected)
    assert learner.network.last.bias.grad.item() == pytest.approx((slope * (influence * shares).sum()).item(), rel=1e-5)
    assert torch.sign(learner.network.last.weight[0]).tolist() == torch.sign(-expected).tolist()
    moved = learner.network.last.weight.detach()[0].abs()
    torch.testing.assert_close(moved, 0.1 * expected.sign().abs(), rtol=1e-3, atol=0)
    assert (learner.updates, learner.metrics()["temporal/goal"]) == (1, 0.25)


def test_entropy_spreads_the_weights() -> None:
    """Where the goal does not care, a step with the entropy term makes weights more equal, and none without it."""
    before = after = None
    for entropy in (1.0, 0.0):
        learner = TemporalLearner(FeatureSet(("margin",)), entropy=entropy, learning_rate=0.1, cadence=Cadence(2))
        with_weights_of_margins(learner)
        batch = at_weights([0.2, 3.0])
        before = learner.weight(batch)
        learner.learn_ahead(KnownStep([(batch, before)], torch.zeros(2)), identity)
        after = learner.weight(batch)
        grew = (weight_entropy(after) - weight_entropy(before)).item()
        assert grew > 0.01 if entropy else grew == 0


def test_learner_counts_steps() -> None:
    learner = TemporalLearner(cadence=Cadence(2))
    due = []
    for _ in range(5):
        due.append(learner.look_ahead())
        learner.update(identity)
    assert due == [None, "central", None, "central", None]
    every = TemporalLearner(cadence=Cadence(1))
    assert every.look_ahead() is None, "Adam's first step does not depend on the length of the gradient"
    assert TemporalLearner(cadence=Cadence(None)).look_ahead() is None
    again = TemporalLearner(cadence=Cadence(2))
    again.update(identity)
    assert again.look_ahead() == "central"
    again.start_iteration(Iteration(1, 2))
    assert again.look_ahead() is None, "the policy's optimizer is new, and so is the count of its steps"
    dense = TemporalLearner(cadence=Cadence(0.25, dense_start=0.3))
    dense.start_training(steps=16)
    due = []
    for step in range(1, 17):
        due += [step] if dense.look_ahead() else []
        dense.update(identity)
    assert due == [2, 3, 4, 8, 12, 16], "each of the first 0.3 x 16 steps, then every 4th"


def with_weights_of_margins(learner: TemporalLearner) -> TemporalLearner:
    """Its weight of a pair is softplus of the margin, before it is normalized or capped."""
    with torch.no_grad():
        learner.network.last.weight.fill_(1.0)
        learner.network.last.bias.fill_(0.0)
    return learner


def at_weights(weights: list[float]) -> PairBatch:
    """Pairs whose margins are the inverse of softplus at these weights."""
    return observed(list(range(len(weights))), [math.log(math.expm1(w)) for w in weights], [0.0] * len(weights))


def test_weights_of_mean_one_by_hand() -> None:
    """Weights 1 and 3 in a step have mean 2, by which the next step's 1, 3 and 8 are divided; then they are capped."""
    learner = with_weights_of_margins(TemporalLearner(FeatureSet(("margin",)), normalize=True, max_weight=2.0))
    first, second = at_weights([1.0, 3.0]), at_weights([1.0, 3.0, 8.0])
    assert learner.weight(first).tolist() == pytest.approx([1.0, 2.0]), "no step before it; capped"
    learner.observe(first)
    assert learner.weight(second).tolist() == pytest.approx([1.0, 2.0, 2.0]), "the step is not over"
    learner.update(identity)
    assert learner.weight(second).tolist() == pytest.approx([0.5, 1.5, 2.0])
    assert learner.facts(second)["temporal"] == pytest.approx([0.5, 1.5, 2.0])


def test_normalized_and_capped_weights_have_their_own_gradient() -> None:
    """With m the mean weight of the previous step: d(w / m) = dw / m - w dm / m^2. A capped weight does not move."""
    learner = with_weights_of_margins(TemporalLearner(FeatureSet(("margin",)), normalize=True, max_weight=2.0))
    first, second = at_weights([1.0, 3.0]), at_weights([1.0, 3.0, 8.0])
    learner.observe(first)
    learner.update(identity)
    influence = torch.tensor([0.3, -0.2, 0.4])
    learner.learn_ahead(KnownStep([(second, learner.weight(second))], influence), identity)
    slopes = {w: 1 - math.exp(-w) for w in (1.0, 3.0)}  # sigmoid(z) where softplus(z) = w
    of_mean = (slopes[1.0] + slopes[3.0]) / 2
    expected = sum(i * (slopes[w] / 2 - w * of_mean / 4) for i, w in ((0.3, 1.0), (-0.2, 3.0)))
    assert learner.network.last.bias.grad.item() == pytest.approx(expected, rel=1e-4)


def test_optimizers_that_cannot_be_looked_through_are_refused() -> None:
    check_optimizer(torch.optim.AdamW, {})
    with pytest.raises(ConfigError, match="Adafactor"):
        check_optimizer(torch.optim.Adafactor, {})
    with pytest.raises(ConfigError, match="amsgrad"):
        check_optimizer(torch.optim.AdamW, {"amsgrad": True})


def test_weights_multiply_the_blend() -> None:
    method = methods.metaapo_metapo()
    assert isinstance(method.weighting, Temporal) and isinstance(method.weighting.within, LearnedBlend)
    groups = with_tokens(with_reference(random_groups(4), tiny_model(byte_tokenizer(), seed=1)))
    model, batch = tiny_model(byte_tokenizer()), GroupCollator(0)(groups)
    blend = preference_step(model, batch, replace(method, weighting=method.weighting.within), 4)
    with torch.no_grad():
        method.weighting.learner.network.last.bias += 0.5
    step = preference_step(model, batch, method, 4)
    factor = torch.nn.functional.softplus(method.weighting.learner.network.last.bias).item()
    torch.testing.assert_close(step.weights, factor * blend.weights)


def with_tokens(groups: list[PromptGroup]) -> list[PromptGroup]:
    from array import array

    def zeros(pair: Any) -> Any:
        sides = (array("f", [-1.0] * len(side.ids)) for side in (pair.chosen, pair.rejected))
        return replace(pair, reference_tokens=tuple(sides))

    return [replace(group, pairs=tuple(map(zeros, group.pairs))) for group in groups]


# Held-out pairs


def test_held_out_pairs() -> None:
    difficulty = torch.tensor([float(i % 10) for i in range(100)])
    chosen = Validation(0.1).choose(difficulty, seed=0)
    assert sorted(difficulty[chosen].tolist()) == list(range(10)), "one of each stratum"
    assert chosen == Validation(0.1).choose(difficulty, seed=0) != Validation(0.1).choose(difficulty, seed=1)
    assert Validation(0.2, "last").choose(difficulty, 0) == list(range(80, 100))
    drawn = [Validation(0.2, "random").choose(difficulty, seed) for seed in (0, 1)]
    assert len(set(drawn[0])) == 20 and drawn[0] != drawn[1] and list(range(20)) not in drawn
    assert [len(Validation().choose(torch.zeros(n), 0)) for n in (0, 1, 2, 12)] == [0, 0, 1, 1]
    with pytest.raises(ConfigError, match="share"):
        Validation(0.0)
    assert [Validation(batch=batch).per_update(90, 16) for batch in ("step", None, 64, 128)] == [16, 90, 64, 90]


# Runs


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"))


def align(policy: str, out: Path, method: Method, **settings: Any) -> Path:
    training = SETTINGS["training"] | {"num_train_epochs": 2}
    args = AlignmentConfig(
        output_dir=str(out), **(SETTINGS | {"num_iterations": 1, "warmup_epochs": 0, "training": training} | settings)
    )
    return AlignmentTrainer(policy, args, method, preference_rows(20), reward_funcs=vowel_reward).train()


def test_without_updates_it_is_dpo_bit_for_bit(policy: str, tmp_path: Path) -> None:
    metapo = methods.metapo(meta_interval=None)
    one = weights(align(policy, tmp_path / "metapo", metapo))
    other = weights(align(policy, tmp_path / "dpo", replace(methods.dpo(), validation=metapo.validation)))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    updating = weights(align(policy, tmp_path / "updating", methods.metapo(meta_interval=2, meta_learning_rate=0.1)))
    assert any(not torch.equal(tensor, other[name]) for name, tensor in updating.items())


def test_accumulation_changes_nothing_but_rounding(policy: str, tmp_path: Path) -> None:
    """Updates included, the last one on a smaller step; 4 prompts a step as 4 x 1 and 1 x 4."""
    learned = []
    for size in (4, 1):
        training = SETTINGS["training"] | {
            "num_train_epochs": 2,
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": 4 // size,
        }
        method = methods.metapo(meta_interval=5, meta_learning_rate=0.1, estimator="jvp", normalize_weights=True)
        align(policy, tmp_path / f"{size}", method, training=training)
        snapshot = json.loads((tmp_path / f"{size}" / "snapshots" / "iteration-0.json").read_text())["learned_weight"]
        assert snapshot["updates"] == 2
        learned.append(snapshot["coefficients"])
    assert learned[0] == pytest.approx(learned[1], abs=2e-3)
    assert all(abs(value) > 1e-3 for value in learned[0].values())


def test_bf16_run_learns(policy: str, tmp_path: Path) -> None:
    training = SETTINGS["training"] | {"num_train_epochs": 2, "bf16": True, "use_cpu": True}
    align(policy, tmp_path / "run", methods.metapo(meta_interval=0.4), training=training)
    snapshot = json.loads((tmp_path / "run" / "snapshots" / "iteration-0.json").read_text())["learned_weight"]
    assert snapshot["updates"] == 2 and snapshot["coefficients"]["margin"] != 0


def test_recipe_names_its_settings() -> None:
    from adaptpo.config.recipe import Recipe
    from adaptpo.methods.build import build_method

    settings = {"name": "metapo", "meta_interval": None, "features": ["margin", "change"], "architecture": "mlp"}
    recipe = Recipe(output_dir="out", model="m", data={"path": "d"}, method=settings)
    learner = build_method(recipe.model_copy(update={"method": settings | {"divergence": "exact"}})).weighting.learner
    assert learner.divergence == "exact"
    learner = build_method(recipe).weighting.learner
    assert learner.divergence == "k3"
    assert (learner.features.names, learner.architecture) == (("margin", "change"), "mlp")
    assert learner.cadence.interval is None
    with pytest.raises(ConfigError, match="architecture"):
        build_method(recipe.model_copy(update={"method": {"name": "metapo", "architecture": "mlps"}}))


def test_the_look_ahead_clips_as_training_does(policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []

    def look_ahead(**given: Any) -> LookAhead:
        norms.append(given["max_norm"])
        return LookAhead(**given)

    monkeypatch.setattr("adaptpo.training.preference_trainer.LookAhead", look_ahead)
    training = SETTINGS["training"] | {"max_grad_norm": 0.25}
    align(policy, tmp_path / "run", methods.metapo(meta_interval=2), training=training)
    assert set(norms) == {0.25}


def test_what_a_run_keeps(policy: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    align(policy, out, methods.metapo(meta_interval=2, meta_learning_rate=0.1))
    held_out = {row["prompt_id"] for row in read_rows(out / "data" / "validation.parquet")}
    lines = JsonLines(out / "iterations/0/pair_weights.jsonl").read()
    assert len(held_out) == 1 and {line["prompt_id"] for line in lines} == set(range(20)) - held_out
    snapshot = json.loads((out / "snapshots" / "iteration-0.json").read_text())["learned_weight"]
    assert snapshot["updates"] == 5 and set(snapshot["coefficients"]) == {*BASE, "bias"}
    last = lines[-1]
    z = sum(snapshot["coefficients"][name] * last[name] for name in BASE) + snapshot["coefficients"]["bias"]
    assert last["temporal"] == last["weight"] != 1.0
    assert all(set(BASE) <= set(line) for line in lines)
    assert math.log1p(math.exp(z)) == pytest.approx(last["weight"], abs=0.2), "up to the last update"
    metrics = [line for line in JsonLines(out / "metrics.jsonl").read() if "temporal/volatility_ema" in line]
    assert [line["temporal/updates"] for line in metrics][-1] == 5.0
    kept = read_rows(out / "reference" / "00000.parquet")[0]
    assert sum(kept["chosen_tokens"]) == pytest.approx(kept["chosen"], rel=1e-5)


def test_updates_see_the_held_out_pairs_that_the_method_names(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 20 pairs 8 are held out; a step trains on 4."""
    seen = []
    plain = ValidationGoal.__call__

    def count(self: ValidationGoal, losses: Any, margins: Any, pairs: int, positives: int) -> torch.Tensor:
        seen.append(pairs)
        return plain(self, losses, margins, pairs, positives)

    monkeypatch.setattr(ValidationGoal, "__call__", count)
    training = SETTINGS["training"] | {"max_steps": 2}
    for batch in ("step", None, 6):
        method = methods.metapo(meta_interval=1, validation_share=0.4, validation_batch=batch)
        align(policy, tmp_path / str(batch), method, training=training)
    assert list(dict.fromkeys(seen)) == [4, 8, 6]


def test_a_recipe_without_epochs_trains_for_those_of_the_method(policy: str, tmp_path: Path) -> None:
    """19 pairs of 20 are trained on: three times by MetaPO, and once by DPO."""
    for method, epochs in ((methods.metapo(), 3), (methods.dpo(), 1)):
        align(policy, tmp_path / method.name, method, training=SETTINGS["training"])
        lines = JsonLines(tmp_path / method.name / "iterations/0/pair_weights.jsonl").read()
        assert len(lines) == epochs * (20 - (epochs == 3))


def test_reference_is_kept_for_the_weights_alone(policy: str, tmp_path: Path) -> None:
    """SimPO's loss needs none; its margins stay its own."""
    from adaptpo.choices.objectives import SimPO

    out = tmp_path / "run"
    align(policy, out, methods.metapo(objective=SimPO(), meta_interval=2))
    assert any(line["divergence"] > 0 for line in JsonLines(out / "iterations/0/pair_weights.jsonl").read())


def test_optimizers_are_checked_at_the_start(policy: str, tmp_path: Path) -> None:
    training = SETTINGS["training"] | {"optim": "adafactor"}
    with pytest.raises(ConfigError, match="Adafactor"):
        align(policy, tmp_path / "run", methods.metapo(), training=training)


RUN: dict[str, Any] = {
    "method": "metapo",
    "method_settings": {
        "features": (*BASE, *GRADIENT),
        "divergence": "exact",
        "normalize_weights": True,
        "dense_start": 0.4,
    },
    "rows": 24,
    "reward": vowel_reward,
    "num_iterations": 1,
    "training": SETTINGS["training"] | {"num_train_epochs": 2, "save_steps": 3},
}


@pytest.fixture(scope="module")
def straight(policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "run"
    assert run_in_process(model=policy, out=out, **RUN) == 0
    return out


@pytest.mark.parametrize(
    "points",
    [["start:validation", "looking:3"], ["step:iterations/0:5", "saved:iterations/0:6"]],
    ids=["early", "late"],
)
def test_killed_run_resumes_to_the_same_end(points: list[str], policy: str, straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for point in points:
        assert run_in_process(point, model=policy, out=out, **RUN) == -9, point
    assert run_in_process(model=policy, out=out, **RUN) == 0
    assert_same_run(straight, out)
    name = "iterations/0/pair_weights.jsonl"
    assert (straight / name).read_text() == (out / name).read_text()
    one, other = (torch.load(run / "iterations/0/checkpoint/method.pt")["learners"][0] for run in (straight, out))
    assert one["updates"] == other["updates"] == 5 or one["updates"] == other["updates"] > 3
    assert torch.equal(one["history"][OFFLINE], other["history"][OFFLINE])
    assert torch.equal(one["network"]["last.weight"], other["network"]["last.weight"])
