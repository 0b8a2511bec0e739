"""The rows of a world's data files and of the training data of its two models."""

from __future__ import annotations

import random
from collections.abc import Sequence

from adaptpo.sandbox.settings import WorldSettings
from adaptpo.sandbox.world import assistant, parse_prompt, true_reward, user
from adaptpo.sandbox.writers import Writer, corrupt
from adaptpo.types import Row

STRONG_QUALITIES = (0.7, 1.0)

Answered = tuple[str, list[str]]
"""A prompt with several responses."""


def offline_answers(
    prompts: Sequence[str], authors: Sequence[Writer], world: WorldSettings, rng: random.Random
) -> list[Answered]:
    """Each prompt with one response by each author; those near the policy all have the first author's habits."""
    near = [author.with_habits_of(authors[0]) for author in authors]

    def of(prompt: str) -> Sequence[Writer]:
        return near if world.other_near and world.is_other(prompt) else authors

    return [(prompt, [author.respond(prompt, rng) for author in of(prompt)]) for prompt in prompts]


def true_rewards(prompt: str, responses: Sequence[str]) -> list[float]:
    return true_reward([prompt] * len(responses), list(responses))


def preference_row(item: Answered, authors: Sequence[Writer], flipped: float, rng: random.Random) -> Row:
    """The best response by the true reward against a random other one, swapped with probability `flipped`.

    The row has TRL's conversational preference format with an explicit prompt, plus the origin of the pair.
    """
    prompt, responses = item
    rewards = true_rewards(prompt, responses)
    best = max(range(len(responses)), key=rewards.__getitem__)
    other = rng.choice([i for i in range(len(responses)) if i != best])
    is_flipped = rng.random() < flipped
    chosen, rejected = (other, best) if is_flipped else (best, other)
    return {
        "prompt": user(prompt),
        "chosen": assistant(responses[chosen]),
        "rejected": assistant(responses[rejected]),
        "flipped": is_flipped,
        "writer_chosen": authors[chosen].name,
        "writer_rejected": authors[rejected].name,
    }


def sft_rows(
    prompts: Sequence[str],
    author: Writer,
    world: WorldSettings,
    rng: random.Random,
    qualities: tuple[float, float] | None = None,
) -> list[Answered]:
    """Each prompt with responses of low to medium quality, or of other qualities, all with one writer's habits."""

    def respond(prompt: str) -> str:
        quality = rng.uniform(*(qualities or world.sft_qualities_of(prompt)))
        return author.respond_with(quality, parse_prompt(prompt), rng)

    return [(prompt, [respond(prompt) for _ in range(world.sft_responses)]) for prompt in prompts]


def strong_responses(prompts: Sequence[str], authors: Sequence[Writer], rng: random.Random) -> list[Answered]:
    """Each prompt with four responses better than what the authors usually write."""

    def respond(prompt: str) -> str:
        return rng.choice(authors).respond_with(rng.uniform(*STRONG_QUALITIES), parse_prompt(prompt), rng)

    return [(prompt, [respond(prompt) for _ in range(4)]) for prompt in prompts]


def corrupted_half(item: Answered, rng: random.Random) -> Answered:
    """The prompt with every other response corrupted."""
    prompt, responses = item
    return prompt, [corrupt(response, rng) if i % 2 == 0 else response for i, response in enumerate(responses)]


def compared(item: Answered, flipped: float, rng: random.Random) -> list[tuple[str, str, str]]:
    """Triples `(prompt, better, worse)`: random pairs of responses, each response in one pair; ties are left out.

    Training on all pairs of the responses would take longer without a better reward model to show for it.
    """
    prompt, responses = item
    order = rng.sample(list(responses), len(responses))
    pairs = []
    for left, right in zip(order[::2], order[1::2], strict=False):
        rewards = true_rewards(prompt, (left, right))
        if rewards[0] != rewards[1]:
            left_wins = (rewards[0] > rewards[1]) != (rng.random() < flipped)
            pairs.append((prompt, left, right) if left_wins else (prompt, right, left))
    return pairs
