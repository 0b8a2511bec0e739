"""Measures the alignment stage of the policy that starts an iteration."""

from __future__ import annotations

from adaptpo.pipeline.boundary_measure import Subject, measure, summary
from adaptpo.pipeline.context import Context
from adaptpo.run.directory import Summary
from adaptpo.run.files import write_table
from adaptpo.run.schemas import GROUPS_SCHEMA, table
from adaptpo.seeds import seed_for
from adaptpo.stage.groups import group_prompts, scores_by_prompt
from adaptpo.stage.tally import Tally


def measure_stage(context: Context, iteration: int) -> Summary:
    """Measures on prompts of the iteration's part; with `stage.groups`, also computes a score per group of prompts."""
    folder = context.stage_folder(iteration)
    subject = Subject(folder, context.start_policy(iteration), context.offline_ids(iteration))
    tally = measure(context, subject)
    if context.config.stage.groups > 1 and context.ranks.is_first:
        write_groups(context, subject, tally)
    found = summary(tally)
    context.run.log_anew(folder, {"stage/score": found["boundary_score"]}, iteration)
    return found


def write_groups(context: Context, subject: Subject, tally: Tally) -> None:
    prompts = list(context.prompts_of(subject.ids))
    group = group_prompts(prompts, context.config.stage.groups, seed_for(context.config.seed, subject.folder, "groups"))
    scores = scores_by_prompt(prompts, group, tally.scores)
    rows = [
        {"prompt_id": prompt.id, "group": number, "score": scores[prompt.id]}
        for prompt, number in zip(prompts, group.tolist(), strict=True)
    ]
    path = context.run.path / subject.folder / "groups.parquet"
    write_table(path, table(rows, GROUPS_SCHEMA))
    context.run.keep(path)
