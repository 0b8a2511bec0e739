"""`adaptpo check`: what a run would refuse or leave out, and rows as they are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from adaptpo.config.recipe import Recipe
from adaptpo.errors import ConfigError
from adaptpo.pipeline.checking import check_before_spending
from adaptpo.pipeline.context import Context
from adaptpo.run.directory import Summary
from adaptpo.trainer import AlignmentTrainer

PROMPT_STYLES = ("dim", "dim on grey15")
TRAINED_STYLES = ("green", "bold green on grey15")
"""Neighbouring tokens alternate between two styles, so that their borders show."""
BORDER = "|"
"""Between tokens where there are no colours."""


@dataclass(frozen=True)
class Options:
    """`rows`: how many rows of the data are read; None reads all, as a run does. `examples`: how many are shown."""

    rows: int | None = None
    examples: int = 3

    def __post_init__(self) -> None:
        if self.rows is not None and self.rows < 1:
            raise ConfigError(f"--rows is {self.rows}; read 1 row or more")
        if self.examples < 0:
            raise ConfigError(f"--examples is {self.examples}; show 0 or more")


def run_check(recipe: Recipe, options: Options, given: str) -> None:
    """Runs the checks in a scratch folder and prints what they found; `given` are the words that name the recipe on the
    command line. Raises what `adaptpo train` would raise."""
    with TemporaryDirectory(prefix="adaptpo-check-") as scratch:
        there = recipe.model_copy(update={"output_dir": str(Path(scratch) / "run"), "show_progress": False})
        with AlignmentTrainer.from_recipe(there).open() as context:
            context.data = context.data.first(options.rows)
            summary, doubts = check_before_spending(context)
            show(Console(soft_wrap=True), context, options, summary, doubts)
    if recipe.reward is not None:
        print("Reward servers and judges, if there are any, were not contacted.")
    print(f"This can be trained: adaptpo train {given}{already(recipe)}")


def already(recipe: Recipe) -> str:
    if not (Path(recipe.output_dir) / "config.yaml").exists():
        return ""
    return f"\n{recipe.output_dir} holds a run; the command resumes it, or says in what it differs"


def show(console: Console, context: Context, options: Options, summary: Summary, doubts: Sequence[str]) -> None:
    read = "" if options.rows is None else f" of the first {options.rows} rows"
    console.print(f"{summary['kept']} pairs{read} are usable, {summary['dropped']} rows are left out", highlight=False)
    for reason, count in summary["reasons"].items():
        console.print(f"  {count} x {reason}", highlight=False, markup=False)
    if summary["truncated"]:
        console.print(f"{summary['truncated']} responses are cut at the length limit", highlight=False)
    for doubt in doubts:
        console.print(f"warning: {doubt}", style="yellow", highlight=False, markup=False)
    for prompt, pair in islice(context.offline(), options.examples):
        console.rule(f"pair {prompt.id}")
        show_tokens(console, context.tokenizer, "prompt, not trained", prompt.ids, PROMPT_STYLES)
        for name, response in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            label = f"{name}, trained" + ("" if response.ended else ", cut at the length limit")
            show_tokens(console, context.tokenizer, label, response.ids, TRAINED_STYLES)


def show_tokens(
    console: Console,
    tokenizer: PreTrainedTokenizerBase,
    label: str,
    ids: Sequence[int],
    styles: Sequence[str],
) -> None:
    """Prints the tokens with their borders."""
    pieces = [str(tokenizer.decode([token])) for token in ids]
    console.print(f"{label} ({len(ids)} tokens):", style="bold", highlight=False, markup=False)
    if console.is_terminal:
        console.print(Text.assemble(*((piece, styles[n % 2]) for n, piece in enumerate(pieces))))
    else:
        console.print(Text(BORDER.join(pieces)))
