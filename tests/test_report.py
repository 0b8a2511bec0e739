"""The report against a synthetic run folder whose numbers are known."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from adaptpo.errors import RunError
from adaptpo.report import (
    RunData,
    adaptation_plots,
    dropped_table,
    duration,
    evaluation_table,
    figure_specs,
    header,
    iteration_table,
    key_figures,
    phase_table,
    plain_text,
    plots,
    samples,
    write_report,
)
from adaptpo.report.adaptation import gain_panel
from adaptpo.report.canvas import DARK, LIGHT, density
from adaptpo.report.cost import time_figure
from adaptpo.report.outcome import dynamics_figure
from adaptpo.report.reading import finite

PROMPTS, ITERATIONS, GENERATIONS, HELD_OUT = 300, 3, 4, 60
PART = PROMPTS // ITERATIONS
NASTY = "<script>alert('x')</script> & <b>bold</b>"
ALL_FIGURES = ["dynamics", "rewards", "gains", "learner", "margins", "training", "time"]
CHOICES = {
    "selection": "SelectByLearner",
    "pairing": "OfflineAndOnline(num_generations=4)",
    "objective": "DPO(beta=0.1)",
    "weighting": "LearnedBlend",
}
TOPICS = ("a lighthouse", "two lost keys", "the tide", "a slow train", "an honest mistake", "winter bees")


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".new").write_text(json.dumps(value))
    path.with_suffix(".new").replace(path)


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_table(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), path)


def log_sigmoid(margin: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0, -margin)


def prompt_text(key: int) -> str:
    text = f"Write two sentences about {TOPICS[key % len(TOPICS)]}. Variant {key}."
    return json.dumps([{"role": "user", "content": text}] if key % 2 else text)


class RunWriter:
    """Writes a run folder phase by phase, as a MetaAPO run with plausible numbers would leave it."""

    def __init__(self, root: Path, method: str = "metaapo") -> None:
        self.root = root
        self.adaptive = method == "metaapo"
        self.rng = np.random.default_rng(7)
        self.state: dict[str, dict[str, Any]] = {}
        self.metrics: list[dict[str, Any]] = []
        root.mkdir(parents=True)
        config = {
            "model": "tiny/llama-sft",
            "reward": {"name": "tiny/reward-model", "batch_size": 32},
            "data": {"path": "tiny/preferences", "split": "train"},
            "eval_data": {"path": "tiny/preferences", "split": "test"},
            "method": {"name": method, "args": {"num_generations": GENERATIONS}, "choices": CHOICES},
            "num_iterations": ITERATIONS,
            "warmup_epochs": 1,
            "seed": 17,
            "output_dir": "runs/example",
        }
        self.config = config
        (root / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def finish(self, phase: str, seconds: float, **counts: int) -> None:
        self.state[phase] = {"done": True, "attempts": 1, "seconds": seconds, **counts}
        self.save()

    def save(self) -> None:
        write_json(self.root / "state.json", {"phases": self.state})
        write_lines(self.root / "metrics.jsonl", self.metrics)

    def data(self) -> None:
        keys = range(PROMPTS)
        write_table(
            self.root / "data/offline.parquet",
            prompt_id=keys,
            row=[key + 4 for key in keys],
            part=[key // PART for key in keys],
            prompt=[prompt_text(key) for key in keys],
            chosen=[json.dumps(f"A good answer to {key}.") for key in keys],
            rejected=[json.dumps(f"A poor answer to {key}.") for key in keys],
            columns=["{}" for _ in keys],
        )
        dropped = [{"phase": "data", "row": row, "reason": "chosen equals rejected"} for row in (1, 3)]
        dropped += [
            {"phase": "data", "row": row, "reason": f"prompt has 4{row} tokens, limit 400"} for row in (17, 31, 56)
        ]
        write_lines(self.root / "dropped.jsonl", dropped)
        self.finish("data", 1.3, kept=PROMPTS, dropped=5, truncated=0)
        self.finish("reward", 2.0)
        self.finish("reference", 14.5)

    def train_lines(self, phase: str, iteration: int | None, steps: int, level: float) -> None:
        for step in range(1, steps + 1):
            margin = level + 0.4 * step / steps + self.rng.normal(0, 0.06)
            line = {"phase": phase, "iteration": iteration, "step": step, "time": 1.7e9 + len(self.metrics)}
            line |= {
                "loss": float(-log_sigmoid(np.array(margin))),
                "grad_norm": float(self.rng.gamma(6, 0.4)),
                "learning_rate": 5e-7,
                "rewards/margins": margin,
                "rewards/accuracies": float(np.clip(0.5 + 0.2 * margin + self.rng.normal(0, 0.05), 0, 1)),
                "logps/chosen": -160 - 4 * margin + self.rng.normal(),
                "logps/rejected": -150 - 14 * margin + self.rng.normal(),
            }
            if iteration is not None and self.adaptive:
                line |= {"weight/offline": 0.42 + 0.05 * margin, "weight/online": 0.58 - 0.05 * margin}
            self.metrics.append(line)

    def warmup(self) -> None:
        self.train_lines("warmup", None, 40, 0.0)
        self.finish("warmup", 61.0)

    def evaluate(self, stage: str, gain: float, seconds: float = 9.0) -> None:
        keys = range(HELD_OUT)
        rewards = [float(x) for x in self.rng.normal(1.0 + gain, 0.5 - 0.2 * gain, HELD_OUT)]
        margin = self.rng.normal(0.3 - 0.6 * gain * (1 - gain), 0.4, HELD_OUT)
        responses = [f"At the {stage} stage, answer {key}: the keeper counts the waves and is content." for key in keys]
        responses[0] = NASTY
        rewards_or_null: list[float | None] = [None, *rewards[1:]]
        write_table(
            self.root / f"evaluation/{stage}.parquet",
            prompt_id=keys,
            prompt=[json.dumps(NASTY) if key == 0 else prompt_text(10_000 + key) for key in keys],
            response=responses,
            ended=[key % 10 != 9 for key in keys],
            reward=rewards_or_null,
            margin=margin,
            score=log_sigmoid(margin),
        )
        line = {"phase": f"evaluate/{stage}", "iteration": None, "step": None, "time": 1.7e9}
        line |= {"reward/mean": 99.0, "win_rate": 0.5 + 0.3 * gain, "length/mean": 31.25, "ended": 0.9}
        self.metrics.append(line)
        self.finish(f"evaluate/{stage}", seconds)

    def snapshot(self, name: str, slope: float) -> None:
        score = log_sigmoid(np.linspace(-40, 10, 501))
        weight = 0.55 / (1 + np.exp(-slope * (score + 0.9)))
        curve = {"score": score.tolist(), "weight": weight.tolist()}
        write_json(self.root / f"snapshots/{name}.json", {"curve": curve} if self.adaptive else {})

    def select(self, t: int) -> None:
        keys = np.arange(t * PART, (t + 1) * PART)
        self.margin = self.rng.normal(0.15 * t, 0.9, PART)
        score = log_sigmoid(self.margin)
        probability = 1 - 0.55 / (1 + np.exp(-3 * (score + 0.9)))
        u = self.rng.random(PART)
        self.chosen = np.where(u < probability)[0]
        folder = self.root / f"iterations/{t}"
        for shard, rows in enumerate(np.array_split(np.arange(PART), 2)):
            columns = {"prompt_id": keys[rows], "margin": self.margin[rows], "score": score[rows]}
            write_table(folder / f"scores/{shard}.parquet", **columns)
        selected = u < probability
        write_table(folder / "selection.parquet", prompt_id=keys, probability=probability, u=u, selected=selected)
        self.finish(f"iterations/{t}/score", 3.1)
        self.finish(f"iterations/{t}/select", 0.1, prompts=PART, selected=len(self.chosen))

    def generate(self, t: int) -> None:
        keys = np.repeat(self.chosen + t * PART, GENERATIONS)
        index = np.tile(np.arange(GENERATIONS), len(self.chosen))
        rewards = [None if row == 5 else float(x) for row, x in enumerate(self.rng.normal(1 + 0.1 * t, 0.6, len(keys)))]
        folder = self.root / f"iterations/{t}"
        texts = [f"Response {i} to {key}" for key, i in zip(keys, index, strict=True)]
        ended = [row >= 3 for row in range(len(keys))]
        write_table(folder / "responses/0.parquet", prompt_id=keys, index=index, text=texts, ended=ended)
        write_table(folder / "annotations/0.parquet", prompt_id=keys, index=index, reward=rewards)
        self.finish(f"iterations/{t}/generate", 120.0 + t, responses=len(keys), truncated=3)
        self.finish(f"iterations/{t}/annotate", 24.0, annotated=len(keys) - 1, invalid=1)

    def pair(self, t: int) -> None:
        pairs = self.chosen[2:] + t * PART
        gap = self.rng.gamma(3, 0.3, len(pairs))
        source = ["online"] * len(pairs)
        write_table(self.root / f"iterations/{t}/pairs.parquet", prompt_id=pairs, source=source, reward_gap=gap)
        self.finish(f"iterations/{t}/pair", 0.4, pairs=len(pairs), no_pair=2)

    def train(self, t: int) -> None:
        rows = self.chosen[2:] if self.adaptive else np.arange(PART)
        offline = (self.margin if self.adaptive else self.rng.normal(0, 0.8, PART))[rows] + 0.1
        online = self.rng.normal(0.35, 0.3, len(rows))
        lines = []
        for step, (row, off, on) in enumerate(zip(rows, offline, online, strict=True)):
            weight = float(0.5 / (1 + np.exp(-off))) if self.adaptive else 1.0
            line = {"step": 1 + step // 8, "prompt_id": int(row + t * PART)}
            lines.append({**line, "source": "offline", "margin": float(off), "weight": weight})
            if self.adaptive:
                lines.append({**line, "source": "online", "margin": float(on), "weight": 1 - weight})
        write_lines(self.root / f"iterations/{t}/pair_weights.jsonl", lines)
        self.train_lines(f"iterations/{t}/train", t, 70, 0.4 + 0.2 * t)
        self.snapshot(f"iteration-{t}", 2 + t)
        self.finish(f"iterations/{t}/train", 88.0 + 3 * t)


def write_run(root: Path, method: str = "metaapo") -> RunWriter:
    """A finished run of three iterations."""
    run = RunWriter(root, method)
    run.data()
    run.evaluate("initial", 0.0)
    run.warmup()
    run.evaluate("warmup", 0.1)
    run.snapshot("start", 1.5)
    for t in range(ITERATIONS):
        if run.adaptive:
            run.select(t)
            run.generate(t)
            run.pair(t)
        run.train(t)
        run.evaluate(f"iteration-{t}", (0.3, 0.6, 0.9)[t])
    run.finish("final", 2.2)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "metaapo-example"
    write_run(root)
    return root


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run).read_text()


class Links(HTMLParser):
    """Collects every address that the page refers to and every tag it uses."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.ids: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        self.ids |= {value or "" for name, value in attrs if name == "id"}


