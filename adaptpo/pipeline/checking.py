"""What `adaptpo check` runs: all that a run does before it spends anything."""

from __future__ import annotations

from adaptpo.pipeline.context import Context
from adaptpo.pipeline.phases.check import check_model
from adaptpo.pipeline.phases.data import prepare_data
from adaptpo.pipeline.phases.train import refuse_unreachable_head
from adaptpo.pipeline.preflight import doubts_of, refuse_impossible, refuse_unfit_data
from adaptpo.run.directory import Summary


def check_before_spending(context: Context) -> tuple[Summary, list[str]]:
    """Reads and tokenizes the data, probes model and reward, and compares log-probs with those of separate rows.

    Returns the summary of the data and what gives reason to doubt the run. Raises what a run would raise.
    """
    refuse_impossible(context)
    context.method.reset(context.config.seed)
    summary = context.run.phase("data", lambda: prepare_data(context))
    refuse_unfit_data(context)
    context.run.phase("check", lambda: check_model(context))
    refuse_unreachable_head(context)
    return summary, doubts_of(context)
