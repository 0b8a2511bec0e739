"""Every named method through every situation: the conformance table. A new method is picked up by itself."""

from __future__ import annotations

import copy
import inspect
import json
from array import array
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, TrainingArguments

from adaptpo import AlignmentConfig, AlignmentTrainer, Method
from adaptpo.choices.filters import FILTERS
from adaptpo.choices.iteration import Iteration, StageReading
from adaptpo.choices.objectives import OptimisticDPO
from adaptpo.choices.pairing import PAIRINGS, Candidates
from adaptpo.choices.selection import SELECTIONS, SelectAll, SelectNone
from adaptpo.choices.weighting import WEIGHTINGS
from adaptpo.cli.methods import axis_names, method_rows
from adaptpo.distributed.quiet import quiet_libraries
from adaptpo.errors import AnnotationError, ConfigError
from adaptpo.methods import METHODS
from adaptpo.models.collate import GroupCollator
from adaptpo.run.files import read_rows
from adaptpo.training.preference_trainer import PreferenceTrainer
from adaptpo.training.step import preference_step
from adaptpo.training.whole_vocabulary import VocabularyProbe
from adaptpo.types import PreferencePair, PromptGroup, Response
from tests.groups import random_groups
from tests.runs import SETTINGS, assert_same_run, run_in_process, start, weights
from tests.tiny import byte_tokenizer, preference_rows, save_policy, tiny_model, two_rewards, vowel_reward

ON_PAIRS = [name for name in METHODS if METHODS[name]().trainer.uses_pairs]

AXES = ("selection", "pairing", "objective", "weighting", "filter", "trainer")


@cache
def parts(name: str, *axes: str) -> frozenset[str]:
    """The kinds of things that a method has on these axes: classes of choices, learners, features, and so on."""
    method = METHODS[name]()
    kinds = {axis: {type(getattr(method, axis)).__name__} for axis in AXES}
    kinds["learner"] = {type(learner).__name__ for learner in method.learners()}
    kinds["feature"] = {feature.name for feature in method.features()}
    kinds["rest"] = {f"reference: {method.reference}", f"held out: {method.validation is not None}"}
    kinds["rest"] |= {f"{part} asks for the stage" for part in ("weighting", "pairing") if asks_for_stage(method, part)}
    return frozenset(f"{axis} {kind}" for axis in axes for kind in kinds[axis])


def asks_for_stage(method: Method, part: str) -> bool:
    return bool(getattr(method, part).needs_stage(0))


def covering(*axes: str) -> list[str]:
    """Few methods that together have every kind there is on these axes, in the order of the table."""
    missing, chosen = {part for name in METHODS for part in parts(name, *axes)}, list[str]()
    while missing:
        best = max(METHODS, key=lambda name: len(parts(name, *axes) & missing))
        chosen.append(best)
        missing -= parts(best, *axes)
    return sorted(chosen, key=list(METHODS).index)


def test_covering_methods_have_every_kind() -> None:
    every = covering(*AXES, "learner", "feature", "rest")
    for table, axis in (
        (SELECTIONS, "selection"),
        (PAIRINGS, "pairing"),
        (WEIGHTINGS, "weighting"),
        (FILTERS, "filter"),
    ):
        present = {part for name in every for part in parts(name, axis)}
        used = {part for name in METHODS for part in parts(name, axis)}
        assert present == used <= {f"{axis} {kind.__name__}" for kind in table.values()}
    assert len(covering("learner")) < len(every) < len(METHODS)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"), num_hidden_layers=1)


@pytest.fixture(autouse=True)
def quiet() -> None:
    quiet_libraries()


def build(name: str) -> Method:
    settings = {"num_generations": 3, "update_interval": 2, "meta_interval": 2, "ref_model_sync_steps": 1}
    taken = inspect.signature(METHODS[name]).parameters
    return METHODS[name](**{key: value for key, value in settings.items() if key in taken})


def align(policy: str, out: Path, method: Method, rows: int = 12, **settings: Any) -> Path:
    trainer = AlignmentTrainer(
        model=policy,
        args=AlignmentConfig(output_dir=str(out), **(SETTINGS | {"warmup_epochs": 0} | settings)),
        method=method,
        train_dataset=[row | {"weight": 1 + number % 3} for number, row in enumerate(preference_rows(rows))],
        reward_funcs=reward_for(method),
    )
    return Path(trainer.train())