def cell(table: Any, row: int, column: str) -> str:
    return table.rows[row][table.columns.index(column)]


def test_page_has_every_section(page: str) -> None:
    sections = {"key-figures", "tables", "outcome", "adaptation", "cost", "samples", "dropped", "record"}
    assert sections | set(ALL_FIGURES) <= Links(page).ids


def test_page_is_self_contained(page: str) -> None:
    links = Links(page)
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in links.addresses)
    assert not links.tags & {"script", "link", "iframe"}
    assert "url(" not in page and "@import" not in page


def test_links_within_the_page_have_targets(page: str) -> None:
    links = Links(page)
    assert {address[1:] for address in links.addresses if address.startswith("#")} <= links.ids


def test_figures_lie_beside_the_page(run: Path, page: str) -> None:
    images = {path.stem: path for path in (run / "report").glob("*.png")}
    assert sorted(images) == sorted(ALL_FIGURES)
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 8_000 for path in images.values())


def test_header_names_method_choices_model_and_status(run: Path, page: str) -> None:
    shown = header(RunData.open(run))
    assert shown["method"] == "metaapo" and shown["status"] == "finished"
    assert dict(shown["choices"]) == CHOICES
    assert dict(shown["facts"])["model"] == "tiny/llama-sft"
    assert dict(shown["facts"])["reward"] == "tiny/reward-model"
    assert dict(shown["facts"])["seed"] == "17"
    assert all(choice in page for choice in CHOICES.values())


