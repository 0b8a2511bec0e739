"""The command line: `adaptpo COMMAND --help` explains each command."""

from __future__ import annotations

import argparse
import faulthandler
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from adaptpo.cli.evaluate import add_evaluation
from adaptpo.cli.help import (
    ANNOTATE_HELP,
    DEMO_HELP,
    METHODS_HELP,
    PLAN_HELP,
    REPAIR_HELP,
    REPORT_HELP,
    STAGE_HELP,
    TRAIN_HELP,
    VERIFY_HELP,
    VOTE_HELP,
)
from adaptpo.cli.parsing import Parser, add_command, add_no_code, add_recipe, given_recipe
from adaptpo.cli.recipes import add_recipes
from adaptpo.cli.sandbox import add_sandbox
from adaptpo.config.secrets import masked_text
from adaptpo.config.version import __version__
from adaptpo.distributed.launch import is_first_process, name_of_process
from adaptpo.errors import AdaptpoError
from adaptpo.run.machine import explained, fault_of
from adaptpo.run.signals import SIGNALS, status_of


def run_train(options: argparse.Namespace) -> None:
    from adaptpo.distributed.quiet import quiet_libraries
    from adaptpo.trainer import AlignmentTrainer

    recipe = given_recipe(options)
    quiet_libraries()
    final = AlignmentTrainer.from_recipe(recipe).train()
    if is_first_process():
        print(f"The aligned model is in {final}. For a report on the run: adaptpo report {recipe.output_dir}")


def run_plan(options: argparse.Namespace) -> None:
    import json

    from adaptpo.distributed.quiet import quiet_libraries
    from adaptpo.errors import ConfigError
    from adaptpo.plan.against import compare_counts, compare_shares
    from adaptpo.plan.command import Options, read_job
    from adaptpo.plan.estimate import as_json, make_plan
    from adaptpo.plan.machines import read_machine
    from adaptpo.plan.text import show_comparison, show_plan
    from adaptpo.plan.throughput import read_throughput

    if options.json and options.against is not None:
        raise ConfigError("--against prints a comparison as a table; leave --json out")
    machine, recipe = read_machine(options.machine), given_recipe(options)
    quiet_libraries()
    measured = None if options.measured is None else read_throughput(options.measured)
    chosen = Options(options.sample, options.fresh_tokens, options.share)
    plan = make_plan(read_job(recipe, chosen), machine, measured)
    if options.against is not None:
        show_comparison(compare_counts(plan, options.against), compare_shares(plan, options.against))
    elif options.json:
        print(json.dumps(as_json(plan), indent=1))
    else:
        show_plan(plan)


def run_methods(options: argparse.Namespace) -> None:
    from adaptpo.cli.methods import method_rows, print_table

    print_table(method_rows(), as_json=options.json)


def run_report(options: argparse.Namespace) -> None:
    from adaptpo.errors import ConfigError
    from adaptpo.report import watch, write_comparison, write_report

    several = len(options.run) > 1
    if several and options.watch:
        raise ConfigError("--watch follows one run; name one, or leave out --watch to compare several")
    if several:
        print(write_comparison(options.run, options.out or Path("comparison")))
    elif options.watch:
        watch(options.run[0], options.out)
    else:
        print(write_report(options.run[0], options.out))


def run_verify(options: argparse.Namespace) -> int:
    from adaptpo.cli.verify import print_verified

    return 0 if print_verified(options.run, options.json) else 1


def run_repair(options: argparse.Namespace) -> None:
    from adaptpo.cli.verify import print_repaired

    print_repaired(options.run, options.apply)


def run_annotate(options: argparse.Namespace) -> None:
    from adaptpo.cli.annotate import annotate_file
    from adaptpo.config.code import refuse_reward_code
    from adaptpo.config.evaluation import yaml_mapping
    from adaptpo.distributed.quiet import quiet_libraries

    quiet_libraries()
    trusts, reward = options.trust_remote_code, yaml_mapping(options.reward, "--reward")
    if options.no_code:
        refuse_reward_code(reward, trusts)
    counts = annotate_file(options.data, reward, options.out, options.cache, trusts, options.text_format)
    print(f"{options.out}: {', '.join(f'{count} {name}' for name, count in counts.items())}")


