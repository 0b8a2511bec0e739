"""The offline answers: what two writers who are not the policy wrote, one of them with an editor.

Both answer the question without its rules, by the same model in another role and at another temperature; the editor
then enforces some of the rules. So offline answers keep more rules than the policy's own, and lie off its distribution.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adaptpo.data.tokenization import stop_token_ids, tokenize_prompt
from adaptpo.generation.base import Sampling
from adaptpo.generation.transformers_engine import TransformersGenerator
from adaptpo.run.progress import progress_bar
from adaptpo.sandbox.instructions.grading import graded
from adaptpo.sandbox.instructions.questions import Task
from adaptpo.sandbox.instructions.rules import edited, sentences, without_end
from adaptpo.seeds import seed_for
from adaptpo.types import Prompt, Row

ROLE = "You are a writer. You answer in one or two short sentences."
TEMPERATURE = 0.8
MAX_NEW_TOKENS = 32
SHARD = 32
ENFORCED = 0.75
"""Chance that the editor enforces a rule."""


def write_drafts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], seed: int, progress: bool
) -> dict[str, tuple[str, str]]:
    """Two drafts of an answer to each question, its rules unseen."""
    sampling = Sampling(TEMPERATURE, 1.0, 0, MAX_NEW_TOKENS, stop_token_ids(tokenizer))
    generator = TransformersGenerator(model, tokenizer, sampling)
    prompts = [Prompt(i, asked(text), tokenize_prompt(tokenizer, asked(text))) for i, text in enumerate(questions)]
    drafts: dict[str, tuple[str, str]] = {}
    with progress_bar("offline answers", len(prompts), "question", progress) as bar:
        for start in range(0, len(prompts), SHARD):
            shard = prompts[start : start + SHARD]
            seeds = [seed_for(seed, "offline answers", prompt.id) for prompt in shard]
            for prompt, (one, other) in zip(shard, generator.generate(shard, 2, seeds), strict=True):
                drafts[questions[prompt.id]] = tidied(str(one.text)), tidied(str(other.text))
            bar.update(len(shard))
    return drafts


def tidied(draft: str) -> str:
    """The complete sentences of a draft; if there is none, the draft with a full stop."""
    return "".join(sentences(draft)).strip() or f"{without_end(draft)}."


def asked(question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": ROLE}, {"role": "user", "content": question}]


def preference_row(task: Task, drafts: tuple[str, str], flipped: float, rng: random.Random) -> Row:
    """The edited draft and the other one, the better of which by the grader is chosen unless the label is flipped."""
    enforced = [rule for rule in task.rules if rng.random() < ENFORCED]
    answers = [edited(drafts[0], enforced), drafts[1]]
    rules = "; ".join(map(str, task.rules))
    answers.sort(key=lambda text: graded(text, task.topic, rules), reverse=True)
    is_flipped = rng.random() < flipped
    chosen, rejected = reversed(answers) if is_flipped else answers
    return prompt_row(task) | {"chosen": said(chosen), "rejected": said(rejected), "flipped": is_flipped}


def prompt_row(task: Task) -> Row:
    rules = "; ".join(map(str, task.rules))
    return {"prompt": [{"role": "user", "content": task.prompt}], "topic": task.topic, "rules": rules}


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]