def test_iteration_table_counts_what_the_files_hold(run: Path) -> None:
    table = iteration_table(RunData.open(run))
    for t in range(ITERATIONS):
        folder = run / f"iterations/{t}"
        selected = sum(pq.read_table(folder / "selection.parquet")["selected"].to_pylist())
        gaps = pq.read_table(folder / "pairs.parquet")["reward_gap"].to_pylist()
        weights = [json.loads(line) for line in (folder / "pair_weights.jsonl").read_text().splitlines()]
        offline = [line["weight"] for line in weights if line["source"] == "offline"]
        assert cell(table, t, "prompts") == str(PART)
        assert cell(table, t, "generated for") == str(selected)
        assert cell(table, t, "share") == f"{selected / PART:.1%}"
        assert cell(table, t, "responses") == str(selected * GENERATIONS)
        assert (cell(table, t, "cut off"), cell(table, t, "invalid"), cell(table, t, "no pair")) == ("3", "1", "2")
        assert cell(table, t, "new pairs") == str(selected - 2)
        assert cell(table, t, "mean reward gap") == f"{sum(gaps) / len(gaps):.3f}"
        assert cell(table, t, "mean offline weight") == f"{sum(offline) / len(offline):.3f}"
        assert cell(table, t, "time") == duration(3.1 + 0.1 + 120 + t + 24 + 0.4 + 88 + 3 * t)


