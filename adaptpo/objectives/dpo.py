"""Direct preference optimization (Rafailov et al., 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from adaptpo.objectives.base import Objective, PairLogps


@dataclass(frozen=True)
class DPO(Objective):
    """`-log sigmoid(beta * [(logp_w - ref_w) - (logp_l - ref_l)])`, Eq. 3 of the MetaAPO paper.

    With s = sigmoid(margin), d loss / d logp_w = -beta * (1 - s) and d loss / d logp_l = +beta * (1 - s).
    """

    beta: float = 0.1
    needs_reference: ClassVar[bool] = True

    def rewards(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        if logps.reference_chosen is None or logps.reference_rejected is None:
            raise ValueError("DPO needs the reference's log-probs of both responses; PairLogps holds none")
        return (
            self.beta * (logps.chosen - logps.reference_chosen),
            self.beta * (logps.rejected - logps.reference_rejected),
        )
