"""The report of a run: one self-contained HTML page, made from the run folder alone.

`RunData` reads, the `*_figure` and `*_table` functions select and summarize, `adaptpo.plots` draws, and the template
lays out. What a run does not hold (yet) is left out of its report.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from adaptpo import plots
from adaptpo.errors import RunError
from adaptpo.plots import FloatArray

Columns = dict[str, npt.NDArray[Any]]
FACTS = (
    ("model", "model"),
    ("reward", "reward"),
    ("data", "data"),
    ("held-out data", "eval_data"),
    ("iterations", "num_iterations"),
    ("seed", "seed"),
)
CHOICES = ("selection", "pairing", "objective", "weighting")
PANELS_AT_MOST = 4
SAMPLES_AT_MOST = 5
REASONS_AT_MOST = 20
TEXT_AT_MOST = 3000


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the report of a run folder, finished or not, and return the path of its page.

    `out` is the folder for `report.html` and its figures; the default is `<run>/report`. Raises `RunError` when
    `run` is no run folder or one of its files cannot be read.
    """
    data = RunData.open(Path(run))
    folder = Path(out) if out is not None else data.root / "report"
    folder.mkdir(parents=True, exist_ok=True)
    figures = {spec.name: _render(spec, folder) for spec in figure_specs(data)}
    page = _template().render(
        title=data.root.name,
        run=header(data),
        key_figures=key_figures(data),
        evaluation=evaluation_table(data),
        iterations=iteration_table(data),
        phases=phase_table(data),
        dropped=dropped_table(data),
        samples=samples(data),
        figures=figures,
        config=data.config_text,
    )
    return _write_whole(folder / "report.html", page)


# --- reading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunData:
    """The files of a run folder. Each is read when it is first asked for; what is absent is empty."""

    root: Path

    @classmethod
    def open(cls, root: Path) -> RunData:
        """Raises `RunError` when `root` holds no run."""
        if not (root / "config.yaml").is_file():
            raise RunError(
                f"{root} is no run folder: it holds no config.yaml. "
                "Give the folder that `adaptpo train` wrote (the recipe's output_dir)."
            )
        return cls(root.resolve())

    @cached_property
    def config_text(self) -> str:
        """The resolved recipe as stored."""
        return (self.root / "config.yaml").read_text(encoding="utf-8")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved recipe."""
        try:
            config = yaml.safe_load(self.config_text)
        except yaml.YAMLError as error:
            raise _unreadable(self.root / "config.yaml", error) from error
        return config if isinstance(config, dict) else {}

    @cached_property
    def phases(self) -> dict[str, dict[str, Any]]:
        """State of every phase that was begun, in order."""
        path = self.root / "state.json"
        if not path.is_file():
            return {}
        return dict(_parse_json(path, path.read_text(encoding="utf-8")).get("phases", {}))

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """Every logged line, in order."""
        return list(self.lines("metrics.jsonl"))

    @cached_property
    def dropped(self) -> list[dict[str, Any]]:
        """Everything that was left out, with its reason."""
        return list(self.lines("dropped.jsonl"))

    @cached_property
    def iterations(self) -> list[int]:
        """Iterations of which the folder holds anything."""
        names = [phase.split("/")[1] for phase in self.phases if phase.startswith("iterations/")]
        names += [path.name for path in (self.root / "iterations").glob("*")]
        return sorted({int(name) for name in names if name.isdigit()})

    @cached_property
    def stages(self) -> list[Stage]:
        """Evaluations on the held-out prompts, in order."""
        return list(_stages(self))

    @cached_property
    def pair_weights(self) -> dict[int, list[dict[str, Any]]]:
        """Every pair as trained, by iteration."""
        return {t: list(self.lines(f"iterations/{t}/pair_weights.jsonl")) for t in self.iterations}

    def files(self, pattern: str) -> list[Path]:
        """Files that match, in order; hidden ones are still being written."""
        return sorted(path for path in self.root.glob(pattern) if not path.name.startswith("."))

    def lines(self, name: str) -> Iterator[dict[str, Any]]:
        """Objects of a JSON-lines file. A last line cut short by a kill is skipped."""
        path = self.root / name
        *whole, last = path.read_text(encoding="utf-8").split("\n") if path.is_file() else [""]
        yield from (_parse_json(path, line) for line in whole if line.strip())
        if last.rstrip().endswith("}"):
            yield _parse_json(path, last)

    def table(self, pattern: str, *names: str) -> Columns:
        """The named columns of all Parquet files that match; empty when there is no file."""
        tables = [_read_parquet(path, names) for path in self.files(pattern)]
        if not tables:
            return {}
        joined = pa.concat_tables(tables, promote_options="permissive")
        return {name: joined[name].to_numpy() for name in joined.column_names}

    def rows_of_prompts(self, path: Path, prompts: set[str]) -> Columns:
        """Prompt and chosen response of the given prompts alone: the data can be far larger than the report needs."""
        try:
            if not {"prompt", "chosen"} <= set(pq.read_schema(path).names):
                return {}
            table = pq.read_table(path, columns=["prompt", "chosen"], filters=[("prompt", "in", prompts)])
        except (pa.ArrowInvalid, OSError) as error:
            raise _unreadable(path, error) from error
        return {name: table[name].to_numpy() for name in table.column_names}

    def seconds(self, prefix: str = "") -> float:
        """Wall time of all phases whose name starts with `prefix`."""
        return float(
            sum(state.get("seconds") or 0.0 for phase, state in self.phases.items() if phase.startswith(prefix))
        )


@dataclass(frozen=True)
class Stage:
    """One evaluation on the held-out prompts; `metrics` is its line of `metrics.jsonl`."""

    key: str
    table: Columns
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The stage as the report names it."""
        return {"warmup": "warm-up"}.get(self.key, self.key.replace("-", " "))

    def value(self, name: str) -> float | None:
        """A metric such as `reward/mean`: from the responses where they are kept, else as logged."""
        column, _, statistic = name.partition("/")
        values = finite(self.table, column)
        if len(values) and statistic in ("mean", "std"):
            return float(getattr(values, statistic)())
        return _number(self.metrics.get(name))