def test_evaluation_table_prefers_kept_responses_to_logged_means(run: Path) -> None:
    table = evaluation_table(RunData.open(run))
    rewards = [x for x in pq.read_table(run / "evaluation/initial.parquet")["reward"].to_pylist() if x is not None]
    assert [row[0] for row in table.rows] == ["initial", "warm-up", "iteration 0", "iteration 1", "iteration 2"]
    assert cell(table, 0, "reward") == f"{np.mean(rewards):.3f}"
    assert cell(table, 4, "win rate") == "77.0%"
    assert cell(table, 0, "length (tokens)") == "31.2"


def test_key_figures(run: Path) -> None:
    tiles = {label: (value, note) for label, value, note in key_figures(RunData.open(run))}
    selections = [pq.read_table(run / f"iterations/{t}/selection.parquet")["selected"] for t in range(ITERATIONS)]
    selected = sum(sum(column.to_pylist()) for column in selections)
    assert tiles["annotation ratio"] == (
        f"{selected / PROMPTS:.1%}",
        f"responses for {selected} of {PROMPTS} prompts",
    )
    assert tiles["responses annotated"] == (f"{selected * GENERATIONS - 3:,}", "3 without a valid reward")
    assert tiles["dropped rows"][0] == "5"
    assert tiles["win rate over the initial policy"] == ("50% → 77%", "initial → iteration 2")


def test_annotation_ratio_counts_answered_prompts_of_every_part_so_far(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "run")
    run.data()
    run.select(0)
    run.generate(0)
    answered = len(run.chosen)
    run.select(1)
    tiles = {label: (value, note) for label, value, note in key_figures(RunData.open(run.root))}
    assert tiles["annotation ratio"] == (
        f"{answered / (2 * PART):.1%}",
        f"responses for {answered} of {2 * PART} prompts",
    )


