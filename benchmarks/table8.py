"""Planned minutes beside Table 8 of the MetaAPO paper: Llama-3.1-8B, UltraFeedback, K = 8, 8 x H100.

The paper states model, data set, K, batch size, limits, iterations and machine (sections 5.1, B.1, B.4, Table 3), and
neither the engine nor the length of responses: fresh ones are planned at two lengths. Sampling is scores, generation
and annotation; training is the pairs' reference log-probs and the steps (`adaptpo.plan.published`).
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from transformers import LlamaConfig

from adaptpo.config.recipe import load_recipe
from adaptpo.distributed.quiet import quiet_libraries
from adaptpo.methods.build import build_method
from adaptpo.plan.data import assumed_data
from adaptpo.plan.estimate import Plan, make_plan
from adaptpo.plan.job import AnnotatorFacts, Job
from adaptpo.plan.machines import read_machine
from adaptpo.plan.model import shape_of, shape_of_encoder
from adaptpo.plan.published import SAMPLING, TABLE_8, TRAINING, Published, minutes
from adaptpo.sandbox.tables.docs import row_line, write_section

RECIPE = Path(__file__).parent.parent / "recipes" / "llama-3.1-8b-metaapo-dpo.yaml"
LLAMA_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    tie_word_embeddings=False,
)
PAIRS = 64_000
"""B.1: "64K preference data"."""
PROMPT_TOKENS, RESPONSE_TOKENS = 170, 300
FRESH_TOKENS = (300, 600)
MACHINE = {"accelerator": "h100", "count": 8}
VLLM = ("generation.engine=vllm", "generation.data_parallel_size=8", "generation.concurrency=64")
UNBALANCED = {"rank_balance": 0.75}
REMEDIES: tuple[tuple[str, tuple[str, ...], int, dict[str, float]], ...] = (
    ("adaptpo's own sampler, annotator in float32", (), 4, UNBALANCED),
    ("one vLLM replica", ("generation.engine=vllm", "generation.data_parallel_size=1"), 4, UNBALANCED),
    ("data parallelism: `data_parallel_size: 8`", VLLM, 4, UNBALANCED),
    ("annotator in bfloat16", VLLM, 2, UNBALANCED),
    ("balanced ranks: `rank_balance: 0.99`", VLLM, 2, {}),
    ("varlen attention: `training_utilization: 0.4`", VLLM, 2, {"training_utilization": 0.4}),
)
"""Each row: its name, the recipe's keys, bytes of the annotator's numbers, and keys of the machine."""
TITLES = (
    "method",
    "fresh tokens",
    "sampling, planned",
    "paper",
    "ratio",
    "training, planned",
    "paper",
    "ratio",
    "overall, planned",
    "paper",
    "ratio",
    "annotations, planned",
    "paper",
)


def planned(
    method: str,
    fresh: float,
    keys: Sequence[str] = VLLM,
    annotator: int = 2,
    shares: Mapping[str, float] = MappingProxyType({}),
) -> Plan:
    recipe = load_recipe(RECIPE, [f"method={method}", *keys])
    job = Job(
        config=recipe,
        method=build_method(recipe),
        shape=shape_of(LLAMA_8B),
        data=assumed_data(PAIRS, PROMPT_TOKENS, RESPONSE_TOKENS),
        fresh=fresh,
        annotator=AnnotatorFacts(shape_of_encoder(LLAMA_8B), number_bytes=annotator),
        weight_bytes=4,
        number_bytes=2,
    )
    return make_plan(job, read_machine(json.dumps({**MACHINE, **shares})))


PARTS = {
    "reference": ("reference",),
    "score": ("score",),
    "generate": ("generate",),
    "annotate": ("annotate",),
    "pair reference": ("pair reference",),
    "train": ("train",),
    "together": (*SAMPLING, *TRAINING),
    "warm-up besides": ("warmup",),
}
"""Columns of the table of remedies, by phases."""


def remedies() -> list[str]:
    """Minutes of MetaAPO's phases with each remedy added to those before, and the arithmetic of the last row."""
    lines = [row_line(("with", *PARTS)), "|" + "---|" * (1 + len(PARTS))]
    for name, keys, annotator, shares in REMEDIES:
        plan = planned("metaapo", 300, keys, annotator, shares)
        parts = (f"{minutes(plan.costs, phases):.0f}" for phases in PARTS.values())
        lines.append(row_line((name, *parts)))
    steps = [
        f"- {cost.name}: {'; '.join(Counter(cost.formulas))}: {cost.arithmetic} = {cost.seconds:,.0f} s"
        for cost in plan.costs
    ]
    return [
        *lines,
        "",
        "The terms of the last row. Terms from `score` on are those of one of the three iterations:",
        "",
        *steps,
    ]


def cells(row: Published, fresh: float) -> list[str]:
    plan = planned(row.method, fresh)
    sampling, training = minutes(plan.costs, SAMPLING), minutes(plan.costs, TRAINING)
    annotated = 100 * plan.total("annotations") / (8 * PAIRS)
    known = ((sampling, row.sampling), (training, row.training), (sampling + training, row.overall))
    beside = [text for ours, paper in known for text in against(ours, paper)]
    return [row.name, f"{fresh:g}", *beside, f"{annotated:.0f} %", f"{row.annotated:g} %"]


def against(ours: float, paper: float | None) -> tuple[str, str, str]:
    return f"{ours:.0f}", "-" if paper is None else f"{paper:g}", "-" if paper is None else f"{ours / paper:.2f}"


def implied() -> list[str]:
    """What the paper's minutes say about its machine, if lengths are as assumed."""
    lines = []
    for fresh in FRESH_TOKENS:
        plan = planned("online_dpo", fresh)
        operations = sum(cost.operations for cost in plan.costs if cost.name in TRAINING)
        peak = plan.machine.tflops * 1e12 * plan.machine.count
        rate = 8 * PAIRS * fresh / (337 * 60 * plan.machine.count)
        lines.append(
            f"- At {fresh} fresh tokens the paper's Online DPO trains at {operations / (58 * 60 * peak):.0%} of the "
            f"peak and samples, with scoring, {rate:,.0f} tokens a second and accelerator."
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", metavar="FILE.md", type=Path, help="write the section of this Markdown file")
    options = parser.parse_args()
    quiet_libraries()
    lines = [row_line(TITLES), "|" + "---|" * len(TITLES)]
    lines += [row_line(cells(row, fresh)) for row in TABLE_8 for fresh in FRESH_TOKENS]
    section = "\n".join(["Minutes; ratio is planned over the paper's.", "", *lines, "", *implied()])
    steps = "\n".join(remedies())
    print(section, steps, sep="\n\n")
    if options.docs:
        write_section(options.docs, "table8", section)
        write_section(options.docs, "remedies", steps)


if __name__ == "__main__":
    main()
