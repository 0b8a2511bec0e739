"""Tokens of generated conversations under every chat template that TRL ships, against TRL's DPOTrainer.

Every row is equal, differs in a way that is explained here from TRL's own tokens and the template's own text, or is
refused for a reason that is true of the row. The counts are printed at the end of the tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
import torch
import trl
from transformers import PreTrainedTokenizerBase
from trl import DPOTrainer, extract_prompt
from trl.trainer.dpo_trainer import DataCollatorForPreference

from adaptpo.data import iter_examples, limits, problems, tokenization
from adaptpo.data.rendered import LEAVES_OUT, SAYS_NOTHING, with_words_rendered
from adaptpo.data.templates import CLOSES_THOUGHTS, PROMPT_RENDERED_DIFFERENTLY, THINK_BLOCK
from adaptpo.data.tokenization import TokenizedPair, stop_token_ids, tokenize_pair
from adaptpo.errors import ModelError
from adaptpo.models.collate import GroupCollator
from adaptpo.types import Dropped, PreferencePair, Prompt, PromptGroup
from tests.conversations import CHATS, IMPLICIT, STRINGS, Row, conversations
from tests.real_model import needs_real_model, real_tokenizer

pytestmark = needs_real_model
TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
SIDES = ("chosen", "rejected")
EQUAL = "equal"
BEHIND = "TRL also trains on what the template writes behind the end of the turn"
ADDED = "the template ends a turn with no stop token of the tokenizer: EOS is added"
BORDER = "tokens merge across the border: TRL drops the end of the prompt, the response is tokenized by itself here"
UNEXPLAINED = "UNEXPLAINED"


class Rows(list):
    """Rows that `map` as a `datasets.Dataset` does, without files."""

    def map(self, function: Callable[..., Row], fn_kwargs: Row | None = None, **_: Any) -> Rows:
        return Rows(row | function(dict(row), **(fn_kwargs or {})) for row in self)


LIMITS = SimpleNamespace(dataset_num_proc=None, max_length=None)


def theirs_of(row: Row, tokenizer: PreTrainedTokenizerBase) -> Row | Exception:
    """TRL's columns of a row, or the exception with which it ends."""
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    try:
        return DPOTrainer._prepare_dataset(trainer, Rows([row]), tokenizer, LIMITS, "train")[0]
    except (jinja2.TemplateError, TypeError, IndexError) as error:
        return error