def test_seconds_of_resumed_phases_are_named_as_those_of_their_last_attempt(tmp_path: Path, undrawn: None) -> None:
    run = RunWriter(tmp_path / "run")
    run.data()
    run.warmup()
    run.select(0)
    run.state["warmup"]["attempts"] = 2
    run.state["iterations/0/generate"] = {"done": False, "attempts": 3}
    run.save()
    data = RunData.open(run.root)
    note = "Interrupted and resumed; only the last attempt is counted: warmup."
    phases = phase_table(data)
    assert phases.note == note and iteration_table(data).note == ""
    assert {row[0]: row[1] for row in phases.rows}["warmup"] == "done, attempt 2"
    assert phases.rows[-1][1] == "unfinished, attempt 3"
    assert figure_specs(data)[-1].caption.endswith(note)
    assert write_report(run.root).read_text().count(note) == 3
    assert ("wall time", duration(data.seconds()), "1 phase counted with its last attempt only") in key_figures(data)


def test_dropped_rows_are_grouped_by_reason_with_examples(run: Path) -> None:
    table = dropped_table(RunData.open(run))
    assert table.columns == ["reason", "phase", "count", "examples"]
    rows = [[without_tags(cell) for cell in row] for row in table.rows]
    assert rows[0] == ["prompt has 417 tokens, limit 400 (numbers vary)", "data", "3", "row 17, row 31, row 56"]
    assert rows[1] == ["chosen equals rejected", "data", "2", "row 1, row 3"]


def without_tags(text: str) -> str:
    return re.sub("<[^>]*>", "", text)


def test_dropped_responses_are_named_by_prompt_and_index(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "run")
    line = {"phase": "iterations/0/annotate", "prompt_id": 5, "index": 2, "reason": "reward is not finite"}
    write_lines(run.root / "dropped.jsonl", [line])
    assert without_tags(dropped_table(RunData.open(run.root)).rows[0][-1]) == "prompt 5 response 2"


def test_text_of_models_and_data_is_escaped(tmp_path: Path, undrawn: None) -> None:
    run = RunWriter(tmp_path / "run")
    run.evaluate("initial", 0.0)
    write_lines(run.root / "dropped.jsonl", [{"phase": "data", "row": 1, "reason": NASTY}])
    config = run.root / "config.yaml"
    config.write_text(config.read_text().replace("tiny/llama-sft", "<i>model</i>"))
    page = write_report(run.root).read_text()
    assert page.count("&lt;script&gt;alert") == 4
    assert "&lt;i&gt;model&lt;/i&gt;" in page
    assert not Links(page).tags & {"script", "i"}


def test_samples_span_the_ranking_and_show_every_stage(run: Path) -> None:
    shown = samples(RunData.open(run))
    assert len(shown) == 5
    assert [answer.label for answer in shown[0].answers][::4] == ["initial", "iteration 2"]
    notes = [sample.note.replace("−", "-") for sample in shown]
    changes = [float(re.search(r"reward ([+-][\d.]+)", note).group(1)) for note in notes]
    assert changes == sorted(changes)


def test_samples_show_the_offline_chosen_response_where_the_data_holds_the_prompt(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "run")
    run.evaluate("initial", 0.0)
    chosen = [json.dumps([{"role": "assistant", "content": f"Chosen {key}"}]) for key in range(10_000, 10_060)]
    prompts = [prompt_text(key) for key in range(10_000, 10_060)]
    write_table(run.root / "data/heldout.parquet", prompt=prompts, chosen=chosen)
    answers = samples(RunData.open(run.root))[1].answers
    assert answers[0].text == "[assistant] Chosen 10001"


def test_samples_show_the_chosen_response_of_the_evaluation_where_it_has_one(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "run")
    run.evaluate("initial", 0.0)
    path = run.root / "evaluation/initial.parquet"
    chosen = [None, json.dumps("As text"), json.dumps([{"role": "assistant", "content": "As messages"}])]
    column = pa.array(chosen + [None] * (HELD_OUT - 3), pa.string())
    pq.write_table(pq.read_table(path).append_column("chosen", column), path)
    shown = [sample.answers[0] for sample in samples(RunData.open(run.root))[:4]]
    assert [answer.label for answer in shown] == ["initial", "offline chosen", "offline chosen", "initial"]
    assert [answer.text for answer in shown[1:3]] == ["As text", "[assistant] As messages"]


