"""Prompts: a question about an everyday thing, and the rules that the answer must keep."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from adaptpo.errors import ConfigError
from adaptpo.sandbox.instructions.rules import Rule, draw_rules

TOPICS = """
anchor apple bakery balloon banana beach bee bicycle blanket boat book bread bridge broom bus butter candle
carpet castle cat chair cheese circus clock cloud coat coffee coin compass cow desert dog doll dragon drum
eagle egg elephant farm feather ferry fire flag flute forest fountain fox garden gate glove goat grape
guitar hammer harbor hat honey horse hospital hotel island jacket jungle kettle key kitchen kite ladder lake
lamp lemon letter library lighthouse lion map market mirror moon mountain museum needle nest newspaper ocean
orchestra owl paint parade park pencil penguin piano pillow pirate planet pocket pumpkin rabbit radio rain
river robot rocket rope sailor salt school shadow sheep ship shoe snow soap soup spider spoon station storm
sugar sun sword table tea teacher telescope theater tiger tomato tower train tree trumpet tunnel turtle
umbrella valley village violin volcano wagon wallet watch waterfall whale wheel window winter wolf zebra
""".split()  # noqa: SIM905
QUESTIONS = (
    "What comes to mind when you think of the word {}?",
    "Tell me something about the word {}.",
    "How would you explain the word {} to a child?",
)
HELD_OUT_TOPICS = TOPICS[::4]
ATTEMPTS = 200
"""Draws for a new prompt, after which there are taken to be no more."""
TRAINING_TOPICS = tuple(topic for topic in TOPICS if topic not in HELD_OUT_TOPICS)


@dataclass(frozen=True)
class Task:
    """A prompt's parts: the topic's question, the rules, and the text of both together."""

    topic: str
    question: str
    rules: tuple[Rule, ...]
    prompt: str


def draw_tasks(count: int, rng: random.Random, held_out: bool) -> list[Task]:
    """Different prompts. Held-out ones have other topics and other wordings of the rules than those for training.

    Raises ConfigError if there are not that many.
    """
    tasks: dict[str, Task] = {}
    while len(tasks) < count:
        new = next((task for task in draws(rng, held_out) if task.prompt not in tasks), None)
        if new is None:
            raise ConfigError(
                f"there are hardly more than {len(tasks)} prompts of this kind, not {count}; ask for fewer"
            )
        tasks[new.prompt] = new
    return list(tasks.values())


def draws(rng: random.Random, held_out: bool) -> Iterator[Task]:
    for _ in range(ATTEMPTS):
        yield draw_task(rng, held_out)


def draw_task(rng: random.Random, held_out: bool) -> Task:
    topic = rng.choice(HELD_OUT_TOPICS if held_out else TRAINING_TOPICS)
    question, rules = rng.choice(QUESTIONS).format(topic), draw_rules(rng)
    wordings = [rule.wording(rng, held_out).replace("one sentence(s)", "one sentence") for rule in rules]
    text = " ".join([question, *wordings]).replace("sentence(s)", "sentences")
    return Task(topic, question, rules, text)
