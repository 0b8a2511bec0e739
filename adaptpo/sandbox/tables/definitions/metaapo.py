"""The tables on MetaAPO and the methods it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from adaptpo.sandbox.settings import TRUE_REWARD
from adaptpo.sandbox.tables.papers import MetaAPO
from adaptpo.sandbox.tables.row import Row
from adaptpo.sandbox.tables.table import Table

# At the world's learning rate SimPO, which has no reference, fell from 0.57 to 0.12 and MetaAPO-SimPO to 0.36.
SLOWER = "training.learning_rate=2.0e-5"
SIMPO = ("method={name: simpo, objective: {name: simpo}}", SLOWER)
METAAPO_SIMPO = ("method={name: metaapo_simpo, objective: {name: simpo}}", SLOWER, "warmup_epochs=0")
SLOW_SIMPO = "Rows with the SimPO objective train with a tenth of the others' learning rate."
EQUAL_STEPS = (
    "Every iteration has as many optimizer steps as one epoch over all its prompts: rows that train on fewer prompts "
    "see them more often."
)
BETAS = (0.3, 1.0, 3.0)
FEW = "generation.num_generations=2"
WEAKER = {"reward_flipped": 0.3}
NOISE = (0.0, 0.1, 0.2, 0.4)

# One batch of responses per iteration: 125 prompts and 1000 responses of a world of 3000, near the 1024 of the paper's
# B.3. A schedule that restarts with each of so many iterations would mostly warm up.
PPO = (
    "method.name=ppo",
    "warmup_epochs=0",
    "num_iterations=24",
    "training.lr_scheduler_type=constant",
    "training.lr_scheduler_kwargs=null",
    "training.warmup_steps=0",
    "training.learning_rate=1.0e-4",
)
GRPO = ("method.name=grpo", "warmup_epochs=0")
RLOO = ("method.name=rloo", "warmup_epochs=0")


def own_objective(method: str, objective: str | None = None) -> tuple[str, ...]:
    """A method with its own objective, at the world's beta."""
    return (f"method={{name: {method}, objective: {{name: {objective or method}, beta: 0.3}}}}",)


def equally_long(*rows: Row) -> tuple[Row, ...]:
    """The rows with as many optimizer steps as one epoch over all prompts takes."""
    return tuple(row if row.epochs is not None else replace(row, epochs=1.0) for row in rows)


def at_random(share: float) -> tuple[str, ...]:
    """Online DPO on a random share of the prompts."""
    return ("method.name=online_dpo", f"method.selection={{name: random, share: {share}}}")


