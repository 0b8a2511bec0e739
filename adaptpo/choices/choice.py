"""The common base of selection, pairing and weighting, three of a method's four choices.

Each of them also has `at(now)`, which returns the choice for an iteration if it changes over a run.
"""

from __future__ import annotations

from adaptpo.choices.described import Described
from adaptpo.choices.learners.base import Learner
from adaptpo.config.numbers import Ranged


class Choice(Described, Ranged):
    """By default, a choice needs no measurement and holds no learner."""

    def needs_stage(self, iteration: int) -> bool:
        """Whether the alignment stage is measured before this iteration; `at` then finds it in `now.stage`."""
        return False

    def learners(self) -> tuple[Learner, ...]:
        return ()
