"""`adaptpo eval`: generate, judge, score and compare."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from adaptpo.cli.help import EVAL_HELP, EVAL_SCORE_HELP


def run_score(options: argparse.Namespace) -> None:
    from adaptpo.evaluation.result import Result
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
    results: Sequence[Result] = score_path(options.path, scoring, options.suite)
    if options.json:
        print(json.dumps([result.row() for result in results], indent=1, ensure_ascii=False))
        return
    for result in results:
        show(result)


def add_evaluation(commands: argparse._SubParsersAction) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    evaluation = commands.add_parser(
        "eval", help="measure models with benchmarks", description=EVAL_HELP, formatter_class=formatter
    )
    actions = evaluation.add_subparsers(metavar="ACTION", required=True)
    score = actions.add_parser("score", help="score verdicts", description=EVAL_SCORE_HELP, formatter_class=formatter)
    score.set_defaults(run_command=run_score)
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
