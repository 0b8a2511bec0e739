"""The wiring between parts that other tests check alone: what methods, tables and phases pass on, and which of two
like-named values they read."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import TrainingArguments

from adaptpo import AlignmentConfig, AlignmentTrainer
from adaptpo.choices.learners.pair_features import standardize
from adaptpo.choices.learners.trust import ConstantTrust
from adaptpo.choices.objectives import SimPO
from adaptpo.choices.selection import SelectAll
from adaptpo.choices.weighting import LearnedBlend
from adaptpo.config.recipe import load_recipe
from adaptpo.generation.base import Sampling
from adaptpo.methods import METHODS
from adaptpo.methods.build import build_method
from adaptpo.models.collate import GroupCollator
from adaptpo.models.inference import evaluate_pairs
from adaptpo.models.loading import load_causal_lm
from adaptpo.models.packing import PADDED
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.data_inputs import DataInputs
from adaptpo.pipeline.phases import features, grpo, select
from adaptpo.pipeline.phases import filter as filtering
from adaptpo.pipeline.phases import train as training
from adaptpo.pipeline.phases.ppo import rated_prompts
from adaptpo.report.reading import RunData
from adaptpo.run.arrow_rows import MappedRows
from adaptpo.run.files import JsonLines, read_rows, write_json
from adaptpo.run.schemas import read_offline
from adaptpo.run.state import read_state
from adaptpo.sandbox.build import build as build_sandbox
from adaptpo.sandbox.build import write_recipe
from adaptpo.sandbox.instructions import build as instruction_build
from adaptpo.sandbox.instructions.grading import held_out_rows, judged
from adaptpo.sandbox.instructions.questions import HELD_OUT_TOPICS, TRAINING_TOPICS
from adaptpo.sandbox.instructions.rules import Rule
from adaptpo.sandbox.settings import WorldSettings
from adaptpo.sandbox.tables.cells import Cell, settings_of
from adaptpo.sandbox.tables.definitions import TABLES
from adaptpo.sandbox.tables.measure import Boundary
from adaptpo.sandbox.tables.sandbox_world import SandboxWorld
from adaptpo.sandbox.tables.stage_view import parts_text
from adaptpo.sandbox.world import FILLERS
from adaptpo.training.actor_critic import CRITIC, Critic
from adaptpo.training.preference_trainer import PreferenceTrainer
from adaptpo.training.rollouts import evaluate_tokens
from adaptpo.training.step import preference_step, reward_values
from adaptpo.types import PairLogps, Prompt
from tests.groups import random_groups
from tests.runs import SETTINGS
from tests.tiny import byte_tokenizer, preference_rows, save_policy, tiny_model, vowel_reward

# The task on a real model and the sandbox's worlds


def drawn(tmp_path: Path, monkeypatch: Any, seed: int) -> tuple[set[str], set[str], set[str]]:
    """Training prompts, held-out prompts and held-out topics of a task whose drafts no model writes."""
    monkeypatch.setattr(
        instruction_build, "AutoModelForCausalLM", SimpleNamespace(from_pretrained=lambda _: torch.nn.Linear(1, 1))
    )
    monkeypatch.setattr(instruction_build, "AutoTokenizer", SimpleNamespace(from_pretrained=lambda _: None))
    monkeypatch.setattr(
        instruction_build, "write_drafts", lambda m, t, questions, *_: dict.fromkeys(questions, ("A b c d.", "E f."))
    )
    folder = tmp_path / str(seed)
    instruction_build.build(folder, instruction_build.Material("m", 40, 20, seed), progress=False)
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    held = held_out_rows(folder)
    assert {row["topic"] for row in rows} <= set(TRAINING_TOPICS)
    return {row["prompt"][0]["content"] for row in rows}, set(held), {row["topic"] for row in held.values()}


def test_a_task_holds_other_topics_out_and_its_seed_draws_its_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (drawn(tmp_path, monkeypatch, seed) for seed in (0, 1))
    assert one[2] | other[2] <= set(HELD_OUT_TOPICS)
    assert len(one[0] & other[0]) < 10 and len(one[1] & other[1]) < 10


def test_worlds_of_other_seeds_have_other_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class EnoughError(Exception):
        pass

    def stop(cache: Any, folder: Path, ingredients: Any, make: Any) -> None:
        seen.append(ingredients)
        raise EnoughError

    monkeypatch.setattr("adaptpo.sandbox.build.remember", stop)
    prompts = []
    for seed in (0, 1):
        with pytest.raises(EnoughError):
            build_sandbox(tmp_path / str(seed), prompts=64, seed=seed, heldout=24)
        files = [
            [json.loads(line)["prompt"][0]["content"] for line in (tmp_path / f"{seed}/{name}.jsonl").open()]
            for name in ("train", "heldout")
        ]
        assert {prompt for prompt, _ in seen[-1][0]} == set(files[0])
        seconds = (answer.split()[1:2] for _, answers in seen[-1][0] for answer in answers)
        fillers = Counter(word for words in seconds for word in words if word in FILLERS)
        assert fillers.most_common(1)[0][0] == FILLERS[0], "the policy imitates the writer that `other_near` takes"
        prompts.append(set(files[0]) | set(files[1]))
    assert len(prompts[0] & prompts[1]) < 10


# Tables


@pytest.mark.parametrize(
    "name",
    [
        "methods",
        "ablations",
        "time",
        "own",
        "metapo",
        "metapo-features",
        "metapo-online",
        "metapo-validation",
        "metapo-filters",
    ],
)
def test_rows_of_a_table_take_equal_steps(name: str, tmp_path: Path) -> None:
    write_recipe(tmp_path, WorldSettings())
    recipe, world, totals = tmp_path / "recipe.yaml", SandboxWorld(WorldSettings()), {}
    for row in TABLES[name].rows:
        settings = load_recipe(recipe, settings_of(recipe, Cell(row, world)))
        method = build_method(settings)
        if not method.trainer.uses_pairs:
            continue
        epochs = method.warmup_epochs if settings.warmup_epochs is None else settings.warmup_epochs
        kept = getattr(method.filter, "share", 1.0) * 3000
        warmup = epochs * ceil(kept / 16)
        steps = settings.training.get("max_steps")
        assert steps is not None, row.label
        totals[row.label] = warmup + settings.num_iterations * steps
    assert max(totals.values()) <= 1.12 * min(totals.values()), totals


def test_the_oracle_trains_on_the_right_labels_alone(tmp_path: Path) -> None:
    write_recipe(tmp_path, WorldSettings())
    (oracle,) = {row.settings for row in TABLES["metapo-noise"].rows if row.label.startswith("oracle")}
    recipe = load_recipe(tmp_path / "recipe.yaml", oracle)
    rows = [{"flipped": wrong, "prompt": "p"} for wrong in (False, True)]
    (read,) = DataInputs.of(recipe.data.model_copy(update={"path": rows})).mixture().samples(0)
    assert [number for number, _ in read.numbered()] == [0]


def test_only_labels_of_held_out_pairs_vary_where_the_table_says_so(tmp_path: Path) -> None:
    write_recipe(tmp_path, WorldSettings())
    shares = []
    for row in TABLES["metapo-held-out"].rows:
        world = replace(WorldSettings(), **row.world)
        shares.append(world.last_flipped)
        assert world.flipped == 0.1
        assert build_method(load_recipe(tmp_path / "recipe.yaml", row.settings)).validation.split == "last"
    assert shares == [0.0, 0.1, 0.2, 0.4]


# Metrics


def test_accuracy_and_margin_by_hand() -> None:
    """SimPO's rewards are 2 * the mean log-prob: -2 and -6, then -6 and -2."""
    pairs = PairLogps(
        chosen=torch.tensor([-2.0, -6.0]), rejected=torch.tensor([-12.0, -2.0]), chosen_tokens=torch.tensor([2, 2]),
        rejected_tokens=torch.tensor([4, 2]), reference_chosen=torch.zeros(2), reference_rejected=torch.zeros(2),
    )  # fmt: skip
    values = reward_values(SimPO(beta=2.0, gamma=0.0), pairs)
    assert values["rewards/accuracies"].tolist() == [1.0, 0.0]
    assert values["rewards/margins"].tolist() == [4.0, -4.0]


