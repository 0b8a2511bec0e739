"""The task of the study on a real language model: its rules, grader and judge, and what is compared."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from adaptpo.config.recipe import load_recipe
from adaptpo.errors import ConfigError, RunError
from adaptpo.methods.build import build_method
from adaptpo.sandbox.instructions import demo, grading, questions
from adaptpo.sandbox.instructions.build import BATCH, REWARD, Material, build
from adaptpo.sandbox.instructions.grading import graded, held_out_rows, judge_run, judged
from adaptpo.sandbox.instructions.questions import HELD_OUT_TOPICS, TRAINING_TOPICS, draw_tasks
from adaptpo.sandbox.instructions.rules import KINDS, Rule, draw_rules, edited
from adaptpo.sandbox.instructions.study import (
    PHASES,
    REFERENCE,
    ROWS,
    Measured,
    Options,
    grid,
    run_study,
    settings_of,
)
from adaptpo.sandbox.instructions.writers import preference_row, tidied
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


def test_rows_have_equal_steps(material: Material, task: Path, tmp_path: Path) -> None:
    for row in ROWS:
        recipe = load_recipe(task / "recipe.yaml", settings_of(Options(material, tmp_path), row, seed=2))
        assert (recipe.seed, recipe.training["max_steps"]) == (2, -(-material.prompts // BATCH))
        assert (recipe.warmup_epochs or 0) + recipe.num_iterations == PHASES
        assert build_method(recipe).name == row.method
    halves = [
        build_method(load_recipe(task / "recipe.yaml", row.settings)).pairing.num_generations for row in ROWS[1:4]
    ]
    assert halves == [4, 4, 2]


def test_a_study_of_one_row(material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fast = ("generation.max_new_tokens=4", "peft.r=2", "training.use_cpu=true")
    options = Options(material, tmp_path, seeds=1, steps=1, rows=("DPO",), settings=fast)
    found = run_study(options)
    measured = found["DPO", 0]
    assert (measured.steps, measured.annotated, measured.boundary) == (3, 0, None)
    study = json.loads((tmp_path / "study.json").read_text())
    assert [(run["row"], run["score"]) for run in study["runs"]] == [("DPO", measured.score)]
    assert "| DPO | 1 |" in (tmp_path / "study.md").read_text()
    run = next((tmp_path / "runs").iterdir())
    assert judge_run(run, "initial", held_out_rows(tmp_path / "task")) == [0.0] * 3  # Cut after four tokens.
    capsys.readouterr()
    assert run_study(options) == found


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


def test_unknown_rows_are_refused(material: Material, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Online DPO"):
        run_study(Options(material, tmp_path, rows=("Online DP",)))


def measured_with(score: float, **values: Any) -> Measured:
    return Measured(score, 0.25, 1.0, 20.0, 36, values.get("annotated", 0))


def test_rows_are_compared_by_seed() -> None:
    scores = {"DPO": (0.4, 0.5), REFERENCE: (0.3, 0.7)}
    found = {(row, seed): measured_with(score) for row, pair in scores.items() for seed, score in enumerate(pair)}
    table = grid(found)
    cells = {row[0]: row for row in table.rows}
    assert cells["SFT"][2] == "0.250"
    assert cells["DPO"][1:4] == ["2", "0.450 [0.400, 0.500]", "-0.050 [-0.200, +0.100]"]
    assert cells[REFERENCE][3] == "–"
