"""The tables on alignment stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptpo.sandbox.candidates import OTHER_POLICY, RELABELLED
from adaptpo.sandbox.tables.definitions.metaapo import EQUAL_STEPS
from adaptpo.sandbox.tables.row import Row
from adaptpo.sandbox.tables.stage_view import PC_OFF, PC_ON, StageView
from adaptpo.sandbox.tables.table import Table

LITTLE = {"sft_epochs": 0.5}
PC_OTHER = "PC of another policy"
SFT, LITTLE_SFT = "SFT", "little SFT"
AFTER_OFF, AFTER_ON = "SFT, then PC_off", "SFT, then PC_on"
# The paper's Table 7, and its two fresh responses per prompt; the data is used once, as a whole.
ONCE = (
    "num_iterations=1",
    "warmup_epochs=0",
    "generation.num_generations=2",
    "generation.temperature=0.7",
    "generation.top_p=0.9",
    "generation.top_k=50",
)
Settings = tuple[str, ...]
DPO: Settings = ()
GENTLE: Settings = ("training.learning_rate=5e-5",)
SLIC_HF: Settings = ("method.objective={name: slic_hf}",)
MODELS = "Llama-3 | Zephyr | Phi-2"
TABLE_3 = {
    SFT: "0.62 / 0.33 | 0.40 / 2.27 | 0.23 / ∞",
    AFTER_OFF: "0.66 / <0.01 | 0.66 / 0.24 | 0.25 / ∞",
    AFTER_ON: "0.69 / 0.22 | 0.58 / 1.56 | 0.23 / 1.13",
}
TABLE_5 = {
    SFT: "0.62 / 0.68 | 0.40 / 1.35 | 0.23 / ∞",
    AFTER_OFF: "0.66 / – | 0.65 / 0.38 | 0.40 / 1.43",
    AFTER_ON: "0.71 / 0.19 | 0.60 / 0.98 | 0.35 / 1.54",
}
BETAS = (0.3, 1.0, 3.0)
PAPERS_BETA = "method.objective={name: dpo, beta: 0.01}"
PAPERS_RATE = "training.learning_rate=5.0e-7"
SAMPLED = (
    "PC_on, the score and the true reward are of responses at temperature 0.7, top-p 0.9 and top-k 50, the paper's. "
)
STAGES_NOTE = (
    f"{SAMPLED}PC_off keeps the labels of the data, a tenth of them wrong; the world's reward model labels PC_on and "
    "the comparisons. The paper relabels PC_off with the model that labels PC_on. Little SFT is half an epoch, in a "
    "separate world whose reward model has learned from that policy's responses."
)


def duel(
    policy: str, objective: Settings, world: Mapping[str, Any] | None = None, start: Row | None = None
) -> tuple[Row, Row]:
    """Rows that train one policy on PC_off and on PC_on; the latter measures its stage first."""
    offline = ("method.name=off_off", *objective, *ONCE)
    online = ("method.name=on_on", "method.measured=true", *objective, *ONCE)
    return (
        Row(PC_OFF, offline, world or {}, policy, start=start),
        Row(PC_ON, online, world or {}, policy, start=start),
    )


def stage_rows(settings: Settings, apart: str = "") -> tuple[Row, ...]:
    """Rows of policies of four strengths; the last two are the second one after training. `apart` ends their names."""
    off, on = duel(SFT + apart, settings)
    return (
        *duel(LITTLE_SFT + apart, settings, LITTLE),
        *(off, on),
        *duel(AFTER_OFF + apart, settings, start=off),
        *duel(AFTER_ON + apart, settings, start=on),
    )


def candidate_rows() -> tuple[Row, ...]:
    """The SFT policy on three kinds of pairs, and the policy after PC_off on the same three (the paper's Table 2)."""
    first = candidates(SFT, None)
    return (*first, *candidates(AFTER_OFF, first[0]))


def candidates(policy: str, start: Row | None) -> tuple[Row, ...]:
    offline, online = duel(policy, (f"data.path={RELABELLED}",), start=start)
    other = Row(PC_OTHER, ("method.name=off_off", f"data.path={OTHER_POLICY}", *ONCE), {}, policy, start=start)
    return (offline, other, online)


def beta_rows(beta: float) -> tuple[Row, ...]:
    return stage_rows((f"method.objective={{name: dpo, beta: {beta:g}}}",), f", beta {beta:g}")


def method_rows(group: str, world: Mapping[str, Any]) -> tuple[Row, ...]:
    """Methods at equal steps: the one without a warm-up sees each prompt twice instead."""
    named: tuple[tuple[str, Settings], ...] = (
        ("Online DPO", ("method.name=online_dpo",)),
        ("MetaAPO", ("method.name=metaapo",)),
        ("two stages", ("method.name=two_stage",)),
        ("blend by stage", ("method.name=stage_blend",)),
        ("MetaAPO from the stage", ("method.name=metaapo_stage",)),
    )
    rows = (Row(label, settings, world, group, epochs=1.0) for label, settings in named)
    no_warmup = ("method.name=two_stage", "warmup_epochs=0")
    return (*rows, Row("two stages, no warm-up", no_warmup, world, group, epochs=2.0))


TABLES: dict[str, Table] = {
    "stages": Table(
        "Alignment stages (the alignment-stages paper's Table 3)",
        stage_rows(DPO),
        PC_OFF,
        STAGES_NOTE,
        view=StageView(MODELS, TABLE_3),
    ),
    "stages-slic": Table(
        "Alignment stages with SLiC-HF (the alignment-stages paper's Table 5)",
        stage_rows(SLIC_HF),
        PC_OFF,
        STAGES_NOTE,
        view=StageView(MODELS, TABLE_5),
    ),
    "stages-beta": Table(
        "Alignment stages at three strengths of the reference",
        tuple(row for beta in BETAS for row in beta_rows(beta)),
        PC_OFF,
        f"The sandbox's own beta is 0.3; the paper trains with 0.01 and a learning rate of 5e-7. {STAGES_NOTE}",
        view=StageView(MODELS),
    ),
    "stages-recipe": Table(
        "Alignment stages with the paper's settings",
        (*stage_rows((PAPERS_BETA,), ", beta 0.01"), *stage_rows((PAPERS_BETA, PAPERS_RATE), ", beta 0.01, rate 5e-7")),
        PC_OFF,
        "The paper's beta is 0.01 and its learning rate 5e-7, for models of 3 to 8B parameters; the sandbox's learning "
        f"rate is 2e-4. {STAGES_NOTE}",
        view=StageView(MODELS),
    ),
    "stages-relabelled": Table(
        "Alignment stages with PC_off labelled by the reward model",
        stage_rows((f"data.path={RELABELLED}",)),
        PC_OFF,
        f"{SAMPLED}The world's reward model labels PC_off, PC_on and the comparisons, as in the paper. Little SFT is "
        "half an epoch, in a separate world whose reward model has learned from that policy's responses.",
        view=StageView(MODELS, TABLE_3),
    ),
    "stages-candidates": Table(
        "Diversity and quality apart (the alignment-stages paper's Table 2)",
        candidate_rows(),
        PC_OFF,
        f"{SAMPLED}{PC_OTHER}: two responses by a better policy of another family (Qwen2, trained on the best writer's "
        "responses of quality 0.6 to 0.9), for the paper's PC_llama: good and alike, but off the policy's "
        "distribution. The world's reward model labels all pairs.",
        columns=("true_reward", "difference", "win_rate", "length_controlled", "words", "steps"),
    ),
    "stages-gentle": Table(
        "Alignment stages, with small steps",
        stage_rows(GENTLE),
        PC_OFF,
        "A quarter of the learning rate: at the full rate, an epoch of DPO on PC_on pushes both chosen and rejected "
        f"responses out of the policy. {STAGES_NOTE}",
        view=StageView(MODELS, TABLE_3),
    ),
    "stage-methods": Table(
        "Methods that act on the stage",
        (*method_rows(SFT, {}), *method_rows(LITTLE_SFT, LITTLE)),
        "Online DPO",
        f"{EQUAL_STEPS} A measurement's prompts count as annotated, in addition to those that a method then generates "
        "for; its time is only in the overall time. All methods use the world's sampling and 8 responses, and a "
        "warm-up of one epoch; without it, each iteration has two.",
    ),
}
