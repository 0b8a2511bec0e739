"""The files of a run folder, for its report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from adaptpo.config.secrets import masked_text
from adaptpo.errors import RunError
from adaptpo.report.visits import FloatArray, Visits
from adaptpo.run.files import JsonLines
from adaptpo.run.identity import stored_config
from adaptpo.types import Row

Columns = dict[str, npt.NDArray[Any]]
EVALUATION_COLUMNS = ("prompt_id", "prompt", "chosen", "response", "ended", "reward", "score")
FIRST_STAGES = ("start", "initial", "warmup")


@dataclass(frozen=True)
class RunData:
    """The files of a run folder, each read on first access. A missing file reads as empty."""

    root: Path

    @classmethod
    def open(cls, root: Path) -> RunData:
        """Opens the run in `root`. Raises `RunError` if `root` is not a run folder."""
        if not (root / "config.yaml").is_file():
            raise RunError(
                f"{root} is not a run folder: it has no config.yaml. "
                "Pass the folder that `adaptpo train` wrote (the recipe's output_dir)."
            )
        return cls(root.resolve())

    @cached_property
    def config_text(self) -> str:
        """The resolved recipe as stored."""
        return masked_text((self.root / "config.yaml").read_text(encoding="utf-8"))

    @cached_property
    def config(self) -> dict[str, Any]:
        return stored_config(self.root)

    @cached_property
    def phases(self) -> dict[str, dict[str, Any]]:
        """State of every phase that has started, in order."""
        path = self.root / "state.json"
        return dict(read_json(path).get("phases", {})) if path.is_file() else {}

    @cached_property
    def metrics(self) -> list[Row]:
        """All lines of `metrics.jsonl`, in order."""
        return self.lines("metrics.jsonl")

    @cached_property
    def dropped(self) -> list[Row]:
        """All dropped rows, prompts and responses, each with its reason."""
        return self.lines("dropped.jsonl")

    @cached_property
    def iterations(self) -> list[int]:
        """Iterations that have at least one phase or file."""
        names = [phase.split("/")[1] for phase in self.phases if phase.startswith("iterations/")]
        names += [path.name for path in (self.root / "iterations").glob("*")]
        return sorted({int(name) for name in names if name.isdigit()})

    @cached_property
    def parts(self) -> npt.NDArray[Any]:
        """For each prompt, the iteration to which its part of the data belongs."""
        return self.table("data/offline.parquet", "part").get("part", np.array([]))

    @cached_property
    def paired(self) -> npt.NDArray[np.bool_]:
        """For each prompt, whether it has an offline pair."""
        if not self.phases.get("data", {}).get("prompts_alone"):
            return np.ones(len(self.parts), dtype=bool)
        with reading(self.root / "data" / "offline.parquet"):
            ids = pq.read_table(self.root / "data" / "offline.parquet", columns=["chosen"])["chosen"]
            return ids.is_valid().to_numpy()

    @cached_property
    def stages(self) -> list[Stage]:
        """Evaluations on the held-out prompts, in order."""
        phases = ((str(line.get("phase")), line) for line in self.metrics)
        logged: dict[str, Row] = {}
        for phase, line in phases:
            if phase.startswith("evaluate/"):
                key = phase.removeprefix("evaluate/")
                logged[key] = logged.get(key, {}) | line
        kept = {path.stem for path in self.files("evaluation/*.parquet")}
        keys = sorted({*logged, *kept}, key=stage_order)
        return [
            Stage(key, self.table(f"evaluation/{key}.parquet", *EVALUATION_COLUMNS), logged.get(key, {}))
            for key in keys
        ]

    @cached_property
    def pair_weights(self) -> dict[int, list[Row]]:
        """All lines of `pair_weights.jsonl`, by iteration."""
        return {t: self.lines(f"iterations/{t}/pair_weights.jsonl") for t in self.iterations}

    @cached_property
    def visits(self) -> Visits | None:
        """The training visits of pairs with a learned weight; None if there are none."""
        column = str(self.learned_weight.get("column") or "")
        lines = [line for t in self.iterations for line in self.pair_weights[t]] if column else []
        name = column or ""
        weighed = [line for line in lines if None not in (number(line.get(name)), number(line["margin"]))]
        return Visits.of(weighed, name) if weighed else None

    @cached_property
    def learned_weight(self) -> Row:
        """The state of the learner of pair weights in the latest snapshot; empty if there is none."""
        paths = sorted(self.files("snapshots/*.json"), key=lambda path: stage_order(path.stem))
        return dict(read_json(paths[-1]).get("learned_weight", {})) if paths else {}

    @cached_property
    def warnings(self) -> list[str]:
        """Warnings issued before training, about what the learners can learn."""
        path = self.root / "warnings.json"
        return list(read_json(path)["before_training"]) if path.is_file() else []

    def files(self, pattern: str) -> list[Path]:
        """Matching files, in order; skips hidden ones, which are still being written."""
        return sorted(path for path in self.root.glob(pattern) if not path.name.startswith("."))

    def lines(self, name: str) -> list[Row]:
        """The objects in a JSON Lines file."""
        with reading(self.root / name):
            return JsonLines(self.root / name).read()

    def table(self, pattern: str, *names: str) -> Columns:
        """The named columns that exist in the matching Parquet files; empty if no file matches."""
        tables = [read_parquet(path, names) for path in self.files(pattern)]
        if not tables:
            return {}
        joined = pa.concat_tables(tables, promote_options="permissive")
        return {name: joined[name].to_numpy() for name in joined.column_names}

    def chosen_responses(self, prompts: set[str]) -> dict[str, str]:
        """Offline chosen responses of these prompts only: the data can be far larger than the report needs."""
        texts: dict[str, str] = {}
        for path in self.files("data/*.parquet"):
            with reading(path):
                if not {"prompt", "chosen"} <= set(pq.read_schema(path).names):
                    continue  # Filtered or held-out rows, not the data.
                found = pq.read_table(
                    path, columns=["prompt", "chosen"], filters=[("prompt", "in", prompts)]
                ).drop_null()
            texts.update(zip(found["prompt"].to_pylist(), found["chosen"].to_pylist(), strict=True))
        return texts

    def seconds(self, prefix: str = "") -> float:
        """Wall time of all phases whose name starts with `prefix`."""
        return self._spent("seconds", prefix)

    def cpu_seconds(self, prefix: str = "") -> float:
        """CPU time of all these phases in the run's own process."""
        return self._spent("cpu_seconds", prefix)

    def _spent(self, clock: str, prefix: str) -> float:
        return sum(state.get(clock, 0.0) for phase, state in self.phases.items() if phase.startswith(prefix))

    def repeated(self, prefix: str = "") -> list[str]:
        """Phases with this prefix that took several attempts; their seconds are those of the last attempt."""
        several = [phase for phase, state in self.phases.items() if state.get("done") and state.get("attempts", 1) > 1]
        return [phase for phase in several if phase.startswith(prefix)]


