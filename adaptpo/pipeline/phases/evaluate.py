"""Evaluates a policy on held-out prompts: one response each, annotated and compared with the initial policy's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, pstdev
from typing import NamedTuple

import pyarrow.parquet as pq
import torch

from adaptpo.annotation.base import Request
from adaptpo.choices.objectives import score
from adaptpo.data import require_rows
from adaptpo.errors import DataError
from adaptpo.models.inference import PromptedPair, as_matrix, evaluate_pairs, from_matrix
from adaptpo.pipeline.by_dataset import flat
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.generator import MISSING, generate_one_each
from adaptpo.pipeline.kept_reference import joined
from adaptpo.pipeline.phases.data import left_out_row
from adaptpo.pipeline.phases.reference import keep_initial_reference
from adaptpo.pipeline.reward_reading import RewardReading
from adaptpo.run.directory import Summary
from adaptpo.run.files import read_rows, write_table
from adaptpo.run.schemas import EVALUATION_SCHEMA, dump_text, table
from adaptpo.seeds import seed_for
from adaptpo.training.step import reward_values
from adaptpo.types import Dropped, PairLogps, PreferencePair, Prompt, Response, Row

NEVER_CAME = Response("", [], ended=False)
"""Placeholder for a response that the generation server did not return; it has no length and no reward."""


class Heldout(NamedTuple):
    """A held-out prompt, its offline pair if the data has one, and its data set if there are several."""

    prompt: Prompt
    pair: PreferencePair | None
    dataset: str | None


def evaluation_phase(stage: str) -> str:
    """The phase of a stage; `DATA/STAGE` is one on another data set than the run's, which its report leaves out."""
    return f"evaluate-on/{stage}" if "/" in stage else f"evaluate/{stage}"


def beside(stage: str, name: str) -> str:
    """Another stage on the same data set."""
    return f"{stage[: stage.rfind('/') + 1]}{name}"


def evaluation_file(context: Context, stage: str) -> Path:
    return context.run.path / "evaluation" / f"{stage}.parquet"


def reference_folder(stage: str) -> str:
    return f"evaluation/{beside(stage, 'reference')}"


def heldout(context: Context, stage: str) -> list[Heldout]:
    """The first usable prompts of the evaluation data; their ids count from 0, independently of the training data.

    Rows left out are recorded. Raises DataError if no prompt is left.
    """
    assert context.eval_data is not None
    kept: list[Heldout] = []
    dropped: list[Row] = []
    reward, reader = RewardReading.of(context), replace(context.reader, needed_numbers=())
    samples = context.eval_data.samples(context.config.seed)
    for dataset, example in reader.examples(samples, held_out=True):
        item = example if isinstance(example, Dropped) else reader.tokenized(len(kept), example, held_out=True)
        if not isinstance(item, Dropped) and (problem := reward.problem(item[0])):
            item = Dropped(example.row, problem)
        if isinstance(item, Dropped):
            dropped.append(left_out_row(item, dataset))
        else:
            kept.append(Heldout(*item, dataset))
        if len(kept) == context.max_eval_prompts:
            break
    context.run.drop(beside(stage, "eval_data"), dropped)
    require_rows(len(kept), Counter(record["reason"] for record in dropped), "eval_data")
    return kept


def evaluate_policy(context: Context, stage: str, policy: str) -> Summary:
    """Samples, annotates and scores, each rank its share; rank 0 writes the table to `evaluation/STAGE.parquet` and its
    means to the metrics.

    Raises DataError if the run has no reward and the held-out data no pairs.
    """
    items = heldout(context, stage)
    pairs = with_pairs(items)
    if pairs:
        keep_initial_reference(context, reference_folder(stage), pairs)
    elif context.reward is None:
        raise DataError("eval_data holds no pairs, and the run has no reward: set `reward`, or give held-out pairs")
    responses = [] if context.reward is None else sampled(context, stage, policy, items)
    logps = held_out_logps(context, stage, policy, pairs) if pairs else None
    if context.reward is None:
        assert logps is not None
        return context.ranks.on_first(partial(pairs_alone, context, stage, items, logps))
    rewards = held_out_rewards(context, stage, items, responses)
    return context.ranks.on_first(partial(tabulate, context, stage, items, responses, rewards, logps))


