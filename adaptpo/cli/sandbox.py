"""`adaptpo sandbox`: builds and checks worlds, and compares methods in them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from adaptpo.cli.help import CHECK_HELP, SANDBOX_HELP, STUDY_HELP, TABLE_HELP
from adaptpo.cli.parsing import add_command

if TYPE_CHECKING:
    from adaptpo.sandbox.tables.table import Table
    from adaptpo.sandbox.tables.world import World


def add_sandbox(commands: argparse._SubParsersAction) -> None:
    sandbox = commands.add_parser(
        "sandbox",
        help="a small world with a known true reward",
        description=SANDBOX_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = sandbox.add_subparsers(metavar="ACTION", required=True)
    build = add_command(actions, "build", "write a world", SANDBOX_HELP, run_sandbox_build)
    build.add_argument("--out", type=Path, required=True, help="folder to write the world to")
    build.add_argument("--prompts", type=int, default=3000, help="prompts of the offline data set (default: 3000)")
    build.add_argument("--seed", type=int, default=0, help="seed of data and models (default: 0)")
    check = add_command(actions, "check", "check whether a world is valid", CHECK_HELP, run_sandbox_check)
    check.add_argument("folder", type=Path, help="a folder that `adaptpo sandbox build` wrote")
    add_table(actions)
    add_study(actions)


def add_table(actions: argparse._SubParsersAction) -> None:
    table = add_command(actions, "table", "compare methods over several worlds", TABLE_HELP, run_sandbox_table)
    table.add_argument("name", metavar="NAME", help="a table from the list above")
    table.add_argument("--seeds", type=int, required=True, help="number of worlds, with seeds FIRST, FIRST + 1, ...")
    table.add_argument("--prompts", type=int, default=3000, help="prompts of each world's data set (default: 3000)")
    add_comparison(table, Path("runs/tables"))


def add_study(actions: argparse._SubParsersAction) -> None:
    study = add_command(actions, "study", "compare methods on a real language model", STUDY_HELP, run_sandbox_study)
    study.add_argument("--model", required=True, help="folder or hub id of a chat model")
    study.add_argument("--seeds", type=int, default=3, help="number of worlds, with prompts of their own (default: 3)")
    study.add_argument("--prompts", type=int, default=384, help="prompts with offline pairs (default: 384)")
    study.add_argument("--heldout", type=int, default=128, help="held-out prompts (default: 128)")
    study.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of every run")
    add_comparison(study, Path("runs/study"))


def add_comparison(command: argparse.ArgumentParser, out: Path) -> None:
    """The options of every comparison of rows in worlds."""
    command.add_argument("--first", type=int, default=0, help="seed of the first world (default: 0)")
    command.add_argument("--runs", type=int, default=1, help="runs of each row in each world (default: 1)")
    command.add_argument("--methods", metavar="A,B", help="only rows of these methods (default: all available)")
    command.add_argument("--rows", metavar="A;B", help="only rows with these labels (default: all)")
    command.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="parallel processes, one thread each; 0 runs nothing and shows what has finished (default: 1)",
    )
    command.add_argument(
        "--known",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE.json",
        help="tables whose runs are taken as measured, such as those of other machines",
    )
    command.add_argument("--out", type=Path, default=out, help=f"folder for worlds, runs, tables (default: {out})")
    command.add_argument(
        "--docs", metavar="FILE.md", type=Path, help="also write the table to its section of this file"
    )


def run_sandbox_build(options: argparse.Namespace) -> None:
    from adaptpo.distributed.quiet import quiet_libraries
    from adaptpo.sandbox.build import build
    from adaptpo.sandbox.threads import one_thread

    quiet_libraries()
    with one_thread():
        build(options.out, prompts=options.prompts, seed=options.seed)
    print(f"The sandbox is in {options.out}. To align its policy: adaptpo train {options.out}/recipe.yaml")


def run_sandbox_check(options: argparse.Namespace) -> int:
    from adaptpo.distributed.quiet import quiet_libraries
    from adaptpo.sandbox.check import check, print_checks
    from adaptpo.sandbox.threads import one_thread

    quiet_libraries()
    with one_thread():
        checks = check(options.folder)
    print_checks(checks)
    return 0 if all(c.passed for c in checks) else 1


def run_sandbox_table(options: argparse.Namespace) -> int:
    from adaptpo.sandbox.settings import WorldSettings
    from adaptpo.sandbox.tables.definitions import TABLES
    from adaptpo.sandbox.tables.sandbox_world import SandboxWorld
    from adaptpo.sandbox.tables.table import find_table

    table = find_table(options.name, TABLES)
    return compare(options.name, table, SandboxWorld(WorldSettings(options.prompts)), options)


def run_sandbox_study(options: argparse.Namespace) -> int:
    from adaptpo.sandbox.instructions.build import Material
    from adaptpo.sandbox.instructions.study import study
    from adaptpo.sandbox.instructions.world import InstructionsWorld

    material = Material(options.model, options.prompts, options.heldout)
    return compare(*study(options.model), InstructionsWorld(material, tuple(options.set)), options)


def compare(name: str, table: Table, world: World, options: argparse.Namespace) -> int:
    from adaptpo.distributed.quiet import quiet_libraries
    from adaptpo.sandbox.tables.command import run_table
    from adaptpo.sandbox.tables.options import Options

    quiet_libraries()
    methods = None if options.methods is None else tuple(options.methods.split(","))
    labels = None if options.rows is None else tuple(options.rows.split(";"))
    size = {"seeds": options.seeds, "runs": options.runs, "first": options.first, "jobs": options.jobs}
    files = {"out": options.out, "docs": options.docs, "known": tuple(options.known)}
    chosen = Options(world, methods=methods, labels=labels, **files, **size)
    return 1 if any(summary.errors for summary in run_table(name, table, chosen)) else 0