@dataclass(frozen=True)
class Stage:
    """One evaluation on the held-out prompts; `metrics` is its line of `metrics.jsonl`."""

    key: str
    table: Columns
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The stage's name in the report."""
        return "warm-up" if self.key == "warmup" else self.key.replace("-", " ")

    def value(self, name: str) -> float | None:
        """A metric such as `reward/mean`, from the saved responses if there are any, else as logged."""
        column, _, statistic = name.partition("/")
        values = finite(self.table, column)
        if len(values) and statistic in ("mean", "std"):
            return float(getattr(values, statistic)())
        return number(self.metrics.get(name))

    def rows(self) -> dict[int, Row]:
        """The saved responses, by prompt id."""
        rows = [dict(zip(self.table, values, strict=True)) for values in zip(*self.table.values(), strict=True)]
        return {int(row["prompt_id"]): row for row in rows if "response" in row}


def stage_order(key: str) -> tuple[int, int, str]:
    count = key.removeprefix("iteration-")
    if count.isdigit():
        return 1, int(count), key
    return 0, FIRST_STAGES.index(key) if key in FIRST_STAGES else len(FIRST_STAGES), key


def finite(table: Columns, name: str) -> FloatArray:
    """The finite numbers of a column; empty if the column is absent."""
    values = np.asarray(table.get(name, ()), dtype=np.float64)
    return values[np.isfinite(values)]


def number(value: Any) -> float | None:
    return float(value) if isinstance(value, Real) and np.isfinite(float(value)) else None


def read_parquet(path: Path, names: tuple[str, ...]) -> pa.Table:
    with reading(path):
        file = pq.ParquetFile(path)
        return file.read(columns=[name for name in names if name in file.schema_arrow.names])


def read_json(path: Path) -> dict[str, Any]:
    with reading(path):
        return dict(json.loads(path.read_text(encoding="utf-8")))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns the errors that a broken file raises into a `RunError` that names the file."""
    try:
        yield
    except (ValueError, TypeError, OSError, pa.ArrowException, yaml.YAMLError) as error:
        raise RunError(
            f"{path} cannot be read ({error}). Restore the file, or delete it and resume the run."
        ) from error