def test_plain_dpo_leaves_out_what_it_has_not(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "dpo")
    links = Links(write_report(run.root).read_text())
    assert {"dynamics", "rewards", "margins", "training", "time"} <= links.ids
    assert not {"gains", "learner"} & links.ids
    table = iteration_table(RunData.open(run.root))
    assert table.columns == ["iteration", "prompts", "mean offline weight", "time"]
    assert "annotation ratio" not in [label for label, _, _ in key_figures(RunData.open(run.root))]


def test_run_without_evaluation_shows_training_prompts(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "run")
    run.data()
    for t in range(2):
        run.select(t)
        run.generate(t)
    specs = {spec.name: spec for spec in figure_specs(RunData.open(run.root))}
    assert list(specs) == ["dynamics", "time"]
    assert "training prompts" in specs["dynamics"].caption


def test_many_iterations_without_selection_show_some_panels(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "run")
    for t in range(6):
        pair = [
            {"step": 1, "prompt_id": key, "source": source, "margin": 0.1 * key, "weight": 0.5}
            for key in range(3)
            for source in ("offline", "online")
        ]
        write_lines(run.root / f"iterations/{t}/pair_weights.jsonl", pair)
    specs = {spec.name: spec for spec in figure_specs(RunData.open(run.root))}
    assert "4 of 6 iterations are shown" in specs["gains"].caption
    drawn = specs["gains"].draw(DARK)
    assert [axes.get_title(loc="left") for axes in drawn.axes] == [f"iteration {t}" for t in (0, 2, 3, 5)]


def test_run_that_has_only_begun(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "run")
    assert "unfinished: nothing is done yet" in write_report(run.root).read_text()


@pytest.mark.parametrize(
    ("phase", "following"),
    [
        ("reference", "evaluate/initial"),
        ("evaluate/initial", "warmup"),
        ("evaluate/warmup", "iteration 0"),
        ("iterations/0/select", "iterations/0/generate"),
        ("iterations/0/train", "evaluate/iteration-0"),
        ("evaluate/iteration-0", "iteration 1"),
        ("evaluate/iteration-2", "final"),
    ],
)
def test_status_names_the_next_phase(tmp_path: Path, phase: str, following: str) -> None:
    run = RunWriter(tmp_path / "run")
    run.finish(phase, 1.0)
    assert header(RunData.open(run.root))["status"] == f"unfinished: {phase} is done, next is {following}"


def test_status_claims_no_warmup_that_the_method_decides(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "run")
    (run.root / "config.yaml").write_text(yaml.safe_dump(run.config | {"warmup_epochs": None}))
    run.finish("evaluate/initial", 1.0)
    assert header(RunData.open(run.root))["status"].endswith("next is training")


def test_files_that_are_being_written_are_not_read(tmp_path: Path, undrawn: None) -> None:
    root = write_run(tmp_path / "run", "dpo").root
    (root / "data/.writing-offline.parquet").write_bytes(b"half")
    (root / "evaluation/.writing-final.parquet").write_bytes(b"half")
    assert len(RunData.open(root).stages) == 5
    assert write_report(root).is_file()


def test_status_names_the_phase_in_which_a_run_stopped(tmp_path: Path, undrawn: None) -> None:
    run = RunWriter(tmp_path / "run")
    run.data()
    run.state["warmup"] = {"done": False}
    run.train_lines("warmup", None, 5, 0.0)
    run.save()
    path = run.root / "metrics.jsonl"
    path.write_text(path.read_text() + '{"phase": "warmup", "lo')
    page = write_report(run.root).read_text()
    assert "unfinished: warmup has started but is not done" in page
    assert {"training", "time"} <= Links(page).ids


def test_out_chooses_the_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptpo.report.page.FIGURES", (time_figure,))
    page = write_report(run, tmp_path / "elsewhere")
    assert page == tmp_path / "elsewhere/report.html" and (tmp_path / "elsewhere/time.png").is_file()


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run folder.*adaptpo train"):
        write_report(tmp_path)
    assert not (tmp_path / "report").exists()


def test_broken_file_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "dpo")
    (run.root / "evaluation/initial.parquet").write_bytes(b"no parquet")
    with pytest.raises(RunError, match=r"initial\.parquet cannot be read"):
        write_report(run.root)


