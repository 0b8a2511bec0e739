"""Several data sets in one run: which rows are read, in which order, and what is counted for each."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow as pa
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from adaptpo import AlignmentConfig, AlignmentTrainer
from adaptpo.config.data import DataSettings
from adaptpo.config.recipe import Recipe, load_recipe
from adaptpo.data.conditions import Condition, RowFilter
from adaptpo.data.mixture import Mixture, Source, alternated, amounts, drawn
from adaptpo.data.source import Rows
from adaptpo.errors import ConfigError, DataError, RunError
from adaptpo.methods import METHODS
from adaptpo.pipeline.data_inputs import DataInputs
from adaptpo.pipeline.phases.data import prepare_data
from adaptpo.report import RunData
from adaptpo.report.datasets import dataset_evaluation_table, dataset_iterations_table, datasets_table
from adaptpo.report.page import write_report
from adaptpo.run.files import JsonLines, read_rows
from adaptpo.run.identity import compared
from adaptpo.run.state import read_state
from tests.runs import SETTINGS, assert_same_run, run_in_process, start, weights
from tests.tiny import preference_rows, save_policy, vowel_reward, write_jsonl

HH, UF = preference_rows(30, seed=1), preference_rows(18, seed=2)


def source(count: int, weight: float | None = None, max_rows: int | None = None, name: str = "s") -> Source:
    rows = [{"number": number} for number in range(count)]
    return Source(Rows(name, lambda: rows, count), name, weight=weight, max_rows=max_rows)


# --- how many rows each set gives ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sources", "taken"),
    [
        ([source(10), source(4)], [10, 4]),  # no weights: every row once
        ([source(10, max_rows=3), source(4)], [3, 4]),
        ([source(10, 1), source(4, 1)], [4, 4]),  # the second is scarce: 4 / (1/2) = 8 rows
        ([source(700, 0.7), source(300, 0.3)], [700, 300]),  # exact, although 300 / 0.3 is not in floating point
        ([source(100, 3), source(100, 1)], [100, 33]),  # 100 / (3/4) = 133.3 rows
        ([source(100, 3, max_rows=30), source(100, 1)], [30, 10]),
        ([source(1000, 0.5), source(30, 0.3), source(1000, 0.2)], [50, 30, 20]),
    ],
)
def test_amounts(sources: list[Source], taken: list[int]) -> None:
    assert amounts(sources, [one.rows.size or 0 for one in sources]) == taken
    assert [len(sample) for sample in Mixture(sources).samples(0)] == taken


def test_a_weight_that_leaves_a_set_without_a_row_is_refused() -> None:
    with pytest.raises(DataError, match=r"no row of 'few' is used, because 'many' has too few rows"):
        amounts([source(10, 1000, name="many"), source(5, 1, name="few")], [10, 5])


def test_rows_are_drawn_without_replacement_all_subsets_alike() -> None:
    subsets = Counter(tuple(i for i, take in enumerate(drawn(4, 2, seed)) if take) for seed in range(6000))
    assert subsets.keys() == set(combinations(range(4), 2))
    assert all(abs(count - 1000) < 5 * math.sqrt(1000) for count in subsets.values())
    (sample,) = Mixture([source(20, max_rows=5)]).samples(7)
    numbers = [number for number, _ in sample.numbered()]
    assert numbers == sorted(set(numbers)) and len(numbers) == 5
    assert numbers == [row["number"] for _, row in sample.numbered()]
    (other,) = Mixture([source(20, max_rows=5)]).samples(8)
    assert numbers != [number for number, _ in other.numbered()]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.data())
def test_every_stretch_has_the_shares_of_the_whole(lengths: list[int], data: st.DataObject) -> None:
    mixed = list(alternated([range(length) for length in lengths], lengths))
    for number, length in enumerate(lengths):
        assert [item for owner, item in mixed if owner == number] == list(range(length))
    total = sum(lengths)
    start = data.draw(st.integers(0, total))
    end = data.draw(st.integers(start, total))
    for number, length in enumerate(lengths):
        found = sum(owner == number for owner, _ in mixed[start:end])
        assert abs(found - length * (end - start) / max(1, total)) < len(lengths) + 1


# --- which rows pass -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "passing", "failing"),
    [
        (Condition(any_of=["en"]), ["en"], ["EN", None]),
        (Condition(any_of=[1, 2]), [1, 2.0, "2"], [3, True]),
        (Condition(any_of=[True]), [True, "true", "True"], [1, False]),
        (Condition(any_of=[None]), [None], ["None", ""]),
        (Condition(none_of=["spam"]), ["ham", None], ["spam"]),
        (Condition(at_least=7, below=9), [7, "8.5"], [9, 6.9, None, "x"]),
        (Condition(above=0, at_most=1), [1, "1e-3"], [0, math.nan, True, "nan"]),
    ],
)
def test_conditions(condition: Condition, passing: list[Any], failing: list[Any]) -> None:
    assert [condition.holds(value) for value in passing] == [True] * len(passing)
    assert [condition.holds(value) for value in failing] == [False] * len(failing)


def test_the_gap_of_two_scores_and_columns_that_no_row_has() -> None:
    gap = RowFilter({"good - bad": Condition(at_least=1)})
    rows = [{"good": 3, "bad": 1}, {"good": "2.5", "bad": 2}, {"good": 3}, {"good - bad": 5}]
    assert [gap.keeps(row) for row in rows] == [True, False, False, True]
    for name, message in {
        "goood": "the filter reads the column 'goood', which no row has: did you mean 'good'?",
        "good - baad": "the filter reads the column 'baad', which no row has: did you mean 'bad'?",
        "zzz": "the filter reads the column 'zzz', which no row has: found good, bad.",
    }.items():
        with pytest.raises(DataError, match=message.replace("?", r"\?")):
            RowFilter({name: Condition(at_least=1)}).refuse_unknown_columns("d", rows[:1])
    RowFilter({"late": Condition(at_least=1)}).refuse_unknown_columns("d", [*rows, {"late": 1}])


def test_a_filter_that_no_row_passes_is_refused() -> None:
    settings = DataSettings(path="x", filter={"answer": "nothing"})
    inputs = DataInputs({"data": replace(DataInputs.of(HH).sets["data"], settings=settings)})  # type: ignore[union-attr]
    with pytest.raises(DataError, match="none of 30 rows passes the filter"):
        inputs.mixture().samples(0)


# --- recipes ---------------------------------------------------------------------------------------------------------


def recipe_of(folder: Path, data: Any, *assignments: str) -> Recipe:
    values = {"model": "m", "data": data, "output_dir": "o"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return load_recipe(folder / "recipe.yaml", assignments)


def test_a_list_names_its_sets_and_finds_them_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "hh.jsonl.gz").touch()
    recipe = recipe_of(tmp_path, ["hh.jsonl.gz", {"path": "org/uf", "subset": "clean"}, "other/uf", "a b+c.json"])
    sets = recipe.data.sets
    assert sets is not None and list(sets) == ["hh", "uf", "uf-2", "a-b-c"]
    assert sets["hh"].path == str(tmp_path / "hh.jsonl.gz")
    assert (sets["uf"].path, sets["uf"].name) == ("org/uf", "clean")


def test_settings_of_one_set_are_overridden_by_its_name(tmp_path: Path) -> None:
    data = {"sets": {"a": {"path": "a", "weight": 1}, "b": {"path": "b", "weight": 2}}}
    recipe = recipe_of(tmp_path, data, "data.sets.a.weight=3", "data.sets.b.filter={lang: en, score: {above: 2}}")
    sets = recipe.data.sets
    assert sets is not None and sets["a"].weight == 3 and sets["b"].filter is not None
    assert sets["b"].filter["lang"].any_of == ["en"] and sets["b"].filter["score"].above == 2
    assert recipe_of(tmp_path, ["a", "b"], "data.sets.a.max_rows=3").data.sets["a"].max_rows == 3  # type: ignore[index]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"split": "test"}, "give one data set as `path`, or several as `sets`"),
        ({"path": "a", "sets": {"b": "b"}}, "give one data set as `path`, or several as `sets`"),
        ([], "at least 1 item"),
        ({"sets": {"a": "a"}, "split": "test"}, "with `sets`, split belong to each set"),
        ({"path": "a", "weight": 2}, "with one data set, leave it out"),
        ([{"path": "a", "weight": 2}, "b"], "give every set a weight, or none of them; b has none"),
        ([{"path": "a", "wieght": 2}], "unknown key 'data.sets.a.wieght': did you mean 'weight'?"),
        ([{"split": "a"}], "'data.sets.set-0.path' is missing"),
        ({"path": "a", "filter": {"x": {"at_lest": 2}}}, "'data.filter.x.at_lest': did you mean 'at_least'?"),
        ([{"path": "a", "filter": {"x": {"at_lest": 2}}}], "did you mean 'at_least'?"),
        ({"sets": {"a/b": "a"}}, "use letters, digits"),
        ({"path": "a", "max_rows": 0}, "greater than 0"),
        ({"path": "a", "name": "x", "subset": "y"}, "subset"),
    ],
)
def test_wrong_settings(data: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe_of(tmp_path, data)
    assert message in str(caught.value)


# --- what the Python API takes ---------------------------------------------------------------------------------------


def test_forms_of_several_data_sets(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "hh.jsonl", HH)
    table = datasets.Dataset.from_list(UF)
    for forms, names in (
        ([file, table], ["hh", "set-1"]),
        ({"hh": file, "uf": pandas.DataFrame(UF)}, ["hh", "uf"]),
        ([HH, UF], ["set-0", "set-1"]),
        ([{"path": file}, {"path": table}], ["hh", "set-1"]),
    ):
        inputs = DataInputs.of(forms)
        assert inputs is not None and list(inputs.sets) == names
        assert [len(sample) for sample in inputs.mixture().samples(0)] == [30, 18]
    weighted = DataInputs.of({"hh": {"path": HH, "weight": 1}, "uf": {"path": UF, "weight": 1, "max_rows": 9}})
    assert weighted is not None and [len(sample) for sample in weighted.mixture().samples(0)] == [9, 9]


def test_rows_and_settings_are_told_apart() -> None:
    rows = [row | {"path": "somewhere"} for row in HH]
    inputs = DataInputs.of(rows)
    assert inputs is not None and len(inputs.sets) == 1 and list(inputs.mixture().sources[0].rows) == rows
    with pytest.raises(ConfigError, match=r"unknown key 'train_dataset\.set-0\.max_row': did you mean"):
        DataInputs.of([{"path": HH, "max_row": 3}], "train_dataset")
    with pytest.raises(ConfigError, match="give every set a weight"):
        DataInputs.of([{"path": HH, "weight": 3}, UF])
    with pytest.raises(ConfigError, match="cannot be of type dict"):
        DataInputs.of(HH[0])


def test_one_data_set_has_the_hash_it_always_had(tmp_path: Path) -> None:
    """That of its content, as earlier versions wrote it into `config.yaml`."""
    file = write_jsonl(tmp_path / "d.jsonl", HH)
    content = f"sha256:{sha256(Path(file).read_bytes()).hexdigest()}"
    rows = "".join(json.dumps(row, sort_keys=True) + "\n" for row in HH)
    plain = sha256(content.encode()).hexdigest()[:16]
    assert digest(file) == digest(DataSettings(path=file)) == plain
    assert digest(HH) == sha256(f"sha256:{sha256(rows.encode()).hexdigest()}".encode()).hexdigest()[:16]
    renamed = "\n".join(sorted((content, "[('prompt', 'prompt')]")))
    assert digest(DataSettings(path=file, columns={"prompt": "prompt"})) == sha256(renamed.encode()).hexdigest()[:16]
    limits: list[dict[str, Any]] = [{"max_rows": 2}, {"max_rows": 3}, {"filter": {"answer": "x"}}]
    others = [DataSettings(path=file, **more) for more in limits]
    assert len({plain, *map(digest, others), digest([file, file])}) == 5


def digest(data: Any) -> str:
    inputs = DataInputs.of(data)
    assert inputs is not None
    return inputs.digest()


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"), num_hidden_layers=1)


EVAL = {"hh": preference_rows(3, seed=9), "uf": [{"prompt": row["prompt"]} for row in preference_rows(3, seed=8)]}


def mixture(folder: Path, **uf: Any) -> dict[str, Any]:
    """30 rows and 18, of which one has no response; 1 : 1 with at most 12 of the latter."""
    files = [
        write_jsonl(folder / f"{name}.jsonl", rows)
        for name, rows in (("hh", HH), ("uf", [*UF[:4], UF[4] | {"chosen": []}, *UF[5:]]))
    ]
    return {"hh": {"path": files[0], "weight": 1}, "uf": {"path": files[1], "weight": 1, "max_rows": 12} | uf}


@pytest.fixture(scope="module")
def run(policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    start(policy, folder / "run", vowel_reward, rows=0, data=mixture(folder), eval_data=EVAL)
    return folder / "run"


def test_every_row_knows_its_data_set_and_its_number_there(run: Path) -> None:
    rows = read_rows(run / "data" / "offline.parquet")
    texts = {"hh": HH, "uf": UF}
    assert all(json.loads(row["prompt"]) == texts[row["dataset"]][row["row"]]["prompt"] for row in rows)
    (left_out,) = [line for line in JsonLines(run / "dropped.jsonl").read() if line["phase"] == "data"]
    assert (left_out["dataset"], left_out["row"]) == ("uf", 4)
    found = read_state(run)["phases"]["data"]["datasets"]
    assert found == {
        "hh": {"rows": 30, "matching": 30, "taken": 12, "kept": 12, "dropped": 0},
        "uf": {"rows": 18, "matching": 18, "taken": 12, "kept": 11, "dropped": 1},
    }
    for part in range(2):
        assert abs(Counter(row["dataset"] for row in rows if row["part"] == part)["uf"] - 5.5) <= 0.5


def test_counts_rewards_selection_and_weights_of_each_data_set(run: Path) -> None:
    """Computed again from the run's files."""
    owner = {row["prompt_id"]: row["dataset"] for row in read_rows(run / "data" / "offline.parquet")}
    for t in range(2):
        folder = run / f"iterations/{t}"
        found = read_state(run)["phases"][f"iterations/{t}/datasets"]["datasets"]
        logged = {
            name: value
            for line in JsonLines(run / "metrics.jsonl").read()
            if line["phase"] == f"iterations/{t}/datasets"
            for name, value in line.items()
        }
        selection = read_rows(folder / "selection.parquet")
        rated = [row for path in sorted((folder / "annotations").glob("*.parquet")) for row in read_rows(path)]
        weighed = JsonLines(folder / "pair_weights.jsonl").read()
        for name in ("hh", "uf"):
            own = {key: [row for row in rows if owner[row["prompt_id"]] == name] for key, rows in
                   (("selection", selection), ("rated", rated), ("weighed", weighed))}  # fmt: skip
            rewards = [row["reward"] for row in own["rated"]]
            weights = [row["weight"] for row in own["weighed"] if row["source"] == "offline"]
            mean = sum(rewards) / len(rewards)
            expected = {
                "prompts": len(own["selection"]),
                "selected": sum(row["selected"] for row in own["selection"]),
                "responses": len(rewards),
                "annotated": len(rewards),
                "reward/mean": mean,
                "reward/std": math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards)),
                "weight/offline": sum(weights) / len(weights),
                "visits/offline": len(weights),
            }
            assert {key: found[name][key] for key in expected} == pytest.approx(expected, abs=1e-5)
            assert all(logged[f"datasets/{name}/{key}"] == value for key, value in found[name].items())


