"""The objective axis. To add one, write its class in a file of this folder and list it in `OBJECTIVES`."""

from adaptpo.choices.objectives.alphapo import AlphaPO
from adaptpo.choices.objectives.apo import APODown, APOZero
from adaptpo.choices.objectives.base import Objective, score
from adaptpo.choices.objectives.bco import BCOPair
from adaptpo.choices.objectives.cpo import CPO
from adaptpo.choices.objectives.discopop import DiscoPOP
from adaptpo.choices.objectives.dpo import DPO
from adaptpo.choices.objectives.dpo_shift import DPOShift
from adaptpo.choices.objectives.exo import EXOPair
from adaptpo.choices.objectives.ipo import IPO
from adaptpo.choices.objectives.kto import KTO
from adaptpo.choices.objectives.log_ratio import DivergenceObjective, LogRatioObjective
from adaptpo.choices.objectives.nca import NCAPair
from adaptpo.choices.objectives.optimistic_dpo import OptimisticDPO
from adaptpo.choices.objectives.orpo import ORPO
from adaptpo.choices.objectives.robust import RobustDPO
from adaptpo.choices.objectives.sft import SFT
from adaptpo.choices.objectives.sigmoid_norm import SigmoidNorm
from adaptpo.choices.objectives.simpo import SimPO
from adaptpo.choices.objectives.slic_hf import Hinge, SLiCHF
from adaptpo.choices.objectives.sppo import SPPOHard
from adaptpo.choices.objectives.weighted_sum import WeightedSum
from adaptpo.types import PairLogps

OBJECTIVES: dict[str, type[Objective]] = {
    "alphapo": AlphaPO,
    "apo_down": APODown,
    "apo_zero": APOZero,
    "bco_pair": BCOPair,
    "cpo": CPO,
    "discopop": DiscoPOP,
    "dpo": DPO,
    "dpo_shift": DPOShift,
    "exo_pair": EXOPair,
    "hinge": Hinge,
    "ipo": IPO,
    "kto": KTO,
    "nca_pair": NCAPair,
    "optimistic_dpo": OptimisticDPO,
    "orpo": ORPO,
    "robust": RobustDPO,
    "sft": SFT,
    "sigmoid_norm": SigmoidNorm,
    "simpo": SimPO,
    "slic_hf": SLiCHF,
    "sppo_hard": SPPOHard,
}

__all__ = [
    "CPO",
    "DPO",
    "IPO",
    "KTO",
    "OBJECTIVES",
    "ORPO",
    "SFT",
    "APODown",
    "APOZero",
    "AlphaPO",
    "BCOPair",
    "DPOShift",
    "DiscoPOP",
    "DivergenceObjective",
    "EXOPair",
    "Hinge",
    "LogRatioObjective",
    "NCAPair",
    "Objective",
    "OptimisticDPO",
    "PairLogps",
    "RobustDPO",
    "SLiCHF",
    "SPPOHard",
    "SigmoidNorm",
    "SimPO",
    "WeightedSum",
    "score",
]
