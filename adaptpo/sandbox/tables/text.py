"""The cells of a table as text, for the terminal and for Markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean, median

from adaptpo.sandbox.tables.options import Options
from adaptpo.sandbox.tables.statistics import Estimate, Spread, spread
from adaptpo.sandbox.tables.summary import RowSummary
from adaptpo.sandbox.tables.table import Table
from adaptpo.sandbox.tables.view import Grid

NOTHING = "–"


SEPARATION = (
    "AUC: area under the ROC curve of offline pairs with a right label against those with a wrong one, at each pair's "
    "last visit; 0.5 is chance, or equal weights."
)


TIMES = ("generation", "annotation", "training", "overall")


def grid(table: Table, summaries: Sequence[RowSummary], places: int) -> Grid:
    """`places`: the number of runs that each row should have, over all worlds."""
    columns = [(title, [text(summary) for summary in summaries]) for title, text in columns_of(table, places)]
    kept = [(title, cells) for title, cells in columns if any(cell != NOTHING for cell in cells)]
    rows = [list(cells) for cells in zip(*(cells for _, cells in kept), strict=True)]
    return Grid([title for title, _ in kept], rows, [summary.row.group for summary in summaries])


Column = tuple[str, Callable[[RowSummary], str]]
"""A title, and a function that returns the text of a row's cell."""


def columns_of(table: Table, places: int) -> list[Column]:
    """The columns: row labels, our figures, and the paper's."""
    return [
        ("", lambda summary: summary.row.label),
        ("runs", lambda summary: incomplete(summary, places)),
        *(COLUMNS[name] for name in table.columns),
        *((title, partial(paper, names)) for title, names in table.paper.columns),
    ]


def incomplete(summary: RowSummary, places: int) -> str:
    """Number of runs that the row has, if some failed."""
    return NOTHING if len(summary.measured) == places else f"{len(summary.measured)} of {places}"


def number(estimate: Estimate | None, scale: float, digits: int, sign: str = "") -> str:
    """An estimate as text: `0.782 [0.770, 0.790]`, without brackets if there is no interval."""
    if estimate is None:
        return NOTHING
    style = f"{sign}.{digits}f"
    text = format(estimate.mean * scale, style)
    if estimate.low is not None and estimate.high is not None:
        text += f" [{format(estimate.low * scale, style)}, {format(estimate.high * scale, style)}]"
    return text.replace("-", "−")


def seconds(summary: RowSummary) -> str:
    if not summary.estimates:
        return NOTHING
    return " / ".join(f"{summary.estimates[f'{name}_seconds'].mean:.0f}" for name in TIMES)


def paper(names: Sequence[str], summary: RowSummary) -> str:
    """The paper's figures with these names, and their tables: `47.48 / 43.21 / 58.4 (Table 2)`."""
    found = [(each.table, [getattr(each, name) for name in names]) for each in summary.row.paper]
    texts = [f"{joined(values)} (Table {table})" for table, values in found if set(values) != {None}]
    return "; ".join(texts) or NOTHING


def joined(values: Sequence[float | None]) -> str:
    return " / ".join(NOTHING if value is None else f"{value:g}" for value in values)


def metric(title: str, name: str, scale: float, digits: int) -> Column:
    return title, lambda summary: number(summary.estimates.get(name), scale, digits)


def plain(title: str, name: str, scale: float, digits: int) -> Column:
    """A column of means without intervals, of what is a setting or varies little."""

    def text(summary: RowSummary) -> str:
        found = summary.estimates.get(name)
        return NOTHING if found is None else f"{scale * found.mean:.{digits}f}"

    return title, text


COLUMNS: dict[str, Column] = {
    "true_reward": metric("true reward", "true_reward", 1, 3),
    "judge": metric("judge", "true_reward", 1, 3),
    "difference": ("difference", lambda summary: number(summary.difference, 1, 3, "+")),
    "win_rate": metric("win rate, %", "win_rate", 100, 1),
    "length_controlled": metric("at equal length, %", "length_controlled", 100, 1),
    "annotated": plain("prompts annotated, %", "annotated", 100, 0),
    "answers": plain("annotated responses a prompt", "answers", 1, 1),
    "steps": plain("steps", "steps", 1, 0),
    "words": metric("words", "words", 1, 1),
    "tokens": metric("tokens", "tokens", 1, 1),
    "reward": metric("reward", "reward", 1, 2),
    "boundary_score": metric("boundary score", "boundary_score", 1, 3),
    "weight_auc": metric("AUC of the weight", "weight_auc", 1, 3),
    "margin_auc": metric("AUC of the margin", "margin_auc", 1, 3),
    "seconds": (f"CPU seconds: {' / '.join(TIMES)}", seconds),
}
"""The columns of our runs that a table may show."""


def remarks(table: Table, summaries: Sequence[RowSummary], options: Options) -> list[str]:
    """Notes for the reader of the numbers."""
    score = options.world.score
    shown = set(table.columns)
    return [
        f"{score.name.capitalize()} {score.taken}; {brackets(options)}.",
        *compared(table, summaries, score.name),
        *([wins_text(score.name)] if {"win_rate", "length_controlled"} & shown else []),
        *before_training(summaries, score.name),
        *([SEPARATION] if {"weight_auc", "margin_auc"} & shown else []),
        *(["Seconds of interrupted phases cover only their last attempt."] if interrupted(summaries) else []),
    ]


def brackets(options: Options) -> str:
    if options.unit == "runs" and options.runs > 1:
        return "brackets: 95 % interval (Student's t) between runs in one world, which holds for its prompts alone"
    if options.seeds > 1:
        return "brackets: 95 % interval (Student's t) between worlds"
    return "one world, so there are no intervals and differences prove nothing"


def wins_text(score: str) -> str:
    return f"Win rates are against the responses of the policy before training, by {score}; a tie counts one half."


def compared(table: Table, summaries: Sequence[RowSummary], score: str) -> list[str]:
    """What the differences are, and how small a one this table can see."""
    known = [summary for summary in summaries if summary.difference is not None]
    if not known:
        return []
    what = f"Difference: {score} minus that of {table.reference} in the same world and with the same run seed"
    limits = [s.difference.visible for s in known if s.difference and s.difference.visible is not None]
    if not limits:
        return [f"{what}."]
    parts = spread([summary.differences for summary in known])
    return [
        f"{what}. It has a standard deviation of {deviations(parts)}. The smallest difference that "
        f"a row of this table shows with a power of 80 % at the 5 % level is {median(limits):.3f} (median over rows; "
        f"{min(limits):.3f} to {max(limits):.3f})."
    ]


def deviations(parts: Spread) -> str:
    named = ((parts.worlds, "between worlds"), (parts.runs, "between runs in one world"))
    return ", ".join(f"{value:.3f} {name}" for value, name in named if value is not None)


def before_training(summaries: Sequence[RowSummary], score: str) -> list[str]:
    """A sentence on the score before training, by group if the groups differ."""
    by_group: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for summary in summaries:
        for (world, _), found in summary.measured.items():
            by_group[summary.row.group][world].append(found.sft_reward)
    means = {group: f"{fmean(map(fmean, worlds.values())):.3f}" for group, worlds in by_group.items()}
    if len(set(means.values())) > 1:
        means = {group: f"{mean} ({group})" for group, mean in means.items()}
    return [f"The {score} before training is {', '.join(dict.fromkeys(means.values()))}."] if means else []


def interrupted(summaries: Sequence[RowSummary]) -> bool:
    return any(found.repeated for summary in summaries for found in summary.measured.values())
