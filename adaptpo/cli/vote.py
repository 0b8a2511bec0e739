"""`adaptpo vote`: serve the voting page, and print what the votes say."""

from __future__ import annotations

import argparse
import json
import secrets
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

from adaptpo.errors import ConfigError
from adaptpo.vote.ballots import Ballots
from adaptpo.vote.questions import Plan, Question, pool
from adaptpo.vote.responses import Side, read_side
from adaptpo.vote.results import results
from adaptpo.vote.words import counts_in_words, show_results


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    runs: tuple[Path, Path]
    plan: Plan = field(default_factory=Plan)
    host: str = "127.0.0.1"
    port: int = 0
    out: Path = Path("votes")
    results: bool = False
    json: bool = False

    @classmethod
    def of(cls, options: argparse.Namespace) -> Options:
        plan = Plan(options.prompts, options.seed, options.overlap)
        same = {name: getattr(options, name) for name in ("host", "port", "out", "results", "json")}
        return cls((options.run_a, options.run_b), plan, **same)

    @property
    def names(self) -> list[str]:
        """The runs as the votes keep them, from whichever folder they are named."""
        return [str(run.resolve()) for run in self.runs]


def run_vote(options: Options) -> None:
    """Serve the page until interrupted."""
    with closing(open_ballots(options)) as ballots:
        serve_votes(options, ballots)
    print(f"\nThe votes are in {options.out}. {how_to_see(options)}")


def open_ballots(options: Options) -> Ballots:
    """The votes of these runs, begun if there are none yet. Raises RunError if `--out` holds others."""
    if options.names[0] == options.names[1]:
        raise ConfigError(f"{options.runs[0]} is named twice; name two runs, or two files of responses")
    a, b = map(read_side, options.runs)
    questions, left_out = pool(a, b, options.plan)
    ballots = Ballots(options.out)
    notes = {
        "models": sorted(a.models | b.models),
        "left_out": dict(left_out),
        "sources": [str(a.source), str(b.source)],
    }
    ballots.begin({"runs": options.names, **asdict(options.plan), **notes}, questions)
    describe((a, b), questions, options.plan, left_out)
    return ballots


def describe(sides: Sequence[Side], questions: Sequence[Question], plan: Plan, left_out: dict[str, int]) -> None:
    for label, side in zip("AB", sides, strict=True):
        print(f"{label}: {side.source}, {len(side.responses):,} responses")
    asked = min(plan.prompts, len(questions))
    fewer = f" (of the {plan.prompts:,} that --prompts asks for)" if asked < plan.prompts else ""
    print(f"{asked:,} questions for each voter{fewer}; left out: {counts_in_words(left_out)}")


def serve_votes(options: Options, ballots: Ballots) -> None:
    try:
        from adaptpo.vote.server import VotePage, is_this_machine, link, listen, serve
    except ModuleNotFoundError as error:
        raise ConfigError(f"the voting page needs {error.name}: pip install 'adaptpo[vote]'") from error
    token = None if is_this_machine(options.host) else kept_token(ballots)
    with closing(listen(options.host, options.port)) as bound:
        print(f"Vote at {link(bound, token)} (Ctrl+C ends; every vote is kept)")
        print(how_to_see(options), flush=True)
        serve(VotePage(ballots, token, options.host).app(), bound)


def kept_token(ballots: Ballots) -> str:
    """The token of this vote: the same after a restart, so that links that were sent around stay valid."""
    return ballots.keep("token", secrets.token_urlsafe(16))


def how_to_see(options: Options) -> str:
    return f"Results: adaptpo vote {options.runs[0]} {options.runs[1]} --out {options.out} --results"


def print_results(options: Options) -> None:
    with closing(Ballots.existing(options.out, options.names)) as ballots:
        try:
            found = results(ballots)
        except ModuleNotFoundError as error:
            raise ConfigError(f"the results need {error.name}: pip install 'adaptpo[vote]'") from error
    if options.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        show_results(found)
