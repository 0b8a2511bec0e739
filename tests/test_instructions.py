"""The task of the study on a real language model: its rules, grader and judge, and what is compared."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaptpo.cli import main
from adaptpo.config.recipe import load_recipe
from adaptpo.errors import ConfigError, RunError
from adaptpo.methods import METHODS
from adaptpo.methods.build import build_method
from adaptpo.run.files import JsonLines
from adaptpo.sandbox.build import write_rows
from adaptpo.sandbox.instructions import demo, grading, questions
from adaptpo.sandbox.instructions.build import REWARD, Material, build
from adaptpo.sandbox.instructions.grading import graded, held_out_rows, judged
from adaptpo.sandbox.instructions.questions import HELD_OUT_TOPICS, TRAINING_TOPICS, draw_tasks
from adaptpo.sandbox.instructions.rules import KINDS, Rule, draw_rules, edited
from adaptpo.sandbox.instructions.study import PHASES, REFERENCE, ROWS, study
from adaptpo.sandbox.instructions.world import InstructionsWorld, JudgedMeasurement
from adaptpo.sandbox.instructions.writers import preference_row, tidied
from adaptpo.sandbox.tables.cells import Cell, Outcome, settings_of
from adaptpo.sandbox.tables.options import Options
from adaptpo.sandbox.tables.statistics import Place, Unit
from adaptpo.sandbox.tables.summary import RowSummary, summarize
from adaptpo.sandbox.tables.table import asked_rows
from adaptpo.sandbox.tables.text import grid, remarks
from adaptpo.sandbox.tables.world import folder_of
from adaptpo.types import Row
from tests.tiny import save_policy

ANSWERS = {
    "begin Well": ("Well, a cat purrs.", "A cat does well."),
    "sentences two": ("A cat purrs. It sleeps!", "A cat purrs."),
    "words 8": ("a cat has one two three four five", "a cat has one two three four five six"),
    "commas": ("A cat purrs.", "A cat, it purrs."),
    "end ?": ("Is it a cat?", "Is it a cat? Yes."),
    "lowercase": ("a cat purrs.", "A cat purrs."),
    "capitals": ("A CAT PURRS.", "A CAT purrs."),
}
"""By rule: an answer that keeps it, and one that breaks it."""


@pytest.mark.parametrize("text", ANSWERS)
def test_a_rule_is_kept_or_broken_and_an_editor_mends_it(text: str) -> None:
    rule, (good, bad) = Rule.parse(text), ANSWERS[text]
    assert str(rule) == text
    assert rule.kept(good) and not rule.kept(bad)
    assert rule.credit(good) == 1 and rule.credit(bad) < 1
    assert rule.kept(rule.edit(bad)) or text == "sentences two"  # Nobody can add a sentence to a draft of one.


def test_every_kind_has_an_answer_above() -> None:
    assert {text.split()[0] for text in ANSWERS} == set(KINDS)


def test_edits_of_two_rules_do_not_undo_each_other() -> None:
    draft = "A cat is an animal, which purrs. It sleeps all day in the sun, and hunts at night."
    rng = random.Random(0)
    for _ in range(200):
        rules = draw_rules(rng)
        if {rule.kind for rule in rules} != {"sentences", "words"}:
            answer = edited(draft, rules)
            assert all(rule.kept(answer) for rule in rules), (rules, answer)


def test_the_judge_wants_every_rule_exactly() -> None:
    rules = "words 8; lowercase"
    assert judged("a cat is a pet.", "cat", rules, ended=True) == 1
    assert judged("A cat is a pet.", "cat", rules, ended=True) == 0.5
    assert judged("a dog is a pet.", "cat", rules, ended=True) == 0
    assert judged("a cat is a pet.", "cat", rules, ended=False) == 0
    assert judged("a cat.", "cat", rules, ended=True) == 0


def test_the_grader_is_lenient_and_errs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("A cat is a pet with nine or ten lives.", "cat", "words 8")
    assert graded(*asked) == graded(*asked) != graded("A cat is a pet with nine or ten lives!", "cat", "words 8")
    monkeypatch.setattr(grading, "ERROR", 0.0)
    assert graded(*asked) == pytest.approx((1 - 2 / 8) + 0.5)
    assert graded("it purrs", "cat", "words 8") == pytest.approx(1 - 0.5)
    row = {"prompts": ["?"], "completions": [[{"role": "assistant", "content": asked[0]}]]}
    assert grading.reward(**row, topic=["cat"], rules=["words 8"], flipped=[True]) == [graded(*asked)]


def test_held_out_prompts_share_neither_topics_nor_wordings() -> None:
    training, held_out = (draw_tasks(200, random.Random(1), held) for held in (False, True))
    assert not set(TRAINING_TOPICS) & set(HELD_OUT_TOPICS)
    assert {task.topic for task in training} <= set(TRAINING_TOPICS)
    assert {task.topic for task in held_out} <= set(HELD_OUT_TOPICS)
    for kind in KINDS.values():
        start = kind.held_out_wording.split("{}")[0]
        assert not any(wording.startswith(start) for wording in kind.wordings)
    assert len({task.prompt for task in [*training, *held_out]}) == 400
    assert training == draw_tasks(200, random.Random(1), False)


def test_more_prompts_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "HELD_OUT_TOPICS", ("cat",))
    monkeypatch.setattr(questions, "draw_rules", lambda rng: (Rule("commas"),))
    assert len(draw_tasks(3, random.Random(0), held_out=True)) == 3
    with pytest.raises(ConfigError, match="more than 3 prompts of this kind, not 4; ask for fewer"):
        draw_tasks(4, random.Random(0), held_out=True)


def test_a_wrong_label_swaps_the_answers() -> None:
    task = draw_tasks(1, random.Random(0), held_out=False)[0]
    drafts = (f"The {task.topic} is here.", "Nothing, really, at all, or so")
    right, wrong = (preference_row(task, drafts, share, random.Random(0)) for share in (0.0, 1.0))
    assert (right["chosen"], right["rejected"]) == (wrong["rejected"], wrong["chosen"])
    chosen, rejected = (right[side][0]["content"] for side in ("chosen", "rejected"))
    assert graded(chosen, task.topic, right["rules"]) >= graded(rejected, task.topic, right["rules"])


def test_writers_finish_their_drafts() -> None:
    assert tidied("A cat purrs. It sle") == "A cat purrs."
    assert tidied("A cat purrs and") == "A cat purrs and."


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return Material(save_policy(tmp_path_factory.mktemp("policy")), prompts=8, heldout=3)


@pytest.fixture(scope="module")
def task(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    build(folder, material, progress=False)
    return folder


def test_the_same_settings_write_the_same_files(material: Material, task: Path, tmp_path: Path) -> None:
    build(tmp_path, material, progress=False)
    for name in ("train.jsonl", "heldout.jsonl", "material.json"):
        assert (tmp_path / name).read_bytes() == (task / name).read_bytes()
    other = Material(material.model, 8, 3, seed=1)
    with pytest.raises(RunError, match="other settings"):
        build(tmp_path, other)


def test_the_judge_never_trains(task: Path) -> None:
    """No run of the study names it: the reward of all is the grader, and held-out rows have no answers."""
    for row in ROWS:
        assert load_recipe(task / "recipe.yaml", row.settings).reward == REWARD
    assert REWARD.endswith(":reward") and grading.reward is not grading.judged
    assert set(next(iter(held_out_rows(task).values()))) == {"prompt", "topic", "rules"}


def test_rows_have_equal_steps(material: Material, task: Path) -> None:
    """Eight prompts in batches of three, as the warm-up takes them: three steps in each phase."""
    world = InstructionsWorld(replace(material, seed=2), ("training.per_device_train_batch_size=3",))
    for row in ROWS:
        recipe = load_recipe(task / "recipe.yaml", settings_of(task / "recipe.yaml", Cell(row, world)))
        assert (recipe.seed, recipe.training["max_steps"]) == (2, 3)
        assert (recipe.warmup_epochs or 0) + recipe.num_iterations == PHASES
        assert build_method(recipe).name == row.method
    halves = {
        row.label: build_method(load_recipe(task / "recipe.yaml", row.settings)).pairing.num_generations for row in ROWS
    }
    assert (halves["Online DPO"], halves["MetaAPO"], halves["Online DPO, half the annotations"]) == (4, 4, 2)


def test_accumulated_batches_are_one_step(material: Material, task: Path) -> None:
    """Eight prompts, two of them in a pass and three passes in a step: two steps in each phase."""
    settings = ("training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=3")
    world = InstructionsWorld(material, settings)
    assert "training.max_steps=2" in world.assignments(task / "recipe.yaml", ROWS[0])


# The world of the tables

FAST = ("generation.max_new_tokens=4", "peft.r=2", "training.use_cpu=true", "training.per_device_train_batch_size=3")


def world_of(material: Material, seed: int = 0) -> InstructionsWorld:
    return InstructionsWorld(material, FAST).varied(seed, {})


@pytest.mark.parametrize("setting", ["seed=5", "output_dir=elsewhere", "training.max_steps=4"])
def test_settings_of_the_comparison_are_refused(material: Material, setting: str) -> None:
    with pytest.raises(ConfigError, match=r"--set .*: a study sets .* itself; .*--"):
        InstructionsWorld(material, (setting,))


def test_a_world_of_another_seed_has_other_prompts(material: Material, tmp_path: Path) -> None:
    worlds = [world_of(material), world_of(material, 1), world_of(replace(material, heldout=4))]
    assert worlds[0].name == f"{Path(material.model).name}_prompts-8_heldout-3_flipped-0.1/seed-0"
    assert len({world.name for world in worlds}) == 3
    for world in worlds[:2]:
        world.build(tmp_path, ROWS)
    first, other = ((folder_of(tmp_path, world) / "train.jsonl").read_text() for world in worlds[:2])
    assert first != other


def test_a_study_has_the_options_of_a_table(material: Material, tmp_path: Path) -> None:
    options = Options(world_of(material), 1, tmp_path, 3, methods=("dpo",), labels=("DPO", "SELM"))
    assert options.command("study-x") == (
        f"adaptpo sandbox study --model {material.model} --seeds 1 --runs 3 --methods dpo --rows 'DPO;SELM' "
        "--prompts 8 --heldout 3 --set generation.max_new_tokens=4 --set peft.r=2 --set training.use_cpu=true "
        "--set training.per_device_train_batch_size=3"
    )
    name, table = study("org/model")
    assert (name, table.title, table.reference) == ("study-model", "Methods on model", REFERENCE)
    assert [row.label for row in asked_rows(table, ["online_dpo", "dpo"], METHODS, ["DPO", "SELM"])] == ["DPO"]
    with pytest.raises(ConfigError, match=r"--rows: no row of this table has the label 'Online DP'.*Online DPO"):
        asked_rows(table, None, METHODS, ["Online DP"])


def evaluated_run(folder: Path, evaluations: Mapping[str, Sequence[Row]]) -> Path:
    """A run that trained on one pair, with these held-out answers by stage."""
    for part in ("data", "iterations/0", "evaluation"):
        (folder / part).mkdir(parents=True)
    (folder / "config.yaml").write_text("model: none")
    pq.write_table(pa.table({"prompt_id": [0], "part": [0], "columns": ["{}"]}), folder / "data/offline.parquet")
    for stage, rows in evaluations.items():
        pq.write_table(pa.Table.from_pylist(list(rows)), folder / f"evaluation/{stage}.parquet")
        JsonLines(folder / "metrics.jsonl").append({"phase": f"evaluate/{stage}", "length/mean": len(stage)})
    return folder


def test_a_run_is_measured_by_the_judge(tmp_path: Path) -> None:
    """The answer keeps one of two rules before and both after; to the other prompt it is cut both times."""
    world = InstructionsWorld(Material("model", 8, 2))
    asked = [
        {"prompt": [{"role": "user", "content": topic}], "topic": topic, "rules": "words 8; lowercase"}
        for topic in ("cat", "dog")
    ]
    write_rows(folder_of(tmp_path, world) / "heldout.jsonl", asked)
    answers = {"initial": ("A cat is a pet.", "a dog"), "iteration-0": ("a cat is a small pet.", "a dog is a")}
    evaluations = {
        stage: [
            {"prompt_id": n, "prompt": json.dumps(row["prompt"]), "response": text, "ended": n == 0, "reward": 0.4 - n}
            for n, (row, text) in enumerate(zip(asked, texts, strict=True))
        ]
        for stage, texts in answers.items()
    }
    found = world.measure(tmp_path, evaluated_run(tmp_path / "run", evaluations), None)
    assert (found.true_reward, found.sft_reward, found.gain, found.win_rate) == (0.5, 0.25, 0.25, 0.75)
    assert (found.reward, found.tokens, found.words) == (pytest.approx(-0.1), len("iteration-0"), 5.0)
    assert (found.annotated, found.boundary_score) == (0.0, None)
    with pytest.raises(RunError, match="no evaluations, which the judge measures; leave eval_data"):
        world.measure(tmp_path, evaluated_run(tmp_path / "other", {}), None)


def judged_with(score: float, **values: Any) -> JudgedMeasurement:
    return JudgedMeasurement(score, 0.25, 0.5, 0.5, 0.0, 1, 2, 3, 9, **values)


def summaries_of(scores: Mapping[str, Sequence[float]], places: Sequence[Place], unit: Unit) -> list[RowSummary]:
    rows = [row for row in ROWS if row.label in scores]
    world = InstructionsWorld(Material("model", 8, 2))
    outcomes = [
        Outcome(Cell(row, world.varied(seed, {}), repeat), Path("run"), judged_with(score, tokens=20.0, reward=1.0))
        for row in rows
        for (seed, repeat), score in zip(places, scores[row.label], strict=True)
    ]
    return summarize(rows, outcomes, REFERENCE, unit)


@pytest.mark.parametrize(("seeds", "runs"), [(2, 1), (1, 2)])
def test_rows_are_compared_by_world_and_run_seed(seeds: int, runs: int, tmp_path: Path) -> None:
    """Differences 0.1 and -0.2: mean -0.05, standard error 0.15, and t is 12.706 with one degree of freedom."""
    options = Options(InstructionsWorld(Material("model", 8, 2)), seeds, tmp_path, runs)
    places = [(seed, run) for seed in range(seeds) for run in range(runs)]
    _, table = study("model")
    found = summaries_of({"DPO": (0.4, 0.5), REFERENCE: (0.3, 0.7)}, places, options.unit)
    cells = grid(table, found, options.places)
    rows = [dict(zip(cells.titles, row, strict=True)) for row in cells.rows]
    assert rows[0]["difference"] == "−0.050 [−1.956, +1.856]"
    assert rows[1] | {"judge": ""} == {
        "": REFERENCE,
        "judge": "",
        "difference": "–",
        "reward": "1.00 [1.00, 1.00]",
        "tokens": "20.0 [20.0, 20.0]",
        "steps": "0",
        "prompts annotated, %": "0",
        "annotated responses a prompt": "0.0",
    }
    notes = remarks(table, found, options)
    assert notes[0].startswith("Judge's score of one response")
    assert ("between runs in one world, which holds for its prompts alone" in notes[0]) == (runs == 2)
    assert f"deviation of 0.212 between {'runs in one world' if runs == 2 else 'worlds'}. The smallest" in notes[1]
    assert notes[2:] == ["The judge's score before training is 0.250."]


@pytest.mark.engines
def test_a_study_from_end_to_end(material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    docs = tmp_path / "docs.md"
    sizes = [f"--{name}={value}" for name, value in (("prompts", 8), ("heldout", 3), ("seeds", 1))]
    asked = ["--model", material.model, *sizes, "--runs=2", "--rows=DPO;own pairs from SFT", "--out", str(tmp_path)]
    command = ["sandbox", "study", *asked, "--docs", str(docs), *(f"--set={each}" for each in FAST)]

    def record() -> Any:
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 0
        return json.loads((tmp_path / "tables" / f"study-{Path(material.model).name}.json").read_text())

    found = record()
    dpo, row = found["rows"]
    assert [cell["steps"] for cell in (*dpo["cells"], *row["cells"])] == [9] * 4
    assert [cell["true_reward"] for cell in row["cells"]] == [0.0, 0.0]  # Cut after four tokens.
    assert all(cell["boundary"] and cell["reward"] is not None for cell in row["cells"])
    assert None not in {row["estimates"]["tokens"][side] for side in ("low", "high")}
    assert "| own pairs from SFT | 0.000 [0.000, 0.000] |" in docs.read_text()
    assert len(list(tmp_path.glob("openings/*/seed-0/*"))) == len(list(tmp_path.glob("runs/*/seed-0/*"))) == 4
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert record() == found
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_demo_shows_the_answers_before_and_after(tmp_path: Path) -> None:
    answers = {"initial": ("old", "older"), "iteration-0": ("new", "newer")}
    evaluations = {
        stage: [{"prompt": json.dumps([{"role": "user", "content": f"ask {n}"}]), "response": text}]
        for stage, texts in answers.items()
        for n, text in enumerate(texts[:1])
    }
    run = evaluated_run(tmp_path / "run", evaluations)
    assert demo.first_answers(run) == [{"prompt": "ask 0", "before": "old", "after": "new"}]


def test_the_demo_shows_the_first_held_out_answers(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "PROMPTS", 8)
    monkeypatch.setattr(demo, "HELD_OUT", 4)
    demo.run_demo(material.model, tmp_path, seed=0)
    said = capsys.readouterr().out
    facts = json.loads((tmp_path / "demo.json").read_text())
    assert [stage["name"] for stage in facts["stages"]] == list(demo.STAGES)
    prompts = list(held_out_rows(tmp_path / "task"))[: demo.SHOWN]
    assert [answer["prompt"] for answer in facts["answers"]] == prompts
    assert all(prompt in said for prompt in prompts)
    assert (tmp_path / "run" / "report" / "report.html").exists() and "report.html" in said
