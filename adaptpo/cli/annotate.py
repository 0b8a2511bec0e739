"""Annotates the responses in a file with rewards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from adaptpo.annotation.base import Annotator, Request
from adaptpo.annotation.build import Workplace, build_annotator
from adaptpo.config.reward import reward_parts
from adaptpo.data import open_rows
from adaptpo.data.messages import check_unicode, read_text
from adaptpo.data.problems import RowProblem
from adaptpo.data.stored import stored_messages
from adaptpo.distributed.device import fastest_device
from adaptpo.errors import ConfigError, DataError
from adaptpo.remote.store import content_key
from adaptpo.run.files import write_table, write_text
from adaptpo.run.progress import progress_bar
from adaptpo.run.schemas import dump_text
from adaptpo.types import Prompt, Response, Row, Text

PROMPTS_AT_ONCE = 64
MAX_TOKENS = 16384
"""Maximum number of tokens in one forward pass, including padding."""


def annotate_file(
    data: str, reward: Any, out: Path, cache: Path | None = None, trust_remote_code: bool = False
) -> dict[str, int]:
    """Writes the rows of `data` with their rewards to `out`; returns counts and the annotator's usage.

    Raises ConfigError or DataError for invalid input before anything is computed.
    """
    if out.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"--out {out} must end with .jsonl or .parquet")
    if reward == "train":
        raise ConfigError("--reward train needs a run; name a trained reward model, such as RUN/reward/model")
    rows = [dict(row) for row in open_rows(data)]
    check_writable(out, rows)
    left_out: Counter[str] = Counter()
    requests = [row_requests(row, number, left_out) for number, row in enumerate(rows)]
    place = workplace(cache or out.with_name(out.name + ".answers"), trust_remote_code)
    annotator = build_annotator(reward_parts(reward), place)
    annotator.probe()
    rewards, usage = all_rewards(annotator, requests)
    rewards = [found or [None] * responses_in(row) for row, found in zip(rows, rewards, strict=True)]
    for row, found in zip(rows, rewards, strict=True):
        row |= {"rewards": found} if "responses" in row else {"reward": found[0]}
    write_rows(out, rows)
    values = [value for found in rewards for value in found]
    counts = {"rewards": sum(v is not None for v in values), "without a reward": values.count(None)}
    return counts | {f"rows left out: {reason}": count for reason, count in left_out.items()} | usage


def check_writable(out: Path, rows: list[Row]) -> None:
    """Raises DataError if the rows hold what Parquet cannot."""
    try:
        check_unicode(rows if out.suffix == ".parquet" else [])
    except RowProblem as problem:
        raise DataError(f"a row has {problem}, which Parquet cannot hold; let --out end with .jsonl") from problem


def workplace(cache: Path, trust_remote_code: bool = False) -> Workplace:
    return Workplace(fastest_device(), MAX_TOKENS, cache, trust_remote_code=trust_remote_code)


def responses_in(row: Row) -> int:
    return len(row.get("responses", [None]))


def row_requests(row: Row, number: int, left_out: Counter[str]) -> list[Request]:
    """One request per response; none for a row whose texts cannot be read, which `left_out` counts by its reason.

    Raises DataError for a row without prompt or response.
    """
    prompt, responses = row.get("prompt"), row.get("responses", [row.get("response")])
    try:
        prompt, responses = (
            stored_text(prompt),
            [*map(stored_text, responses)] if isinstance(responses, list) else responses,
        )
        check_unicode([prompt, responses])
    except RowProblem as problem:
        left_out[str(problem)] += 1
        return []
    if not is_text(prompt) or not isinstance(responses, list) or not all(map(is_text, responses)):
        raise DataError(
            f"row {number} has no `prompt` (text or chat messages) with a `response` or a list of `responses`; "
            f"found {', '.join(row) or 'nothing'}"
        )
    columns = {name: value for name, value in row.items() if name not in ("prompt", "response", "responses")}
    asked = Prompt(prompt_number(prompt), prompt, [], columns)
    return [(asked, Response(response, [])) for response in responses]


def stored_text(value: Any) -> Any:
    """The messages that a string holds, or the value as it is."""
    return value if not isinstance(value, str) or stored_messages(value) is None else read_text(value)


def is_text(value: Any) -> bool:
    messages = isinstance(value, list) and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in value)
    return isinstance(value, str) or (messages and bool(value))


def prompt_number(prompt: Text) -> int:
    """The id of a prompt, the same for equal prompts."""
    return int(content_key(prompt)[:15], 16)


def all_rewards(
    annotator: Annotator, requests: Sequence[Sequence[Request]]
) -> tuple[list[list[float | None]], Counter[str]]:
    """The rewards of each row, and the annotator's usage."""
    rewards: list[list[float | None]] = [[None] * len(row) for row in requests]
    usage: Counter[str] = Counter()
    with progress_bar("annotate", sum(map(len, requests)), "response", visible=True) as bar:
        for places in shards(requests):
            found = annotator.rewards([requests[row][column] for row, column in places])
            for (row, column), value in zip(places, found, strict=True):
                rewards[row][column] = value
            usage.update(annotator.take_usage())
            bar.update(len(places))
    return rewards, usage


def shards(requests: Sequence[Sequence[Request]]) -> Iterator[list[tuple[int, int]]]:
    """Indices (row, response) in batches of prompts, all responses to a prompt together."""
    by_prompt: dict[int, list[tuple[int, int]]] = {}
    for row, several in enumerate(requests):
        for column, (prompt, _) in enumerate(several):
            by_prompt.setdefault(prompt.id, []).append((row, column))
    groups = list(by_prompt.values())
    for start in range(0, len(groups), PROMPTS_AT_ONCE):
        yield [place for group in groups[start : start + PROMPTS_AT_ONCE] for place in group]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    if path.suffix == ".parquet":
        names = dict.fromkeys(name for row in rows for name in row)
        write_table(path, pa.table({name: [row.get(name) for row in rows] for name in names}))
    else:
        write_text(path, "".join(dump_text(row) + "\n" for row in rows))