def reward_for(method: Method) -> Any:
    return two_rewards if method.pairing.num_rewards else vowel_reward


def selected(out: Path) -> list[bool]:
    return [row["selected"] for path in sorted(out.rglob("selection.parquet")) for row in read_rows(path)]


def read_shards(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in read_rows(path)]


def leaves_out_unselected(method: Method, out: Path) -> bool:
    """Whether it does so in every iteration of the run."""
    pair = PreferencePair(0, "offline", Response("a", [1]), Response("b", [2]))
    count = SETTINGS["num_iterations"]
    iterations = [Iteration(number, count, measured_stage(out, number)) for number in range(count)]
    return not any(method.at(now).pairing.pairs(pair, None) for now in iterations)


def measured_stage(out: Path, iteration: int) -> StageReading | None:
    facts = json.loads((out / "state.json").read_text())["phases"].get(f"iterations/{iteration}/stage")
    return facts and StageReading(facts["boundary_score"], facts["injection"])


def policy_moved(policy: str, out: Path) -> bool:
    before = weights(Path(policy))
    return any(not torch.equal(before[name], tensor) for name, tensor in weights(out / "final").items())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_names_its_paper_and_its_choices(name: str) -> None:
    row = next(row for row in method_rows() if row["name"] == name)
    assert row["summary"] and row["paper"]
    assert METHODS[name]().name == name
    assert not any("(" in axis for axis in (axis_names(name)[i] for i in (0, 1, 3)))


ALL_BUT_OBJECTIVES = covering(*(axis for axis in AXES if axis != "objective"), "learner", "feature", "rest")


@pytest.mark.parametrize("name", METHODS)
def test_runs_on_one_row(name: str, policy: str, tmp_path: Path) -> None:
    """Every method once. One of two parts is empty, which does not depend on the objective."""
    iterations = 2 if name in ALL_BUT_OBJECTIVES else 1
    final = align(policy, tmp_path / "run", build(name), rows=1, num_iterations=iterations)
    assert (final / "config.json").exists()


@pytest.mark.parametrize("name", covering("pairing", "weighting", "trainer", "feature"))
def test_everything_selected(name: str, policy: str, tmp_path: Path) -> None:
    method = replace(build(name), selection=SelectAll())
    align(policy, tmp_path / "run", method)
    assert all(selected(tmp_path / "run"))
    assert policy_moved(policy, tmp_path / "run")


@pytest.mark.parametrize("name", covering("pairing", "weighting", "trainer"))
def test_nothing_selected(name: str, policy: str, tmp_path: Path) -> None:
    """Methods that leave unselected prompts out have nothing to train on: the policy stays, and the run ends well."""
    method = replace(build(name), selection=SelectNone())
    align(policy, tmp_path / "run", method)
    assert not any(selected(tmp_path / "run"))
    assert policy_moved(policy, tmp_path / "run") != leaves_out_unselected(method, tmp_path / "run")


@pytest.mark.parametrize("name", covering("weighting", "trainer", "learner"))
def test_accumulation_changes_nothing(name: str, policy: str, tmp_path: Path) -> None:
    """8 prompts a step as 8 x 1 and 1 x 8, the last step smaller; float32 sums in another order differ slightly.

    With plain gradient steps: where pairs of one prompt cancel, Adam would make full steps of what rounding leaves.
    """
    results = []
    for per_device, accumulation in ((8, 1), (1, 8)):
        training = SETTINGS["training"] | {
            "per_device_train_batch_size": per_device,
            "gradient_accumulation_steps": accumulation,
            "optim": "sgd",
            "learning_rate": 0.1,
        }
        out = tmp_path / f"{per_device}"
        align(policy, out, copy.deepcopy(build(name)), rows=11, num_iterations=1, training=training)
        results.append(weights(out / "final"))
    for tensor, other in zip(results[0].values(), results[1].values(), strict=True):
        torch.testing.assert_close(tensor, other, atol=1e-7, rtol=1e-5)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model(byte_tokenizer())


def paired(method: Method, count: int) -> list[PromptGroup]:
    """The groups that the method's pairing makes of offline pairs and two fresh responses each."""
    groups = []
    for group in random_groups(count):
        offline, fresh = group.pairs
        candidates = Candidates(
            group.prompt.id, 0, (fresh.chosen, fresh.rejected), (1.0, 0.0), (0.4, 0.2), ((1, 0), (0, 1))
        )
        pairs = [with_kept_reference(pair) for pair in method.pairing.pairs(offline, candidates)]
        features = {feature.name: [0.5] * feature.width for feature in method.features()}
        groups.append(replace(group, pairs=tuple(pairs), features=features))
    return groups