def finite(table: Columns, name: str) -> FloatArray:
    """The finite numbers of a column; empty when the column is absent."""
    values = np.asarray(table.get(name, ()), dtype=np.float64)
    return values[np.isfinite(values)]


def _stages(run: RunData) -> Iterator[Stage]:
    logged = {line["phase"].removeprefix("evaluate/"): line for line in run.metrics if _is_evaluation(line)}
    kept = {path.stem for path in run.files("evaluation/*.parquet")}
    for key in sorted({*logged, *kept}, key=_stage_order):
        table = run.table(f"evaluation/{key}.parquet", "prompt_id", "reward", "score")
        yield Stage(key, table, logged.get(key, {}))


def _is_evaluation(line: Mapping[str, Any]) -> bool:
    return str(line.get("phase", "")).startswith("evaluate/")


def _stage_order(key: str) -> tuple[int, int, str]:
    if key in ("initial", "warmup"):
        return ("initial", "warmup").index(key), 0, key
    number = key.removeprefix("iteration-")
    return (2, int(number), key) if number.isdigit() else (3, 0, key)


def _read_parquet(path: Path, names: Sequence[str]) -> Any:
    try:
        file = pq.ParquetFile(path)
        return file.read(columns=[name for name in names if name in file.schema_arrow.names])
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from error


def _parse_json(path: Path, text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except ValueError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> RunError:
    return RunError(f"{path} cannot be read ({error}). Restore the file, or delete it and resume the run.")


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, Real) and np.isfinite(float(value)) else None


# --- header and key figures ----------------------------------------------------------------------------------------


def header(run: RunData) -> dict[str, Any]:
    """What the run is: method, its four choices, model, seed, status."""
    method = run.config.get("method") or {}
    method = method if isinstance(method, dict) else {"name": method}
    choices = method.get("choices") or {}
    finished = bool(run.phases.get("final", {}).get("done"))
    return {
        "method": _name(method),
        "arguments": method.get("args") or {},
        "choices": [(axis, _name(choices[axis])) for axis in CHOICES if choices.get(axis)],
        "facts": [(label, _name(run.config[key])) for label, key in FACTS if run.config.get(key) is not None],
        "finished": finished,
        "status": "finished" if finished else _unfinished(run),
    }


def _name(value: Any) -> str:
    """A short name of a configured thing: itself, or its `name`, `path` or first entry."""
    if isinstance(value, dict):
        chosen = next((value[key] for key in ("name", "path", "model") if value.get(key)), None)
        return _name(chosen if chosen is not None else next(iter(value.values()), "–"))
    return ", ".join(map(_name, value)) if isinstance(value, list) else str(value)


def _unfinished(run: RunData) -> str:
    begun = next((phase for phase, state in run.phases.items() if not state.get("done")), None)
    if begun:
        return f"unfinished: {begun} is begun but not done"
    if not run.phases:
        return "unfinished: nothing is done yet"
    last = list(run.phases)[-1]
    return f"unfinished: {last} is done, next is {_next_phase(run, last)}"