def run_stage(options: argparse.Namespace) -> None:
    from adaptpo.cli.stage import Options, recipe_of
    from adaptpo.cli.stage import run_stage as measure
    from adaptpo.config.code import refuse_code
    from adaptpo.distributed.quiet import quiet_libraries
    from adaptpo.report.stage_page import write_stage_report
    from adaptpo.stage.words import print_found

    quiet_libraries()
    recipe = recipe_of(Options.of(options))
    if options.no_code:
        refuse_code(recipe)
    found = measure(recipe)
    if not is_first_process():
        return
    print_found(found)
    print(f"\nReport: {write_stage_report(Path(recipe.output_dir))}")


def run_vote(options: argparse.Namespace) -> None:
    from adaptpo.cli.vote import Options, print_results
    from adaptpo.cli.vote import run_vote as vote

    chosen = Options.of(options)
    if chosen.results or chosen.json:
        print_results(chosen)
    else:
        vote(chosen)


def run_demo(options: argparse.Namespace) -> None:
    from adaptpo.cli.demo import run_demo as demo
    from adaptpo.distributed.quiet import quiet_libraries
    from adaptpo.sandbox.instructions.demo import run_demo as real_demo
    from adaptpo.sandbox.threads import one_thread

    quiet_libraries()
    if options.model is not None:
        real_demo(options.model, options.out, options.seed)
    else:
        with one_thread():
            demo(options.out, options.seed)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="adaptpo", description="Adaptive preference optimization of language models.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    train = add_command(commands, "train", "align a model according to a recipe", TRAIN_HELP, run_train)
    add_recipe(train, "a YAML file; the folder recipes/ has examples")

    add_recipes(commands)
    add_plan(commands)

    demo = add_command(commands, "demo", "align a small model in the sandbox and report on it", DEMO_HELP, run_demo)
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder for world and run (default: demo)")
    demo.add_argument("--model", help="folder or hub id of a chat model to align in place of the sandbox's policy")
    demo.add_argument("--seed", type=int, default=0, help="seed of the world and the run (default: 0)")

    report = add_command(commands, "report", "write the report of a run", REPORT_HELP, run_report)
    report.add_argument("run", type=Path, nargs="+", help="run folders (output_dir of a recipe); several are compared")
    report.add_argument("--out", type=Path, help="folder to write to (default: RUN/report; of several: comparison)")
    report.add_argument("--watch", action="store_true", help="write the page again and again until the run is finished")

    verify = add_command(commands, "verify", "check everything that a run has written", VERIFY_HELP, run_verify)
    verify.add_argument("run", type=Path, help="a run folder (output_dir of a recipe)")
    verify.add_argument("--json", action="store_true", help="print JSON")

    repair = add_command(commands, "repair", "say what a damaged run has to make again", REPAIR_HELP, run_repair)
    repair.add_argument("run", type=Path, help="a run folder (output_dir of a recipe)")
    repair.add_argument("--apply", action="store_true", help="remove exactly what has to be made again")

    annotate = add_command(commands, "annotate", "add rewards to the responses in a file", ANNOTATE_HELP, run_annotate)
    annotate.add_argument("data", help="a JSON, JSONL or Parquet file, a folder, or a hub id")
    annotate.add_argument("--reward", required=True, help="a reward model, python:module:function, or YAML")
    annotate.add_argument("--out", type=Path, required=True, help="a .jsonl or .parquet file")
    annotate.add_argument("--cache", type=Path, help="folder for paid answers (default: OUT.answers)")
    annotate.add_argument("--trust-remote-code", action="store_true", help="run the Python code of a reward model")
    dialogues = "how a dialogue in plain text is read (default: messages)"
    annotate.add_argument("--text-format", choices=("messages", "text"), default="messages", help=dialogues)
    add_no_code(annotate)
    add_stage(commands)
    add_vote(commands)
    add_evaluation(commands)

    methods = add_command(commands, "methods", "print the table of methods", METHODS_HELP, run_methods)
    methods.add_argument("--json", action="store_true", help="print JSON")

    add_sandbox(commands)
    return parser