def test_logged_weights_have_the_name_of_their_source() -> None:
    method = METHODS["metaapo_simpo"]()
    blend = replace(method, weighting=LearnedBlend(ConstantTrust(0.7)))
    model = tiny_model(byte_tokenizer())
    found = preference_step(model, GroupCollator(0)(random_groups(4)), blend, 4).metrics
    assert found["weight/offline"] == (pytest.approx(0.7), 4) and found["weight/online"] == (pytest.approx(0.3), 4)


# Rewards and filters


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"), num_hidden_layers=1)


def align(policy: str, out: Path, method: Any, rows: int = 12, reward: Any = vowel_reward, **settings: Any) -> Path:
    args = AlignmentConfig(output_dir=str(out), **(SETTINGS | {"warmup_epochs": 0} | settings))
    AlignmentTrainer(policy, args, method, preference_rows(rows), reward_funcs=reward).train()
    return out


def shards(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in read_rows(path)]


def said(text: Any) -> str:
    try:
        found = json.loads(text)
    except (TypeError, ValueError):
        return text
    return found if isinstance(found, str) else found[-1]["content"]


def test_a_pool_has_the_best_and_the_worst(policy: str, tmp_path: Path) -> None:
    out = align(policy, tmp_path / "run", METHODS["selm"](num_generations=3), num_iterations=1)
    pairs = read_rows(out / "iterations/0/pairs.parquet")
    assert pairs
    for row in pairs:
        chosen, rejected = (vowel_reward([""], [said(row[side])])[0] for side in ("chosen", "rejected"))
        assert chosen - rejected == pytest.approx(row["reward_gap"])