PAIR_ROWS = equally_long(
    Row("DPO", ("method.name=dpo",), paper=(MetaAPO("1", 18.15, 25.20),)),
    Row("IPO", own_objective("ipo"), paper=(MetaAPO("1", 13.11, 23.50),)),
    Row("KTO", own_objective("kto"), paper=(MetaAPO("1", 20.28, 29.19),)),
    Row("SimPO", SIMPO, paper=(MetaAPO("1", 37.31, 38.20),)),
    Row("DPO-Shift", own_objective("dpo_shift"), paper=(MetaAPO("1", 19.33, 19.39),)),
    Row("ORPO", ("method={name: orpo, objective: {name: orpo}}",)),
    Row("Selective DPO", ("method.name=selective_dpo", "warmup_epochs=2"), paper=(MetaAPO("1", 21.35, 20.67),)),
    Row("FocalPO", ("method.name=focalpo",)),
    Row("ADPO", ("method.name=adpo",), paper=(MetaAPO("1", 19.33, 17.26),)),
    Row("Online DPO", ("method.name=online_dpo",), paper=(MetaAPO("1", 43.75, 39.98),)),
    Row("Online DPO on 56 % of the prompts", at_random(0.56)),
    Row("Iterative DPO", ("method.name=iterative_dpo",)),
    Row("SELM", ("method.name=selm",), paper=(MetaAPO("1", 43.56, 40.14),)),
    Row("BeeS", ("method.name=bees", "warmup_epochs=4"), paper=(MetaAPO("1", 41.42, 37.45),)),
    Row("MAP", ("method.name=map", "warmup_epochs=3"), paper=(MetaAPO("1", 43.60, 38.97),)),
    Row("MetaAPO", ("method.name=metaapo",), paper=(MetaAPO("1", 47.48, 43.21, 58.4),)),
    Row("MetaAPO-SimPO", METAAPO_SIMPO, paper=(MetaAPO("5", 49.11, 50.56),), epochs=2.0),
)
OWN_ROWS = equally_long(
    Row("pool KTO (ours)", (*own_objective("pool_kto", "kto"), FEW)),
    Row("MetaAPO on all prompts, 4 responses", ("method.name=metaapo_all", "generation.num_generations=4")),
)
ROLLOUT_ROWS = (
    Row("PPO", PPO, paper=(MetaAPO("1", 45.33, 40.49),)),
    Row("GRPO", GRPO),
    Row("RLOO", RLOO),
)
METHOD_ROWS = (*PAIR_ROWS, *ROLLOUT_ROWS, *OWN_ROWS)
STRONGEST = ("Online DPO", "SELM", "MetaAPO")
SENTENCES = ("method.name=metaapo_semantic", "method.encoder=sentence-transformers/all-MiniLM-L6-v2")

ABLATION_ROWS = equally_long(
    Row(
        "MetaAPO", ("method.name=metaapo",), paper=(MetaAPO("2", 47.48, 43.21, 58.4), MetaAPO("7", 50.19, 50.37, 59.4))
    ),
    Row("random sampling", ("method.name=metaapo_random",), paper=(MetaAPO("2", 42.61, 38.53, 50.0),)),
    Row("threshold sampling", ("method.name=metaapo_threshold",), paper=(MetaAPO("2", 44.13, 42.92, 53.3),)),
    Row("all sampling", ("method.name=metaapo_all",), paper=(MetaAPO("2", 46.13, 42.04, 100.0),)),
    Row("uniform loss weighting", ("method.name=metaapo_uniform",), paper=(MetaAPO("2", 39.25, 37.70, 67.1),)),
    Row("semantic similarity", SENTENCES, paper=(MetaAPO("2", 47.83, 42.88, 59.4),)),
    Row("similarity by the policy", ("method.name=metaapo_semantic",)),
    Row("fixed meta-learner", ("method.name=metaapo_fixed",), paper=(MetaAPO("2", 45.01, 40.03, 60.6),)),
    Row("no meta-learner", ("method.name=metaapo_heuristic",), paper=(MetaAPO("2", 43.07, 40.48, 61.1),)),
    Row("all offline samples", ("method.name=metaapo_all_offline",), paper=(MetaAPO("7", 50.32, 38.40, 62.7),)),
    Row("five layers", ("method.name=metaapo_deep",), paper=(MetaAPO("7", 47.28, 45.62, 63.0),)),
    Row("several features", ("method.name=metaapo_multi_feature",), paper=(MetaAPO("7", 49.33, 49.17, 61.4),)),
    Row("gradient norm", ("method.name=metaapo_gradient_norm",)),
    Row("hidden state", ("method.name=metaapo_hidden_state",)),
    Row("scores without beta", ("method.name=metaapo_unscaled",)),
    Row("reference previous", ("method.name=metaapo_previous",)),
    Row("adaptive interval", ("method.name=metaapo_adaptive",)),
    Row("constant start", ("method.name=metaapo", "method.constant_fill=true")),
)

TIME_ROWS = equally_long(
    Row("Online DPO", ("method.name=online_dpo",), paper=(MetaAPO("8", None, None, 100, 337, 58, 395),)),
    Row("SELM", ("method.name=selm",), paper=(MetaAPO("8", None, None, 125, 363, 60, 423),)),
    Row("MetaAPO", ("method.name=metaapo",), paper=(MetaAPO("8", None, None, 58, 106, 59, 186),)),
)

