"""What the parsers of all commands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptpo.cli.flags import ShowSettings, as_assignments

if TYPE_CHECKING:
    from adaptpo.config.recipe import Recipe


class Parser(argparse.ArgumentParser):
    """A parser that takes every flag that is not its own as a setting, if the command takes a recipe."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        if args is not None and self.get_default("takes_settings"):
            args = as_assignments(args, self._option_string_actions)
        return super().parse_known_args(args, namespace)


def add_command(
    commands: argparse._SubParsersAction, name: str, summary: str, text: str, run: object
) -> argparse.ArgumentParser:
    """A command with its help text; `run` gets the parsed options."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(name, help=summary, description=text, formatter_class=formatter)
    parser.set_defaults(run_command=run)
    return parser


def add_recipe(command: argparse.ArgumentParser, what: str) -> None:
    """Lets a command take a recipe, and settings as flags in its place or beside it; `what` is the recipe's help."""
    name = command.prog.split()[-1]
    command.usage = f"adaptpo {name} [RECIPE] [--KEY VALUE ...] [options]"
    command.add_argument("recipe", type=Path, nargs="?", help=what)
    command.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="the same as --KEY VALUE")
    command.add_argument("--help-all", action=ShowSettings, nargs=0, help="print every KEY, its meaning and default")
    add_no_code(command)
    command.set_defaults(refuse=command.error, takes_settings=True)


def add_no_code(command: argparse.ArgumentParser) -> None:
    command.add_argument("--no-code", action="store_true", help="refuse settings that run their author's code")


def given_recipe(options: argparse.Namespace) -> Recipe:
    """The recipe that a command was given. Ends with its usage if there is none; refuses code where that is asked."""
    from adaptpo.config.code import refuse_code
    from adaptpo.config.recipe import load_recipe

    if options.recipe is None and not options.set:
        options.refuse("give a recipe, or at least --model, --data and --output_dir")
    recipe = load_recipe(options.recipe, options.set)
    if options.no_code:
        refuse_code(recipe)
    return recipe