def with_kept_reference(pair: PreferencePair) -> PreferencePair:
    sides = (array("f", [-1.0] * len(pair.chosen.ids)), array("f", [-2.0] * len(pair.rejected.ids)))
    shorter = min(map(len, sides))
    shared = (sum(sides[0][:shorter]), sum(sides[1][:shorter]))
    sums = (sum(sides[0]), sum(sides[1]))
    return replace(pair, reference_logps=sums, reference_shared=shared, reference_tokens=sides)


def mean_losses(model: PreTrainedModel, method: Method, batches: list[list[PromptGroup]]) -> list[float]:
    """The mean of the losses of each batch's groups, each computed alone; the learners learn as in training."""
    means = []
    for number, batch in enumerate(batches):
        probe = VocabularyProbe(None, method.weighting.measures, nullcontext)
        progress = {"progress": number / 2, "probe": probe}
        steps = [preference_step(model, GroupCollator(0)([g]), method, 1, **progress) for g in batch]
        means.append(sum(step.loss.item() for step in steps) / len(steps))
        for step in steps:
            method.observe(step.pairs)
        method.update(lambda rows: rows)
    return means


@pytest.mark.parametrize("name", ON_PAIRS)
def test_a_smaller_last_batch_is_the_mean_over_its_own_prompts(
    name: str, model: PreTrainedModel, tmp_path: Path
) -> None:
    """Three prompts in batches of two: the last batch is a single group, and counts it once, not half."""
    method = build(name)
    groups = paired(method, 3)
    losses: list[float] = []
    training = TrainingArguments(
        output_dir=str(tmp_path),
        learning_rate=0.0,
        num_train_epochs=1,
        per_device_train_batch_size=2,
        train_sampling_strategy="sequential",
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=True,
    )
    log = lambda step, values: losses.append(values["loss"])  # noqa: E731
    probe = VocabularyProbe(None, method.weighting.measures, nullcontext)
    PreferenceTrainer(model, training, groups, byte_tokenizer(), copy.deepcopy(method), log, probe=probe).train()
    assert losses == pytest.approx(mean_losses(model, method, [groups[:2], groups[2:]]), rel=1e-5)


@pytest.mark.parametrize(
    "name", [n for n in covering("weighting", "trainer", "feature", "filter", "rest") if n != "tr_dpo"]
)
def test_lora(name: str, policy: str, tmp_path: Path) -> None:
    final = align(policy, tmp_path / "run", build(name), peft={"r": 2, "target_modules": ["q_proj", "v_proj"]})
    adapter = weights(final)
    assert adapter and all("lora" in tensor_name for tensor_name in adapter)
    assert any(tensor.abs().max() > 0 for tensor_name, tensor in adapter.items() if "lora_B" in tensor_name)


@pytest.mark.parametrize("name", covering("learner", "trainer", "feature", "rest"))
def test_resume_is_bit_identical(name: str, policy: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"model": policy, "method": name, "rows": 12, "reward": reward_for(build(name))}
    start(out=tmp_path / "straight", **arguments)
    killed = arguments | {"out": tmp_path / "killed"}
    # Where a learner's state has to come from disk; tests/test_resume.py has the other points.
    assert run_in_process("start:iterations/1/train", **killed) == -9
    assert run_in_process(**killed) == 0
    assert_same_run(tmp_path / "straight", tmp_path / "killed")


def test_selm_without_fresh_responses_is_dpo(policy: str, tmp_path: Path) -> None:
    """Nothing selected leaves the offline pair alone in the pool."""
    align(policy, tmp_path / "selm", replace(build("selm"), selection=SelectNone()))
    align(policy, tmp_path / "dpo", build("dpo"))
    selm, dpo = (weights(tmp_path / name / "final") for name in ("selm", "dpo"))
    assert selm.keys() == dpo.keys() and all(torch.equal(tensor, dpo[name]) for name, tensor in selm.items())
    assert policy_moved(policy, tmp_path / "selm")


