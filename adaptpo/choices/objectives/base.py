"""The interface of objectives: a pair's margin, its score `log sigmoid(margin)`, and its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from adaptpo.choices.described import Described
from adaptpo.choices.learners.base import Learner
from adaptpo.config.numbers import Positive, Ranged
from adaptpo.types import PairLogps


def log_ratios(logps: PairLogps) -> tuple[Tensor, Tensor]:
    """`log(policy / reference)` of the chosen and of the rejected responses, each [n]."""
    if logps.reference_chosen is None or logps.reference_rejected is None:
        raise ValueError("this objective needs the reference's log-probs of both responses; PairLogps holds none")
    return logps.chosen - logps.reference_chosen, logps.rejected - logps.reference_rejected


def presence(logps: PairLogps) -> tuple[Tensor, Tensor]:
    """1 where there is a chosen, and a rejected, response, and 0 where an unpaired row has none, each [n]."""
    return (logps.chosen_tokens > 0).to(logps.chosen.dtype), (logps.rejected_tokens > 0).to(logps.rejected.dtype)


class Objective(Described, Ranged, ABC):
    """One of the four choices: how well the policy agrees with a pair, and the loss if it does not.

    `beta` is the scale of log-probs in the margin, 1 if the objective has none. With `needs_sample`, the pairing must
    keep a fresh response beside each pair. With `takes_unpaired`, a pair may lack one response: its log-probs and its
    number of tokens are 0, and it adds nothing to the loss.
    """

    beta: Positive = 1.0
    needs_reference: ClassVar[bool] = False
    needs_sample: ClassVar[bool] = False
    takes_unpaired: ClassVar[bool] = False

    @property
    def needs_shared(self) -> bool:
        """Whether the loss depends on `PairLogps.shared`, not on the sums over whole responses alone."""
        return False

    @abstractmethod
    def rewards(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        """Implicit rewards of the chosen and of the rejected responses, each [n]."""

    def margin(self, logps: PairLogps) -> Tensor:
        """Implicit reward of chosen minus rejected, and minus a target margin if there is one, [n].

        A training step takes the loss on the device and the margin on the host: constants must follow `logps`.
        """
        chosen, rejected = self.rewards(logps)
        return chosen - rejected

    def loss(self, logps: PairLogps) -> Tensor:
        """The loss of each pair, [n]; `-log sigmoid(margin)` unless the objective defines another."""
        return -score(self.margin(logps))

    def at(self, progress: float) -> Objective:
        """The objective after this share of the run's training, for objectives that change during training."""
        return self

    def learners(self) -> tuple[Learner, ...]:
        return ()


def score(margin: Tensor) -> Tensor:
    """The preference score `log sigmoid(margin)` of MetaAPO's Eq. 4 (Eq. A.9 with SimPO's margin); same shape, <= 0.

    >>> import torch
    >>> score(torch.tensor([0.0, 2.0]))
    tensor([-0.6931, -0.1269])
    """
    return logsigmoid(margin)
