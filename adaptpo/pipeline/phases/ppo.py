"""PPO's phases of an iteration: the quantities its losses compare with, and the training of policy and critic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pyarrow as pa
import torch

from adaptpo.choices.policy_update import PPO
from adaptpo.models.collate import Batch
from adaptpo.models.logps import token_logps
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.phases.pair import read_candidates
from adaptpo.pipeline.phases.select import selected_ids
from adaptpo.pipeline.phases.train import (
    log_step,
    own_folder,
    phase_callbacks,
    prepared,
    recomputes_activations,
    tokens_before,
    train_phase,
)
from adaptpo.run.directory import Summary
from adaptpo.run.schemas import TOKENS_SCHEMA, table
from adaptpo.run.training_bar import TrainingBar
from adaptpo.training.actor_critic import ActorCritic
from adaptpo.training.ppo import PPOTokens
from adaptpo.training.ppo_trainer import PPOTrainer
from adaptpo.training.prompt_group_trainer import save_method
from adaptpo.training.rollouts import RatedPrompt, TokenValues, evaluate_tokens, ppo_tokens, rollout_groups, scores
from adaptpo.types import Row

Compute = Callable[[], Callable[[Batch], torch.Tensor]]


def rated_prompts(context: Context, iteration: int) -> list[RatedPrompt]:
    """The prompts that have at least one response with a valid reward."""
    rated = []
    prompts = context.prompts_of(selected_ids(context, iteration))
    for prompt, candidates in zip(prompts, read_candidates(context, iteration), strict=True):
        valid = [index for index, reward in enumerate(candidates.rewards) if reward is not None]
        responses = [candidates.responses[index] for index in valid]
        rewards = [reward for reward in candidates.rewards if reward is not None]
        if valid:
            rated.append(RatedPrompt(prompt, valid, responses, rewards))
    return rated


def keep_rollouts(context: Context, iteration: int) -> Summary:
    """Stores per-token log-probs of the sampling policy and of the reference, and the critic's values."""
    start = context.start_policy(iteration)
    reference = context.reference_path(iteration)
    prompts = rated_prompts(context, iteration)
    keep_tokens(context, iteration, "old", prompts, lambda: logps_of(context, context.policy(start)))
    keep_tokens(context, iteration, "reference", prompts, lambda: logps_of(context, context.reference(reference)))
    keep_tokens(context, iteration, "values", prompts, lambda: context.critic(iteration).eval())
    return {"prompts": len(prompts), "rollouts": sum(len(prompt.responses) for prompt in prompts)}


def logps_of(context: Context, model: torch.nn.Module) -> Callable[[Batch], torch.Tensor]:
    model.eval()
    return lambda batch: token_logps(model, batch, context.rows.chunked_head)


def tokens_folder(context: Context, iteration: int, name: str) -> str:
    return f"{context.folder(iteration)}/rollouts/{name}"


def keep_tokens(context: Context, iteration: int, name: str, prompts: Sequence[RatedPrompt], compute: Compute) -> None:
    def work(shard: Sequence[RatedPrompt]) -> pa.Table:
        pad_id, args = context.tokenizer.pad_token_id, context.inference_arguments
        found = evaluate_tokens(shard, compute(), pad_id, args, context.rows)
        return table(token_rows(shard, found), TOKENS_SCHEMA)

    folder = tokens_folder(context, iteration, name)
    context.run.shards(folder, prompts, context.config.shard_size, work, context.shows)


def token_rows(prompts: Sequence[RatedPrompt], found: Sequence[TokenValues]) -> Iterator[Row]:
    for prompt, lines in zip(prompts, found, strict=True):
        for index, values in zip(prompt.indices, lines, strict=True):
            yield {"prompt_id": prompt.prompt.id, "index": index, "values": values}


def read_tokens(context: Context, iteration: int, name: str) -> TokenValues:
    """The stored values of each response, in the order of `rated_prompts`, which is that of the shards."""
    return [row["values"] for row in context.run.read_shards(tokens_folder(context, iteration, name), ["values"])]


def train_on_rollouts(context: Context, iteration: int, settings: PPO) -> Summary:
    """Trains policy and critic, and writes the checkpoint: an ordinary model folder that also holds the critic."""
    phase = context.folder(iteration)
    prompts = rated_prompts(context, iteration)
    old, reference, values = (read_tokens(context, iteration, name) for name in ("old", "reference", "values"))
    tokens = ppo_tokens(prompts, old, reference, values, settings) if prompts else None
    args = context.arguments(phase, **{"num_train_epochs": settings.epochs, **context.config.training})
    trainer = PPOTrainer(
        model=actor_critic(context, iteration, recomputes_activations(args)),
        args=args,
        groups=rollout_groups(prompts, tokens) if tokens else [],
        tokenizer=context.tokenizer,
        method=context.method,
        settings=settings,
        log=partial(log_step, context, f"{phase}/train", iteration, tokens_before(context, iteration)),
        callbacks=[TrainingBar(f"{phase}/train", context.shows), *phase_callbacks(context)],
        rows=context.rows,
        ranks=context.ranks,
    )
    if tokens:
        train_phase(trainer, context.run, f"{phase}/train")
    with own_folder(context, f"{phase}/checkpoint") as folder:
        trainer.actor_critic.save(folder)
        context.tokenizer.save_pretrained(folder)
        save_method(context.method, folder)
    facts = rollout_facts(prompts, old, reference, tokens) if tokens else {}
    counts = {"steps": trainer.state.global_step, "num_tokens": trainer.state.num_input_tokens_seen}
    return {"prompts": len(prompts), "rollouts": len(old)} | counts | facts


def actor_critic(context: Context, iteration: int, gradient_checkpointing: bool) -> ActorCritic:
    policy = prepared(context, context.take_policy(context.start_policy(iteration)), gradient_checkpointing)
    critic = context.take_critic(iteration)
    prepared(context, critic.model, gradient_checkpointing)
    return ActorCritic(policy, critic)


def rollout_facts(
    prompts: Sequence[RatedPrompt], old: TokenValues, reference: TokenValues, tokens: PPOTokens
) -> Summary:
    """Means of the iteration: reward, KL of a response in nats (k1), value of the first state and its error."""
    divergence = [sum(now) - sum(then) for now, then in zip(old, reference, strict=True)]
    error = (tokens.returns - tokens.values)[tokens.mask]
    return {
        "reward_mean": scores(prompts, cut_penalty=0.0).mean().item(),
        "kl_mean": sum(divergence) / len(divergence),
        "critic_error": (error**2).mean().sqrt().item(),
    }
