"""The benchmarks run, and their ratios are what they say; nothing here measures speed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importable as the scripts import each other, with models of a few thousand parameters."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import material

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    for name, value in small.items():
        monkeypatch.setitem(material.SHAPE, name, value)


def test_a_ratio_is_the_median_of_neighbours() -> None:
    from measure import compare

    ratio = compare("a case", "new", "old", {"new": [1.0, 2.0, 1.0], "old": [3.0, 4.0, 1.0]})
    assert (ratio.ratio, ratio.spread) == (2.0, (1.0, 3.0))


def test_variants_take_turns() -> None:
    from measure import alternate

    calls: list[str] = []
    times = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert calls == ["a", "b"] * 3
    assert {name: len(taken) for name, taken in times.items()} == {"a": 2, "b": 2}


def test_training_steps_are_compared_with_the_same_result(tmp_path: Path) -> None:
    """The authors' way and ours differ in cost alone: same log-probs, hence the same first gradient."""
    from material import model_16m, prompt_groups
    from training import SHARED, full_logps, padded_batch, step_ratios

    from adaptpo.models.collate import GroupCollator
    from adaptpo.models.logps import response_logps

    groups = prompt_groups(2, 12, 8, ragged=True)
    with torch.no_grad():
        theirs = full_logps(model_16m(), *padded_batch(groups))
        ours, _ = response_logps(model_16m(shared=True), GroupCollator(0, SHARED)(groups))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    ratios = step_ratios("tiny", groups, repeats=1)
    assert [(r.variant, r.against) for r in ratios] == [
        ("adaptpo", "authors' way"),
        ("adaptpo, charged", "authors' way"),
        ("adaptpo", "padded rows"),
    ]
    written(ratios, tmp_path)


def written(ratios: list[Any], folder: Path) -> None:
    from measure import finish

    finish(ratios, argparse.Namespace(json=folder / "ratios.json", plot=folder / "ratios.png"), "a title")
    rows = json.loads((folder / "ratios.json").read_text())
    assert [set(row) for row in rows] == [{"case", "variant", "against", "ratio", "spread"}] * len(ratios)
    assert (folder / "ratios.png").read_bytes().startswith(b"\x89PNG")


def test_generation_samples_responses_of_the_same_lengths(capsys: pytest.CaptureFixture[str]) -> None:
    from generation import ratios_of

    ratios = ratios_of("tiny", [5, 9], batch_size=2, repeats=1)
    assert ratios[0].ratio > 0
    ours, theirs = (float(part.split()[-1]) for part in capsys.readouterr().out.split(";")[0].split(": ")[1].split(","))
    assert ours == pytest.approx(theirs, rel=0.35)


def test_needed_operations_by_hand() -> None:
    """One pair, P = 3, R = 2 and 4: 3 + 1 + 3 tokens; 6 + (3 + 1) + (9 + 6) pairs of tokens see each other."""
    from dataclasses import replace

    from material import model_16m, prompt_groups
    from scaling import needed_operations

    config = model_16m().config
    group = prompt_groups(1, 3, 4, pairs=1)[0]
    pair = group.pairs[0]
    group = replace(group, pairs=(replace(pair, chosen=replace(pair.chosen, ids=pair.chosen.ids[:2])),))
    layer = 32 * (2 * 32 + 2 * 4 * 8) + 3 * 32 * 64
    expected = 2 * (7 * 2 * layer + 6 * 32 * config.vocab_size) + 4 * 2 * (6 + 4 + 15) * 32
    assert needed_operations(config, group) == expected


def test_memory_of_the_head_is_measured_in_a_process_of_its_own() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peaks of memory are read from /proc")
    from head import resident

    assert resident("VmHWM") >= resident("VmRSS") > 2**20


def test_modules_are_those_of_this_repository() -> None:
    import training

    assert Path(sys.modules["training"].__file__ or "").parent == FOLDER
    assert training.SHARED.shared_prompts