def test_held_out_prompts_alternate_and_count_apart(run: Path) -> None:
    """Pairs of one set, prompts alone of the other."""
    rows = read_rows(run / "evaluation" / "iteration-1.parquet")
    assert [row["dataset"] for row in rows] == ["hh", "uf"] * 3
    (logged,) = [line for line in JsonLines(run / "metrics.jsonl").read() if line["phase"] == "evaluate/iteration-1"]
    for name in ("hh", "uf"):
        own = [row["reward"] for row in rows if row["dataset"] == name]
        assert logged[f"datasets/{name}/reward/mean"] == pytest.approx(sum(own) / 3)
    assert logged["datasets/hh/eval_loss"] == pytest.approx(logged["eval_loss"])
    assert "datasets/uf/eval_loss" not in logged


def test_the_report_shows_each_data_set(run: Path, undrawn: None) -> None:
    data = RunData.open(run)
    tables = [datasets_table(data), dataset_iterations_table(data), dataset_evaluation_table(data)]
    assert [len(table.rows) for table in tables if table is not None] == [2, 4, 8]
    assert tables[0] is not None and tables[0].rows[0] == ["hh", "30", "12", "50.0%", "12", "0"]
    page = write_report(run).read_text()
    assert 'id="datasets"' in page and "row 4 of uf" in page and "<dd>hh, uf</dd>" not in page


