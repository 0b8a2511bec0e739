"""`adaptpo sandbox study`: the table that compares methods on a real language model, at equal optimizer steps."""

from __future__ import annotations

from adaptpo.sandbox.instructions.world import model_name
from adaptpo.sandbox.tables.row import Row
from adaptpo.sandbox.tables.table import Table

PHASES = 3
"""Phases that train: the warm-up and two iterations, or three iterations. Each takes the steps of an epoch."""
FROM_SFT = ("warmup_epochs=0", f"num_iterations={PHASES}", "method.measured=true")
OBJECTIVE = "[{name: kto, beta: 0.1}, {name: sft}]"
POOL_KTO = (f"method={{name: pool_kto, objective: {OBJECTIVE}}}", "generation.num_generations=2")
REFERENCE = "Online DPO"
ROWS = (
    Row("DPO", ("method.name=dpo",)),
    Row("Online DPO", ("method.name=online_dpo",)),
    Row("MetaAPO", ("method.name=metaapo",)),
    Row("MetaAPO, all offline pairs kept", ("method.name=metaapo_all_offline",)),
    Row("MetaAPO, reference of each iteration", ("method.name=metaapo_previous",)),
    Row("Online DPO, half the annotations", ("method.name=online_dpo", "generation.num_generations=2")),
    Row("SELM", ("method.name=selm",)),
    Row("MetaPO", ("method.name=metapo",)),
    Row("pool KTO (ours)", POOL_KTO),
    Row("offline pairs from SFT", ("method.name=off_off", *FROM_SFT)),
    Row("own pairs from SFT", ("method.name=on_on", *FROM_SFT)),
)
"""What is compared. The last two start from the SFT policy and measure its alignment stage, to see which data it needs
and which it gains from."""
COLUMNS = ("judge", "difference", "reward", "tokens", "steps", "annotated", "answers", "boundary_score")
NOTE = (
    "Each phase takes the optimizer steps of an epoch over all prompts: the warm-up and two iterations, or three "
    "iterations. MetaPO's warm-up is shorter by the pairs that it holds out. The judge trains nothing; the reward is "
    "the grader's, which labels what all rows train on. Boundary score: share of comparisons that fresh responses of "
    "the policy before training win; below 0.5 it predicts that offline pairs gain more. The likelihood "
    "of the chosen response is added to every objective, also to pool KTO's, with weight 1. The meta-learner has an "
    "update after every fourth step, with a learning rate of 0.02."
)


def study(model: str) -> tuple[str, Table]:
    """The table on a model, and its name."""
    name = model_name(model)
    return f"study-{name}", Table(f"Methods on {name}", ROWS, REFERENCE, NOTE, COLUMNS)