def ours_of(rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> list[TokenizedPair | str]:
    """The tokens of each row, or the reason for leaving it out; the same reason for all if the run is refused."""
    stops = stop_token_ids(tokenizer)
    try:
        examples = list(with_words_rendered(iter_examples(rows), tokenizer))
    except ModelError as error:
        return [str(error)] * len(rows)
    return [e.reason if isinstance(e, Dropped) else tokenize_pair(e, tokenizer, None, None, stops) for e in examples]


@dataclass(frozen=True)
class Compared:
    """One row under one template, with TRL's tokens."""

    tokenizer: PreTrainedTokenizerBase
    row: Row
    theirs: Row | Exception

    @cached_property
    def stops(self) -> frozenset[int]:
        return stop_token_ids(self.tokenizer)

    def tokens(self, name: str) -> list[int]:
        return [] if isinstance(self.theirs, Exception) else self.theirs[f"{name}_ids"]

    @cached_property
    def split(self) -> Row:
        return self.row if "prompt" in self.row else extract_prompt(self.row)

    def words(self, name: str) -> str:
        text = self.split[name]
        return text if isinstance(text, str) else text[-1]["content"] if text else ""

    def rendered(self, messages: Any, **options: Any) -> str:
        if isinstance(messages, str):
            return messages
        return self.tokenizer.apply_chat_template(messages, tokenize=False, **options)

    @cached_property
    def prompt_text(self) -> str:
        return self.rendered(self.split["prompt"], add_generation_prompt=True)

    def whole_text(self, side: str) -> str:
        return self.rendered(self.split["prompt"] + self.split[side])

    def is_ending(self, ids: Sequence[int]) -> bool:
        """Whether these are only stop tokens and whitespace."""
        return all(token in self.stops or not self.decoded([token]).strip() for token in ids)

    def words_of(self, side: str) -> list[int]:
        """TRL's tokens of a response without its ending."""
        ids = self.tokens(side)
        return ids[: next((i for i in range(len(ids)) if self.is_ending(ids[i:])), len(ids))]

    def decoded(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)

    # A pair

    def pair_class(self, ours: TokenizedPair) -> str:
        if isinstance(self.theirs, Exception) or not self.is_spelled(ours):
            return UNEXPLAINED
        answers = {"chosen": ours.chosen.ids, "rejected": ours.rejected.ids}
        if ours.prompt_ids == self.tokens("prompt"):
            kinds = {self.ending_class(ids, self.tokens(side)) for side, ids in answers.items()}
            return next(kind for kind in (UNEXPLAINED, ADDED, BEHIND, EQUAL) if kind in kinds)
        shorter = self.tokens("prompt")
        return BORDER if ours.prompt_ids[: len(shorter)] == shorter else UNEXPLAINED

    def ending_class(self, mine: list[int], other: list[int]) -> str:
        if mine == other:
            return EQUAL
        if mine[-1] in self.stops and mine == other[: len(mine)] and self.is_ending(other[len(mine) :]):
            return BEHIND
        return ADDED if mine == [*other, self.tokenizer.eos_token_id] else UNEXPLAINED

    def is_spelled(self, ours: TokenizedPair) -> bool:
        """Whether the tokens spell what the template writes, up to the end of the response, and then end it."""
        spelled = {side: ours.prompt_ids + getattr(ours, side).ids[:-1] for side in SIDES}
        return (
            self.decoded(ours.prompt_ids) == self.prompt_text
            and all(getattr(ours, side).ids[-1] in self.stops for side in SIDES)
            and all(self.whole_text(side).startswith(self.decoded(ids)) for side, ids in spelled.items())
        )

    # A refusal

    def refusal_class(self, reason: str) -> str:
        holds = next((holds for start, holds in REASONS.items() if reason.startswith(start)), None)
        return f"refused: {reason.partition(': ')[0]}" if holds is not None and holds(self) else UNEXPLAINED

    def prompt_changes(self) -> bool:
        return not all(self.whole_text(side).startswith(self.prompt_text) for side in SIDES)

    def cuts_thoughts(self) -> bool:
        """Whether the text of a response lacks the words before its `</think>`."""
        thoughts = {side: self.words(side).rpartition(CLOSES_THOUGHTS)[0].strip() for side in SIDES}
        return any(words not in self.whole_text(side) for side, words in thoughts.items())

    def ignores(self, role: str) -> bool:
        """Whether the template writes the same whatever this role says, or TRL ends with its error."""
        if isinstance(self.theirs, Exception):
            return True
        turns = self.split["prompt"] + self.split["chosen"]
        others = [turn | {"content": "zebra"} if turn["role"] == role else turn for turn in turns]
        return others != turns and self.rendered(others) == self.rendered(turns)


def blank(name: str) -> Callable[[Compared], bool]:
    return lambda compared: not compared.words(name).strip()


REASONS: dict[str, Callable[[Compared], bool]] = {
    problems.EMPTY_CHOSEN: blank("chosen"),
    problems.EMPTY_REJECTED: blank("rejected"),
    problems.EMPTY_PROMPT: blank("prompt"),
    problems.EQUAL: lambda c: c.words("chosen").strip() == c.words("rejected").strip(),
    tokenization.EQUAL_TOKENS: lambda c: c.words_of("chosen") == c.words_of("rejected"),
    tokenization.EMPTY_RESPONSE_TOKENS: lambda c: not all(c.words_of(side) for side in SIDES),
    limits.STOP_TOKEN_INSIDE: lambda c: any(c.stops & {*c.words_of(side)} for side in SIDES),
    PROMPT_RENDERED_DIFFERENTLY: Compared.prompt_changes,
    "the chat template refuses the messages": lambda c: isinstance(c.theirs, jinja2.TemplateError),
    LEAVES_OUT.format(what=THINK_BLOCK): Compared.cuts_thoughts,
    SAYS_NOTHING.format(role="system"): lambda c: c.ignores("system"),
    SAYS_NOTHING.format(role="user"): lambda c: c.ignores("user"),
    SAYS_NOTHING.format(role="assistant"): lambda c: c.ignores("assistant"),
}


@dataclass
class Tally:
    """How many rows are of each class, those that are of none, and the equal ones with TRL's tokens."""

    counts: Counter[str]
    unexplained: list[Row]
    equal: list[tuple[TokenizedPair, Row]]

    def add(self, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> None:
        for row, ours in zip(rows, ours_of(rows, tokenizer), strict=True):
            compared = Compared(tokenizer, row, theirs_of(row, tokenizer))
            found = compared.refusal_class(ours) if isinstance(ours, str) else compared.pair_class(ours)
            self.counts[found] += 1
            if found == UNEXPLAINED:
                self.unexplained.append({"row": row, "ours": ours, "theirs": compared.theirs})
            if found == EQUAL:
                self.equal.append((ours, compared.theirs))


def some(rows: list[Row], count: int, number: int) -> list[Row]:
    """`count` of the rows, others for each number."""
    return list(islice(cycle(rows), number * count, (number + 1) * count))


@pytest.fixture(scope="module", params=[1, pytest.param(5, marks=pytest.mark.engines)])
def tally(request: pytest.FixtureRequest) -> Tally:
    """Every conversation under one template at least, and every template on 15 of them, or on 75."""
    rows, found, tokenizer = conversations(1000), Tally(Counter(), [], []), real_tokenizer()
    found.add(rows[STRINGS], tokenizer)
    for number, template in enumerate(TEMPLATES):
        tokenizer.chat_template = template.read_text()
        for form, count in ((CHATS, 12), (IMPLICIT, 3)):
            found.add(some(rows[form], count * request.param, number), tokenizer)
    return found


def test_no_difference_is_unexplained(tally: Tally, record_property: Callable[[str, Any], None]) -> None:
    table = "".join(f"\n  {count:5} {name}" for name, count in tally.counts.most_common())
    record_property("show", f"tokens against TRL's DPOTrainer, {len(TEMPLATES)} templates:{table}")
    assert not tally.unexplained, tally.unexplained[:3]
    assert len(TEMPLATES) >= 60 and tally.counts.total() >= 1000
    assert min(tally.counts[kind] for kind in (EQUAL, BEHIND, ADDED, BORDER)) >= 20


def test_the_same_tokens_are_trained_on(tally: Tally) -> None:
    """The rows and masks of both collators are equal."""
    theirs = DataCollatorForPreference(pad_token_id=0)([columns for _, columns in tally.equal])
    pairs = [(Prompt(i, "", pair.prompt_ids), pair) for i, (pair, _) in enumerate(tally.equal)]
    groups = [PromptGroup(p, (PreferencePair(p.id, "offline", pair.chosen, pair.rejected),)) for p, pair in pairs]
    ours = GroupCollator(0)(groups)
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    trained = torch.zeros_like(ours["input_ids"])
    trained[:, ours["columns"] + 1] = ours["target_mask"].long()
    assert torch.equal(trained, theirs["completion_mask"])