@pytest.mark.engines
def test_a_killed_run_on_several_data_sets_resumes(run: Path, policy: str, tmp_path: Path) -> None:
    """Also when the files moved meanwhile; not with another weight, or other names."""
    arguments: dict[str, Any] = {"model": policy, "out": tmp_path / "run", "reward": vowel_reward, "eval_data": EVAL}
    assert run_in_process("written:offline.parquet", data=mixture(run.parent), **arguments) == -9
    assert run_in_process("start:iterations/0/datasets", data=mixture(run.parent), **arguments) == -9
    with pytest.raises(RunError, match=r"inputs.data: '\w+' in the run"):
        start(data=mixture(tmp_path, weight=2), **arguments)
    assert run_in_process(data=mixture(tmp_path), **arguments) == 0
    assert_same_run(run, tmp_path / "run")


def test_recipes_of_several_sets_resume_after_a_move(tmp_path: Path) -> None:
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        mixture(tmp_path / place)
        assert recipe_of(tmp_path / place, ["hh.jsonl", "uf.jsonl"])
    plain = [
        compared({"data": recipe_of(tmp_path / p, ["hh.jsonl", "uf.jsonl"]).data.model_dump()}) for p in ("one", "two")
    ]
    assert plain[0] == plain[1]
    capped = recipe_of(tmp_path / "one", ["hh.jsonl", {"path": "uf.jsonl", "max_rows": 3}])
    assert compared({"data": capped.data.model_dump()}) != plain[0]


