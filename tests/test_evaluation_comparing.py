"""Results side by side, the page of cases, and tasks of lm-eval."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from scipy.stats import ttest_rel

from adaptpo.cli import main
from adaptpo.errors import ConfigError, DataError
from adaptpo.evaluation.cases import write_cases
from adaptpo.evaluation.comparing import compare
from adaptpo.evaluation.folder import JUDGING, EvaluationFolder
from adaptpo.evaluation.intervals import bootstrap_mean, clustered_mean
from adaptpo.evaluation.result import Number, PromptScore, Result
from adaptpo.evaluation.suite import Answer, Question
from adaptpo.evaluation.tasks import SHOTS, Tasks, loaded, run_tasks, task_manager
from adaptpo.evaluation.words import show_comparison
from adaptpo.models.loading import load_causal_lm
from adaptpo.run.files import write_json
from tests.runs import start
from tests.tiny import byte_tokenizer, save_policy, write_jsonl


def scored(
    path: Path, values: list[float], suite: str = "arena_hard_v0.1", weights: list[float] | None = None, **settings: Any
) -> Path:
    """An evaluation whose prompts scored so."""
    folder = EvaluationFolder(path)
    known = {"suite": suite, "preset": suite, "model": path.name, "decoding": {"temperature": 0}, "seed": 0}
    turns = ("hi?", "and <b>then</b>?") if suite == "mt_bench" else ("hi?",)
    questions = [Question(str(n), turns, "even" if n % 2 == 0 else "odd") for n in range(len(values))]
    folder.start(known | settings, questions)
    texts = {0: "I'm sorry, but I can't help with that.", 1: "<script>alert(1)</script>"}
    folder.add_answers(
        [Answer(q.id, tuple(texts.get(int(q.id), f"{path.name} {q.id}") for _ in turns)) for q in questions]
    )
    given = weights or [1.0] * len(values)
    scores = [PromptScore(q.id, v, q.category, w) for q, v, w in zip(questions, values, given, strict=True)]
    main = "win rate" if suite == "alpaca_eval_2" else "score"
    numbers = [Number(main, float(np.mean(values))), Number("equal style", 1.0)]
    if suite == "alpaca_eval_2":
        numbers = [Number("length-controlled win rate", 1.0), *numbers]
    folder.keep_result(Result(suite, folder.origin(), len(values), {}, numbers, scores))
    return path


def test_differences_are_paired_by_prompt(tmp_path: Path) -> None:
    """Two runs that differ by 5 on every prompt: the difference is certain, however much prompts differ."""
    values = np.random.default_rng(0).uniform(0, 90, 60)
    first, other = scored(tmp_path / "a", list(values)), scored(tmp_path / "b", list(values + 5))
    found = compare([str(first), str(other)])
    assert [(d.name, d.group, d.prompts) for d in found.differences] == [
        ("b", "all", 60), ("b", "even", 30), ("b", "odd", 30),
    ]  # fmt: skip
    for one in found.differences:
        assert [one.value, one.interval.low, one.interval.high] == pytest.approx([5, 5, 5])
    assert found.cells["b"][0].mean - found.cells["a"][0].mean == pytest.approx(5)
    assert found.differences[0].test is None and found.warnings == []


def test_a_prompt_counts_by_its_weight(tmp_path: Path) -> None:
    weights = [3.0, 1.0] * 2
    first = scored(tmp_path / "a", [0.0, 100.0] * 2, weights=weights)
    other = scored(tmp_path / "b", [100.0, 0.0] * 2, weights=weights)
    assert compare([str(first), str(other)]).differences[0].value == pytest.approx(75 - 25)


def test_seeds_get_mean_deviation_and_a_paired_test(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    base = [generator.uniform(0, 90, 20) for _ in range(3)]
    old = [scored(tmp_path / f"a{n}", list(values), seed=n) for n, values in enumerate(base)]
    gains = [2.0, 3.0, 4.5]
    new = [scored(tmp_path / f"b{n}", list(v + g), seed=n) for n, (v, g) in enumerate(zip(base, gains, strict=True))]
    found = compare([f"old={','.join(map(str, old))}", f"new={','.join(map(str, new))}"])
    means = [float(values.mean()) for values in base]
    cell = found.cells["old"][0]
    assert (cell.mean, cell.deviation, cell.seeds) == pytest.approx((np.mean(means), np.std(means, ddof=1), 3))
    expected = ttest_rel([m + g for m, g in zip(means, gains, strict=True)], means).pvalue
    assert found.differences[0].test == pytest.approx(expected)
    with pytest.raises(ConfigError, match="the same seed"):
        compare([f"old={old[0]},{scored(tmp_path / 'copy', [1.0], model='a0')}", str(new[0])])


def test_what_else_differs_is_said(tmp_path: Path) -> None:
    first = scored(tmp_path / "a", [1.0, 2.0, 3.0])
    other = scored(tmp_path / "b", [1.0, 2.0], decoding={"temperature": 1})
    found = compare([str(first), str(other)], preset="metaapo")
    assert found.columns == ("score", "style control") and found.cells["a"][1] is None
    assert any("differ in decoding" in warning for warning in found.warnings)
    assert any("1 prompts are not scored in every run" in warning for warning in found.warnings)
    with pytest.raises(ConfigError, match="at least two"):
        compare([str(first)])
    with pytest.raises(ConfigError, match="different suites"):
        compare([str(first), str(scored(tmp_path / "c", [1.0], "mt_bench"))])


def test_runs_of_equal_folder_names_are_told_apart(tmp_path: Path) -> None:
    a = scored(tmp_path / "a" / "mt", [1.0, 2.0], model="a")
    b = scored(tmp_path / "b" / "mt", [2.0, 4.0], model="b", decoding={"temperature": 1})
    found = compare([str(a), str(b)])
    assert [cells[0].mean for cells in found.cells.values()] == [1.5, 3] and list(found.cells) == ["a/mt", "b/mt"]
    assert found.differences[0].name == "b/mt" and found.warnings[0].startswith("a/mt and b/mt differ in decoding")
    assert list(compare([f"old={a}", f"{b}"]).cells) == ["old", "b/mt"]
    for twice in ([str(a), str(a)], [f"x={a}", str(a)], [f"x={a}", f"y={a}/../mt"]):
        with pytest.raises(ConfigError, match=r"a/mt is named twice; name different"):
            compare(twice)
    with pytest.raises(ConfigError, match="two entries are named x; give each a name of its own"):
        compare([f"x={a}", f"x={b}"])


def test_what_the_judge_and_the_template_were_told_is_compared(tmp_path: Path) -> None:
    first = scored(tmp_path / "a", [1.0, 2.0], chat_template_kwargs={"enable_thinking": False})
    other = scored(tmp_path / "b", [1.0, 2.0])
    for path, tokens in ((first, 16), (other, 512)):
        write_json(path / JUDGING, {"judge": "j", "options": {"max_tokens": tokens}})
    warnings = compare([str(first), str(other)]).warnings
    assert "a and b differ in the judge's options: {'max_tokens': 16} and {'max_tokens': 512}" in warnings
    assert "a and b differ in chat_template_kwargs: {'enable_thinking': False} and {}" in warnings


def test_the_number_whose_differences_are_measured_is_named(tmp_path: Path) -> None:
    """A length-controlled rate is no mean over prompts: the differences are those of the plain rate."""
    folders = [str(scored(tmp_path / name, [50.0, n], "alpaca_eval_2")) for name, n in (("a", 10.0), ("b", 30.0))]
    found = compare(folders)
    assert found.columns == ("length-controlled win rate", "win rate")
    assert found.row()["measured"] == "win rate" and found.differences[0].value == pytest.approx(10)
    shown = Console(width=200, record=True)
    show_comparison(found, shown)
    assert "difference in win rate" in shown.export_text()


def test_seeds_are_paired_by_seed(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    base, gains = [generator.uniform(0, 90, 20) for _ in range(3)], [2.0, 3.0, 4.5]
    old = [str(scored(tmp_path / f"a{n}", list(values), seed=n)) for n, values in enumerate(base)]
    new = [str(scored(tmp_path / f"b{n}", list(base[n] + gains[n]), seed=n)) for n in range(3)]
    straight = compare([f"old={','.join(old)}", f"new={','.join(new)}"])
    crossed = compare([f"old={','.join(old)}", f"new={','.join(reversed(new))}"])
    assert crossed.differences[0].test == pytest.approx(straight.differences[0].test)
    assert straight.warnings == crossed.warnings == []
    other = [str(scored(tmp_path / f"c{n}", list(base[n] + gains[n]), seed=9)) for n in range(3)]
    found = compare([f"old={','.join(old)}", f"new={','.join(other)}"])
    assert found.differences[0].test == pytest.approx(straight.differences[0].test)
    assert "in the order in which they are named" in found.warnings[0]


def test_no_mean_over_safe_and_unsafe_prompts(tmp_path: Path) -> None:
    folders = [str(scored(tmp_path / name, [0.0, 100.0, 0.0, 100.0], "xstest")) for name in "ab"]
    assert [one.group for one in compare(folders).differences] == ["even", "odd"]


def test_the_page_of_cases_escapes_everything(tmp_path: Path) -> None:
    a = scored(tmp_path / "a", [1.0, 5.0, 2.0, 9.0], "mt_bench")
    b = scored(tmp_path / "b", [3.0, 4.0, 2.0, 10.0], "mt_bench")
    page = write_cases([str(a), str(b)], tmp_path / "cases.html", count=2).read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and "and &lt;b&gt;then" in page
    assert "http" not in page.replace("http-equiv", "")
    for title in ("Largest wins (2)", "Largest losses (1)", "Refusals (1)", "Conversations (2)", "A sample (2)"):
        assert title in page
    assert write_cases([str(a), str(b)], tmp_path / "again.html", count=2).read_text() == page
    with pytest.raises(DataError, match="no question in common"):
        write_cases([str(a), str(scored(tmp_path / "c", [], "mt_bench"))], tmp_path / "none.html")


def test_compare_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(scored(tmp_path / name, [1.0, float(n)])) for n, name in enumerate("ab")]
    with pytest.raises(SystemExit) as ended:
        main(["eval", "compare", *folders, "--html", str(tmp_path / "cases.html"), "--json"])
    assert ended.value.code == 0 and (tmp_path / "cases.html").exists()
    assert '"differences"' in capsys.readouterr().out


def test_a_clustered_bootstrap_sees_what_a_plain_one_does_not() -> None:
    """Ten copies of each value add no knowledge: the sd is that of the values, not of a tenth of their variance."""
    values = np.random.default_rng(2).normal(size=100)
    copies, clusters = np.repeat(values, 10), np.repeat(np.arange(100), 10).tolist()
    single, copied = bootstrap_mean(values).deviation, clustered_mean(copies, clusters).deviation
    assert single == pytest.approx(values.std() / 10, rel=0.03)
    assert copied == pytest.approx(single, rel=0.03)
    assert bootstrap_mean(copies).deviation == pytest.approx(single / 10**0.5, rel=0.03)


# lm-eval

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Say {{{{word}}}}: "
doc_to_choice: ["red", "blue"]
doc_to_target: label
num_fewshot: {shots}
metric_list:
  - metric: acc
  - metric: acc_norm
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tasks of eight documents, which need no network."""
    pytest.importorskip("lm_eval", reason="needs adaptpo[eval]")
    folder = tmp_path_factory.mktemp("lm-eval") / "tasks"
    folder.mkdir()
    rows = [{"word": word, "label": number % 2} for number, word in enumerate(["red", "blue"] * 4)]
    data = write_jsonl(folder.parent / "data.jsonl", rows)
    for name, shots in (("local_choice", 0), ("local_shots", 1)):
        (folder / f"{name}.yaml").write_text(TASK.format(data=data, name=name, shots=shots))
    return folder