def test_selm_with_optimism_trains_on_the_first_response_drawn(policy: str, tmp_path: Path) -> None:
    objective = OptimisticDPO(optimism=0.5)
    out = tmp_path / "run"
    align(policy, out, METHODS["selm"](objective, num_generations=3), num_iterations=1)
    drawn = {row["prompt_id"]: row["ids"] for row in read_shards(out / "iterations/0/responses") if row["index"] == 0}
    pairs = list(read_rows(out / "iterations/0/pairs.parquet"))
    assert pairs and all(row["sample_ids"] == drawn[row["prompt_id"]] for row in pairs)
    align(policy, tmp_path / "plain", METHODS["selm"](num_generations=3), num_iterations=1)
    ours, plain = (weights(tmp_path / name / "final") for name in ("run", "plain"))
    assert any(not torch.equal(tensor, plain[name]) for name, tensor in ours.items())


def test_each_objective_has_a_pair_with_reference_log_probs_of_its_own(policy: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    method = replace(METHODS["metaapo_multi_objective"](num_generations=4), selection=SelectAll())
    align(policy, out, method, num_iterations=1)
    pairs = list(read_rows(out / "iterations/0/pairs.parquet"))
    assert [row["objective"] for row in pairs] == [None, 0, 1] * (len(pairs) // 3)
    kept = {(row["prompt_id"], row["objective"]): row["chosen"] for row in read_shards(out / "iterations/0/reference")}
    assert len(kept) == 2 * len(pairs) // 3
    differing = [row for row in pairs[2::3] if row["chosen_ids"] != pairs[pairs.index(row) - 1]["chosen_ids"]]
    assert differing
    assert all(kept[row["prompt_id"], 0] != kept[row["prompt_id"], 1] for row in differing)


@pytest.mark.parametrize(
    ("reward", "message"), [(vowel_reward, "a list of 2 floats"), ("train", "to a list of 2 annotators")]
)
def test_several_objectives_need_several_rewards(reward: Any, message: str, policy: str, tmp_path: Path) -> None:
    trainer = AlignmentTrainer(
        model=policy,
        args=AlignmentConfig(output_dir=str(tmp_path / "run"), **SETTINGS | {"warmup_epochs": 0}),
        method=replace(METHODS["metaapo_multi_objective"](num_generations=3), selection=SelectAll()),
        train_dataset=preference_rows(4),
        reward_funcs=reward,
    )
    with pytest.raises((AnnotationError, ConfigError), match=message):
        trainer.train()


def test_optimism_without_fresh_responses_is_refused(policy: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use the method selm"):
        align(policy, tmp_path / "run", METHODS["dpo"](OptimisticDPO()))


@pytest.mark.parametrize("reference", ["initial", "previous"])
def test_reference_starts_iterations_as_it_should(reference: str, policy: str, tmp_path: Path) -> None:
    """Against the policy that started the iteration every first margin is 0; against the initial model it is not."""
    out = tmp_path / "run"
    align(policy, out, METHODS["online_dpo"](num_generations=3), rows=16, reference=reference, num_iterations=2)
    lines = (out / "iterations/1/pair_weights.jsonl").read_text().splitlines()
    first = [float(line.split('"margin": ')[1].split(",")[0]) for line in lines if '"step": 1,' in line]
    assert first
    assert all(abs(margin) < 1e-4 for margin in first) == (reference == "previous")


def test_bf16_run(policy: str, tmp_path: Path) -> None:
    training = SETTINGS["training"] | {"bf16": True, "use_cpu": True}
    align(policy, tmp_path / "run", build("metaapo"), training=training)
    assert policy_moved(policy, tmp_path / "run")


def test_rows_without_a_valid_weight_are_left_out_where_it_counts(policy: str, tmp_path: Path) -> None:
    rows = preference_rows(6)
    weights = [{"weight": 1.0}, {}, {"weight": "high"}, {"weight": -1}, {"weight": 2}, {"weight": 0}]
    for name, kept in (("weighted_dpo", 3), ("dpo", 6)):
        AlignmentTrainer(
            model=policy,
            args=AlignmentConfig(output_dir=str(tmp_path / name), **(SETTINGS | {"num_iterations": 1})),
            method=build(name),
            train_dataset=[row | weight for row, weight in zip(rows, weights, strict=True)],
        ).train()
        assert len(list(read_rows(tmp_path / name / "data" / "offline.parquet"))) == kept
    reasons = (tmp_path / "weighted_dpo" / "dropped.jsonl").read_text()
    assert reasons.count("weight is not a finite number") == 2 and reasons.count("no column 'weight'") == 1