def test_repeated_steps_of_a_resumed_run_count_once(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "run")
    run.train_lines("warmup", None, 4, 0.0)
    run.train_lines("warmup", None, 6, 0.0)
    run.save()
    shown: list[plots.CurvePanel] = []
    spec = next(spec for spec in figure_specs(RunData.open(run.root)) if spec.name == "training")
    original = plots.training_curves
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "training_curves", lambda panels, *rest: shown.extend(panels) or original(panels, *rest))
        spec.draw(LIGHT)
    assert shown[0].lines[0].x.tolist() == [1, 2, 3, 4, 5, 6]


def test_panels_that_share_an_axis_show_the_tallest_curve_whole() -> None:
    rng = np.random.default_rng(0)
    panels = [("wide", {"offline": rng.normal(0, 2, 500)}), ("narrow", {"offline": rng.normal(0, 0.2, 500)})]
    drawn = adaptation_plots.margins(panels, LIGHT)
    tallest = max(np.max(line.get_ydata()) for axes in drawn.axes for line in axes.lines)
    assert all(axes.get_ylim()[1] > tallest for axes in drawn.axes)


def test_bands_stay_where_values_can_lie(tmp_path: Path) -> None:
    """Scores are at most 0; their mean plus a standard deviation is not."""
    run = RunWriter(tmp_path / "run")
    run.evaluate("initial", 0.0)
    run.evaluate("iteration-0", 0.5)
    data = RunData.open(run.root)
    scores = finite(data.stages[0].table, "score")
    skewed = np.append(np.full(len(scores) - 6, -0.05), np.full(6, -4.0))
    path = run.root / "evaluation/initial.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index("score"), "score", pa.array(skewed)), path)
    drawn = dynamics_figure(RunData.open(run.root)).draw(LIGHT)
    rewards, score = (axes.collections[0].get_paths()[0].vertices[:, 1] for axes in drawn.axes)
    assert score.max() <= 0 and np.ptp(rewards) > 0


def test_density_integrates_to_one() -> None:
    values = np.random.default_rng(0).normal(2, 1, 2_000)
    grid = np.linspace(-4, 8, 500)
    curve = density(values, grid)
    assert np.trapezoid(curve, grid) == pytest.approx(1, abs=1e-3)
    assert grid[curve.argmax()] == pytest.approx(2, abs=0.3)
    assert np.isfinite(density(np.zeros(5), np.linspace(-1, 1, 50))).all()


@pytest.mark.parametrize(("seconds", "text"), [(8.21, "8.2 s"), (200, "3 min 20 s"), (7_500, "2 h 05 min")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds).replace("\u00a0", " ") == text


def test_plain_text_reads_strings_and_chats() -> None:
    assert plain_text(json.dumps("hi")) == "hi"
    assert plain_text(json.dumps([{"role": "user", "content": "hi"}])) == "[user] hi"
    assert plain_text("not JSON") == "not JSON"


def test_gains_are_online_less_offline_margins_at_the_first_visit() -> None:
    lines = [
        {"prompt_id": 0, "source": "offline", "margin": 1.0},
        {"prompt_id": 0, "source": "online", "margin": 3.0},
        {"prompt_id": 1, "source": "offline", "margin": 5.0},
        {"prompt_id": 0, "source": "offline", "margin": 10.0},
        {"prompt_id": 0, "source": "online", "margin": 0.0},
    ]
    scores = {"prompt_id": np.array([0, 1, 2]), "margin": np.array([4.0, -2.0, np.nan])}
    selection = {"prompt_id": np.array([0, 1, 2]), "selected": np.array([True, False, False])}
    tables = {"iterations/0/scores/*.parquet": scores, "iterations/0/selection.parquet": selection}
    run = SimpleNamespace(pair_weights={0: lines}, table=lambda name, *_: tables[name])
    panel = gain_panel(run, 0)  # type: ignore[arg-type]
    assert (panel.offline.tolist(), panel.gain.tolist()) == ([1.0], [2.0])
    assert (panel.selected.tolist(), panel.unselected.tolist()) == ([4.0], [-2.0])
