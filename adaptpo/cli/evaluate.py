"""`adaptpo eval`: generate, judge, score and compare."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from adaptpo.cli.help import (
    EVAL_COMPARE_HELP,
    EVAL_GENERATE_HELP,
    EVAL_HELP,
    EVAL_JUDGE_HELP,
    EVAL_SCORE_HELP,
    EVAL_TASKS_HELP,
)
from adaptpo.cli.parsing import add_command, add_no_code

SUITES = "alpaca_eval_2, arena_hard_v0.1, arena_hard_v2, mt_bench or xstest"
PRESETS = "the settings of a paper: metaapo, metapo or stages (default: the suite's own)"


def run_generate(options: argparse.Namespace) -> None:
    from adaptpo.config.code import refuse_engine_code
    from adaptpo.config.evaluation import generation_settings, mapping_of, yaml_mapping
    from adaptpo.distributed.quiet import quiet_libraries
    from adaptpo.evaluation.folder import EvaluationFolder
    from adaptpo.evaluation.generating import Generating, generate
    from adaptpo.evaluation.presets import protocol
    from adaptpo.evaluation.suites import find_suite
    from adaptpo.pipeline.inputs import model_digest

    quiet_libraries()
    suite = find_suite(options.suite)
    chosen = protocol(options.preset or suite.name, suite.name)
    settings = generation_settings({**chosen.decoding, **yaml_mapping(options.generation, "--generation")})
    if options.no_code:
        refuse_engine_code(settings)
    work = Generating(
        suite=suite,
        model=options.model,
        settings=settings,
        weights=model_digest(options.model),
        questions=options.questions,
        split=options.split,
        limit=options.limit,
        seed=options.seed,
        preset=options.preset or suite.name,
        template_options=mapping_of(options.chat_template_kwargs, "--chat-template-kwargs"),
    )
    say(options.out, generate(EvaluationFolder(options.out), work))
    baseline = " --baseline FILE" if suite.needs_baseline else ""
    print(f"Next: adaptpo eval judge {options.out} --judge '{{judge: {chosen.judge}}}'{baseline}")
    if chosen.note:
        print(f"! {chosen.note}")


def run_judge(options: argparse.Namespace) -> None:
    from adaptpo.config.evaluation import judge_settings, yaml_mapping
    from adaptpo.evaluation.answers import read_several
    from adaptpo.evaluation.folder import EvaluationFolder
    from adaptpo.evaluation.judging import Judging, judge_folder
    from adaptpo.evaluation.references import read_references

    judging = Judging(
        settings=judge_settings(yaml_mapping(options.judge, "--judge")),
        baseline=read_several(options.baseline) if options.baseline else None,
        template=options.template,
        references=read_references(options.references) if options.references else None,
    )
    say(options.folder, judge_folder(EvaluationFolder(options.folder), judging))
    print(f"Next: adaptpo eval score {options.folder}")


def say(folder: Path, counts: dict[str, int]) -> None:
    print(f"{folder}: {', '.join(f'{count} {name}' for name, count in counts.items())}")


def run_score(options: argparse.Namespace) -> None:
    from adaptpo.evaluation.scoring import score_path
    from adaptpo.evaluation.suite import Scoring
    from adaptpo.evaluation.words import show

    scoring = Scoring(
        baseline=options.baseline,
        length_control=options.length_control,
        keyed_by=options.key_by,
        questions=options.questions,
        answers=tuple(options.answers),
        model=options.model,
    )
    results = score_path(options.path, scoring, options.suite)
    if options.json:
        print(as_json([result.row() for result in results]))
        return
    for result in results:
        show(result)


def as_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)


def run_compare(options: argparse.Namespace) -> None:
    from adaptpo.evaluation.cases import write_cases
    from adaptpo.evaluation.comparing import compare
    from adaptpo.evaluation.words import show_comparison

    found = compare(options.folders, options.preset)
    if options.json:
        print(as_json(found.row()))
    else:
        show_comparison(found)
    if options.html is not None:
        print(f"Cases: {write_cases(options.folders, options.html, options.cases, options.seed)}", file=sys.stderr)


def run_tasks(options: argparse.Namespace) -> None:
    from adaptpo.distributed.quiet import quiet_libraries
    from adaptpo.evaluation.tasks import Tasks, run_tasks
    from adaptpo.evaluation.words import show_tasks

    quiet_libraries()
    tasks = Tasks(
        model=options.model,
        names=tuple(options.tasks),
        include=options.include,
        limit=options.limit,
        batch_size=options.batch_size,
        seed=options.seed,
        apply_chat_template=options.apply_chat_template,
    )
    rows = run_tasks(tasks, options.out)
    if options.json:
        print(as_json(rows))
    else:
        show_tasks(rows)


def add_evaluation(commands: argparse._SubParsersAction) -> None:
    evaluation = commands.add_parser(
        "eval",
        help="measure models with benchmarks",
        description=EVAL_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = evaluation.add_subparsers(metavar="ACTION", required=True)
    add_generate(actions)
    add_judge(actions)
    add_score(actions)
    add_compare(actions)
    add_tasks(actions)


def add_generate(actions: argparse._SubParsersAction) -> None:
    generate = add_command(actions, "generate", "answer a suite's questions", EVAL_GENERATE_HELP, run_generate)
    generate.add_argument("suite", metavar="SUITE", help=SUITES)
    generate.add_argument("--model", required=True, help="folder or hub id of the model")
    generate.add_argument("--out", type=Path, required=True, help="folder of the evaluation")
    generate.add_argument("--questions", help="file or folder of the questions (default: the suite's on the hub)")
    generate.add_argument("--split", default="train", help="of a hub data set (default: train)")
    generate.add_argument("--limit", type=int, help="at most this many questions (default: all)")
    generate.add_argument("--preset", help=PRESETS)
    generate.add_argument(
        "--generation", metavar="YAML", default="{}", help="as the key `generation` of a recipe: engine and sampling"
    )
    generate.add_argument(
        "--chat-template-kwargs", metavar="YAML", default="{}", help="as a recipe's key: '{enable_thinking: false}'"
    )
    generate.add_argument("--seed", type=int, default=0, help="of the sampling (default: 0)")
    add_no_code(generate)


def add_judge(actions: argparse._SubParsersAction) -> None:
    judge = add_command(actions, "judge", "have the answers judged", EVAL_JUDGE_HELP, run_judge)
    judge.add_argument("folder", type=Path, help="a folder that `adaptpo eval generate` wrote")
    judge.add_argument(
        "--judge", metavar="YAML", required=True, help="'{judge: MODEL, base_url: ...}', or a file of it"
    )
    judge.add_argument("--baseline", metavar="FILE", nargs="+", default=[], help="answers to compare with")
    judge.add_argument("--template", metavar="FILE", type=Path, help="the benchmark's own words (default: ours)")
    judge.add_argument("--references", metavar="FILE", help="MT-Bench: reference answers of the hard categories")


def add_score(actions: argparse._SubParsersAction) -> None:
    score = add_command(actions, "score", "score verdicts", EVAL_SCORE_HELP, run_score)
    score.add_argument("path", type=Path, help="a folder of `adaptpo eval`, or a file of verdicts")
    score.add_argument("--suite", help="whose verdicts these are (default: read off the file)")
    score.add_argument("--model", help="of a file with verdicts on several models, this one alone")
    score.add_argument("--baseline", metavar="FILE", help="AlpacaEval: outputs of the baseline")
    score.add_argument("--length-control", metavar="FILE", help="AlpacaEval: length_control.csv")
    score.add_argument(
        "--key-by",
        choices=("instruction", "row"),
        default="instruction",
        help="AlpacaEval: take difficulties by instruction, or by row position as publications do",
    )
    score.add_argument("--questions", metavar="FILE", help="MT-Bench: questions with their categories")
    score.add_argument(
        "--answers", metavar="FILE", nargs="+", default=[], help="Arena-Hard: answers of every model, for style control"
    )
    score.add_argument("--json", action="store_true", help="as JSON, for machines")


def add_compare(actions: argparse._SubParsersAction) -> None:
    compare = add_command(actions, "compare", "set results side by side", EVAL_COMPARE_HELP, run_compare)
    compare.add_argument("folders", metavar="DIR", nargs="+", help="scored evaluations; A=DIR,DIR names seeds of one")
    compare.add_argument(
        "--preset", help="the columns of a paper: metaapo, metapo or stages (default: the main number)"
    )
    compare.add_argument("--html", type=Path, metavar="FILE", help="write a page of cases side by side")
    compare.add_argument("--cases", type=int, default=8, help="of each kind on that page (default: 8)")
    compare.add_argument("--seed", type=int, default=0, help="of the page's sample (default: 0)")
    compare.add_argument("--json", action="store_true", help="as JSON, for machines")


def add_tasks(actions: argparse._SubParsersAction) -> None:
    tasks = add_command(actions, "tasks", "run tasks of lm-eval", EVAL_TASKS_HELP, run_tasks)
    tasks.add_argument("--model", required=True, help="folder or hub id of the model, for instance RUN/final")
    tasks.add_argument("--tasks", nargs="+", default=[], help="names of lm-eval (default: the papers' six)")
    tasks.add_argument("--include", type=Path, metavar="DIR", help="folder of task files of your own")
    tasks.add_argument("--limit", type=int, help="at most this many documents a task")
    tasks.add_argument(
        "--apply-chat-template", action="store_true", help="ask the model as a chat (default: plain text)"
    )
    tasks.add_argument("--batch-size", type=int, default=8, help="(default: 8)")
    tasks.add_argument("--seed", type=int, default=0, help="of the few-shot examples (default: 0)")
    tasks.add_argument("--out", type=Path, help="a .json file for the results")
    tasks.add_argument("--json", action="store_true", help="as JSON, for machines")