def _next_phase(run: RunData, last: str) -> str:
    """The phase after `last`, in the plain word `training` or `iteration T` where the method decides what comes."""
    config = run.config
    evaluated = bool(config.get("eval_data") or (config.get("inputs") or {}).get("eval_data"))
    reference = ["reference"] * ("reference" in run.phases)
    warmup = ["warmup", *["evaluate/warmup"] * evaluated] if _warms_up(run) else []
    order = ["data", *["reward"] * (config.get("reward") == "train"), *reference, *["evaluate/initial"] * evaluated]
    order += ["training", *warmup] if _warms_up(run) is None else warmup
    for t in range(config.get("num_iterations") or 1):
        kinds = ["score", "select", "generate", "annotate", "pair", *reference, "train"]
        order += [f"iteration {t}", *(f"iterations/{t}/{kind}" for kind in kinds)]
        order += [f"evaluate/iteration-{t}"] * evaluated
    order += ["final"]
    return order[order.index(last) + 1] if last in order[:-1] else "final"


def _warms_up(run: RunData) -> bool | None:
    """Whether this run has a warm-up; None where the method decides and the warm-up is not begun."""
    epochs = run.config.get("warmup_epochs")
    if "warmup" in run.phases:
        return True
    return None if epochs is None else bool(epochs)


def key_figures(run: RunData) -> list[tuple[str, str, str]]:
    """The run in a few numbers: (label, value, note) each."""
    counts = [iteration_counts(run, t) for t in run.iterations]
    tiles = [
        _annotation_ratio(counts),
        _responses_annotated(counts),
        _change(run, "held-out reward", "reward/mean", plots.short),
        _change(run, "win rate over the initial policy", "win_rate", "{:.0%}".format),
        ("wall time", duration(run.seconds()), "all phases together") if run.phases else None,
        _dropped_rows(run),
    ]
    return [tile for tile in tiles if tile]


def _dropped_rows(run: RunData) -> tuple[str, str, str]:
    count = sum("row" in line for line in run.dropped)
    return "dropped rows", f"{count:,}", "of the data, listed below" if count else "every row is used"


def _annotation_ratio(counts: Sequence[Mapping[str, Any]]) -> tuple[str, str, str] | None:
    known = [count for count in counts if count["generated for"] is not None and count["prompts"]]
    if not known:
        return None
    selected, prompts = (sum(count[name] for count in known) for name in ("generated for", "prompts"))
    return "annotation ratio", f"{selected / prompts:.1%}", f"responses for {selected:,} of {prompts:,} prompts"


def _responses_annotated(counts: Sequence[Mapping[str, Any]]) -> tuple[str, str, str] | None:
    annotated = sum(count["annotated"] or 0 for count in counts)
    invalid = sum(count["invalid"] or 0 for count in counts)
    return ("responses annotated", f"{annotated:,}", f"{invalid:,} without a valid reward") if annotated else None


def _change(run: RunData, label: str, name: str, show: Callable[[float], str]) -> tuple[str, str, str] | None:
    known = [(stage.label, show(value)) for stage in run.stages if (value := stage.value(name)) is not None]
    if not known:
        return None
    (first, before), (last, after) = known[0], known[-1]
    if first == last:
        return label, after, first
    return label, f"{before} → {after}", f"{first} → {last}"


# --- tables --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A table ready to print: every cell is text, columns without any value are gone."""

    columns: list[str]
    rows: list[list[str]]

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, str | None]]) -> Table | None:
        """From rows with the same keys; None when there is no row."""
        rows = list(rows)
        columns = [name for name in rows[0] if any(row[name] is not None for row in rows)] if rows else []
        cells = [["–" if (cell := row[name]) is None else cell for name in columns] for row in rows]
        return cls(columns, cells) if rows else None


def iteration_counts(run: RunData, t: int) -> dict[str, Any]:
    """What iteration `t` did, counted in its files; None where the method or the unfinished run has no such thing."""
    folder = f"iterations/{t}"
    selected = run.table(f"{folder}/selection.parquet", "selected").get("selected")
    part = run.table("data/offline.parquet", "part").get("part", np.array([]))
    ended = run.table(f"{folder}/responses/*.parquet", "ended").get("ended")
    rewards = run.table(f"{folder}/annotations/*.parquet", "reward").get("reward")
    pairs = run.table(f"{folder}/pairs.parquet", "source", "reward_gap")
    fresh = pairs["source"] != "offline" if pairs else None
    weights = [line["weight"] for line in run.pair_weights[t] if line["source"] == "offline"]
    valid = None if rewards is None else int(np.isfinite(rewards.astype(np.float64)).sum())
    return {
        "prompts": len(selected) if selected is not None else int((part == t).sum()) or None,
        "generated for": None if selected is None else int(selected.sum()),
        "responses": None if ended is None else len(ended),
        "cut": None if ended is None else int((~ended.astype(bool)).sum()),
        "annotated": valid,
        "invalid": None if rewards is None or valid is None else len(rewards) - valid,
        "new pairs": None if fresh is None else int(fresh.sum()),
        "no pair": run.phases.get(f"{folder}/pair", {}).get("no_pair"),
        "reward gap": _mean(finite(pairs, "reward_gap")),
        "weight": _mean(np.asarray(weights, dtype=np.float64)),
        "seconds": run.seconds(f"{folder}/"),
    }