def pairs_alone(context: Context, stage: str, items: Sequence[Heldout], logps: PairLogps) -> Summary:
    """What can be measured without a reward: loss and implicit rewards of the held-out pairs."""
    by_dataset = {name: pair_metrics(context, own) for name, own in logps_by_dataset(items, logps)}
    return logged(context, stage, pair_metrics(context, logps), by_dataset)


def logged(context: Context, stage: str, summary: Summary, by_dataset: dict[str, Summary]) -> Summary:
    """The summary, written to the metrics in place of an earlier attempt's."""
    context.run.log_anew(evaluation_phase(stage), summary | flat(by_dataset))
    return summary | ({"datasets": by_dataset} if by_dataset else {})


def datasets_of(items: Sequence[Heldout]) -> list[str]:
    """The names of the data sets, if there are several."""
    return list(dict.fromkeys(item.dataset for item in items if item.dataset is not None))


def logps_by_dataset(items: Sequence[Heldout], logps: PairLogps) -> Iterator[tuple[str, PairLogps]]:
    """The log-probs of each data set's held-out pairs."""
    owners = [item.dataset for item in items if item.pair is not None]
    for name in datasets_of(items):
        if name in owners:
            yield name, logps.take(torch.tensor([number for number, owner in enumerate(owners) if owner == name]))


def pair_metrics(context: Context, logps: PairLogps) -> Summary:
    """TRL's numbers under TRL's names, as means over the held-out pairs."""
    objective = context.method.objective
    values = {"loss": objective.loss(logps), **reward_values(objective, logps)}
    return {f"eval_{name}": value.mean().item() for name, value in values.items()}


def with_pairs(items: Sequence[Heldout]) -> list[PromptedPair]:
    return [(item.prompt, item.pair) for item in items if item.pair is not None]


def sampled(context: Context, stage: str, policy: str, items: Sequence[Heldout]) -> list[Response]:
    """One response to each prompt, `NEVER_CAME` in place of a missing one."""
    prompts = [item.prompt for item in items]
    seeds = [seed_for(context.config.seed, "evaluate", prompt.id) for prompt in prompts]
    found = generate_one_each(context, policy, evaluation_phase(stage), prompts, seeds)
    return [next(iter(several), NEVER_CAME) for several in found]


def tabulate(
    context: Context,
    stage: str,
    items: Sequence[Heldout],
    responses: Sequence[Response],
    rewards: Sequence[float | None],
    logps: PairLogps | None,
) -> Summary:
    missing = [item.prompt.id for item, response in zip(items, responses, strict=True) if response is NEVER_CAME]
    context.run.drop(evaluation_phase(stage), [{"prompt_id": id_, "missing": 1, "reason": MISSING} for id_ in missing])
    margins = {} if logps is None else offline_margins(context, with_pairs(items), logps)
    rows = [
        evaluation_row(item, response, reward, margins.get(item.prompt.id))
        for item, response, reward in zip(items, responses, rewards, strict=True)
    ]
    write_table(evaluation_file(context, stage), table(rows, EVALUATION_SCHEMA))
    context.run.keep(evaluation_file(context, stage))
    initial = read_rows(context.run.checked(evaluation_file(context, beside(stage, "initial"))))
    summary = summarize(rows, initial) | ({} if logps is None else pair_metrics(context, logps))
    by_dataset = {name: summarize(*(of_dataset(some, name) for some in (rows, initial))) for name in datasets_of(items)}
    for name, own in () if logps is None else logps_by_dataset(items, logps):
        by_dataset[name] |= pair_metrics(context, own)
    return logged(context, stage, summary, by_dataset)


def of_dataset(rows: Sequence[Row], name: str) -> list[Row]:
    return [row for row in rows if row["dataset"] == name]


def held_out_rewards(
    context: Context, stage: str, items: Sequence[Heldout], responses: Sequence[Response]
) -> list[float | None]:
    """The reward of each response; with a relative annotator, minus that of the initial policy's response. A missing
    response has none."""
    prompts = [item.prompt for item in items]
    requests = list(zip(prompts, responses, strict=True))
    relative = context.annotator().relative
    if relative and stage == beside(stage, "initial"):
        found: list[float | None] = [0.0] * len(requests)
    else:
        opponents = initial_responses(context, stage, prompts) if relative else None
        found = context.ranks.gather_shares(own_rewards(context, stage, requests, opponents))
    return [None if answer is NEVER_CAME else reward for answer, reward in zip(responses, found, strict=True)]


