"""The verdict's sentences, the comparison of runs, and the page that follows a run."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptpo.cli import main
from adaptpo.errors import RunError
from adaptpo.report import RunData, watch, write_report
from adaptpo.report.comparing import labelled, result_row, setting_rows, step_curves
from adaptpo.report.verdict import verdict
from tests.test_report import HELD_OUT, Links, RunWriter, write_run, write_table


def stage(run: RunWriter, name: str, rewards: list[float], tokens: float = 20.0, ended: float = 1.0) -> None:
    keys = range(len(rewards))
    texts = {"prompt": ["p"] * len(rewards), "response": ["r"] * len(rewards)}
    write_table(run.root / f"evaluation/{name}.parquet", prompt_id=keys, reward=rewards, **texts)
    run.metrics.append({"phase": f"evaluate/{name}", "length/mean": tokens, "ended": ended})
    run.finish(f"evaluate/{name}", 1.0)


def said(run: RunWriter) -> tuple[str, str]:
    found = verdict(RunData.open(run.root))
    return "\n".join(found.findings), "\n".join(found.worries)


@pytest.fixture
def empty(tmp_path: Path) -> RunWriter:
    run = RunWriter(tmp_path / "run")
    run.finish("data", 60.0, kept=100)
    return run


def test_the_gain_is_paired(empty: RunWriter) -> None:
    """Rewards that differ by 10 between prompts and gain 0.1 +- 0.01 each: only a paired interval sees it."""
    before = [10.0 * (n % 2) for n in range(40)]
    stage(empty, "initial", before)
    stage(empty, "iteration-0", [b + 0.1 + 0.01 * (-1) ** (n // 2) for n, b in enumerate(before)])
    half = 1.96 * 0.01 * np.sqrt(40 / 39) / np.sqrt(40)
    findings, worries = said(empty)
    assert "Held-out reward rose from 5.00 (initial) to 5.10 (iteration 0): +0.100" in findings
    assert f"95 % interval +{0.1 - half:.3f} to +{0.1 + half:.3f}, over 40 prompts." in findings
    assert "It took 1\u00a0min\u00a002\u00a0s." in findings and not worries


def test_a_gain_within_noise_is_none(empty: RunWriter) -> None:
    stage(empty, "initial", [0.0] * 10)
    stage(empty, "iteration-0", [1.0, -1.0] * 5)
    assert "did not change measurably: from 0.000" in said(empty)[0]


def test_a_loss_is_a_loss(empty: RunWriter) -> None:
    stage(empty, "initial", [1.0] * 10)
    stage(empty, "iteration-0", [0.5, 0.6] * 5)
    assert "Held-out reward FELL from 1.00" in said(empty)[0]


def test_without_held_out_data_nothing_is_claimed(empty: RunWriter) -> None:
    empty.finish("final", 1.0)
    assert "Nothing was held out" in said(empty)[0]


@pytest.mark.parametrize(
    ("tokens", "ended", "told"),
    [((20, 26), 1.0, "grew from 20 to 26 tokens"), ((20, 24), 1.0, ""), ((20, 20), 0.7, "30% of the last held-out")],
)
def test_length_and_cuts(empty: RunWriter, tokens: tuple[int, int], ended: float, told: str) -> None:
    stage(empty, "initial", [0.0, 0.0], tokens[0])
    stage(empty, "iteration-0", [1.0, 1.1], tokens[1], ended)
    worries = said(empty)[1]
    assert told in worries and bool(worries) == bool(told)


def train_lines(run: RunWriter, chosen: list[float]) -> None:
    run.metrics += [{"phase": "iterations/0/train", "step": n, "logps/chosen": c} for n, c in enumerate(chosen)]
    run.finish("iterations/0/train", 1.0, prompts=10)


def test_unlearned_chosen_responses(empty: RunWriter) -> None:
    train_lines(empty, [-16.0] * 10 + [-20.0] * 30 + [-25.0] * 10)
    assert "fell from -16.0 to -25.0 nats" in said(empty)[1]


def test_log_probs_that_scatter_do_not_fall(empty: RunWriter) -> None:
    train_lines(empty, [-16.0, -36.0] * 25)
    assert said(empty)[1] == ""


@pytest.mark.parametrize(
    ("probability", "told"),
    [([0.99, 0.98, 0.97, 0.99], "almost every prompt (98.2%)"), ([0.5, 0.6], ""), ([1.0, 1.0], ""), ([0.0, 1.0], "")],
)
def test_a_selection_that_no_longer_selects(empty: RunWriter, probability: list[float], told: str) -> None:
    write_table(
        empty.root / "iterations/0/selection.parquet", prompt_id=range(len(probability)), probability=probability
    )
    empty.finish("iterations/0/select", 1.0)
    worries = said(empty)[1]
    assert told in worries and bool(worries) == bool(told)


def test_ties_invalid_rewards_and_dropped_rows(empty: RunWriter) -> None:
    folder = empty.root / "iterations/0"
    ids = np.repeat(np.arange(10), 2)
    write_table(folder / "selection.parquet", prompt_id=range(10), probability=[1.0] * 10)
    write_table(folder / "responses/0.parquet", prompt_id=ids, ended=[True] * 20)
    write_table(folder / "annotations/0.parquet", prompt_id=ids, reward=[None] * 4 + [1.0] * 16)
    empty.finish("iterations/0/pair", 1.0, no_pair=3)
    lines = [{"phase": "data", "row": n, "reason": "empty"} for n in range(25)]
    (empty.root / "dropped.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    worries = said(empty)[1]
    assert "30% of the prompts with fresh responses gave no pair" in worries
    assert "20% of the responses got no valid reward" in worries
    assert "25 of 125 rows of the data were left out" in worries


def test_the_page_begins_with_the_verdict(tmp_path: Path, undrawn: None) -> None:
    write_run(tmp_path / "run")
    page = write_report(tmp_path / "run").read_text()
    assert page.index('id="verdict"') < page.index('id="key-figures"')
    assert f"over {HELD_OUT - 1} prompts" in page and "The iterations are responsible" in page


# Several runs


def test_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "metaapo")
    write_run(tmp_path / "dpo", "dpo")
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path / "metaapo"), str(tmp_path / "dpo"), "--out", str(tmp_path / "both")])
    assert not ended.value.code
    page = Path(capsys.readouterr().out.strip()).read_text()
    assert {"verdicts", "tables", "curves", "loss", "reward-mean", "logps-chosen"} <= Links(page).ids
    assert all(address.startswith("data:image/png") for address in Links(page).addresses)
    runs = labelled([RunData.open(tmp_path / name) for name in ("metaapo", "dpo")])
    (row,) = [row for row in setting_rows(runs) if row["setting"] == "method.name"]
    assert row == {"setting": "method.name", "metaapo": "metaapo", "dpo": "dpo"}
    lines = sum("loss" in line for line in runs["dpo"].metrics)
    x, y = step_curves(runs, "loss")["dpo"]
    assert x[-1] == lines and len(x) == len(y) == lines - lines // 20 + 1


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        RunWriter(tmp_path / parent / "run")
    runs = [RunData.open(tmp_path / parent / "run") for parent in ("a", "b")]
    assert list(labelled(runs)) == ["a/run", "b/run"]
    with pytest.raises(RunError, match="named twice"):
        labelled(runs[:1] * 2)


# A run that goes on


def test_watch_follows_a_run_to_its_end(tmp_path: Path, undrawn: None) -> None:
    folder, told = tmp_path / "run", []
    watching = threading.Thread(target=watch, args=(folder, None, told.append, 0.05), daemon=True)
    watching.start()
    run = RunWriter(tmp_path / "made")
    run.finish("data", 1.0, kept=3)
    run.root = run.root.rename(folder)
    wait_for(lambda: (folder / "report/report.html").exists())
    assert 'http-equiv="refresh"' in (folder / "report/report.html").read_text()
    run.finish("final", 1.0)
    watching.join(timeout=60)
    assert not watching.is_alive() and "finished" in told[-1]
    assert 'http-equiv="refresh"' not in (folder / "report/report.html").read_text()


def wait_for(condition: Any) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_watch_refuses_other_folders(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(RunError, match="other things than a run"):
        watch(tmp_path, None)


def test_steps_are_counted_whatever_is_logged(tmp_path: Path) -> None:
    """100 steps of a warm-up and 30 of an iteration that goes on, logged after every tenth."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("method: {name: dpo}\n")
    phases = {"warmup": {"done": True, "steps": 104}, "iterations/0/train": {"done": False}}
    (run / "state.json").write_text(json.dumps({"phases": phases}))
    steps = [("warmup", step) for step in range(10, 101, 10)] + [("iterations/0/train", step) for step in (10, 20, 30)]
    lines = [{"phase": phase, "iteration": None, "step": step, "time": 0.0, "loss": 0.5} for phase, step in steps]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = RunData.open(run)
    assert result_row("run", data)["steps"] == "134"
    assert step_curves({"run": data}, "loss")["run"][0].tolist() == [*range(10, 101, 10), 114, 124, 134]
