"""What a method's learners want to know about the offline pairs: computed in shards, kept, and read again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from adaptpo.errors import ModelError
from adaptpo.features import PairFeature, PairStates, standardize
from adaptpo.records import FEATURES_SCHEMA, table
from adaptpo.training.context import Context
from adaptpo.training.passes import PromptedPair
from adaptpo.training.phases.score import with_reference
from adaptpo.training.states import encoder_states, policy_states

Summary = dict[str, Any]


def feature_folder(context: Context, feature: PairFeature, iteration: int) -> str:
    """Where a feature lies: those that follow the policy have values of their own in every iteration."""
    return f"{context.folder(iteration)}/features/{feature.name}" if feature.follows_policy else kept_folder(feature)


def kept_folder(feature: PairFeature) -> str:
    return f"features/{feature.name}"


def keep_feature(context: Context, feature: PairFeature) -> Summary:
    """A feature that is the same all through the run, of all offline pairs."""
    return compute(context, feature, kept_folder(feature), context.initial, context.offline())


def compute_feature(context: Context, feature: PairFeature, iteration: int) -> Summary:
    """A feature under the policy that starts the iteration, of this part's offline pairs."""
    items = with_reference(context, "reference", context.offline(iteration))
    folder = feature_folder(context, feature, iteration)
    return compute(context, feature, folder, context.start_policy(iteration), items)


def compute(context: Context, feature: PairFeature, folder: str, policy: str, items: Sequence[PromptedPair]) -> Summary:
    def work(shard: Sequence[PromptedPair]) -> pa.Table:
        rows = [
            {"prompt_id": shard[index][0].id, "values": feature.values(pair).tolist(), "truncated": pair.truncated}
            for index, pair in pair_states(context, feature, policy, shard)
        ]
        return table(rows, FEATURES_SCHEMA)

    context.run.shards(folder, items, context.config.shard_size, work, context.shows)
    cut = sum(row["truncated"] for row in context.run.read_shards(folder, ["truncated"]))
    return {"pairs": len(items), "truncated": cut}


def pair_states(
    context: Context, feature: PairFeature, policy: str, shard: Sequence[PromptedPair]
) -> Iterator[tuple[int, PairStates]]:
    args = context.inference_arguments
    if feature.encoder is not None:
        model, tokenizer = context.encoder(feature.encoder)
        return encoder_states(model, tokenizer, shard, args.device)
    if feature.needs_head and not context.rows.chunked_head:
        raise ModelError(
            f"the feature {feature.name} needs a model whose logits are its head's output, and those of "
            f"{context.initial} are not; use a method without it"
        )
    pad_id, objective = context.tokenizer.pad_token_id, context.method.objective
    return policy_states(context.policy(policy), pad_id, shard, args, context.rows, objective)


def read_features(context: Context, iteration: int) -> dict[str, Tensor]:
    """Each feature's values [n, width] by its name, in the order of `context.offline(iteration)`."""
    prompts = [prompt.id for prompt, _ in context.offline(iteration)]
    found = {}
    for feature in context.method.features():
        rows = context.run.read_shards(feature_folder(context, feature, iteration), ["prompt_id", "values"])
        kept = {row["prompt_id"]: row["values"] for row in rows}
        values = torch.tensor([kept[i] for i in prompts], dtype=torch.float32).view(len(prompts), feature.width)
        found[feature.name] = standardize(values) if feature.standardized and prompts else values
    return found


def features_of_prompts(context: Context, iteration: int) -> dict[int, dict[str, list[float]]]:
    """The same by prompt id."""
    columns = {name: values.tolist() for name, values in read_features(context, iteration).items()}
    prompts = [prompt.id for prompt, _ in context.offline(iteration)]
    return {i: {name: values[place] for name, values in columns.items()} for place, i in enumerate(prompts)}
