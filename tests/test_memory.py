"""Data sets that do not fit into memory: sequences read when they are asked for are what lists would be, and no phase
holds more of them than some numbers a prompt."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import RandomSampler

from adaptpo import AlignmentConfig, AlignmentTrainer, methods
from adaptpo.annotation.reward_model import scored_ids
from adaptpo.choices.selection import ScoredPrompts
from adaptpo.errors import RunError
from adaptpo.models.packing import RowPacking, row_tokens
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.phases.check import token_counts
from adaptpo.pipeline.phases.data import prepare_data
from adaptpo.pipeline.phases.reward import reward_rows
from adaptpo.pipeline.phases.train import grouped
from adaptpo.pipeline.stored_prompts import first_of
from adaptpo.run import arrow_rows
from adaptpo.run.arrow_rows import MappedRows, write_batches, write_rows
from adaptpo.run.directory import RunDirectory, open_run
from adaptpo.run.files import JsonLines, read_rows, write_table
from adaptpo.run.lazy_sequence import Indices, Lazy, batched, matched, pick
from adaptpo.run.schemas import (
    FILTER_SCHEMA,
    TRAINING_SCHEMA,
    VALIDATION_SCHEMA,
    group_row,
    read_group,
    read_offline,
    table,
)
from adaptpo.training.sampler import EvenOrder, Shuffled
from adaptpo.types import PromptGroup, Response
from tests.groups import random_groups
from tests.tiny import preference_rows, save_policy, vowel_reward

# --- sequences -------------------------------------------------------------------------------------------------------


class Squares:
    """Remembers which items were read together."""

    def __init__(self) -> None:
        self.read: list[list[int]] = []

    def __call__(self, indices: Indices) -> list[int]:
        self.read.append([int(place) for place in indices])
        return [int(place) ** 2 for place in indices]


@pytest.fixture
def squares() -> Squares:
    return Squares()


def test_a_lazy_sequence_is_the_list(squares: Squares) -> None:
    lazy, plain = Lazy(11, squares, block=4), [n**2 for n in range(11)]
    assert (len(lazy), list(lazy), lazy[10], lazy[-1]) == (11, plain, 100, 100)
    for part in (slice(3, 9), slice(None), slice(8, 99), slice(1, 10, 3), slice(5, 5)):
        assert lazy[part] == plain[part]
    assert list(lazy.map(lambda some: [-n for n in some])) == [-n for n in plain]
    assert list(lazy.take(range(1, 11, 2)).take(np.array([4, 0]))) == [plain[9], plain[1]]
    assert list(lazy + lazy.take(range(2))) == [*plain, 0, 1]
    assert (lazy + lazy)[9:13] == [81, 100, 0, 1]
    assert list(Lazy(0, squares, block=4)) == []
    with pytest.raises(IndexError):
        lazy[11]


def test_a_lazy_sequence_reads_what_is_asked_for(squares: Squares) -> None:
    lazy = Lazy(1000, squares, block=4)
    assert [lazy[n] for n in (400, 401, 403)] == [400**2, 401**2, 403**2]
    assert lazy[10:13] == [100, 121, 144]
    assert squares.read == [[400, 401, 402, 403], [10, 11, 12]]
    assert len(list(lazy)) == 1000 and {len(indices) for indices in squares.read[2:]} == {4}


def test_places_of_places() -> None:
    array_of = np.array([5, 3, 9, 7])
    assert pick(range(10, 20), range(2, 8, 3)) == range(12, 18, 3)
    assert pick(array_of, range(1, 3)).tolist() == [3, 9]
    assert pick(range(10, 20), np.array([4, 0])).tolist() == [14, 10]


def test_what_belongs_to_an_item_stands_in_the_same_order() -> None:
    found = matched("abcd", ["b1", "d1"], lambda item, other: other.startswith(item))
    assert list(found) == [("a", None), ("b", "b1"), ("c", None), ("d", "d1")]
    assert list(batched(range(5), 2)) == [[0, 1], [2, 3], [4]]


# --- files for random access -----------------------------------------------------------------------------------------

SCHEMA = pa.schema({"n": pa.int64(), "ids": pa.list_(pa.int32())})


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return [{"n": n, "ids": list(range(n % 3))} for n in range(11)]


@pytest.fixture
def file(rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MappedRows:
    monkeypatch.setattr(arrow_rows, "BATCH", 4)
    return write_rows(tmp_path / "rows.arrow", iter(rows), SCHEMA)


def test_mapped_rows_are_read_in_any_order(file: MappedRows, rows: list[dict[str, Any]]) -> None:
    assert len(file) == 11 and [batch.num_rows for batch in file.batches()] == [4, 4, 3]
    for indices in (range(11), range(2, 7), range(0, 11, 3), np.array([10, 0, 5, 4, 4]), range(0)):
        assert file.read(indices) == [rows[place] for place in indices]
    assert file.read(range(3, 5), ["n"]) == [{"n": 3}, {"n": 4}]
    assert pickle.loads(pickle.dumps(file)).read(range(11)) == rows


def test_mapped_rows_become_a_parquet_file(file: MappedRows, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    write_batches(tmp_path / "rows.parquet", file.batches(), SCHEMA)
    assert read_rows(tmp_path / "rows.parquet") == rows


def test_no_rows_are_a_file_too(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.arrow", [], SCHEMA)
    assert len(file) == 0 and file.read(range(0)) == []


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"rows\.arrow is missing.*another output_dir"):
        MappedRows(tmp_path / "rows.arrow")


def training_groups() -> list[PromptGroup]:
    """With everything that a group can have, and as little as it can."""
    full, bare = random_groups(2)
    tokens = (array("f", [0.5, -2.0]), array("f", [-1.25]))
    one, other = full.pairs
    sample = Response("déjà", [7, 8], ended=False)
    pairs = (replace(one, reference_logps=(-1.5, -2.25), reference_tokens=tokens), replace(other, sample=sample))
    prompt = replace(full.prompt, text=[{"role": "user", "content": "hi"}], columns={"weight": 2.0})
    return [PromptGroup(prompt, pairs, {"similarity": [0.5], "state": [1.0, -2.0]}), bare]


def test_groups_are_the_same_in_a_file(tmp_path: Path) -> None:
    groups = training_groups()
    file = write_rows(tmp_path / "groups.arrow", map(group_row, groups), TRAINING_SCHEMA)
    assert [read_group(row) for row in file.read(np.array([1, 0]))] == groups[::-1]


def test_pairs_of_one_prompt_are_one_group() -> None:
    groups = random_groups(3)
    items = [(group.prompt, pair) for group in groups for pair in group.pairs]
    assert list(grouped(items)) == groups
    features = [(group.prompt.id, {"margin": [float(group.prompt.id)]}) for group in groups]
    known = list(grouped(items[2:], features))
    assert [group.features for group in known] == [{"margin": [1.0]}, {"margin": [2.0]}]


# --- shards and logs -------------------------------------------------------------------------------------------------


def test_more_shards_than_their_names_have_digits_for(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        for number in (100_000, 99_999, 0):
            write_table(run.path / "scores" / f"{number:05d}.parquet", pa.table({"x": [number]}))
            run.keep(run.path / "scores" / f"{number:05d}.parquet")
        assert [row["x"] for row in run.read_shards("scores")] == [0, 99_999, 100_000]
        assert run.read_columns("scores", "x")[0].tolist() == [0, 99_999, 100_000]
        assert [row["x"] for row in run.read_shards_of("scores", [200_001, 1], size=2)] == [100_000, 0]


def test_shards_of_some_items(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        run.shards("scores", range(10), 4, lambda shard: pa.table({"x": list(shard)}), show_progress=False)
        assert [row["x"] for row in run.read_shards_of("scores", [9, 1], size=4)] == [8, 9, 0, 1, 2, 3]


def test_what_is_left_out_is_written_as_it_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptpo.run.left_out.WRITTEN_TOGETHER", 2)
    with open_run(tmp_path / "run") as run, run.dropping("data") as left_out:
        for number in range(3):
            left_out.add({"row": number, "reason": "empty"})
        assert [record["row"] for record in run.dropped.read()] == [0, 1]
        left_out.add({"row": 3, "reason": "long"})
        assert left_out.reasons == {"empty": 3, "long": 1}


# --- the data of a run -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def context(policy: str, tmp_path: Path) -> Iterator[Context]:
    """A run that has prepared 20 of 22 rows."""
    data = preference_rows(22)
    data[3]["chosen"] = data[9]["rejected"] = []
    trainer = AlignmentTrainer(
        model=policy,
        args=AlignmentConfig(output_dir=str(tmp_path / "run"), num_iterations=3, shard_size=4, show_progress=False),
        method=methods.loss_curriculum(),
        train_dataset=data,
        reward_funcs=vowel_reward,
    )
    with trainer.open() as opened:
        opened.run.phase("data", lambda: prepare_data(opened))
        yield opened


def stored(context: Context) -> list[dict[str, Any]]:
    return read_rows(context.run.path / "data" / "offline.parquet")


def test_offline_pairs_are_those_of_the_table(context: Context) -> None:
    plain = [read_offline(row) for row in stored(context)]
    assert list(context.offline()) == plain and len(plain) == 20
    assert context.offline()[3:9] == plain[3:9] and context.offline()[-1] == plain[-1]
    assert list(context.prompts_of(np.array([4, 2]))) == [plain[4][0], plain[2][0]]


def test_parts_are_those_of_the_table(context: Context) -> None:
    for part in range(3):
        plain = [read_offline(row) for row in stored(context) if row["part"] == part]
        assert list(context.offline(part)) == plain


@pytest.mark.parametrize(("parts", "total"), [(1, 5), (3, 20), (7, 20), (5, 3)])
def test_first_of_a_part(parts: int, total: int) -> None:
    of_prompt = [number * parts // total for number in range(total)]
    for part in range(parts):
        assert [n for n in range(total) if of_prompt[n] == part] == list(
            range(first_of(part, parts, total), first_of(part + 1, parts, total))
        )


def test_filter_order_and_held_out_prompts(context: Context) -> None:
    """Ranked backwards, prompts 0 and 7 left out, 5 and 12 held out."""
    rows = [{"prompt_id": n, "priority": 0.0, "rank": 19 - n, "kept": n not in (0, 7)} for n in range(20)]
    context.run.phase("filter", lambda: written(context, "filter", rows, FILTER_SCHEMA))
    kept = [n for n in reversed(range(20)) if n not in (0, 7)]
    assert [prompt.id for prompt, _ in context.offline()] == kept
    held_out = [{"prompt_id": n, "difficulty": 0.0} for n in (5, 12)]
    context.run.phase("validation", lambda: written(context, "validation", held_out, VALIDATION_SCHEMA))
    assert [prompt.id for prompt, _ in context.offline(0)] == [6, 4, 3, 2, 1]
    assert [prompt.id for prompt, _ in context.validation()] == [12, 5]


def written(context: Context, name: str, rows: list[dict[str, Any]], schema: pa.Schema) -> dict[str, Any]:
    path = context.run.path / "data" / f"{name}.parquet"
    write_table(path, table(rows, schema))
    context.run.keep(path)
    return {}


def test_tokens_are_counted_as_batches_count_them(context: Context) -> None:
    groups = [PromptGroup(prompt, (pair,)) for prompt, pair in context.offline()]
    shared, padded = token_counts(context.offline_rows)
    assert shared.tolist() == [row_tokens([group], RowPacking(shared_prompts=True)) for group in groups]
    assert padded == sum(row_tokens([group], RowPacking()) for group in groups)


def test_rows_for_the_reward_model_are_mapped_from_a_file(context: Context) -> None:
    rows = reward_rows(context, context.tokenizer)
    assert rows[:] == {
        f"{side}_ids": [
            scored_ids(context.tokenizer, prompt, getattr(pair, side), {}) for prompt, pair in context.offline()
        ]
        for side in ("chosen", "rejected")
    } | {"margin": [0.0] * len(rows)}
    assert rows.cache_files


# --- shuffling -------------------------------------------------------------------------------------------------------


def test_shuffled_is_the_order_of_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptpo.training.sampler.TOGETHER", 7)
    own = Shuffled(20, 3)
    theirs = SeedableRandomSampler(range(20), generator=torch.Generator(), data_seed=3)
    orders = [(list(own), list(theirs)) for _ in range(3)]
    assert all(one == other for one, other in orders) and orders[0] != orders[1]
    assert list(EvenOrder.of(RandomSampler(range(20)), 20, 1, data_seed=3)) == orders[0][0]


# --- selection -------------------------------------------------------------------------------------------------------


def test_prompts_weighed_in_pieces_are_selected_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    margins = torch.linspace(-3, 3, 11)
    features = {"length": torch.arange(11.0)[:, None]}
    prompts = ScoredPrompts(11, margins, torch.stack([margins, -margins], dim=1), torch.arange(11), features)
    selection = methods.metaapo().selection
    whole = selection.probability(prompts)
    monkeypatch.setattr("adaptpo.choices.selection.TOGETHER", 4)
    torch.testing.assert_close(selection.probability(prompts), whole)
    assert len(selection.probability(ScoredPrompts(0, margins[:0], torch.zeros(0, 2)))) == 0
    pieces = list(prompts.pieces(4))
    assert [piece.count for piece in pieces] == [4, 4, 3]
    assert torch.cat([piece.features["length"] for piece in pieces]).equal(features["length"])
    assert torch.cat([piece.ratios for piece in pieces]).equal(prompts.ratios)


# --- memory ----------------------------------------------------------------------------------------------------------

FEW, MANY = 400, 3400
BYTES_A_PROMPT = 64
"""A tokenized pair takes more than 2,000 as Python objects."""


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import memory

    monkeypatch.setitem(memory.SETTINGS, "shard_size", 32)
    monkeypatch.setattr(arrow_rows, "BATCH", 32)
    return memory


class Traced:
    """Peaks of what Python and numpy allocate in each phase, above what was there at its start."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        yield
        self.peaks[phase] = tracemalloc.get_traced_memory()[1] - before

    def phase_of(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def traced(run: RunDirectory, name: str, work: Callable[[], Any]) -> Any:
            with self.measure(name):
                return original(run, name, work)

        return traced


def peaks(benchmark: Any, folder: Path, prompts: int) -> dict[str, int]:
    folder.mkdir()
    traced = Traced()
    tracemalloc.start()
    try:
        benchmark.align(folder, prompts, traced, real=False, steps=2, sets=1)
    finally:
        tracemalloc.stop()
    return traced.peaks


def test_no_phase_holds_more_than_some_numbers_a_prompt(benchmark: Any, tmp_path: Path) -> None:
    few, many = (peaks(benchmark, tmp_path / str(prompts), prompts) for prompts in (FEW, MANY))
    assert len(few) == 10 and few.keys() == many.keys()
    grown = {phase: (many[phase] - few[phase]) / (MANY - FEW) for phase in few}
    assert {phase: growth for phase, growth in grown.items() if growth > BYTES_A_PROMPT} == {}


def test_no_history_of_all_steps_is_kept(policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = AlignmentTrainer(
        model=policy,
        args=AlignmentConfig(
            output_dir=str(tmp_path / "run"),
            num_iterations=1,
            max_prompt_length=64,
            max_completion_length=64,
            generation={"max_new_tokens": 8},
            show_progress=False,
            training={"per_device_train_batch_size": 2, "save_steps": 4, "use_cpu": True},
        ),
        method=methods.simpo(),
        train_dataset=preference_rows(10),
    )
    states: list[dict[str, Any]] = []

    def keep(checkpoint: Path, *_: Any) -> None:
        states.append(json.loads((checkpoint / "trainer_state.json").read_text()))

    monkeypatch.setattr("adaptpo.training.prompt_group_trainer.mark_complete", keep)
    trainer.train()
    logged = [line["step"] for line in JsonLines(tmp_path / "run/metrics.jsonl").read() if "loss" in line]
    assert logged == [1, 2, 3, 4, 5]
    assert [len(state["log_history"]) for state in states] == [1, 1]
