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
from adaptpo.data.tokenization import TokenizedPair, options_of, tokenize_pair
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
        None if isinstance(example, Dropped) else tokenized(example, config, tokenizer, stop_ids)
        for example in with_words_rendered(sampled, tokenizer)
    ]
    kept = [pair for pair in taken if isinstance(pair, TokenizedPair)]
    require_rows(len(kept), {"the run would drop it": len(taken)} if taken else {}, source)
    lengths = [(len(pair.prompt_ids), len(pair.chosen.ids), len(pair.rejected.ids)) for pair in kept]
    prompt, chosen, rejected = np.array(lengths, dtype=np.float64).T
    return DataFacts(total, round(total * len(kept) / len(taken)), prompt, chosen, rejected)


def tokenized(
    example: PreferenceExample, config: AlignmentConfig, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int]
) -> TokenizedPair | str:
    """As a run tokenizes it."""
    options = options_of(example.columns, config.chat_template_kwargs)
    limits = (config.max_prompt_length, config.max_completion_length)
    return tokenize_pair(example, tokenizer, *limits, stop_ids, options or {}, config.max_length)


def assumed_data(pairs: int, prompt: float, response: float) -> DataFacts:
    """Facts about pairs of which only mean lengths are known."""
    lengths = (np.array([length]) for length in (prompt, response, response))
    return DataFacts(pairs, pairs, *lengths)