def test_filters_know_the_sign_of_their_facts(policy: str, tmp_path: Path) -> None:

    asked = SimpleNamespace(annotate=lambda _, requests: [5.0 if side == "good" else 1.0 for _, side in requests])
    pair = SimpleNamespace(chosen="good", rejected="bad")
    assert filtering.annotated_gaps(asked, [(None, pair), (None, pair)]).tolist() == [4.0, 4.0]
    assert (
        type(METHODS["bees"]().filter).__name__ == "AgreeingMargins"
        and type(METHODS["map"]().filter).__name__ == "AlignmentPotential"
    )
    out = align(policy, tmp_path / "run", METHODS["perplexity_filter"](), num_iterations=1)

    items = [read_offline(row) for row in MappedRows(out / "data" / "offline.arrow").read(list(range(12)))]
    logps = evaluate_pairs(load_causal_lm(policy, {}), 0, items, TrainingArguments(use_cpu=True))
    found = torch.tensor([row["priority"] for row in read_rows(out / "data" / "filter.parquet")])
    torch.testing.assert_close(found, -(-logps.chosen / logps.chosen_tokens).exp(), atol=1e-2, rtol=1e-4)


# MetaPO


def test_the_first_step_of_metapo_has_no_divergence(policy: str, tmp_path: Path) -> None:
    out = align(policy, tmp_path / "run", METHODS["metapo"](meta_interval=2), num_iterations=1)
    first = [line for line in JsonLines(out / "iterations/0/pair_weights.jsonl").read() if line["step"] == 1]
    assert first and all(abs(line["divergence"]) < 1e-5 for line in first)


def test_held_out_pairs_stay_out_of_the_warm_up_and_have_the_iterations_reference(policy: str, tmp_path: Path) -> None:
    method = METHODS["iterative_dpo_metapo"](num_generations=3, meta_interval=2)
    out = align(policy, tmp_path / "run", method, 20, warmup_epochs=1, num_iterations=1)
    held = [row["prompt_id"] for row in read_rows(out / "data/validation.parquet")]
    assert read_state(out)["phases"]["warmup"]["prompts"] == 20 - len(held)
    kept = [row["prompt_id"] for row in shards(out / "iterations/0/reference") if row["source"] == "offline"]
    assert held and kept == held