@pytest.fixture(scope="module")
def manager(tasks: Path) -> Any:
    """What lm-eval knows and that folder; it reads thousands of files for it."""
    return task_manager(Tasks("m", (), tasks))


def test_a_local_task_on_the_model_of_a_run(
    tasks: Path, manager: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("adaptpo.evaluation.tasks.task_manager", lambda _: manager)
    model = str(start(save_policy(tmp_path / "policy"), tmp_path / "run", None, "dpo", 8, 0, num_iterations=1))
    assert Path(model).name == "final"
    rows = run_tasks(Tasks(model, ("local_choice",), tasks), tmp_path / "tasks.json")
    assert [(row["task"], row["metric"], row["n"]) for row in rows] == [
        ("local_choice", "acc", 8), ("local_choice", "acc_norm", 8),
    ]  # fmt: skip
    assert all(0 <= row["value"] <= 1 and row["interval"][0] <= row["value"] for row in rows)
    assert json.loads((tmp_path / "tasks.json").read_text())["results"] == rows


def test_the_chat_template_is_applied_where_it_is_asked_for(
    tasks: Path, manager: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every prompt that the model gets, with the template and without; the examples are turns of their own."""
    from lm_eval.models.huggingface import HFLM

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("adaptpo.evaluation.tasks.task_manager", lambda _: manager)
    seen: list[str] = []
    kept = HFLM.loglikelihood
    monkeypatch.setattr(
        HFLM,
        "loglikelihood",
        lambda self, asked, **kw: seen.extend(a.args[0] for a in asked) or kept(self, asked, **kw),
    )
    plain = Tasks(save_policy(tmp_path / "m"), ("local_shots",), tasks)
    rows = run_tasks(plain, tmp_path / "plain.json")
    assert not any("<|user|>" in text for text in seen) and [row["apply_chat_template"] for row in rows] == [False] * 2
    assert "has a chat template, and it is not applied" in capsys.readouterr().err
    seen.clear()
    rows = run_tasks(replace(plain, apply_chat_template=True), tmp_path / "chat.json")
    assert seen and all(text.count("<|user|>") == 2 and text.endswith("<|assistant|>") for text in seen)
    assert [row["apply_chat_template"] for row in rows] == [True] * 2
    assert json.loads((tmp_path / "chat.json").read_text())["apply_chat_template"] is True
    assert "not applied" not in capsys.readouterr().err
    bare = replace(plain, model=save_policy(tmp_path / "bare", chat=False), apply_chat_template=True)
    with pytest.raises(ConfigError, match="has no chat template; leave --apply-chat-template out"):
        run_tasks(bare)


def test_an_adapter_is_evaluated_on_its_model(
    tasks: Path, manager: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a run with `peft` leaves it in `final/`: as good as the model with the adapter merged, and not as the base."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("adaptpo.evaluation.tasks.task_manager", lambda _: manager)
    base = save_policy(tmp_path / "base")
    model = get_peft_model(load_causal_lm(base, {}), LoraConfig(r=4, target_modules=["q_proj", "down_proj"],
                           init_lora_weights=False, task_type="CAUSAL_LM"))  # fmt: skip
    model.save_pretrained(tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    byte_tokenizer().save_pretrained(tmp_path / "merged")
    adapter, merged = (loaded(Tasks(str(tmp_path / name))).model for name in ("adapter", "merged"))
    ids = torch.arange(8)[None]
    assert torch.allclose(adapter(ids).logits, merged(ids).logits, atol=1e-5)
    assert not torch.allclose(adapter(ids).logits, load_causal_lm(base, {})(ids).logits, atol=1e-3)
    rows = run_tasks(Tasks(str(tmp_path / "adapter"), ("local_choice",), tasks))
    assert {row["model"] for row in rows} == {str(tmp_path / "adapter")}


def test_unknown_tasks_and_folders_are_named(
    tasks: Path, manager: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        run_tasks(Tasks("m", (), tmp_path / "none"))
    monkeypatch.setattr("adaptpo.evaluation.tasks.task_manager", lambda _: manager)
    with pytest.raises(ConfigError, match="did you mean 'local_choice'"):
        run_tasks(Tasks("m", ("local_choise",), tasks))


def test_the_papers_tasks_exist_in_lm_eval(manager: Any) -> None:
    assert set(SHOTS) < set(manager.all_tasks)
