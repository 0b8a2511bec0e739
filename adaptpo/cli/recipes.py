"""The commands `adaptpo init` and `adaptpo check`."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from adaptpo.cli.help import CHECK_RECIPE_HELP, INIT_HELP
from adaptpo.cli.parsing import add_command, add_recipe, given_recipe


def run_init_command(options: argparse.Namespace) -> None:
    from adaptpo.cli.init import QUESTIONS, run_init

    run_init({name: getattr(options, name) for name in (*QUESTIONS, "eval_data")}, options.out)


def run_check_command(options: argparse.Namespace) -> None:
    from adaptpo.cli.check import Options, run_check
    from adaptpo.distributed.quiet import quiet_libraries

    recipe = given_recipe(options)
    quiet_libraries()
    given = [*([str(options.recipe)] if options.recipe else []), *(f"--{assignment}" for assignment in options.set)]
    run_check(recipe, Options(options.rows, options.examples), shlex.join(given))


def add_recipes(commands: argparse._SubParsersAction) -> None:
    init = add_command(commands, "init", "write a recipe", INIT_HELP, run_init_command)
    init.add_argument("--model", help="folder or hub id of the policy to align")
    init.add_argument("--data", help="file, folder or hub id of preference pairs")
    init.add_argument("--eval-data", help="the same, held out: evaluated after each iteration (default: a comment)")
    init.add_argument("--reward", help="reward model, `train`, python:module:function, or YAML")
    init.add_argument("--method", help="a name from `adaptpo methods` (default: metaapo)")
    init.add_argument("--machine", help="cpu, or a machine of `adaptpo plan` such as h100x8 (default: cpu)")
    init.add_argument("--out", type=Path, default=Path("recipe.yaml"), help="file to write (default: recipe.yaml)")

    check = add_command(commands, "check", "check a recipe before a run", CHECK_RECIPE_HELP, run_check_command)
    add_recipe(check, "a YAML file")
    check.add_argument("--rows", type=int, help="maximum number of rows to read (default: all, as a run does)")
    check.add_argument("--examples", type=int, default=3, help="rows to show as they are trained (default: 3)")