def test_a_run_that_an_earlier_version_began_resumes(policy: str, tmp_path: Path) -> None:
    """Its `config.yaml` knows no keys of several data sets, and its table of rows no column `dataset`."""
    recipe = {
        **SETTINGS,
        "model": policy,
        "data": write_jsonl(tmp_path / "hh.jsonl", HH),
        "reward": "python:tests.tiny:vowel_reward",
        "method": {"name": "metaapo", "num_generations": 2},
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    AlignmentTrainer.from_recipe(load_recipe(tmp_path / "recipe.yaml")).prepare()
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    config["data"] = {name: config["data"][name] for name in ("path", "name", "split", "text_format", "columns")}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    path = tmp_path / "run" / "data" / "offline.arrow"
    with pa.ipc.open_file(str(path)) as file:
        table = file.read_all()
        size = file.get_batch(0).num_rows
    old = table.drop_columns(["dataset"])
    with pa.ipc.new_file(str(path), old.schema) as writer:
        writer.write_table(old, max_chunksize=size)
    AlignmentTrainer.from_recipe(load_recipe(tmp_path / "recipe.yaml")).train()
    straight = load_recipe(tmp_path / "recipe.yaml", [f"output_dir={tmp_path / 'straight'}"])
    AlignmentTrainer.from_recipe(straight).train()
    assert_same_weights(tmp_path / "run", tmp_path / "straight")


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one / "final"), weights(other / "final")
    assert first and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_two_files_with_the_same_prompt_give_two_prompts_as_one_file_does(policy: str, tmp_path: Path) -> None:
    args = AlignmentConfig(output_dir=str(tmp_path / "run"), **SETTINGS | {"num_iterations": 1})
    trainer = AlignmentTrainer(policy, args, METHODS["dpo"](), {"a": HH[:2], "b": HH[:2]})
    with trainer.open() as context:
        prepare_data(context)
        rows = read_rows(context.run.path / "data" / "offline.parquet")
    assert [(row["prompt_id"], row["dataset"], row["row"]) for row in rows] == [
        (0, "a", 0), (1, "b", 0), (2, "a", 1), (3, "b", 1)
    ]  # fmt: skip