def test_held_out_pairs_are_drawn_by_difficulty_and_seed(policy: str, tmp_path: Path) -> None:
    """The difficulty is the initial model's mean log-prob of rejected minus that of chosen."""
    out = align(policy, tmp_path / "run", METHODS["metapo"](validation_share=0.3), 12, seed=4, num_iterations=1)
    kept = {row["prompt_id"]: row for row in shards(out / "reference")}
    offline = [read_offline(row)[1] for row in MappedRows(out / "data" / "offline.arrow").read(range(12))]
    hardness = [
        kept[n]["rejected"] / len(pair.rejected.ids) - kept[n]["chosen"] / len(pair.chosen.ids)
        for n, pair in enumerate(offline)
    ]
    chosen = METHODS["metapo"](validation_share=0.3).validation.choose(torch.tensor(hardness, dtype=torch.float64), 4)
    found = {row["prompt_id"]: row["difficulty"] for row in read_rows(out / "data" / "validation.parquet")}
    assert found == pytest.approx({n: hardness[n] for n in chosen})


def test_each_update_draws_its_held_out_pairs() -> None:
    """Of 8 held-out prompts, 4 for a step that trains on 4."""
    groups = random_groups(8)
    shared = SimpleNamespace(share=list)
    trainer = SimpleNamespace(
        args=SimpleNamespace(seed=0, per_device_train_batch_size=4, device=torch.device("cpu")),
        method=METHODS["metapo"](validation_share=0.3),
        validation=groups,
        ranks=shared,
        collator=SimpleNamespace(batches=lambda some: [{"prompt_id": [group.prompt.id for group in some]}]),
        with_references=list,
        fillers=lambda count: [],
    )
    drawn = []
    for step in range(6):
        trainer.state = SimpleNamespace(global_step=step)
        batches = PreferenceTrainer.validation_batches(trainer, 4)  # type: ignore[arg-type]
        drawn.append([id_ for batch in batches for id_ in batch["prompt_id"]])
    assert all(len(set(ids)) == 4 for ids in drawn)
    assert len({tuple(sorted(ids)) for ids in drawn}) > 3


# Methods


def test_settings_of_methods_are_what_they_say() -> None:
    previous = {
        "iterative_dpo",
        "iterative_dpo_metapo",
        "metaapo_previous",
        "off_off",
        "off_on",
        "on_off",
        "on_on",
        "two_stage",
        "stage_blend",
    }
    assert {name for name in METHODS if METHODS[name]().reference == "previous"} == previous
    keeping = {name for name in METHODS if getattr(METHODS[name]().pairing, "keep_unselected", False)}
    assert keeping == {"metaapo_all_offline", "adpo", "stage_blend"}
    method = METHODS["metaapo_unscaled"]()
    assert method.learners()[0].score_scale == pytest.approx(1 / method.objective.beta)
    made = METHODS["metapo"](
        max_weight=2.0, normalize_weights=True, entropy=0.5, validation_split="last", decay=0.8, dense_start=0.1
    )
    learner = made.weighting.learner
    assert (learner.max_weight, learner.normalize, learner.entropy) == (2.0, True, 0.5)
    assert (learner.features.decay, learner.cadence.dense_start, made.validation.split) == (0.8, 0.1, "last")


# The judge


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("sentences one", "A cat purrs. It sleeps."),
        ("sentences two", "A. B. C is it."),
        ("words 8", "a b c d e f g h i"),
    ],
)
def test_too_much_breaks_a_rule(rule: str, text: str) -> None:
    assert not Rule.parse(rule).kept(text)


def test_fewest_words() -> None:
    assert [judged(text, "cat", "lowercase", True) for text in ("a cat sat.", "a cat sat down.")] == [0.0, 1.0]


# The stage score's parts