World = Mapping[str, Any]
SELECTION_WORLDS: tuple[tuple[str, World], ...] = (
    ("all prompts alike", {}),
    ("half of the topics mastered", {"other_sft_qualities": (0.9, 1.0)}),
    ("40 % wrong labels in half of the topics", {"flipped": 0.0, "other_flipped": 0.4}),
    ("long lists hard", {"others": "many", "sft_qualities": (0.6, 0.9), "other_sft_qualities": (0.1, 0.3)}),
    ("half of the offline data near the policy", {"other_near": True}),
)


def selection_rows(group: str, world: World) -> tuple[Row, ...]:
    """MetaAPO and its control; if all prompts are alike, also methods with more annotations."""
    named = [("MetaAPO", "metaapo"), ("as many at random", "metaapo_same_rate")]
    named += [("all", "metaapo_all"), ("Online DPO", "online_dpo")] if not world else []
    return equally_long(*(Row(label, (f"method.name={method}",), world, group) for label, method in named))


def update_interval_row(steps: int) -> Row:
    paper = (MetaAPO("1", 47.48, 43.21, 58.4),) if steps == 8 else ()
    settings = ("method.name=metaapo", f"meta.update_interval={steps}")
    return Row(f"T_meta = {steps}", settings, paper=paper, epochs=1.0)


def generations_row(count: int) -> Row:
    paper = (MetaAPO("1", 47.48, 43.21, 58.4),) if count == 8 else ()
    settings = ("method.name=metaapo", f"generation.num_generations={count}")
    return Row(f"K = {count}", settings, paper=paper, epochs=1.0)


def noise_rows(share: float) -> tuple[Row, ...]:
    world, group = {"flipped": share}, f"{100 * share:.0f} % of the offline labels wrong"
    named = (("DPO", "dpo"), ("FocalPO", "focalpo"), ("Online DPO", "online_dpo"), ("MetaAPO", "metaapo"))
    rows = [Row(label, (f"method.name={method}",), world, group) for label, method in named]
    return equally_long(*rows, Row("KTO", own_objective("kto"), world, group))


Annotator = tuple[str, tuple[str, ...], dict[str, float], tuple[MetaAPO | None, ...]]
"""A name, settings, a world, and the paper's figures for the methods below."""

ANNOTATORS: tuple[Annotator, ...] = (
    ("the true reward", (f"reward={TRUE_REWARD}",), {}, (None, None, None)),
    ("the world's reward model", (), {}, (MetaAPO("1", 43.75, 39.98), MetaAPO("1", 47.48, 43.21, 58.4), None)),
    (
        "a weaker one: 30 % of its labels wrong",
        (),
        WEAKER,
        (MetaAPO("5", 48.11, 40.09), MetaAPO("5", 50.19, 50.37, 59.4), MetaAPO("5", 49.11, 50.56)),
    ),
)
BESIDE_ANNOTATORS = (
    ("DPO", ("method.name=dpo",), 1.0),
    ("pool KTO (ours)", (*own_objective("pool_kto", "kto"), FEW), 1.0),
)
"""Methods without figures in the paper: one that no annotator misleads, and ours."""
ANNOTATED_METHODS = (
    ("Online DPO", ("method.name=online_dpo",), 1.0),
    ("MetaAPO", ("method.name=metaapo",), 1.0),
    ("MetaAPO-SimPO", METAAPO_SIMPO, 2.0),
)
REWARD_ROWS = tuple(
    Row(label, (*settings, *reward), world, group, (figure,) if figure else (), epochs=epochs)
    for group, reward, world, figures in ANNOTATORS
    for (label, settings, epochs), figure in (
        *((method, None) for method in BESIDE_ANNOTATORS),
        *zip(ANNOTATED_METHODS, figures, strict=True),
    )
)


