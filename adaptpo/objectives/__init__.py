"""The objective axis. Adding one: the class in a file of this folder, and its line in `OBJECTIVES`."""

from adaptpo.objectives.base import Objective, PairLogps, score
from adaptpo.objectives.dpo import DPO
from adaptpo.objectives.simpo import SimPO

OBJECTIVES: dict[str, type[Objective]] = {"dpo": DPO, "simpo": SimPO}

__all__ = ["DPO", "OBJECTIVES", "Objective", "PairLogps", "SimPO", "score"]