def iteration_table(run: RunData) -> Table | None:
    """One row for each iteration."""
    return Table.of(_iteration_row(run, t) for t in run.iterations)


def _iteration_row(run: RunData, t: int) -> dict[str, str | None]:
    count = iteration_counts(run, t)
    share = _ratio(count["generated for"], count["prompts"])
    return {
        "iteration": str(t),
        "prompts": _count(count["prompts"]),
        "generated for": _count(count["generated for"]),
        "share": _format(share, ".1%"),
        "responses": _count(count["responses"]),
        "cut off": _count(count["cut"]),
        "invalid": _count(count["invalid"]),
        "new pairs": _count(count["new pairs"]),
        "no pair": _count(count["no pair"]),
        "mean reward gap": _format(count["reward gap"], ".3f"),
        "mean offline weight": _format(count["weight"], ".3f"),
        "time": duration(count["seconds"]) if count["seconds"] else None,
    }


def evaluation_table(run: RunData) -> Table | None:
    """One row for each evaluation on the held-out prompts."""
    return Table.of(
        {
            "stage": stage.label,
            "reward": _format(stage.value("reward/mean"), ".3f"),
            "± std": _format(stage.value("reward/std"), ".3f"),
            "win rate": _format(stage.value("win_rate"), ".1%"),
            "offline score": _format(stage.value("score/mean"), ".3f"),
            "length (tokens)": _format(stage.value("length/mean"), ",.1f"),
            "ended": _format(stage.value("ended"), ".1%"),
        }
        for stage in run.stages
    )


def phase_table(run: RunData) -> Table | None:
    """One row for each phase that was begun, with its own counts."""
    return Table.of(
        {
            "phase": phase,
            "status": "done" if state.get("done") else "unfinished",
            "seconds": _format(_number(state.get("seconds")), ",.1f"),
            "counts": ", ".join(f"{name} {_plain(value)}" for name, value in state.items() if _is_count(name, value)),
        }
        for phase, state in run.phases.items()
    )


def _is_count(name: str, value: Any) -> bool:
    return name not in ("done", "seconds") and not isinstance(value, dict) and (name, value) != ("attempts", 1)


