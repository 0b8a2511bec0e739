"""The objective axis. To add one, write its class in a file of this folder and list it in `OBJECTIVES`."""

from adaptpo.choices.objectives.base import Objective, score
from adaptpo.choices.objectives.dpo import DPO
from adaptpo.choices.objectives.dpo_shift import DPOShift
from adaptpo.choices.objectives.ipo import IPO
from adaptpo.choices.objectives.kto import KTO
from adaptpo.choices.objectives.optimistic_dpo import OptimisticDPO
from adaptpo.choices.objectives.orpo import ORPO
from adaptpo.choices.objectives.simpo import SimPO
from adaptpo.choices.objectives.slic_hf import Hinge, SLiCHF
from adaptpo.types import PairLogps

OBJECTIVES: dict[str, type[Objective]] = {
    "dpo": DPO,
    "dpo_shift": DPOShift,
    "hinge": Hinge,
    "ipo": IPO,
    "kto": KTO,
    "optimistic_dpo": OptimisticDPO,
    "orpo": ORPO,
    "simpo": SimPO,
    "slic_hf": SLiCHF,
}

__all__ = [
    "DPO",
    "IPO",
    "KTO",
    "OBJECTIVES",
    "ORPO",
    "DPOShift",
    "Hinge",
    "Objective",
    "OptimisticDPO",
    "PairLogps",
    "SLiCHF",
    "SimPO",
    "score",
]