def beta_rows(beta: float) -> tuple[Row, ...]:
    """Methods with as strong a hold by the reference; 0.3 is the world's own."""
    group = f"beta {beta:g}"
    changed = () if beta == BETAS[0] else (f"method.objective={{name: dpo, beta: {beta:g}}}",)
    kto = f"objective: {{name: kto, beta: {beta:g}}}"
    by_dpo = (("DPO", "dpo"), ("Online DPO", "online_dpo"), ("MetaAPO", "metaapo"))
    return (
        *(Row(label, (f"method.name={name}", *changed), group=group, epochs=1.0) for label, name in by_dpo),
        Row("Online DPO with KTO", (f"method={{name: online_dpo, {kto}}}",), group=group, epochs=1.0),
        Row("pool KTO (ours)", (f"method={{name: pool_kto, {kto}}}", FEW), group=group, epochs=1.0),
    )


TABLES: dict[str, Table] = {
    "methods": Table(
        "Methods (the paper's Table 1)",
        METHOD_ROWS,
        "Online DPO",
        f"{EQUAL_STEPS} BeeS, MAP and Selective DPO train on their share of the pairs in more epochs, also in the "
        "warm-up. PPO, GRPO and RLOO have as many annotated responses as Online DPO, one batch of responses a step, "
        "and no warm-up. The paper's annotation ratio of MetaAPO is from its Table 2; its MetaAPO-SimPO used another "
        f"reward model. {SLOW_SIMPO}",
    ),
    "own": Table(
        "A method of ours against the strongest others",
        (*OWN_ROWS, *(row for row in PAIR_ROWS if row.label in STRONGEST)),
        "pool KTO (ours)",
        f"{EQUAL_STEPS} The method was chosen on the worlds of seeds 0 and 1.",
    ),
    "beta": Table(
        "How strongly the reference holds",
        tuple(row for beta in BETAS for row in beta_rows(beta)),
        "Online DPO",
        f"{EQUAL_STEPS} The other tables have a beta of 0.3.",
    ),
    "ablations": Table(
        "MetaAPO without its parts (the paper's Tables 2 and 7)",
        ABLATION_ROWS,
        "MetaAPO",
        f"{EQUAL_STEPS} The paper's Tables 2 and 7 use different reward models. The fixed meta-learner is the initial "
        "one, not a trained one. Similarity is that of all-MiniLM-L6-v2 (the paper's: Qwen3-Embedding-0.6B), or of the "
        "initial policy's hidden states.",
    ),
    "time": Table(
        "Time (the paper's Table 8)",
        TIME_ROWS,
        "Online DPO",
        f"{EQUAL_STEPS} The paper's figures are minutes on 8 GPUs.",
    ),
    "update-interval": Table(
        "Steps between updates of the meta-learner (the paper's Figure 3, left)",
        tuple(update_interval_row(steps) for steps in (1, 2, 4, 8, 16)),
        "T_meta = 8",
        "The paper draws the other settings without printing numbers.",
    ),
    "num-generations": Table(
        "Responses per prompt (the paper's Figure 4, left)",
        tuple(generations_row(count) for count in (4, 8, 12, 16)),
        "K = 8",
        "The paper draws the other settings without printing numbers.",
    ),
    "reward-models": Table(
        "Annotators of different quality (compare the paper's Table 5)",
        REWARD_ROWS,
        "Online DPO",
        f"The paper's second reward model (Table 5) is a different one, not a weaker one. {SLOW_SIMPO}",
    ),
    "noise": Table(
        "Wrong labels in the offline data", tuple(row for share in NOISE for row in noise_rows(share)), "Online DPO"
    ),
    "selection": Table(
        "Which prompts to generate for",
        tuple(row for group, world in SELECTION_WORLDS for row in selection_rows(group, world)),
        "as many at random",
    ),
}