Opponent = tuple[Request, bool]
"""The initial policy's response, and whether it has a reward."""


def initial_responses(context: Context, stage: str, prompts: Sequence[Prompt]) -> list[Opponent]:
    path = context.run.checked(evaluation_file(context, beside(stage, "initial")))
    wanted = ["response", "response_ids", "ended", "reward"]  # Earlier versions kept no ids.
    rows = read_rows(path, [name for name in wanted if name in pq.read_schema(path).names])
    initial = [(Response(row["response"], row.get("response_ids") or [], row["ended"]), row["reward"]) for row in rows]
    return [
        ((prompt, response), reward is not None) for prompt, (response, reward) in zip(prompts, initial, strict=True)
    ]


def own_rewards(
    context: Context, stage: str, requests: Sequence[Request], opponents: Sequence[Opponent] | None
) -> list[float | None]:
    """The rewards of this rank's share of the requests, minus those of their opponents."""
    phase, own = f"annotate/{stage}", list(context.ranks.share(requests))
    if opponents is None or not own:
        return context.annotate(phase, own) if own else []
    against = context.ranks.share(opponents)
    rewards = context.annotate(phase, [*own, *(request for request, _ in against)])
    both = zip(rewards[: len(own)], rewards[len(own) :], against, strict=True)
    return [None if new is None or old is None or not known else new - old for new, old, (_, known) in both]


def held_out_logps(context: Context, stage: str, policy: str, pairs: Sequence[PromptedPair]) -> PairLogps:
    """Log-probs of the held-out pairs, with the initial model's stored ones. Computed in the shards of those: rounding
    depends on the batch, and the initial policy's margins must be 0."""
    size = context.config.shard_size
    starts = context.ranks.share(range(0, len(pairs), size))
    own = [as_matrix(logps_of_shard(context, stage, policy, pairs[start : start + size], start)) for start in starts]
    return from_matrix(torch.cat(context.ranks.gather_shares(own)))


def logps_of_shard(context: Context, stage: str, policy: str, items: Sequence[PromptedPair], first: int) -> PairLogps:
    """Log-probs of held-out pairs, of which `first` is the number of the first one."""
    if context.method.needs_reference:
        items = joined(context, reference_folder(stage), items, range(first, first + len(items)))
    pad_id, args = context.tokenizer.pad_token_id, context.inference_arguments
    return evaluate_pairs(context.policy(policy), pad_id, items, args, context.rows)


def offline_margins(context: Context, items: Sequence[PromptedPair], logps: PairLogps) -> dict[int, float]:
    """Margins of the held-out pairs by prompt id."""
    margins = context.method.objective.margin(logps)
    return {prompt.id: margin for (prompt, _), margin in zip(items, margins.tolist(), strict=True)}


def evaluation_row(item: Heldout, response: Response, reward: float | None, margin: float | None) -> Row:
    prompt, pair = item.prompt, item.pair
    return {
        "prompt_id": prompt.id,
        "dataset": item.dataset,
        "prompt": dump_text(prompt.text),
        "chosen": None if pair is None else dump_text(pair.chosen.text),
        "response": response.text,
        "response_ids": response.ids,
        "length": None if response is NEVER_CAME else len(response.ids),
        "ended": response.ended,
        "reward": reward,
        "margin": margin,
        "score": None if margin is None else score(torch.tensor(margin)).item(),
    }


def summarize(rows: Sequence[Row], initial: Sequence[Row]) -> Summary:
    """Means over the held-out prompts; `win_rate` counts a tie as half a win."""
    answered = [row for row in rows if row["length"] is not None]
    lengths, ended = [row["length"] for row in answered], [row["ended"] for row in answered]
    summary: Summary = {"length/mean": fmean(lengths), "ended": fmean(ended)} if answered else {}
    for name in ("reward", "score"):
        values = [row[name] for row in rows if row[name] is not None]
        if values:
            summary |= {f"{name}/mean": fmean(values), f"{name}/std": pstdev(values)}
    both = [(row["reward"], old["reward"]) for row, old in zip(rows, initial, strict=True)]
    wins = [(new > old) + (new == old) / 2 for new, old in both if new is not None and old is not None]
    return summary | ({"win_rate": fmean(wins)} if wins else {})
