"""What three of a method's four choices share: selection, pairing and weighting.

Each of them also has `at(now)`: the choice as it is in an iteration, for those that change over a run.
"""

from __future__ import annotations

from adaptpo.choices.learners.base import Learner


class Choice:
    """By default without anything to measure and without anything that learns."""

    def needs_stage(self, iteration: int) -> bool:
        """Whether the alignment stage is measured before this iteration; `at` then finds it in `now.stage`."""
        return False

    def learners(self) -> tuple[Learner, ...]:
        return ()
