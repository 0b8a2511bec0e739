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
from adaptpo.data.conventions import as_turns, has_prompt
from adaptpo.data.messages import check_unicode, read_text, shared_length
from adaptpo.data.pairs import TextFormat, split_prompt
from adaptpo.data.problems import NO_SHARED_PROMPT, RowProblem
from adaptpo.data.rendered import left_out as lost_part
from adaptpo.data.stored import Unreadable, read_literal
from adaptpo.data.templates import first_line, options_of
from adaptpo.data.transcripts import is_transcript
from adaptpo.distributed.device import fastest_device
from adaptpo.errors import ConfigError, DataError
from adaptpo.pipeline.reward_reading import RewardReading
from adaptpo.remote.store import content_key
from adaptpo.run.files import write_table, write_text
from adaptpo.run.progress import progress_bar
from adaptpo.run.schemas import dump_text
from adaptpo.types import Prompt, Response, Row, Text

PROMPTS_AT_ONCE = 64
MAX_TOKENS = 16384
"""Maximum number of tokens in one forward pass, including padding."""
ANSWERS = ("response", "responses", "chosen", "rejected", "rejected_response", "rejected_messages")
"""Columns that hold no part of the prompt."""
NO_RECIPE = (
    "`adaptpo annotate` reads no recipe: rename the column in the file, or, if the text is a dialogue, leave out "
    "--text-format text."
)
NOTHING_TO_RATE = (
    "row {number} has no `prompt` (text or chat messages) with a `response` or a list of `responses`; found {found}"
)


def annotate_file(
    data: str,
    reward: Any,
    out: Path,
    cache: Path | None = None,
    trust_remote_code: bool = False,
    text_format: TextFormat = "messages",
) -> dict[str, int]:
    """Writes the rows of `data` with their rewards to `out`; returns counts and the annotator's usage. Rows are read as
    a run reads prompts: system texts, histories, parts of content and transcripts included.

    Raises ConfigError or DataError for invalid input before anything is computed.
    """
    if out.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"--out {out} must end with .jsonl or .parquet")
    if reward == "train":
        raise ConfigError("--reward train needs a run; name a trained reward model, such as RUN/reward/model")
    rows = [dict(row) for row in open_rows(data)]
    check_writable(out, rows)
    left_out: Counter[str] = Counter()
    requests = [row_requests(row, number, left_out, text_format) for number, row in enumerate(rows)]
    reading = RewardReading.of_parts(reward_parts(reward), trust_remote_code)
    lost = Counter(what for row in requests for what in {part for one in row for part in reading.lost_of(*sides(one))})
    place = workplace(cache or out.with_name(out.name + ".answers"), trust_remote_code)
    annotator = build_annotator(reward_parts(reward), place)
    annotator.probe()
    rewards, usage = all_rewards(annotator, requests)
    rewards = [found or [None] * len(written_responses(row) or []) for row, found in zip(rows, rewards, strict=True)]
    replaced = Counter(f"replaced in the column `{name}`" for row in rows if (name := reward_column(row)) in row)
    for row, found in zip(rows, rewards, strict=True):
        row |= {reward_column(row): found if "responses" in row else found[0]}
    write_rows(out, rows)
    values = [value for found in rewards for value in found]
    counts = {"rewards": sum(v is not None for v in values), "without a reward": values.count(None)}
    counts |= {f"judged in part: {lost_part(what)}": count for what, count in lost.items()}
    return counts | replaced | {f"rows left out: {reason}": count for reason, count in left_out.items()} | usage


def sides(request: Request) -> tuple[Prompt, Text]:
    return request[0], request[1].text


def reward_column(row: Row) -> str:
    return "rewards" if "responses" in row else "reward"


def check_writable(out: Path, rows: list[Row]) -> None:
    """Raises DataError if the rows hold what Parquet cannot."""
    if out.suffix != ".parquet":
        return
    try:
        check_unicode(rows)
        as_table(rows)
    except (RowProblem, pa.ArrowException) as problem:
        what = f"a row has {problem}" if isinstance(problem, RowProblem) else first_line(problem)
        raise DataError(f"{what}, which Parquet cannot hold; let --out end with .jsonl") from problem


def workplace(cache: Path, trust_remote_code: bool = False) -> Workplace:
    return Workplace(fastest_device(), MAX_TOKENS, cache, trust_remote_code=trust_remote_code)


def row_requests(row: Row, number: int, left_out: Counter[str], text_format: TextFormat = "messages") -> list[Request]:
    """One request per response; none for a row whose texts cannot be read, which `left_out` counts by its reason.

    Raises DataError for a row without prompt or response, and for one whose prompt may miss a part.
    """
    asking, written = {name: value for name, value in row.items() if name not in ANSWERS}, written_responses(row)
    if not has_prompt(asking) or written is None or None in written:
        raise DataError(NOTHING_TO_RATE.format(number=number, found=", ".join(row) or "nothing"))
    try:
        prompt, responses = read_row(asking, written, text_format)
        options_of(asking)
    except RowProblem as problem:
        left_out[str(problem)] += 1
        return []
    except DataError as error:
        raise DataError(f"row {number}: {error} {NO_RECIPE}") from error
    columns = {name: value for name, value in row.items() if name not in ("prompt", "response", "responses")}
    asked = Prompt(prompt_number(prompt), prompt, [], columns)
    return [(asked, Response(response, [])) for response in responses]


def written_responses(row: Row) -> list[Any] | None:
    """The cells with the row's responses; a CSV file holds a list of them as text. None if there is no such list."""
    if "responses" not in row:
        return [row.get("response")]
    found = row["responses"]
    try:
        found = read_literal(found) if isinstance(found, str) else found
    except Unreadable:
        return None
    return found if isinstance(found, list) else None


def read_row(asking: Row, written: Sequence[Any], text_format: TextFormat) -> tuple[Text, list[Text]]:
    """The prompt, as messages if a response has them, and the responses without a prompt that they repeat."""
    prompt = split_prompt(asking, text_format)
    responses = [text for cell in written if (text := read_text(cell)) is not None]
    check_unicode(responses)
    if any(isinstance(response, list) for response in responses):
        prompt = as_turns(prompt, "user")
    return prompt, [reply_to(prompt, response, asking.get("prompt")) for response in responses]


def reply_to(prompt: Text, response: Text, written: Any) -> Text:
    """The response without the dialogue in plain text, or the last turns of the prompt, that it begins with."""
    if isinstance(response, str):
        repeats = isinstance(written, str) and is_transcript(written) and response.startswith(written)
        return response.removeprefix(written).strip() if repeats else response
    assert not isinstance(prompt, str)
    tails = (prompt[start:] for start in range(len(prompt)))
    repeated = next((len(tail) for tail in tails if shared_length(tail, response) == len(tail)), 0)
    if response[repeated : repeated + 1] and response[repeated]["role"] == "assistant":
        return response[repeated:]
    raise RowProblem(NO_SHARED_PROMPT)


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
        write_table(path, as_table(rows))
    else:
        write_text(path, "".join(dump_text(row) + "\n" for row in rows))


def as_table(rows: Sequence[Row]) -> pa.Table:
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})