def test_parts_of_a_boundary_score(tmp_path: Path) -> None:
    stage = tmp_path / "iterations/0/stage"
    (stage / "comparisons").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "config.yaml").write_text("model: none")
    pq.write_table(pa.table({"prompt_id": [0], "part": [0], "columns": ["{}"]}), tmp_path / "data/offline.parquet")
    rows = [
        {"prompt_id": 0, "fresh": n, "offline": side, "preference": float(side == "rejected" or n == 1)}
        for n in (0, 1)
        for side in ("chosen", "rejected")
    ]
    pq.write_table(pa.Table.from_pylist(rows), stage / "comparisons/00000.parquet")
    facts = {"done": True, "boundary_score": 0.75, "low": 0.6, "high": 0.9, "injection": False}
    write_json(tmp_path / "state.json", {"phases": {"iterations/0/stage": facts}})
    found = Boundary.of(RunData.open(tmp_path))
    assert found == Boundary(0.75, 0.6, 0.9, False, against_chosen=0.5, against_rejected=1.0)
    assert parts_text(SimpleNamespace(all=[SimpleNamespace(boundary=found)])) == "0.500 / 1.000"


# The learner's features


def test_features_are_of_the_policy_that_starts_the_iteration_and_of_their_own_pair(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    asked, groups = [], []
    compute, grouped = features.compute, training.grouped
    monkeypatch.setattr(
        features,
        "compute",
        lambda c, f, folder, path, items: asked.append((folder, path)) or compute(c, f, folder, path, items),
    )

    def noted(items: Any, known: Any = ()) -> Any:
        for group in grouped(items, known):
            groups.append((group.prompt.id, group.features))
            yield group

    monkeypatch.setattr(training, "grouped", noted)

    method = replace(METHODS["metaapo_hidden_state"](num_generations=3, dimensions=2), selection=SelectAll())
    out = align(policy, tmp_path / "run", method, 10)
    assert asked == [
        ("iterations/0/features/hidden_state", policy),
        ("iterations/1/features/hidden_state", str(out / "iterations/0/checkpoint")),
    ]
    for t in (0, 1):
        kept = {row["prompt_id"]: row["values"] for row in shards(out / f"iterations/{t}/features/hidden_state")}
        values = dict(zip(kept, standardize(torch.tensor(list(kept.values()))).tolist(), strict=True))
        own = {id_: known["hidden_state"] for id_, known in groups if id_ in kept and known}
        assert own and all(own[id_] == pytest.approx(values[id_], abs=1e-5) for id_ in own)


def test_selection_reads_the_ratios_as_training_does(tmp_path: Path) -> None:

    stored = {"margin": [1.0], "chosen_ratio": [2.0], "rejected_ratio": [3.0]}
    run = SimpleNamespace(read_columns=lambda _, *names: [np.array(stored[name]) for name in names])
    context = SimpleNamespace(
        run=run, folder=lambda t: "x", method=METHODS["metaapo_multi_feature"](), offline_ids=lambda t: range(1)
    )
    assert select.scored_prompts(context, 0, np.array([0])).ratios.tolist() == [[2.0, 3.0]]


# PPO and GRPO


def test_ppo_compares_with_the_policy_that_sampled_and_with_its_reference(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    asked: list[tuple[str, str]] = []
    plain = {name: getattr(Context, name) for name in ("policy", "reference")}
    for name in plain:
        monkeypatch.setattr(
            Context, name, lambda self, path, name=name: asked.append((name, path)) or plain[name](self, path)
        )
    steep = SETTINGS["training"] | {"learning_rate": 1e-2}
    out = align(policy, tmp_path / "run", METHODS["ppo"](num_generations=2), 8, training=steep)
    start = str(out / "iterations/0/checkpoint")
    assert ("policy", start) in asked and ("reference", policy) in asked
    assert {path for name, path in asked if name == "reference"} == {policy}
    first = next(
        line
        for line in JsonLines(out / "metrics.jsonl").read()
        if line["phase"] == "iterations/1/train" and "policy/approx_kl" in line
    )
    assert first["policy/approx_kl"] < 1e-8
    values = [row["values"] for row in shards(out / "iterations/1/rollouts/values")]
    trained, body = (critic_values(policy, out, place) for place in ("critic", ""))
    assert any(map(any, values)) and len(values) == len(trained)
    for found, expected in zip(values, trained, strict=True):
        assert found == pytest.approx(expected, abs=1e-5)
    assert values != [pytest.approx(line, abs=1e-3) for line in body]


def critic_values(policy: str, out: Path, body: str) -> list[list[float]]:
    """The values of the rollouts of iteration 1, by the critic's head on the model in this part of the checkpoint."""
    checkpoint = out / "iterations/0/checkpoint"
    steep = SETTINGS["training"] | {"learning_rate": 1e-2}
    args = AlignmentConfig(output_dir=str(out), **(SETTINGS | {"warmup_epochs": 0, "training": steep}))
    method = METHODS["ppo"](num_generations=2)
    trainer = AlignmentTrainer(policy, args, method, preference_rows(8), reward_funcs=vowel_reward)
    critic = Critic(load_causal_lm(str(checkpoint / body), {}))
    critic.load_head(checkpoint / CRITIC)
    with trainer.open() as context:
        prompts = rated_prompts(context, 1)
        found = evaluate_tokens(prompts, critic.eval(), 0, context.inference_arguments, PADDED)
    return [list(values) for lines in found for values in lines]


def test_responses_of_grpo_differ_by_step_and_its_reference_is_the_chosen_one(monkeypatch: pytest.MonkeyPatch) -> None:

    seen = []
    monkeypatch.setattr(
        grpo, "sampler", lambda *_: SimpleNamespace(generate=lambda p, c, seeds: seen.extend(seeds) or [])
    )
    context = SimpleNamespace(
        config=SimpleNamespace(seed=0),
        method=METHODS["grpo"](num_generations=2),
        start_policy=lambda t: f"start {t}",
        first_reference="first",
    )
    for iteration, step, number in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)):
        grpo.sample(context, iteration, {number: Prompt(number, "", [1])}, None, step, [number] * 2)
    context.config.seed = 1
    grpo.sample(context, 0, {0: Prompt(0, "", [1])}, None, 0, [0] * 2)
    assert len(set(seen)) == 5
    for chosen, expected in (("initial", "first"), ("previous", "start 1")):
        context.reference_choice, model = chosen, SimpleNamespace(config=SimpleNamespace())
        grpo.choose_reference(context, 1, model)
        assert model.config._name_or_path == expected


