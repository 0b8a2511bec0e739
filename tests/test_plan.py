"""Plans: the arithmetic by hand, every named method, and the counts of a finished run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from adaptpo import AlignmentConfig, AlignmentTrainer, methods
from adaptpo.cli import main
from adaptpo.config.recipe import load_recipe
from adaptpo.errors import ConfigError, RunError
from adaptpo.methods import METHODS
from adaptpo.plan.against import compare_counts, compare_shares
from adaptpo.plan.arithmetic import (
    Decoding,
    Passes,
    Shape,
    activation_bytes,
    cache_bytes,
    concurrent_sequences,
    decoding_bytes,
    decoding_steps,
    forward_operations,
    separate_rows,
    shared_prompt,
    state_bytes,
    training_multiple,
)
from adaptpo.plan.choices import CHOSEN, FRESH, REJECTED, contribution
from adaptpo.plan.command import Options, read_job
from adaptpo.plan.data import assumed_data
from adaptpo.plan.estimate import make_plan
from adaptpo.plan.job import AnnotatorFacts, Job
from adaptpo.plan.machines import read_machine
from adaptpo.plan.model import shape_of, shape_of_encoder
from adaptpo.plan.phases import phases
from adaptpo.plan.published import beside_paper
from adaptpo.plan.throughput import PassesMeasured, Throughput, read_throughput
from adaptpo.run.files import read_rows
from tests.runs import SETTINGS, start
from tests.tiny import byte_tokenizer, preference_rows, save_policy, tiny_config, tiny_model, write_jsonl

SHAPE = Shape(
    parameters=1000,
    embedding=100,
    head=200,
    tied=False,
    layers=2,
    hidden=8,
    attention=8,
    keys_values=4,
    trained=1000,
)
MACHINE = read_machine("{tflops: 1, memory_gb: 1, bandwidth_gb: 1}")


def job(method: Any = None, **changes: Any) -> Job:
    """300 pairs of 10 prompt, 4 chosen and 4 rejected tokens; fresh responses of 5."""
    made = Job(
        config=AlignmentConfig(output_dir="unused"),
        method=method or methods.metaapo(num_generations=4),
        shape=SHAPE,
        data=assumed_data(300, 10, 4),
        fresh=5,
    )
    return replace(made, **changes)


def test_passes_by_hand() -> None:
    """P = 3, R = 2 and 4: 3 + 1 + 3 tokens; 6 + (3 + 1) + (9 + 6) pairs of tokens see each other."""
    prompt, responses = np.array([3.0]), [np.array([2.0]), np.array([4.0])]
    assert shared_prompt(prompt, responses) == Passes(7, 6, 25)
    assert separate_rows(prompt, responses) == Passes(5 + 7, 0, 15 + 28)
    assert shared_prompt(np.array([3.0, 3.0]), [np.array([2.0, 2.0])]) == Passes(8, 4, 20)


def test_operations_by_hand() -> None:
    """Body 1000 - 100 - 200; 2 * (700 * 7 + 200 * 6) + 4 * 2 layers * 8 wide * 25."""
    assert forward_operations(SHAPE, Passes(7, 6, 25)) == 2 * (700 * 7 + 200 * 6) + 4 * 2 * 8 * 25
    tied = replace(SHAPE, tied=True, head=100)
    assert forward_operations(tied, Passes(1, 1, 0)) == 2 * (900 + 100)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_operations_are_those_that_torch_counts(family: str) -> None:
    """Of a whole row, where torch counts all pairs of tokens and not only those that attend; norms are ours alone."""
    tokenizer = byte_tokenizer()
    model = tiny_model(tokenizer, family, attn_implementation="eager")
    shape = shape_of(model.config)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.ones(1, 20, dtype=torch.long))
    assert forward_operations(shape, Passes(20, 20, 400)) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_an_adapter_trains_few_parameters() -> None:
    """Rank 2 on the queries and values of 2 layers: 2 * (32 + 32) and 2 * (32 + 16) a layer."""
    shape = shape_of(tiny_config(byte_tokenizer()), {"r": 2, "target_modules": ["q_proj", "v_proj"]})
    assert shape.trained == 2 * (2 * 64 + 2 * 48)
    assert shape_of_encoder(tiny_config(byte_tokenizer())).head == 0


def test_a_training_step_is_three_passes_and_one_more_where_it_recomputes() -> None:
    assert (training_multiple(SHAPE, False), training_multiple(SHAPE, True)) == (3, 4)
    assert training_multiple(replace(SHAPE, trained=100), False) == pytest.approx(2.0 + 0.1, rel=0.1)


def test_decoding_by_hand() -> None:
    """100 responses on 2 accelerators, 8 at a time: 7 batches of 20 steps, or 50 * 6 tokens through 8 places. Cache: 2
    layers of 4 numbers of 2 bytes. Each token reads the 10 + 3 before it, on average."""
    work = Decoding(responses=100, prompt=10, length=6, longest=20)
    assert decoding_steps(work, 8, count=2, continuous=False) == 7 * 20
    assert decoding_steps(work, 8, count=2, continuous=True) == 50 * 6 / 8
    assert cache_bytes(SHAPE, 13, 2) == 2 * 4 * 2 * 13
    assert decoding_bytes(SHAPE, work, 140, 2, weight=4, number=2) == 140 * 4000 + 50 * 6 * 208
    assert concurrent_sequences(1000, 100, None, 50) == 10
    assert concurrent_sequences(1000, 100, 4, 50) == 4
    assert concurrent_sequences(1000, 100, None, 2.5) == 3
    assert concurrent_sequences(10, 100, None, 50) == 1


def test_memory_by_hand() -> None:
    assert state_bytes(SHAPE, 4) == 16_000
    assert state_bytes(replace(SHAPE, trained=50), 2) == 2000 + 600
    assert activation_bytes(SHAPE, 3, 2, recomputes=False) == 17 * 2 * 3 * 8 * 2
    assert activation_bytes(SHAPE, 3, 2, recomputes=True) == (2 + 17) * 3 * 8 * 2


def test_choices_say_themselves_what_they_take() -> None:
    shares = {name: METHODS[name]().selection.expected_share().value for name in METHODS}
    assert (shares["dpo"], shares["online_dpo"], shares["metaapo_random"]) == (0, 1, 0.5)
    assert (shares["metaapo"], shares["metaapo_threshold"]) == (0.58, 0.533)


def test_pairings_say_themselves_what_is_trained_on() -> None:
    offline, fresh = (CHOSEN, REJECTED), (FRESH, FRESH)
    both = contribution(methods.metaapo().pairing, selected=True)
    assert (both.group, both.pairs, both.new_pairs) == ((*offline, *fresh), (offline, fresh), (fresh,))
    assert contribution(methods.metaapo().pairing, selected=False).group == ()
    assert contribution(methods.selm().pairing, selected=False).pairs == (offline,)
    assert contribution(methods.selm().pairing, selected=True).new_pairs == (fresh,)
    assert contribution(methods.dpo().pairing, selected=False).group == offline


def test_metaapo_by_hand() -> None:
    """300 pairs in 3 parts, 58 of 100 prompts selected, K = 4: the warm-up and the scores see all pairs."""
    found = {phase.name: phase for phase in phases(job())}
    pair = 10 + 3 + 3
    assert {name: phase.passes.tokens for name, phase in found.items()} == pytest.approx(
        {
            "reference": 300 * pair,
            "warmup": 300 * pair,
            "score": 300 * pair,
            "generate": 174 * (10 + 4 * 4),
            "annotate": 174 * (10 + 4 * 4),
            "pair reference": 174 * (10 + 2 * 4),
            "train": 174 * (10 + 2 * 3 + 2 * 4),
        }
    )
    assert found["annotate"].annotations == found["generate"].responses == pytest.approx(174 * 4)


def test_methods_of_table_8_stand_beside_it() -> None:
    small = job()
    metaapo = replace(small, shape=replace(small.shape, parameters=8_030_261_248))
    minutes, why = beside_paper(metaapo, make_plan(metaapo, read_machine("h100x8")).costs)
    assert "186 minutes for MetaAPO (sampling 106, training 59)" in minutes and "for 300 pairs" in minutes
    assert "neither the length of its responses nor its engine" in why
    assert beside_paper(small, []) == []
    assert beside_paper(replace(metaapo, method=methods.dpo()), []) == []


def test_exact_divergence_takes_the_reference_along() -> None:
    """Its tokens through the layers in every epoch, and its weights beside the policy unless that is an adapter."""
    config = AlignmentConfig(output_dir="out", num_iterations=1, training={"num_train_epochs": 3})
    exact, kept = (replace(job(methods.metapo(divergence=divergence)), config=config) for divergence in ("exact", "k3"))
    found = {phase.name: phase.passes for phase in phases(exact)}
    assert found["reference in training"].tokens == found["train"].tokens
    assert found["reference in training"].logits == 2 * found["train"].logits
    assert "reference in training" not in {phase.name for phase in phases(kept)}
    beside = make_plan(exact, MACHINE).memory[0].gigabytes - make_plan(kept, MACHINE).memory[0].gigabytes
    assert beside == pytest.approx(exact.shape.parameters * 4 / 1e9)
    adapter = replace(exact, config=config.model_copy(update={"peft": {"r": 2}}))
    assert not adapter.second_model


def test_judges_that_compare_are_called_for_both_orders() -> None:
    """K = 4: against the first 2 * 3 calls a prompt, each with each 4 * 3."""
    for opponents, calls in ((None, 4), ("first", 6), ("all", 12)):
        planned = make_plan(
            job(methods.online_dpo(num_generations=4), annotator=AnnotatorFacts(opponents=opponents)), MACHINE
        )
        assert (planned.total("annotations"), planned.total("calls")) == pytest.approx((1200, 300 * calls))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_plan(name: str) -> None:
    method = METHODS[name]()
    planned = make_plan(job(method), MACHINE)
    assert planned.total("operations") > 0
    assert planned.total("seconds") > 0
    trains = [cost for cost in planned.costs if cost.name == "train"]
    assert trains[0].tokens > 0


def test_machines() -> None:
    machine = read_machine("h100x8")
    assert (machine.count, machine.tflops, machine.training_rate) == (8, 989, pytest.approx(989e12 * 8 * 0.4))
    assert read_machine("{accelerator: h200, count: 2, engine: continuous}").name == "h200x2"
    with pytest.raises(ConfigError, match="did you mean 'h100'"):
        read_machine("h10x8")
    with pytest.raises(ConfigError, match="did you mean 'training_utilization'"):
        read_machine("{accelerator: h100, training_utilisation: 0.5}")
    with pytest.raises(ConfigError, match=r"'machine.tflops' is missing"):
        read_machine("{memory_gb: 1, bandwidth_gb: 1}")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of what `tests.runs.start` runs with Online DPO."""
    folder = tmp_path_factory.mktemp("plan")
    values = SETTINGS | {
        "model": save_policy(folder / "policy"),
        "data": write_jsonl(folder / "pairs.jsonl", preference_rows(24)),
        "eval_data": write_jsonl(folder / "heldout.jsonl", preference_rows(6, seed=9)),
        "reward": "python:tests.tiny:vowel_reward",
        "method": {"name": "online_dpo", "num_generations": 4},
        "output_dir": str(folder / "run"),
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_finished_run_counts_what_was_planned(recipe: Path) -> None:
    planned = make_plan(read_job(Options(recipe)), MACHINE)
    run = recipe.parent / "run"
    with pytest.raises(RunError, match="no finished run"):
        compare_counts(planned, run)
    start(str(recipe.parent / "policy"), run, "python:tests.tiny:vowel_reward", "online_dpo", rows=24)
    for one in compare_counts(planned, run):
        assert one.informed == pytest.approx(one.measured, abs=1e-6), one.name
        assert one.name == "fresh tokens" or one.planned == pytest.approx(one.measured, abs=1e-6), one.name
    kinds = {one.name for one in compare_shares(planned, run) if one.operations and one.measured}
    assert {"reference", "warmup", "generate", "train", "evaluate"} <= kinds


def test_rows_are_counted_within_the_models_positions(recipe: Path, tmp_path: Path) -> None:
    """512 of them: a prompt that leaves no room is no pair, and a response is cut where the run cuts it."""
    long = [{"role": "user", "content": "x" * 511}], [{"role": "assistant", "content": "y" * 600}]
    rows = preference_rows(6)
    data = write_jsonl(tmp_path / "pairs.jsonl", [*rows, rows[0] | {"prompt": long[0]}, rows[1] | {"chosen": long[1]}])
    changes = (
        f"data={data}",
        f"output_dir={tmp_path / 'run'}",
        "method=dpo",
        "max_prompt_length=1000",
        "eval_data=null",
    )
    facts = read_job(Options(recipe, changes)).data
    AlignmentTrainer.from_recipe(load_recipe(recipe, changes)).prepare()
    kept = read_rows(tmp_path / "run" / "data" / "offline.parquet")
    assert facts.pairs == len(kept) == 7
    for side, lengths in (("prompt", facts.prompt), ("chosen", facts.chosen), ("rejected", facts.rejected)):
        assert lengths.tolist() == [len(row[f"{side}_ids"]) for row in kept]


def test_sets_and_weights_are_counted_as_the_run_takes_them(recipe: Path, tmp_path: Path) -> None:
    files = [write_jsonl(tmp_path / f"{n}.jsonl", preference_rows(count, seed=n)) for n, count in enumerate((30, 8))]
    data = f"data={{sets: {{a: {{path: {files[0]}, weight: 3}}, b: {{path: {files[1]}, weight: 1}}}}}}"
    facts = read_job(Options(recipe, (data,))).data
    assert (dict(facts.sets), facts.rows, facts.pairs) == ({"a": 24, "b": 8}, 32, 32)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *arguments])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_the_command_prints_the_same_as_json_and_as_text(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, str(recipe), "--json"))
    assert found["totals"]["annotations"] == 24 * 4 + 6 * (1 + 1 + 2)
    assert found["facts"]["pairs"] == 24
    text = printed(capsys, str(recipe), "--fresh-tokens", "7", "--share", "0.5")
    assert "50% of the prompts" in text
    assert "2 x [6 x (" in text
    assert "+ 4 x 7.0 fresh - 4)]" in text


def test_a_sample_stands_for_the_whole(recipe: Path) -> None:
    data = read_job(Options(recipe, sample=6)).data
    assert (data.rows, data.pairs, data.sampled, data.scale) == (24, 24, 6, 4)


MEASURED = Throughput(
    device="NVIDIA H100 80GB HBM3",
    shape="1b",
    parameters=500,
    dtype="bfloat16",
    peak_flops=989e12,
    training=PassesMeasured(tokens_per_second=10_000, share_of_peak=0.3),
)


def test_measured_throughput_is_read_as_written_and_strictly(tmp_path: Path) -> None:
    text, path = MEASURED.model_dump_json(indent=1), tmp_path / "h100.json"
    path.write_text(text)
    assert read_throughput(path) == MEASURED
    for old, new, told in (
        ("500", '"500"', r"'parameters': Input should be a valid integer \(found '500'\)"),
        ("0.3", "30", "'training.share_of_peak': Input should be less than or equal to 1"),
        ('"shape"', '"shap"', "unknown key 'shap': did you mean 'shape'"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(ConfigError, match=told):
            read_throughput(path)
    with pytest.raises(ConfigError, match="cannot read"):
        read_throughput(tmp_path / "none.json")