def dropped_table(run: RunData) -> Table | None:
    """What was left out, by phase and reason, the most frequent first, with examples."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in run.dropped:
        groups[str(line.get("phase")), re.sub(r"\d+", "0", str(line.get("reason")))].append(line)
    ranked = sorted(groups.items(), key=lambda group: -len(group[1]))
    rows = [_dropped_row(phase, lines) for (phase, _), lines in ranked[:REASONS_AT_MOST]]
    rest = sum(len(lines) for _, lines in ranked[REASONS_AT_MOST:])
    if rest:
        rows.append(
            {"reason": "further reasons", "phase": None, "count": _count(rest), "examples": "see dropped.jsonl"}
        )
    return Table.of(rows)


def _dropped_row(phase: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, str | None]:
    """Reasons that differ in numbers alone are one reason; the most frequent wording stands for it."""
    wordings = Counter(str(line.get("reason")) for line in lines)
    alike = " (numbers vary)" if len(wordings) > 1 else ""
    examples = ", ".join(_place(line) for line in lines[:4]) + (", …" if len(lines) > 4 else "")
    return {
        "reason": wordings.most_common(1)[0][0] + alike,
        "phase": phase,
        "count": _count(len(lines)),
        "examples": examples,
    }


def _place(line: Mapping[str, Any]) -> str:
    if "row" in line:
        return f"row {line['row']}"
    response = f" response {line['index']}" if line.get("index") is not None else ""
    return f"prompt {line.get('prompt_id')}{response}"


def duration(seconds: float) -> str:
    """Seconds as people say them, with no-break spaces: `8.2 s`, `3 min 20 s`, `2 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if seconds < 60:
        text = f"{seconds:.1f} s"
    else:
        text = f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
    return text.replace(" ", "\u00a0")


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _count(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


def _format(value: float | None, style: str) -> str | None:
    return None if value is None else format(value, style).replace("-", "−")


def _mean(values: FloatArray) -> float | None:
    return float(values.mean()) if len(values) else None


def _ratio(part: int | None, whole: int | None) -> float | None:
    return part / whole if part is not None and whole else None


# --- sample responses ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """One response in the comparison; `note` says where it comes from and what it scored."""

    label: str
    note: str
    text: str


@dataclass(frozen=True)
class Sample:
    """A held-out prompt with the response of every stage."""

    prompt: str
    note: str
    answers: list[Answer]


def samples(run: RunData) -> list[Sample]:
    """Held-out prompts from the greatest loss to the greatest gain in reward between the first and the last stage."""
    names = ("prompt_id", "prompt", "response", "reward", "ended", "chosen")
    tables = {stage.label: run.table(f"evaluation/{stage.key}.parquet", *names) for stage in run.stages}
    tables = {label: table for label, table in tables.items() if len(table.get("response", ()))}
    if not tables:
        return []
    rows = {label: {int(key): row for row, key in enumerate(table["prompt_id"])} for label, table in tables.items()}
    picks = _spread(list(tables.values()))
    first = next(iter(tables))
    prompts = {str(tables[first]["prompt"][rows[first][prompt_id]]) for prompt_id, _ in picks}
    chosen = _chosen_texts(run, prompts, tables)
    return [_sample(prompt_id, note, tables, rows, chosen) for prompt_id, note in picks]


def _spread(tables: Sequence[Columns]) -> list[tuple[int, str]]:
    """Prompts at even steps through the ranking by change in reward, each with a note on that change."""
    first, last = (_by_prompt(table) for table in (tables[0], tables[-1]))
    changes = {key: last[key] - first[key] for key in first if key in last}
    ranked = sorted((key for key in changes if np.isfinite(changes[key])), key=lambda key: (changes[key], key))
    if not ranked or len(tables) == 1:
        return [(key, "") for key in sorted(first)[:SAMPLES_AT_MOST]]
    picks = np.unique(np.linspace(0, len(ranked) - 1, SAMPLES_AT_MOST).round().astype(int))
    return [
        (ranked[pick], f"reward {plots.short(changes[ranked[pick]], '+')}, rank {pick + 1} of {len(ranked)}")
        for pick in picks
    ]


def _by_prompt(table: Columns) -> dict[int, float]:
    rewards = np.asarray(table.get("reward", np.full(len(table["prompt_id"]), np.nan)), dtype=np.float64)
    return dict(zip(map(int, table["prompt_id"]), rewards.tolist(), strict=True))


def _chosen_texts(run: RunData, prompts: set[str], tables: Mapping[str, Columns]) -> dict[str, str]:
    """Offline chosen response by prompt, from the evaluation itself or from any data table that holds the prompt."""
    texts: dict[str, str] = {}
    kept = [run.rows_of_prompts(path, prompts) for path in run.files("data/*.parquet")]
    for source in [*kept, *tables.values()]:
        if "prompt" in source and "chosen" in source:
            texts.update(zip(source["prompt"], source["chosen"], strict=True))
    return texts


def _sample(
    prompt_id: int,
    note: str,
    tables: Mapping[str, Columns],
    rows: Mapping[str, Mapping[int, int]],
    chosen: Mapping[str, str],
) -> Sample:
    first = next(iter(tables))
    prompt = tables[first]["prompt"][rows[first][prompt_id]]
    answers = [
        _answer(label, table, rows[label][prompt_id]) for label, table in tables.items() if prompt_id in rows[label]
    ]
    if chosen.get(prompt):
        answers.insert(0, Answer("offline chosen", "from the data", _clip(plain_text(chosen[prompt]))))
    return Sample(_clip(plain_text(prompt)), f"prompt {prompt_id}" + (f" · {note}" if note else ""), answers)


def _answer(label: str, table: Columns, row: int) -> Answer:
    reward = _number(table["reward"][row]) if "reward" in table else None
    note = "no valid reward" if reward is None else f"reward {plots.short(reward)}"
    cut = " · cut off" if "ended" in table and not table["ended"][row] else ""
    return Answer(label, note + cut, _clip(plain_text(table["response"][row])))


def plain_text(value: str) -> str:
    """A text for reading from its stored form: JSON of a string or of chat messages, or the bare text."""
    try:
        decoded = json.loads(value)
    except ValueError:
        return value
    if isinstance(decoded, list):
        return "\n\n".join(_message(message) for message in decoded)
    return decoded if isinstance(decoded, str) else value


def _message(message: Any) -> str:
    if not isinstance(message, dict):
        return str(message)
    content = message.get("content")
    return f"[{message.get('role', '?')}] {content if isinstance(content, str) else json.dumps(content)}"


def _clip(text: str) -> str:
    rest = len(text) - TEXT_AT_MOST
    return text if rest <= 0 else f"{text[:TEXT_AT_MOST]} … ({rest:,} more characters)"


# --- figures -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FigureSpec:
    """A figure that this run has data for. `caption` says what it shows, which figure it mirrors, what to look for."""

    name: str
    title: str
    caption: str
    draw: Callable[[plots.Theme], Any]


@dataclass(frozen=True)
class RenderedFigure:
    """A figure in both appearances, as data URIs."""

    title: str
    caption: str
    light: str
    dark: str


def figure_specs(run: RunData) -> list[FigureSpec]:
    """The figures for which the run holds data, in the order of the report."""
    makers = (
        dynamics_figure,
        reward_figure,
        gain_figure,
        learner_figure,
        margin_figure,
        training_figure,
        time_figure,
    )
    return [spec for maker in makers if (spec := maker(run))]


def dynamics_figure(run: RunData) -> FigureSpec | None:
    """Reward and offline score by stage: held-out where evaluated, else on each iteration's training prompts."""
    held_out = [stage for stage in run.stages if stage.value("reward/mean") is not None]
    stages = held_out or _training_stages(run)
    wanted = (("reward", "Reward", "reward", "online"), ("score", "Offline score", "log sigmoid(margin)", "offline"))
    bands = [band for name, *titles in wanted if (band := _band(stages, name, *titles))]
    if not bands:
        return None
    where = "On held-out prompts" if held_out else "On the training prompts of each iteration (no held-out evaluation)"
    caption = (
        f"{where}: mean and band of one standard deviation. Mirrors Figure 2 (left) of the MetaAPO paper: look for a "
        "reward that rises while its band narrows, and for a dip of the offline score that later recovers."
    )
    labels = [stage.label for stage in stages]
    return FigureSpec(
        "dynamics", "Reward and offline score", caption, lambda theme: plots.dynamics(labels, bands, theme)
    )


def _training_stages(run: RunData) -> list[Stage]:
    stages = []
    for t in run.iterations:
        scores = run.table(f"iterations/{t}/scores/*.parquet", "score")
        rewards = run.table(f"iterations/{t}/annotations/*.parquet", "reward")
        if scores or rewards:
            stages.append(Stage(f"iteration-{t}", {**scores, **rewards}))
    return stages


def _band(stages: Sequence[Stage], name: str, title: str, axis: str, role: str) -> plots.Band | None:
    mean = _values(stages, f"{name}/mean")
    if not np.isfinite(mean).any():
        return None
    return plots.Band(title, axis, role, mean, _values(stages, f"{name}/std"))


def _values(stages: Sequence[Stage], name: str) -> FloatArray:
    values = [stage.value(name) for stage in stages]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def reward_figure(run: RunData) -> FigureSpec | None:
    """Held-out reward distributions of the first and the last stage."""
    known = [(stage.label, rewards) for stage in run.stages if len(rewards := finite(stage.table, "reward")) > 1]
    if not known:
        return None
    distributions = [(*known[0][:1], "before", known[0][1])]
    if len(known) > 1:
        distributions.append((known[-1][0], "online", known[-1][1]))
    caption = (
        "Kernel density of the rewards of held-out responses, dashed lines at the means. Mirrors Figure 2 (right), "
        "with the run's own annotator in place of an independent reward model: look for the whole curve moving right, "
        "not only its tail."
    )
    return FigureSpec(
        "rewards",
        "Held-out rewards, start and end",
        caption,
        lambda theme: plots.reward_distributions(distributions, theme),
    )


def gain_figure(run: RunData) -> FigureSpec | None:
    """Offline margin against online gain by iteration, with the margins of the prompts that were left out."""
    panels = [panel for t in run.iterations if len((panel := _gain_panel(run, t)).gain)]
    if not panels:
        return None
    shown = _evenly(panels)
    strip = any(len(panel.unselected) for panel in panels)
    left_out = "; prompts left out have no online pair and show only in the strip of scoring margins above"
    caption = (
        f"Each point is a prompt with both pairs, at its first visit in training{left_out if strip else ''}. Mirrors "
        "Figure 2 (middle): look for points concentrated at the upper left"
        f"{' and for left-out prompts further right' if strip else ''}. Part of the falling trend is built in, as the "
        "offline margin enters both axes." + _shown_note(shown, panels)
    )
    return FigureSpec("gains", "Where online responses help", caption, lambda theme: plots.gains(shown, theme))


def _gain_panel(run: RunData, t: int) -> plots.GainPanel:
    margins = _first_margins(run, t)
    offline, online = margins.get("offline", {}), margins.get("online", {})
    both = [key for key in offline if key in online]
    x = np.array([offline[key] for key in both], dtype=np.float64)
    y = np.array([online[key] for key in both], dtype=np.float64)
    selected, unselected = _margins_by_selection(run, t)
    return plots.GainPanel(f"iteration {t}", x, y - x, selected, unselected)


def _first_margins(run: RunData, t: int) -> dict[str, dict[int, float]]:
    """Margin of each prompt's first pair of each source when training first met it."""
    margins: dict[str, dict[int, float]] = defaultdict(dict)
    for line in run.pair_weights[t]:
        if _number(line.get("margin")) is not None:
            margins[line["source"]].setdefault(line["prompt_id"], line["margin"])
    return margins


def _margins_by_selection(run: RunData, t: int) -> tuple[FloatArray, FloatArray]:
    scored = run.table(f"iterations/{t}/scores/*.parquet", "prompt_id", "margin")
    selection = run.table(f"iterations/{t}/selection.parquet", "prompt_id", "selected")
    if not scored or not selection:
        return np.array([]), np.array([])
    selected = set(selection["prompt_id"][selection["selected"].astype(bool)].tolist())
    chosen = np.array([key in selected for key in scored["prompt_id"].tolist()], dtype=bool)
    margin = scored["margin"].astype(np.float64)
    return margin[chosen & np.isfinite(margin)], margin[~chosen & np.isfinite(margin)]


def learner_figure(run: RunData) -> FigureSpec | None:
    """The learner's weight over the offline score at the start and after each iteration."""
    curves = [curve for path in _snapshots(run) if (curve := _learner_curve(path))]
    if not curves:
        return None
    scores = [
        plots.Line(f"iteration {t}", values, values)
        for t in run.iterations
        if len(values := finite(run.table(f"iterations/{t}/scores/*.parquet", "score"), "score")) > 1
    ]
    strip = " The strip below shows where the scores of the run lie." if scores else ""
    caption = (
        "The learner's input-output curve at the start and after each iteration; a low weight makes fresh "
        f"responses likely.{strip} Mirrors Figure 3 (middle): look for a curve that leaves its start where scores are "
        "dense and gives misaligned pairs (left) less weight than aligned ones (right)."
    )
    return FigureSpec(
        "learner", "What the learner learned", caption, lambda theme: plots.learner_curves(curves, scores, theme)
    )


def _snapshots(run: RunData) -> list[Path]:
    return sorted(run.files("snapshots/*.json"), key=lambda path: (path.stem != "start", _stage_order(path.stem)))


def _learner_curve(path: Path) -> plots.Line | None:
    curve = _parse_json(path, path.read_text(encoding="utf-8")).get("curve") or {}
    if not curve.get("score"):
        return None
    score, weight = (np.asarray(curve[name], dtype=np.float64) for name in ("score", "weight"))
    if path.stem == "start":
        return plots.Line("start", score, weight, role="before")
    return plots.Line(f"after {path.stem.replace('-', ' ')}", score, weight)


def margin_figure(run: RunData) -> FigureSpec | None:
    """Margin densities of trained pairs by source and iteration."""
    panels = [(f"iteration {t}", sources) for t in run.iterations if (sources := _margins_by_source(run, t))]
    if not panels:
        return None
    shown = _evenly(panels)
    online = any("online" in sources for _, sources in panels)
    clause = ", and for online margins that stay close to zero, since the policy wrote both responses itself"
    caption = (
        "Margins of the pairs as training first met them. Mirrors Figure 3 (right): look for the offline curve moving "
        f"right over the iterations{clause if online else ''}." + _shown_note(shown, panels)
    )
    return FigureSpec("margins", "Margins of the trained pairs", caption, lambda theme: plots.margins(shown, theme))


def _margins_by_source(run: RunData, t: int) -> dict[str, FloatArray]:
    margins = _first_margins(run, t)
    return {
        source: np.array(list(margins[source].values()), dtype=np.float64)
        for source in ("offline", "online", "mixed")
        if len(margins.get(source, {})) > 1
    }


def _evenly(panels: Sequence[Any]) -> list[Any]:
    """At most `PANELS_AT_MOST` panels, the first and the last among them."""
    picks = np.unique(np.linspace(0, len(panels) - 1, min(len(panels), PANELS_AT_MOST)).round().astype(int))
    return [panels[pick] for pick in picks]


def _shown_note(shown: Sequence[Any], panels: Sequence[Any]) -> str:
    return "" if len(shown) == len(panels) else f" {len(shown)} of {len(panels)} iterations are shown."


TRAINING_PANELS: tuple[tuple[str, tuple[tuple[str, str, str | None], ...]], ...] = (
    ("Loss", (("loss", "loss", None),)),
    ("Margin, beta-scaled", (("rewards/margins", "margin", None),)),
    ("Accuracy: share of margins above 0", (("rewards/accuracies", "accuracy", None),)),
    ("Mean weight of a pair", (("weight/offline", "offline", "offline"), ("weight/online", "online", "online"))),
    ("Log-probability (nats)", (("logps/chosen", "chosen", None), ("logps/rejected", "rejected", "before"))),
    ("Gradient norm", (("grad_norm", "gradient norm", None),)),
)


def training_figure(run: RunData) -> FigureSpec | None:
    """Loss, margins, accuracies and weights over optimizer steps, across phases."""
    steps, phases = _training_steps(run)
    panels = [panel for title, names in TRAINING_PANELS if (panel := _curve_panel(steps, title, names))]
    if not panels:
        return None
    caption = (
        "Optimizer steps of all training phases in a row; W is the warm-up, numbers are iterations, thin lines are raw "
        "values. The paper has no such figure: look for margins and accuracies that keep rising, and for a chosen "
        "log-probability that does not sink with the rejected one."
    )
    return FigureSpec("training", "Training", caption, lambda theme: plots.training_curves(panels, phases, theme))


def _training_steps(run: RunData) -> tuple[list[tuple[float, dict[str, Any]]], list[tuple[float, str]]]:
    """Training lines with their place on one axis, and where each phase begins.

    Phases that count their steps from the start again are put behind one another; a step that a resumed run repeated
    counts once, as it was last.
    """
    by_phase: dict[tuple[str, int | None], dict[int, dict[str, Any]]] = defaultdict(dict)
    for line in run.metrics:
        if line.get("step") is not None and "loss" in line:
            by_phase[line["phase"], line.get("iteration")][line["step"]] = line
    steps: list[tuple[float, dict[str, Any]]] = []
    starts: list[tuple[float, str]] = []
    for phase_and_iteration, lines in by_phase.items():
        end = steps[-1][0] if steps else 0.0
        offset = end if steps and min(lines) <= end else 0.0
        steps += [(offset + step, lines[step]) for step in sorted(lines)]
        starts.append((offset + min(lines), _short_phase(*phase_and_iteration)))
    return steps, starts


def _short_phase(phase: str, iteration: int | None) -> str:
    if iteration is not None:
        return str(iteration)
    return "W" if phase == "warmup" else phase


def _curve_panel(
    steps: Sequence[tuple[float, dict[str, Any]]], title: str, names: Sequence[tuple[str, str, str | None]]
) -> plots.CurvePanel | None:
    lines = []
    for name, label, role in names:
        points = [(x, value) for x, line in steps if (value := _number(line.get(name))) is not None]
        if points:
            x, y = np.array(points, dtype=np.float64).T
            lines.append(plots.Line(label, x, y, role))
    return plots.CurvePanel(title, lines) if lines else None


def time_figure(run: RunData) -> FigureSpec | None:
    """Seconds by kind of work, split by iteration."""
    spent: dict[tuple[str, int | None], float] = defaultdict(float)
    for phase, state in run.phases.items():
        spent[_kind_and_iteration(phase)] += state.get("seconds") or 0.0
    if not any(spent.values()):
        return None
    groups = [None, *sorted({t for _, t in spent if t is not None})]
    kinds, seconds = _ranked_kinds({kind: np.array([spent.get((kind, t), 0.0) for t in groups]) for kind, _ in spent})
    labels = ["outside iterations" if t is None else f"iteration {t}" for t in groups]
    caption = (
        "Wall time of every phase by kind of work. Goes with the paper's account of time in Appendix C.7: look for "
        "the share of generation and annotation, which selection is there to save."
    )
    return FigureSpec(
        "time", "Where the time went", caption, lambda theme: plots.phase_seconds(kinds, labels, seconds, theme)
    )


def _ranked_kinds(seconds: Mapping[str, FloatArray]) -> tuple[list[str], FloatArray]:
    """Kinds from the longest to the shortest; those below 1 % of the time are one row."""
    whole = sum(float(row.sum()) for row in seconds.values())
    ranked = sorted(seconds, key=lambda kind: -float(seconds[kind].sum()))
    small = [kind for kind in ranked if seconds[kind].sum() < 0.01 * whole]
    if len(small) < 2:
        return ranked, np.array([seconds[kind] for kind in ranked])
    large = ranked[: -len(small)]
    rows = [*(seconds[kind] for kind in large), np.sum([seconds[kind] for kind in small], axis=0)]
    return [*large, "everything else"], np.array(rows)


def _kind_and_iteration(phase: str) -> tuple[str, int | None]:
    if phase.startswith("iterations/"):
        _, t, kind = phase.split("/", 2)
        return kind, int(t)
    if phase.startswith("evaluate/"):
        number = phase.removeprefix("evaluate/iteration-")
        return "evaluate", int(number) if number.isdigit() else None
    return phase, None


# --- writing -------------------------------------------------------------------------------------------------------


def _render(spec: FigureSpec, folder: Path) -> RenderedFigure:
    light, dark = (plots.png(spec.draw(theme)) for theme in (plots.LIGHT, plots.DARK))
    (folder / f"{spec.name}.png").write_bytes(light)
    return RenderedFigure(spec.title, spec.caption, _data_uri(light), _data_uri(dark))


def _data_uri(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")


def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("adaptpo", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("report.html.j2")


def _write_whole(path: Path, text: str) -> Path:
    """Write beside `path` and rename, so that a reader never meets half a page."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    return part.replace(path)