def test_settings_of_sampling_reach_generation_and_trl(policy: str, tmp_path: Path) -> None:
    generation = {"temperature": 0.3, "top_p": 0.4, "top_k": 7, "max_new_tokens": 9}
    args = AlignmentConfig(output_dir=str(tmp_path / "run"), **(SETTINGS | {"generation": generation}))
    method = METHODS["grpo"](num_generations=2, epsilon=0.3, beta=0.1)
    with AlignmentTrainer(policy, args, method, preference_rows(8), reward_funcs=vowel_reward).open() as context:
        assert context.sampling == Sampling(0.3, 0.4, 7, 9, context.stop_ids)
        found = grpo.trl_arguments(context, 0, context.method.trainer)
    assert (found.temperature, found.top_p, found.top_k, found.max_completion_length) == (0.3, 0.4, 7, 9)
    assert (found.epsilon, found.beta, found.num_generations) == (0.3, 0.1, 2)


def test_facts_of_pairs_reach_the_batch() -> None:
    groups = random_groups(3)
    columns: list[dict[str, Any]] = [{"weight": 0.0}, {"weight": 3}, {}]
    gaps = (None, 2.5)
    groups = [
        replace(
            group,
            prompt=replace(group.prompt, columns=own),
            pairs=tuple(replace(pair, reward_gap=gap) for pair, gap in zip(group.pairs, gaps, strict=True)),
        )
        for group, own in zip(groups, columns, strict=True)
    ]
    facts = GroupCollator(0)(groups)["pairs"]
    assert facts.data_weight.tolist() == [0, 0, 3, 3, 1, 1]
    assert facts.reward_gap.isnan().tolist() == [True, False] * 3 and facts.reward_gap[1::2].tolist() == [2.5] * 3
