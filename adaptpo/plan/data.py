"""Facts about a data set: how many pairs a run would keep, and their lengths in tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from adaptpo.data import require_rows
from adaptpo.data.mixture import Mixture
from adaptpo.pipeline.reading import Item, Reader
from adaptpo.plan.arithmetic import Lengths
from adaptpo.types import Dropped


@dataclass(frozen=True)
class DataFacts:
    """The `pairs` of `rows` that a run keeps, and the lengths of prompt, chosen and rejected response of `sampled` of
    them, [sampled] each. If the sample is only a part, `pairs` is an estimate. `sets`: rows by data set, if there are
    several. `alone`: the prompts without a pair, if there are some; where no row has a pair, all numbers are theirs."""

    rows: int
    pairs: int
    prompt: Lengths
    chosen: Lengths
    rejected: Lengths
    sets: Mapping[str, int] = field(default_factory=dict)
    alone: DataFacts | None = None
    has_pairs: bool = True

    @property
    def sampled(self) -> int:
        return len(self.prompt)

    @property
    def scale(self) -> float:
        """The factor from a sum over the sample to a sum over all pairs."""
        return self.pairs / self.sampled


def measure_data(reader: Reader, data: Mixture, seed: int, sample: int) -> DataFacts:
    """Tokenizes all rows, or evenly spaced ones if there are more than `sample`; reads the rows twice. Of a streamed
    data set, it reads the first `sample` rows alone.

    Raises DataError if no row can be used.
    """
    samples = data.samples(seed)
    total = sum(map(len, samples))
    streamed = any(one.taken is None and one.source.rows.is_streamed for one in samples)
    spread = (0, sample, 1) if streamed else (0, None, max(1, total // sample))
    examples = (example for _, example in islice(reader.examples(samples), *spread))
    taken = [example if isinstance(example, Dropped) else reader.tokenized(0, example) for example in examples]
    kept = [found for found in taken if not isinstance(found, Dropped)]
    require_rows(len(kept), Counter(found.reason for found in taken if isinstance(found, Dropped)), data.description)
    facts = [
        facts_of(total, round(total * len(items) / len(taken)), items)
        for items in ([item for item in kept if item[1]], [item for item in kept if not item[1]])
        if items
    ]
    sets = {str(one.source.name): len(one) for one in samples} if data.several else {}
    return replace(facts[0], sets=sets, alone=facts[1] if len(facts) > 1 else None)


def facts_of(rows: int, pairs: int, items: Sequence[Item]) -> DataFacts:
    """Facts about items that all have a pair, or all have none."""
    responses = [(pair.chosen.ids, pair.rejected.ids) if pair else ([], []) for _, pair in items]
    lengths = [(len(item[0].ids), *map(len, sides)) for item, sides in zip(items, responses, strict=True)]
    prompt, chosen, rejected = np.array(lengths, dtype=np.float64).T
    return DataFacts(rows, pairs, prompt, chosen, rejected, has_pairs=items[0][1] is not None)


def assumed_data(pairs: int, prompt: float, response: float) -> DataFacts:
    """Facts about pairs of which only mean lengths are known."""
    lengths = np.array([response])
    return DataFacts(pairs, pairs, np.array([prompt]), lengths, lengths)