def test_overhead_of_weights_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """DPO 1 s a step, MetaPO 1.01 s, an update 2 s: at K = 100 that is 3 % more."""
    from metapo import BASELINE, INTERVALS, STEPS, UPDATES, UPDATING, WEIGHING, overheads

    weighing = 1.01 * STEPS
    ratios = overheads("a", {BASELINE: [1.0 * STEPS], WEIGHING: [weighing], UPDATING: [weighing + 2.0 * UPDATES]})
    assert [r.variant for r in ratios] == [f"MetaPO, K = {k}" for k in INTERVALS]
    assert next(r.ratio for r in ratios if r.variant == "MetaPO, K = 100") == pytest.approx(1 / 1.03, abs=1e-3)
    assert "+3.0 %" in capsys.readouterr().out


def test_variants_of_the_weights_train_on_the_same_pairs(tmp_path: Path) -> None:
    from metapo import STEPS, UPDATES, VARIANTS, trainer_of

    trainers = {name: trainer_of(name, 8, 6, str(tmp_path)) for name in VARIANTS}
    for trainer in trainers.values():
        trainer.train()
        assert trainer.state.global_step == STEPS
    assert [t.method.metrics().get("temporal/updates") for t in trainers.values()] == [None, 0, UPDATES]


def test_peaks_of_phases_by_number_of_prompts() -> None:
    from memory import MIB, table

    few = {"prompts": 10, "phases": {"data": {"bytes": 2 * MIB}, "pair": {"bytes": 5 * MIB}}}
    many = {"prompts": 1000, "phases": {"data": {"bytes": 4 * MIB}}}
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table([few, many]).splitlines()]
    assert rows[0] == ["phase", "10", "1,000"]
    assert rows[2:] == [["data", "2", "4"], ["pair", "5", ""], ["highest", "5", "4"]]


@pytest.mark.engines
def test_what_a_gpu_is_measured_on_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The smallest shape and lengths; the file of throughput is one that a plan reads."""
    from gpu import SECTIONS, Setting, measure, table, throughput

    from adaptpo.plan.throughput import read_throughput

    setting = Setting("cpu", "tiny", bf16=True, repeats=1, tokens=2048, scale=32)
    sections = [name for name in SECTIONS if name != "head"]
    rows, failed = measure(setting, sections, tmp_path / "tiny.json", {"machine": "a CPU", "shape": "tiny"})
    assert not failed, capsys.readouterr().out
    assert {row.section for row in rows} == set(sections) - {"launches", "liger"}
    errors = {row.variant: row.facts["gradient_error"] for row in rows if row.section == "exactness"}
    assert len(errors) == 3
    assert all(float(error) < 0.05 for error in errors.values())
    written = table([tmp_path / "tiny.json"]).splitlines()
    assert len([line for line in written if line.startswith("| ")]) == len(rows) + 1
    file = tmp_path / "measured.json"
    file.write_text(throughput(setting, rows).model_dump_json())
    assert read_throughput(file).training is not None


def test_a_section_that_fails_stops_no_other_and_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import gpu

    def broken(_: Any) -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr(gpu, "SECTIONS", {"a": broken, "b": lambda _: iter(())})
    setting = gpu.Setting("cpu", "tiny", bf16=False, repeats=1)
    assert gpu.measure(setting, ["a", "b"], tmp_path / "x.json", {}) == ([], ["a"])
    assert json.loads((tmp_path / "x.json").read_text())["failed"] == ["a"]


def test_ratios_of_the_table_by_hand() -> None:
    from gpu import table_row
    from gpu_material import row

    rows = [row("dpo", "a", name, [taken], None).record() for name, taken in (("TRL", 3.0), ("adaptpo", 2.0))]
    assert [cell.strip() for cell in table_row(rows[0], rows).split("|")[4:7]] == ["3,000", "", "1.50"]
