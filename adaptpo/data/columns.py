"""Checks once, on the first row, that a data set has the required columns."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from adaptpo.data.conventions import has_prompt, is_preference_row, read_columns
from adaptpo.data.problems import RowProblem
from adaptpo.data.stored import is_message
from adaptpo.data.transcripts import is_transcript
from adaptpo.data.unpaired import unread_verdict
from adaptpo.errors import DataError
from adaptpo.types import Row

USUAL_OTHER_NAMES = {
    "prompt": ("question", "instruction", "query", "input", "context", "prompts"),
    "chosen": (
        *("response_j", "chosen_response", "response_chosen", "text_chosen", "chosen_text", "chosen_messages"),
        *("preferred", "accepted", "winner", "positive", "better", "good"),
    ),
    "rejected": (
        *("response_k", "rejected_response", "response_rejected", "text_rejected", "rejected_text"),
        *("rejected_messages", "dispreferred", "loser", "negative", "worse", "bad"),
    ),
}
ACCEPTED = "accepted: `chosen` and `rejected`, with `prompt` if they do not contain it"
TURNS = ("messages", "conversations")
SINGLE_RESPONSES = (
    *("responses", "completion", "completions", "response", "output", "outputs", "answer", "answers", "generations"),
    *("candidates", *TURNS),
)
ONE_RESPONSE = (
    "each row has one response only (data for supervised fine-tuning), and a run learns from pairs: add a second, "
    "worse response to the same prompt and name the two `chosen` and `rejected`. As `eval_data`, the prompts alone are "
    "enough."
)
VERDICT = (
    " If `{name}` (here {value!r:.60}) says whether the response is good, write it as true or false, or as 1 or 0: "
    "kto, apo_zero and bco_pair train on such rows."
)
SEVERAL_RESPONSES = (
    "each row has several responses in `{name}`, and a run learns from pairs: write the best one into `chosen` and the "
    "worst one into `rejected`."
)
TWO_RESPONSES = (
    "each row has two responses, `{one}` and `{other}`, and which of them is better differs by row{winner}: write the "
    "better one into `chosen` and the other one into `rejected`. Renaming columns would mix them up."
)
SECOND = {"a": "b", "A": "B", "0": "1", "1": "2"}
"""The ends of the names of two responses, such as `response_a` and `response_b`."""
WINNERS = ("better_response_id", "preference", "overall_preference", "winner", "labels", "label", "choice", "chosen_id")
NO_RESPONSES = (
    "each row has a prompt without responses, and this method trains on pairs of the data: give `chosen` and "
    "`rejected` too, or choose a method that generates in every iteration and filters nothing (`adaptpo methods`), for "
    "which the prompts are enough. As `eval_data`, the prompts alone are enough for every method."
)


def check_preference_columns(row: Row) -> None:
    """Raises DataError unless the row has both responses, and no other column than those read is evidently the prompt.

    Without a prompt column, the common beginning of two strings would be taken for the prompt. A column such as
    `question` beside them is therefore an error.
    """
    if is_preference_row(row):
        missing = ["prompt"] if not has_prompt(row) and _responses_are_strings(row) else []
        missing = [name for name in missing if _meant_column(name, row)]
    else:
        missing = [name for name in ("chosen", "rejected") if name not in row]
        if any(name in row for name in WINNERS):
            _refuse_two_responses(row)
        if not any(_meant_column(name, row) for name in missing):
            _refuse_without_pairs(row)
        if not has_prompt(row) and "instruction" not in row and _meant_column("prompt", row):
            missing.insert(0, "prompt")
    _raise_if_missing(missing, row, ACCEPTED)


def check_prompt_columns(row: Row) -> None:
    """Raises DataError unless the row of a prompt-only data set has a prompt."""
    missing = [] if has_prompt(row) else ["prompt"]
    _raise_if_missing(missing, row, "accepted: `prompt`, or `chosen` and `rejected`")


def _responses_are_strings(row: Row) -> bool:
    try:
        columns = read_columns(row)
    except RowProblem:
        return False
    return all(isinstance(text, str) and not is_transcript(text) for text in (columns.chosen, columns.rejected))


def _refuse_without_pairs(row: Row) -> None:
    _refuse_two_responses(row)
    if several := next((name for name in SINGLE_RESPONSES if name not in TURNS and _is_several(row.get(name))), None):
        raise DataError(f"{SEVERAL_RESPONSES.format(name=several)} Found {_names(row)}.")
    response = next((name for name in SINGLE_RESPONSES if name in row), None)
    if response and "text" not in row:
        verdict = unread_verdict(row)
        told = VERDICT.format(name=verdict, value=row[verdict]) if verdict else ""
        raise DataError(f"{ONE_RESPONSE}{told} Found {_names(row)}.")
    if has_prompt(row) and not {"chosen", "rejected"} & row.keys():
        raise DataError(f"{NO_RESPONSES} Found {_names(row)}.")


def _refuse_two_responses(row: Row) -> None:
    if two := _two_responses(row):
        winner = next((f" (`{name}`)" for name in WINNERS if name in row), "")
        raise DataError(f"{TWO_RESPONSES.format(one=two[0], other=two[1], winner=winner)} Found {_names(row)}.")


def _two_responses(row: Row) -> tuple[str, str] | None:
    """The names of two columns of responses that differ only by a letter or number at their end."""
    texts = [str(name) for name, value in row.items() if isinstance(value, str | list) and value]
    pairs = [(name, name[:-1] + SECOND[name[-1]]) for name in texts if name[-1:] in SECOND]
    found = [pair for pair in pairs if pair[1] in texts]
    return max(found, key=lambda pair: len(str(row[pair[0]])), default=None)


def _is_several(value: Any) -> bool:
    """Whether this is a list of two or more responses, and not one conversation."""
    return isinstance(value, list) and len(value) > 1 and not all(map(is_message, value))


def _raise_if_missing(missing: list[str], row: Row, accepted: str) -> None:
    if not missing:
        return
    renames = {name: _meant_column(name, row) for name in missing}
    raise DataError(
        f"the data set lacks the column{'s' * (len(missing) > 1)} {', '.join(f'`{name}`' for name in missing)}: "
        f"found {_names(row)}; {accepted}. To fix it, {_renaming(renames)}."
    )


def _renaming(renames: dict[str, str | None]) -> str:
    if not any(renames.values()):
        return "rename the columns, or name them in data.columns, such as {chosen: better, rejected: worse}"
    known = {name: meant for name, meant in renames.items() if meant}
    advice = "; ".join(f"rename `{meant}` to `{name}`" for name, meant in known.items())
    columns = ", ".join(f"{name}: {meant}" for name, meant in known.items())
    others = "".join(f"; name the column that is `{name}` in the same way" for name in renames if name not in known)
    return f"{advice} (or set data.columns: {{{columns}}}){others}"


def _names(row: Row) -> str:
    return ", ".join(map(str, row)) or "none"


def _meant_column(name: str, row: Row) -> str | None:
    known = [other for other in USUAL_OTHER_NAMES[name] if other in row]
    known += ["response"] if name == "chosen" and {"response", "rejected_response"} <= row.keys() else []
    taken = {"prompt", "chosen", "rejected"}
    close = get_close_matches(name, [str(column) for column in row if column not in taken], n=1, cutoff=0.75)
    return next(iter([*known, *close]), None)
