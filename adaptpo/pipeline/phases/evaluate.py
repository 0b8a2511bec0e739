"""Evaluates a policy on held-out prompts: one response each, annotated and compared with the initial policy's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from statistics import fmean, pstdev

import torch

from adaptpo.annotation.base import Request
from adaptpo.choices.objectives import score
from adaptpo.data import PromptExample, iter_examples, iter_prompts, require_rows
from adaptpo.data.conventions import is_preference_row
from adaptpo.data.rendered import with_words_rendered
from adaptpo.data.tokenization import PROMPT_TOO_LONG, tokenize_pair, tokenize_prompt
from adaptpo.models.inference import PromptedPair, evaluate_pairs
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.generator import MISSING, generating
from adaptpo.pipeline.kept_reference import joined
from adaptpo.pipeline.phases.reference import keep_initial_reference
from adaptpo.run.directory import Summary
from adaptpo.run.files import read_rows, write_table
from adaptpo.run.schemas import EVALUATION_SCHEMA, dump_text, table
from adaptpo.seeds import seed_for
from adaptpo.types import Dropped, PreferenceExample, PreferencePair, Prompt, Response, Row

REFERENCE = "evaluation/reference"
Heldout = tuple[Prompt, PreferencePair | None]
"""A held-out prompt, and its offline pair if the data has one."""
NEVER_CAME = Response("", [], ended=False)
"""Placeholder for a response that the generation server did not return; it has no length and no reward."""


def heldout(context: Context) -> list[Heldout]:
    """The first usable prompts of the evaluation data; their ids count from 0, independently of the training data.

    Rows left out are recorded. Raises DataError if no prompt is left.
    """
    kept: list[Heldout] = []
    dropped: list[Row] = []
    for example in with_words_rendered(held_out_examples(context), context.tokenizer):
        item = example if isinstance(example, Dropped) else tokenized(context, len(kept), example)
        if isinstance(item, Dropped):
            dropped.append({"row": item.row, "reason": item.reason})
        else:
            kept.append(item)
        if len(kept) == context.max_eval_prompts:
            break
    context.run.drop("eval_data", dropped)
    require_rows(len(kept), Counter(record["reason"] for record in dropped), "eval_data")
    return kept


def held_out_examples(context: Context) -> Iterator[PreferenceExample | PromptExample | Dropped]:
    rows = context.eval_rows or []
    if is_preference_row(next(iter(rows), {})):
        return iter_examples(rows, context.text_mode)
    return iter_prompts(rows, context.text_mode)


def tokenized(context: Context, number: int, example: PreferenceExample | PromptExample) -> Heldout | Dropped:
    limits = (context.config.max_prompt_length, context.config.completion_limit)
    if isinstance(example, PromptExample):
        ids = tokenize_prompt(context.tokenizer, example.prompt)
        if len(ids) > limits[0]:
            return Dropped(example.row, f"{PROMPT_TOO_LONG} ({limits[0]})")
        return Prompt(number, example.prompt, ids, example.columns), None
    result = tokenize_pair(example, context.tokenizer, *limits, stop_ids=context.stop_ids)
    if isinstance(result, str):
        return Dropped(example.row, result)
    prompt = Prompt(number, example.prompt, result.prompt_ids, example.columns)
    return prompt, PreferencePair(number, "offline", result.chosen, result.rejected)


def evaluate_policy(context: Context, stage: str, policy: str) -> Summary:
    """Samples, annotates and scores; writes the table to `evaluation/STAGE.parquet` and its means to the metrics."""
    items = heldout(context)
    if pairs := with_pairs(items):
        keep_initial_reference(context, REFERENCE, pairs)
    return context.ranks.on_first(partial(tabulate, context, stage, policy, items))


def with_pairs(items: Sequence[Heldout]) -> list[PromptedPair]:
    return [(prompt, pair) for prompt, pair in items if pair is not None]


def tabulate(context: Context, stage: str, policy: str, items: Sequence[Heldout]) -> Summary:
    prompts = [prompt for prompt, _ in items]
    seeds = [seed_for(context.config.seed, "evaluate", prompt.id) for prompt in prompts]
    with generating(context, policy, f"evaluate/{stage}") as generator:
        responses = [next(iter(several), NEVER_CAME) for several in generator.generate(prompts, 1, seeds)]
    missing = [prompt.id for prompt, response in zip(prompts, responses, strict=True) if response is NEVER_CAME]
    context.run.drop(f"evaluate/{stage}", [{"prompt_id": id_, "missing": 1, "reason": MISSING} for id_ in missing])
    margins = offline_margins(context, policy, with_pairs(items))
    found = held_out_rewards(context, stage, list(zip(prompts, responses, strict=True)))
    rewards = [None if a is NEVER_CAME else reward for a, reward in zip(responses, found, strict=True)]
    rows = [
        evaluation_row(item, response, reward, margins.get(item[0].id))
        for item, response, reward in zip(items, responses, rewards, strict=True)
    ]
    write_table(context.run.path / "evaluation" / f"{stage}.parquet", table(rows, EVALUATION_SCHEMA))
    summary = summarize(rows, read_rows(context.run.path / "evaluation" / "initial.parquet"))
    phase = f"evaluate/{stage}"
    context.run.forget_after(phase, 0)
    context.run.log(phase, summary)
    return summary


def held_out_rewards(context: Context, stage: str, requests: Sequence[Request]) -> list[float | None]:
    """The reward of each response; with a relative annotator, minus that of the initial policy's response."""
    phase = f"annotate/{stage}"
    if not context.annotator().relative:
        return context.annotate(phase, requests)
    if stage == "initial":
        return [0.0] * len(requests)
    rows = read_rows(context.run.path / "evaluation" / "initial.parquet", ["response", "ended", "reward"])
    initial = [Response(row["response"], [], row["ended"]) for row in rows]
    opponents = [(prompt, response) for (prompt, _), response in zip(requests, initial, strict=True)]
    rewards = context.annotate(phase, [*requests, *opponents])
    both = zip(rewards[: len(requests)], rewards[len(requests) :], rows, strict=True)
    return [None if new is None or old is None or row["reward"] is None else new - old for new, old, row in both]


def offline_margins(context: Context, policy: str, items: Sequence[PromptedPair]) -> dict[int, float]:
    """Margins of the held-out offline pairs by prompt id, relative to the initial model's stored log-probs."""
    if not items:
        return {}
    if context.method.needs_reference:
        items = joined(context, REFERENCE, items)
    pad_id, args = context.tokenizer.pad_token_id, context.inference_arguments
    logps = evaluate_pairs(context.policy(policy), pad_id, items, args, context.rows)
    margins = context.method.objective.margin(logps)
    return {prompt.id: margin for (prompt, _), margin in zip(items, margins.tolist(), strict=True)}


def evaluation_row(item: Heldout, response: Response, reward: float | None, margin: float | None) -> Row:
    prompt, pair = item
    return {
        "prompt_id": prompt.id,
        "prompt": dump_text(prompt.text),
        "chosen": None if pair is None else dump_text(pair.chosen.text),
        "response": response.text,
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
    summary: Summary = {"length/mean": fmean(lengths), "ended": fmean(ended)}
    for name in ("reward", "score"):
        values = [row[name] for row in rows if row[name] is not None]
        if values:
            summary |= {f"{name}/mean": fmean(values), f"{name}/std": pstdev(values)}
    both = [(row["reward"], old["reward"]) for row, old in zip(rows, initial, strict=True)]
    wins = [(new > old) + (new == old) / 2 for new, old in both if new is not None and old is not None]
    return summary | ({"win_rate": fmean(wins)} if wins else {})
