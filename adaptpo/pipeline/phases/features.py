"""Features of the offline pairs for a method's learners: computed in shards, stored and read back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptpo.choices.learners.pair_features import PairFeature, PairStates, standardize
from adaptpo.errors import ModelError
from adaptpo.models.hidden_states import encoder_states, policy_states
from adaptpo.models.inference import PromptedPair
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.kept_reference import with_reference
from adaptpo.run.directory import Summary
from adaptpo.run.lazy_sequence import as_array, matched
from adaptpo.run.schemas import FEATURES_SCHEMA, table


def feature_folder(context: Context, feature: PairFeature, iteration: int) -> str:
    """The folder of a feature; features that follow the policy have a separate one in every iteration."""
    return f"{context.folder(iteration)}/features/{feature.name}" if feature.follows_policy else kept_folder(feature)


def kept_folder(feature: PairFeature) -> str:
    return f"features/{feature.name}"


def keep_feature(context: Context, feature: PairFeature) -> Summary:
    """Computes a feature that stays the same throughout the run, for all offline pairs."""
    return compute(context, feature, kept_folder(feature), context.initial, context.offline())


def compute_feature(context: Context, feature: PairFeature, iteration: int) -> Summary:
    """Computes a feature under the policy that starts the iteration, for the offline pairs of this part."""
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
            f"the feature {feature.name} needs a model whose logits are its head's output, but those of "
            f"{context.initial} are not; use a method without this feature"
        )
    pad_id, objective = context.tokenizer.pad_token_id, context.method.objective
    return policy_states(context.policy(policy), pad_id, shard, args, context.rows, objective)


def read_features(context: Context, iteration: int) -> dict[str, Tensor]:
    """The values [n, width] of each feature by name, in the order of `context.offline(iteration)`."""
    ids = as_array(context.offline_ids(iteration))
    return {feature.name: values_of(context, feature, iteration, ids) for feature in context.method.features()}


def values_of(context: Context, feature: PairFeature, iteration: int, ids: NDArray[np.int64]) -> Tensor:
    """The values of a feature for n prompts, [n, width]."""
    kept = np.zeros((len(context.offline_rows), feature.width), dtype=np.float32)
    for row in context.run.read_shards(feature_folder(context, feature, iteration), ["prompt_id", "values"]):
        kept[row["prompt_id"]] = row["values"]
    values = torch.from_numpy(kept[ids])
    return standardize(values) if feature.standardized and len(ids) else values


Features = tuple[int, dict[str, list[float]]]
"""The id of a prompt, and the features of its offline pair by name."""


def features_of_prompts(context: Context, iteration: int) -> Iterator[Features]:
    """Yields the features of each prompt, in the order of `context.prompt_ids(iteration)`: zeros for one without an
    offline pair, whose weight depends on none."""
    columns = read_features(context, iteration)
    places = enumerate(context.offline_ids(iteration))
    prompts = context.prompt_ids(iteration) if columns else ()
    for id_, place in matched(prompts, places, lambda prompt, place: bool(prompt == place[1])):
        rows = {name: values[place[0]] if place else torch.zeros(values.shape[1]) for name, values in columns.items()}
        yield int(id_), {name: row.tolist() for name, row in rows.items()}
