"""Plans: the arithmetic by hand, every named method, and the counts of a finished run."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
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
from adaptpo.generation.base import Sampling
from adaptpo.generation.transformers_engine import TransformersGenerator
from adaptpo.methods import METHODS
from adaptpo.plan.against import compare_counts, compare_shares
from adaptpo.plan.arithmetic import (
    Passes,
    Shape,
    activation_bytes,
    cache_bytes,
    forward_operations,
    separate_rows,
    shared_prompt,
    training_multiple,
)
from adaptpo.plan.choices import CHOSEN, FRESH, REJECTED, contribution
from adaptpo.plan.command import Options, read_job
from adaptpo.plan.data import assumed_data
from adaptpo.plan.decoding import MOST_SEQUENCES, decoding_seconds, sampler_of
from adaptpo.plan.estimate import make_plan
from adaptpo.plan.job import AnnotatorFacts, Job
from adaptpo.plan.machines import read_machine
from adaptpo.plan.memory import reward_training, sharded, states, unsharded
from adaptpo.plan.model import shape_of, shape_of_encoder
from adaptpo.plan.phases import Phase, phases
from adaptpo.plan.published import SAMPLING, TRAINING, beside_paper
from adaptpo.plan.rates import Rates
from adaptpo.plan.throughput import GenerationMeasured, PassesMeasured, Throughput, read_throughput
from adaptpo.run.files import read_rows
from adaptpo.types import Prompt
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


def phase_of(job: Job, name: str = "generate") -> Phase:
    return next(phase for phase in phases(job) if phase.name == name)


def generating(prompts: float, count: int = 4, **settings: Any) -> tuple[Job, Phase]:
    """A job that samples `count` responses of 5 tokens to this many prompts of 10, and that phase."""
    sampling = AlignmentConfig(output_dir="unused", num_iterations=1, generation={"max_new_tokens": 20, **settings})
    found = job(methods.online_dpo(num_generations=count), config=sampling, data=assumed_data(int(prompts), 10, 4))
    return found, phase_of(found)


def test_the_own_sampler_decodes_whole_prompts_until_the_longest_response() -> None:
    """A row reserves 30 tokens x 2 layers x 4 numbers x 4 bytes, twice, and 32 bytes for each of 25 words: 2720 bytes;
    2 prompts of 4 rows fit into 22 kB. 100 prompts on 2 accelerators: 25 batches each, of 5 steps, which read 3600
    bytes of weights, all but the embedding; 200 responses of 5 tokens read 10 + 2.5 earlier ones of 32 bytes. Prefill:
    100 prompts of 2 * (700 * 10 + 200) + 4 * 2 * 8 * 55 operations."""
    found, phase = generating(100)
    machine = read_machine("{tflops: 1, memory_gb: 5.5e-5, bandwidth_gb: 1, count: 2}")
    sampler = sampler_of(found, phase, machine)
    assert (sampler.engine, sampler.rows, sampler.row_bytes, sampler.replicas) == ("transformers", 8, 2720, 2)
    read, prefill = 25 * 5 * 3600 + 200 * 5 * 12.5 * 32, 100 * (2 * 7200 + 4 * 2 * 8 * 55) / (2 * 0.4e12)
    cost = next(cost for cost in make_plan(found, machine).costs if cost.name == "generate")
    assert cost.seconds == pytest.approx(read / 0.6e9 + 25 * 5 * 0.025 + prefill)
    assert "125 steps of 8 sequences on each of 2" in cost.arithmetic


def test_the_planned_rows_are_those_of_the_sampler() -> None:
    tokenizer = byte_tokenizer()
    model = tiny_model(tokenizer)
    memory = 2**20
    real = TransformersGenerator(model, tokenizer, Sampling(1.0, 1.0, 0, 20, frozenset()), memory=memory)
    batches = real.batches([Prompt(id=n, text="", ids=[1] * 10) for n in range(64)], 4)
    found, phase = generating(64, memory_gb=memory / 2**30)
    sampler = sampler_of(replace(found, shape=shape_of(model.config)), phase, MACHINE)
    assert sampler.rows == 4 * len(batches[0]) < 4 * 64


def test_a_server_refills_its_places_and_drains_at_the_end() -> None:
    """1000 prompts x 4 on 2 replicas of 1 accelerator, 8 requests of each: 2000 * 5 / 32 steps."""
    found, phase = generating(1000, engine="vllm", data_parallel_size=2, concurrency=8)
    machine = read_machine("{tflops: 1, memory_gb: 1, bandwidth_gb: 1, count: 4}")
    sampler = sampler_of(found, phase, machine)
    assert (sampler.engine, sampler.replicas, sampler.rows) == ("continuous", 2, 32)
    cost = next(cost for cost in make_plan(found, machine).costs if cost.name == "generate")
    assert f"{2000 * 5 / 32:,.0f} steps of 32 sequences on each of 2" in cost.arithmetic
    wide, phase = generating(1000, engine="vllm", tensor_parallel_size=4, concurrency=512)
    sampler = sampler_of(wide, phase, machine)
    assert (sampler.replicas, sampler.accelerators, sampler.rows) == (1, 4, MOST_SEQUENCES)
    arithmetic = decoding_seconds(wide, phase, machine, Rates(wide, machine))[1]
    assert "of 256 sequences on each of 1 of 4 accelerators" in arithmetic and "(4 GB/s x 60%)" in arithmetic


def test_the_longest_of_several_responses() -> None:
    """Lengths 2 and 6: both of two responses are short once in four times. Those of 8 are cut at 20."""
    known = assumed_data(2, 10, 4)
    spread = replace(job(), data=replace(known, chosen=np.array([6.0, 2.0])), fresh=4.0)
    assert (spread.longest(1), spread.longest(2)) == (4, 0.25 * 2 + 0.75 * 6)
    assert replace(generating(1)[0], fresh=100.0).longest(3) == 20
    alone = replace(known, chosen=np.zeros(1))
    assert replace(spread, data=alone).longest(2) == spread.config.generation.max_new_tokens


def test_cache_by_hand() -> None:
    assert cache_bytes(SHAPE, 13, 2) == 2 * 4 * 2 * 13


LLAMA_8B = Shape(8_030_261_248, 525_336_576, 525_336_576, False, 32, 4096, 4096, 2048, 8_030_261_248)
PUBLISHED = {(128, 128): 16_117, (128, 2048): 9_894, (500, 2000): 7_953, (1000, 1000): 7_721, (2048, 2048): 4_371}
"""Response tokens per second of Llama 3.1 8B with 16-bit weights on one H100, by lengths of prompt and response:
TensorRT-LLM 0.15, docs/performance/perf-overview.md."""


def llama_8b(method: Any, prompt: float, fresh: float, **settings: Any) -> Job:
    config = AlignmentConfig(
        output_dir="unused",
        max_prompt_length=2048,
        generation={"max_new_tokens": 2048, "concurrency": 256, "engine": "vllm", **settings},
        training={"bf16": True, "gradient_checkpointing": True, "gradient_accumulation_steps": 64},
    )
    data = assumed_data(64_000, prompt, 300)
    annotator = AnnotatorFacts(replace(LLAMA_8B, head=0))
    return Job(config, method, LLAMA_8B, data, fresh, annotator, weight_bytes=4, number_bytes=2)


@pytest.mark.parametrize("lengths", PUBLISHED)
def test_decoding_is_planned_below_what_is_published(lengths: tuple[int, int]) -> None:
    """A server does not reach the figures that a vendor tunes for; a plan is within half of them."""
    found, machine = llama_8b(methods.dpo(), *lengths), read_machine("h100x1")
    phase = Phase("generate", "generate", Passes(), (), prompts=64_000, responses=64_000)
    seconds, _ = decoding_seconds(found, phase, machine, Rates(found, machine))
    assert 0.5 < 64_000 * lengths[1] / seconds / PUBLISHED[lengths] < 1


def test_metaapo_on_8_h100_takes_an_hour_with_the_remedies() -> None:
    """Minutes of 8 x H100 at 300 tokens a response, each remedy added to those before."""
    machine, float32 = {"accelerator": "h100", "count": 8}, AnnotatorFacts(replace(LLAMA_8B, head=0), number_bytes=4)

    def minutes(annotator: AnnotatorFacts | None = None, settings: Any = None, **shares: float) -> float:
        given = {"data_parallel_size": 8} if settings is None else settings
        found = llama_8b(methods.metaapo(), 170, 300, **given)
        found = found if annotator is None else replace(found, annotator=annotator)
        costs = make_plan(found, read_machine(json.dumps(machine | shares))).costs
        return sum(cost.seconds for cost in costs if cost.name in (*SAMPLING, *TRAINING)) / 60

    one_replica = minutes(float32, {"data_parallel_size": 1}, rank_balance=0.75)
    steps = [one_replica, minutes(float32, rank_balance=0.75), minutes(rank_balance=0.75), minutes()]
    steps.append(minutes(training_utilization=0.4))
    assert all(later < earlier - 5 for earlier, later in pairwise(steps))
    assert steps[3] <= 60 and steps[4] <= 50


def sizes(parts: Any) -> dict[str, float]:
    return {part.name: part.size for part in parts if part.size}


def test_memory_by_hand() -> None:
    assert activation_bytes(SHAPE, 3, 2, recomputes=False) == 17 * 2 * 3 * 8 * 2
    assert activation_bytes(SHAPE, 3, 2, recomputes=True) == (2 + 17) * 3 * 8 * 2
    assert sizes(states(job())) == {"weights": 4000, "gradients": 4000, "Adam's two moments": 8000}
    adapter = sizes(states(job(shape=replace(SHAPE, trained=50), weight_bytes=2)))
    assert adapter == {"weights": 2000, "adapter": 200, "gradients": 200, "Adam's two moments": 400}


def test_mixed_precision_and_several_ranks_take_memory() -> None:
    """Copies of 700 + 200 weights in 2 bytes; DDP's buckets; whole gradients in float32 while FSDP2 accumulates, with
    embedding, head and two of two layers gathered."""
    config = AlignmentConfig(output_dir="unused", training={"gradient_accumulation_steps": 2})
    mixed = job(config=config, number_bytes=2)
    assert sizes(unsharded(mixed, 1))["autocast copies"] == 900 * 2
    assert sizes(unsharded(mixed, 2))["DDP's gradient buckets"] == 4000
    assert "DDP's gradient buckets" not in sizes(unsharded(mixed, 1))
    assert mixed.reading_bytes == 700 * 2 + 300 * 4
    found = sizes(sharded(mixed, 4))
    assert (found["weights in 4 shares"], found["gradients that accumulate"], found["gathered"]) == (1000, 4000, 2000)
    assert "gradients that accumulate" not in sizes(sharded(job(number_bytes=2), 4))


def test_a_reward_model_in_training_takes_memory_by_hand() -> None:
    """1000 weights in float32, with gradients and two moments, whatever the policy trains."""
    trains = AnnotatorFacts(SHAPE, trained=True)
    adapter = job(shape=replace(SHAPE, trained=50), weight_bytes=2, annotator=trains)
    (alone,) = reward_training(adapter, read_machine("h100x1"))
    assert alone.gigabytes == 16e-6 and alone.name == "reward model's training, not sharded"
    assert [line.gigabytes for line in reward_training(adapter, read_machine("h100x8"))] == [16e-6, 2e-6]
    assert reward_training(job(annotator=AnnotatorFacts(SHAPE)), read_machine("h100x1")) == []


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


def test_a_branch_takes_the_opening_and_its_evaluations_from_another_run() -> None:
    config = AlignmentConfig(output_dir="out", branch_of="other")
    for changes in ({}, {"annotator": AnnotatorFacts(opponents="first")}):
        whole, branch = (
            {phase.name: phase for phase in phases(job(eval_prompts=10, eval_pairs=True, **changes, **given))}
            for given in ({}, {"config": config})
        )
        assert whole.keys() - branch.keys() == {"reference", "warmup"}
        assert (whole["evaluate: generate"].prompts, branch["evaluate: generate"].prompts) == (50, 30)
        assert branch["evaluate: annotate"].annotations == (60 if changes else 30)
    assert any("branch_of" in note for note in make_plan(job(config=config), MACHINE).notes)
    few = AlignmentConfig(output_dir="out", training={"max_steps": 3})
    assert any("training.max_steps ends each" in note for note in make_plan(job(config=few), MACHINE).notes)


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
    assert (machine.count, machine.peak(2), machine.peak(4)) == (8, 989e12, 67e12)
    assert read_machine("{tflops: 1, memory_gb: 1, bandwidth_gb: 1}").peak(4) == 1e12
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
    planned = make_plan(read_job(load_recipe(recipe)), MACHINE)
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
    facts = read_job(load_recipe(recipe, changes)).data
    AlignmentTrainer.from_recipe(load_recipe(recipe, changes)).prepare()
    kept = read_rows(tmp_path / "run" / "data" / "offline.parquet")
    assert facts.pairs == len(kept) == 7
    for side, lengths in (("prompt", facts.prompt), ("chosen", facts.chosen), ("rejected", facts.rejected)):
        assert lengths.tolist() == [len(row[f"{side}_ids"]) for row in kept]


def test_sets_and_weights_are_counted_as_the_run_takes_them(recipe: Path, tmp_path: Path) -> None:
    files = [write_jsonl(tmp_path / f"{n}.jsonl", preference_rows(count, seed=n)) for n, count in enumerate((30, 8))]
    data = f"data={{sets: {{a: {{path: {files[0]}, weight: 3}}, b: {{path: {files[1]}, weight: 1}}}}}}"
    facts = read_job(load_recipe(recipe, (data,))).data
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
    assert "training_utilization: 27% of the peak in training (PyTorch without compilation" in text
    measured = recipe.parent / "h100.json"
    measured.write_text(MEASURED.model_copy(update={"dtype": "float32", "peak_flops": 67e12}).model_dump_json())
    text = printed(capsys, str(recipe), "--measured", str(measured))
    assert "training: 30% of the peak in training (measured with 1b in float32 on NVIDIA H100" in text


def test_a_sample_stands_for_the_whole(recipe: Path) -> None:
    data = read_job(load_recipe(recipe), Options(sample=6)).data
    assert (data.rows, data.pairs, data.sampled, data.scale) == (24, 24, 6, 4)


MEASURED = Throughput(
    device="NVIDIA H100 80GB HBM3",
    shape="1b",
    parameters=500,
    dtype="bfloat16",
    peak_flops=989e12,
    training=PassesMeasured(tokens_per_second=10_000, share_of_peak=0.3),
)


def costs_of(found: Job, measured: Throughput | None = None, machine: str = "h100x8") -> dict[str, Any]:
    return {cost.name: cost for cost in make_plan(found, read_machine(machine), measured).costs}


def test_rates_by_hand() -> None:
    """Training at 27 % of 8 x 989 TFLOP/s, with ranks that are nearly equal; float32 has its own peak."""
    half = job(number_bytes=2, annotator=AnnotatorFacts(SHAPE, number_bytes=4))
    found = costs_of(half)
    assert found["train"].seconds == pytest.approx(found["train"].operations / (8 * 989e12 * 0.27 * 0.99))
    assert found["score"].seconds == pytest.approx(found["score"].operations / (8 * 989e12 * 0.4))
    assert found["annotate"].seconds == pytest.approx(found["annotate"].operations / (8 * 67e12 * 0.4))
    alone = costs_of(half, machine="h100x1")["train"]
    assert alone.seconds == pytest.approx(alone.operations / (989e12 * 0.27))


def test_measured_numbers_replace_the_assumed_ones() -> None:
    """Measured with half of the plan's parameters: shares of the peak stay, and responses take twice as long. 8
    accelerators sample 696 responses of 5 tokens at 2,000 a second."""
    generation = GenerationMeasured(engine="transformers", tokens_per_second=4000)
    annotation = PassesMeasured(tokens_per_second=50_000, share_of_peak=0.5)
    told = MEASURED.model_copy(update={"generation": generation, "annotation": annotation})
    found = costs_of(job(number_bytes=2, annotator=AnnotatorFacts(SHAPE)), told)
    assert found["train"].seconds == pytest.approx(found["train"].operations / (8 * 989e12 * 0.3 * 0.99))
    assert found["annotate"].seconds == pytest.approx(found["annotate"].operations / (8 * 989e12 * 0.5))
    assert found["score"].seconds == pytest.approx(found["score"].operations / (8 * 989e12 * 0.4))
    assert found["generate"].seconds == pytest.approx(696 * 5 / (8 * 2000))
    planned = make_plan(job(number_bytes=2, annotator=AnnotatorFacts(SHAPE)), read_machine("h100x8"), told)
    sources = {one.name: one.source for one in planned.assumptions}
    assert sources["training"].startswith("measured with 1b in bfloat16 on NVIDIA H100 80GB HBM3, 10,000 tokens/s")
    assert sources["generation"].endswith("times its parameters over the model's")
    assert "training_utilization" not in sources and not sources["inference_utilization"].startswith("measured")


def test_a_measurement_holds_for_its_precision_engine_and_accelerator() -> None:
    generation = GenerationMeasured(engine="vllm", tokens_per_second=4000)
    told = MEASURED.model_copy(update={"generation": generation})
    float32 = make_plan(job(), read_machine("h100x8"), told)
    assert any("measured training is not used: it is in bfloat16" in note for note in float32.notes)
    half = job(number_bytes=2)
    assert costs_of(half, told)["generate"].seconds == costs_of(half)["generate"].seconds
    served = "{accelerator: a100, engine: continuous}"
    assert costs_of(half, told, served)["generate"].seconds == costs_of(half, None, served)["generate"].seconds
    assert any("another accelerator" in note for note in make_plan(half, read_machine(served), told).notes)
    # The H200 has the H100's peak, and more bandwidth.
    sampled = told.model_copy(update={"generation": GenerationMeasured(engine="transformers", tokens_per_second=4000)})
    assert costs_of(half, sampled)["generate"].seconds != costs_of(half)["generate"].seconds
    for_h200 = [costs_of(half, measured, "h200x8")["generate"].seconds for measured in (sampled, None)]
    assert for_h200[0] == for_h200[1]


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
