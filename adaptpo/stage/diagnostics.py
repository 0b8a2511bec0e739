"""The alignment-stages paper's diagnostics besides the boundary score: diversity, quality, distinctness, lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adaptpo.stage.score import FloatArray
from adaptpo.stage.tally import point
from adaptpo.types import Row

Lengths = Mapping[int | str, int]
"""Token counts of a prompt's responses: fresh ones by index, offline ones by `chosen` and `rejected`."""


@dataclass(frozen=True)
class CandidateFacts:
    """Facts about n measured prompts, each [n, 2]: log-probs under the policy, summed over tokens, in nats, and lengths
    in tokens. Columns are the two fresh responses, or the chosen and the rejected offline one."""

    prompt_ids: tuple[int, ...]
    fresh_logps: FloatArray
    offline_logps: FloatArray
    fresh_tokens: FloatArray
    offline_tokens: FloatArray

    @property
    def lengths(self) -> dict[int, Lengths]:
        names: tuple[int | str, ...] = (0, 1, "chosen", "rejected")
        tokens = np.concatenate([self.fresh_tokens, self.offline_tokens], axis=1).astype(int).tolist()
        return {prompt: dict(zip(names, row, strict=True)) for prompt, row in zip(self.prompt_ids, tokens, strict=True)}


def intra_diversity(logps: FloatArray) -> dict[str, float]:
    """Eq. 12 on pairs [n, 2] of (chosen, rejected): the mean difference of their log-probs under the policy, and the
    standard deviation of the difference, which Figure 3 compares.

    >>> intra_diversity(np.array([[-10.0, -12.0], [-8.0, -8.0]]))
    {'mean': 1.0, 'std': 1.0}
    """
    differences = logps[:, 0] - logps[:, 1]
    return {"mean": float(differences.mean()), "std": float(differences.std())}


def mean_distance(logps: FloatArray) -> float:
    """The mean absolute difference of the log-probs of pairs [n, 2]: Eq. 12 for pairs without labels."""
    return float(np.abs(logps[:, 0] - logps[:, 1]).mean())


def distinctness(candidates: CandidateFacts) -> float:
    """The share of the four comparisons in which the policy gives its own response the higher probability, averaged
    over prompts (Table 8). The boundary score assumes 1."""
    higher = candidates.fresh_logps[:, :, None] > candidates.offline_logps[:, None, :]
    return float(higher.mean())


def quality(rows: Sequence[Row], side: str) -> float | None:
    """How often a fresh response is preferred to the offline one of this side (C.5: to the chosen one), a tie counting
    one half; None if nothing was compared."""
    points = [point(row["preference"]) for row in rows if row["offline"] == side and row["preference"] is not None]
    return float(np.mean(points)) if points else None


def longer_wins(rows: Sequence[Row], tokens: Mapping[int, Lengths]) -> Row:
    """The number of comparisons without a tie between responses of different length, and the share that the longer one
    won. If that is far from one half, the preference model may judge length rather than quality."""
    outcomes: list[bool] = []
    for row in rows:
        lengths = tokens[row["prompt_id"]]
        difference = lengths[row["fresh"]] - lengths[row["offline"]]
        won = 0.5 if row["preference"] is None else point(row["preference"])
        if won != 0.5 and difference:
            outcomes.append((difference > 0) == (won > 0.5))
    return {"comparisons": len(outcomes), "share": float(np.mean(outcomes)) if outcomes else None}


def describe(candidates: CandidateFacts, rows: Sequence[Row]) -> Row:
    """All diagnostics of a measurement with these comparisons, JSON-ready; empty if no prompt was measured."""
    if not candidates.prompt_ids:
        return {}
    return {
        "offline_diversity": intra_diversity(candidates.offline_logps),
        "offline_distance": mean_distance(candidates.offline_logps),
        "fresh_distance": mean_distance(candidates.fresh_logps),
        "quality_against_chosen": quality(rows, "chosen"),
        "quality_against_rejected": quality(rows, "rejected"),
        "distinctness": distinctness(candidates),
        "fresh_tokens": float(candidates.fresh_tokens.mean()),
        "chosen_tokens": float(candidates.offline_tokens[:, 0].mean()),
        "rejected_tokens": float(candidates.offline_tokens[:, 1].mean()),
        "longer_wins": longer_wins(rows, candidates.lengths),
    }


def read_candidates(rows: Sequence[Row]) -> CandidateFacts:
    """Builds the facts from the stored rows of both sources."""
    sides = {source: [row for row in rows if row["source"] == source] for source in ("online", "offline")}

    def columns(source: str, *names: str) -> FloatArray:
        return np.array([[row[name] for name in names] for row in sides[source]], dtype=np.float64).reshape(-1, 2)

    return CandidateFacts(
        prompt_ids=tuple(row["prompt_id"] for row in sides["offline"]),
        fresh_logps=columns("online", "first", "second"),
        offline_logps=columns("offline", "first", "second"),
        fresh_tokens=columns("online", "first_tokens", "second_tokens"),
        offline_tokens=columns("offline", "first_tokens", "second_tokens"),
    )
