"""Facts about a data set: how many pairs a run would keep, and their lengths in tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from adaptpo.config.recipe import AlignmentConfig
from adaptpo.data import iter_examples, require_rows
from adaptpo.data.pairs import TextFormat
from adaptpo.data.rendered import with_words_rendered
from adaptpo.data.tokenization import tokenize_pair
from adaptpo.plan.arithmetic import Lengths
from adaptpo.types import Dropped, PreferenceExample


@dataclass(frozen=True)
class DataFacts:
    """The `pairs` of `rows` that a run keeps, and the lengths of prompt, chosen and rejected response of `sampled` of
    them, [sampled] each. If the sample is only a part, `pairs` is an estimate."""

    rows: int
    pairs: int
    prompt: Lengths
    chosen: Lengths
    rejected: Lengths

    @property
    def sampled(self) -> int:
        return len(self.prompt)

    @property
    def scale(self) -> float:
        """The factor from a sum over the sample to a sum over all pairs."""
        return self.pairs / self.sampled


def measure_data(
    rows: Iterable[dict[str, Any]],
    config: AlignmentConfig,
    tokenizer: PreTrainedTokenizerBase,
    text_mode: TextFormat,
    stop_ids: frozenset[int],
    sample: int,
    source: str,
) -> DataFacts:
    """Tokenizes all rows, or evenly spaced ones if there are more than `sample`; reads the rows twice.

    Raises DataError if no row can be used.
    """
    total = sum(1 for _ in rows)
    step = max(1, total // sample)
    sampled = islice(iter_examples(rows, text_mode), 0, None, step)
    taken = [
        None if isinstance(example, Dropped) else token_counts(example, config, tokenizer, stop_ids)
        for example in with_words_rendered(sampled, tokenizer, config.chat_template_kwargs)
    ]
    lengths = [counts for counts in taken if counts is not None]
    require_rows(len(lengths), {"the run would drop it": len(taken)} if taken else {}, source)
    prompt, chosen, rejected = np.array(lengths, dtype=np.float64).T
    return DataFacts(total, round(total * len(lengths) / len(taken)), prompt, chosen, rejected)


def token_counts(
    example: PreferenceExample, config: AlignmentConfig, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int]
) -> tuple[int, int, int] | None:
    """The tokens of prompt, chosen and rejected response as a run counts them, 0 for one that an unpaired row lacks;
    None for a row that it leaves out."""
    limits, options = (config.max_prompt_length, config.max_completion_length), config.chat_template_kwargs
    all_turns = config.trained_turns == "all"
    found = tokenize_pair(example, tokenizer, *limits, stop_ids, options, config.max_length, all_turns)
    if isinstance(found, str):
        return None
    sides = {"chosen": len(found.chosen.ids), "rejected": len(found.rejected.ids)}
    sides |= {example.absent: 0} if example.absent else {}
    return len(found.prompt_ids), sides["chosen"], sides["rejected"]


def assumed_data(pairs: int, prompt: float, response: float) -> DataFacts:
    """Facts about pairs of which only mean lengths are known."""
    lengths = (np.array([length]) for length in (prompt, response, response))
    return DataFacts(pairs, pairs, *lengths)
