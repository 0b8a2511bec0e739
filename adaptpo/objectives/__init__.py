"""The objective axis. Adding one: the class in a file of this folder, and its line in `OBJECTIVES`."""

from adaptpo.objectives.base import Objective, PairLogps, score
from adaptpo.objectives.dpo import DPO
from adaptpo.objectives.dpo_shift import DPOShift
from adaptpo.objectives.ipo import IPO
from adaptpo.objectives.kto import KTO
from adaptpo.objectives.optimistic_dpo import OptimisticDPO
from adaptpo.objectives.orpo import ORPO
from adaptpo.objectives.simpo import SimPO
from adaptpo.objectives.slic_hf import Hinge, SLiCHF

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