def add_plan(commands: argparse._SubParsersAction) -> None:
    plan = add_command(commands, "plan", "estimate what a recipe takes", PLAN_HELP, run_plan)
    add_recipe(plan, "a YAML file; the run is not started")
    plan.add_argument("--machine", default="h100x1", help="a name (h100x8), a YAML file, or YAML (default: h100x1)")
    plan.add_argument("--measured", metavar="FILE", type=Path, help="throughput that a GPU benchmark measured (JSON)")
    plan.add_argument("--sample", type=int, default=1000, help="maximum number of rows to tokenize (default: 1000)")
    plan.add_argument("--fresh-tokens", type=float, help="mean length of fresh responses (default: the chosen ones')")
    plan.add_argument("--share", type=float, help="share of prompts with fresh responses (default: the method's)")
    plan.add_argument("--against", metavar="RUN", type=Path, help="show the counts of a finished run beside the plan's")
    plan.add_argument("--json", action="store_true", help="print JSON")


def add_stage(commands: argparse._SubParsersAction) -> None:
    stage = add_command(commands, "stage", "measure which data a policy needs now", STAGE_HELP, run_stage)
    add_recipe(stage, "a recipe that names model, data and reward")
    stage.add_argument("--model", help="folder or hub id of the policy (default: the recipe's)")
    stage.add_argument("--data", help="file, folder or hub id of preference pairs (default: the recipe's)")
    stage.add_argument(
        "--reward", help="reward model, `train`, python:module:function, or YAML (default: the recipe's)"
    )
    stage.add_argument("--prompts", type=int, help="maximum number of prompts (default: 2000)")
    stage.add_argument("--precision", type=float, help="stop once half the interval's width is at most this")
    stage.add_argument("--out", type=Path, help="folder to write to (default: the recipe's output_dir with -stage)")


def add_vote(commands: argparse._SubParsersAction) -> None:
    vote = add_command(commands, "vote", "vote blindly between two runs", VOTE_HELP, run_vote)
    vote.add_argument("run_a", metavar="RUN_A", type=Path, help="a run folder, or a file of prompts and responses")
    vote.add_argument("run_b", metavar="RUN_B", type=Path, help="the same")
    vote.add_argument("--prompts", type=int, default=50, help="prompts for each voter (default: 50)")
    vote.add_argument("--seed", type=int, default=0, help="seed of prompts, order and sides (default: 0)")
    vote.add_argument(
        "--overlap", type=float, default=1.0, help="share of the prompts that all voters get (default: 1.0)"
    )
    vote.add_argument("--host", default="127.0.0.1", help="address to listen on; others than this machine need a token")
    vote.add_argument("--port", type=int, default=0, help="port to listen on (default: 0, any free one)")
    vote.add_argument("--out", type=Path, default=Path("votes"), help="folder for the votes (default: votes)")
    vote.add_argument("--results", action="store_true", help="print what the votes say so far")
    vote.add_argument("--json", action="store_true", help="results as JSON, for machines")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command. Exit status: 0 done, 1 a check failed, 2 something to correct, 128 + N after signal N."""
    options = build_parser().parse_args(sys.argv[1:] if arguments is None else list(arguments))
    if not faulthandler.is_enabled() and sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)  # Code in C that crashes, in a reward function say, leaves no other word.
    try:
        with SIGNALS.taken():
            status = options.run_command(options)
    except AdaptpoError as error:
        fail(str(error), 2)
    except KeyboardInterrupt as interruption:
        fail(f"interrupted{words_of(interruption)}; start the same command again to resume", status_of(interruption))
    except Exception as error:  # noqa: BLE001 - a defect's message may quote a key.
        if kind := fault_of(error):
            fail(str(explained(error, kind)), 2)
        fail(f"a defect of adaptpo, please report it\n{traceback.format_exc()}", 1)
    sys.exit(status or 0)


def words_of(interruption: KeyboardInterrupt) -> str:
    return f" ({interruption})" if str(interruption) else ""


def fail(message: str, status: int) -> NoReturn:
    """Ends with this message, without keys."""
    print(f"adaptpo{name_of_process()}: {masked_text(message)}", file=sys.stderr)
    sys.exit(status)
