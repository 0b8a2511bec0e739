"""Offline pairs of other kinds for a finished world, which the tables on alignment stages compare."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptpo.run.files import write_text
from adaptpo.sandbox.check import learned_rewards
from adaptpo.sandbox.data import sft_rows
from adaptpo.sandbox.fit import fit_policy
from adaptpo.sandbox.models import build_other_policy
from adaptpo.sandbox.sampling import sample_responses
from adaptpo.sandbox.settings import WorldSettings
from adaptpo.sandbox.world import assistant, plain_text, user
from adaptpo.sandbox.writers import writers
from adaptpo.types import Row

OTHER_QUALITIES = (0.6, 0.9)
"""Qualities of the responses that the other policy learns from; the world's own policy learns from 0.4 to 0.7."""
CANDIDATES = 2


def write_candidates(folder: Path, name: str) -> None:
    """Writes the file `name` of a world's folder, unless it is there: one of `KINDS`."""
    if not (folder / name).exists():
        rows = KINDS[name](folder)
        write_text(folder / name, "".join(json.dumps(row) + "\n" for row in rows))


def relabelled(folder: Path) -> Iterator[Row]:
    """The world's offline pairs with the labels of its reward model, as the paper labels PC_off."""
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    prompts = [plain_text(row["prompt"]) for row in rows]
    rewards = learned_rewards(folder, prompts, [[plain_text(row[side]) for side in SIDES] for row in rows])
    for row, (chosen, rejected) in zip(rows, rewards, strict=True):
        swapped = {"chosen": row["rejected"], "rejected": row["chosen"], "flipped": not row["flipped"]}
        yield row | (swapped if rejected > chosen else {})


def of_other_policy(folder: Path) -> Iterator[Row]:
    """Pairs of two responses by a better policy of another family, with the labels of the world's reward model: like
    PC_llama, good and alike, but off the policy's distribution. Responses of equal reward form no pair."""
    world = WorldSettings(**json.loads((folder / "world.json").read_text(encoding="utf-8")))
    prompts = [plain_text(json.loads(line)["prompt"]) for line in (folder / "train.jsonl").open(encoding="utf-8")]
    responses = other_responses(folder, world, prompts)
    for prompt, texts, rewards in zip(prompts, responses, learned_rewards(folder, prompts, responses), strict=True):
        worse, better = sorted(range(CANDIDATES), key=rewards.__getitem__)
        if rewards[better] > rewards[worse]:
            yield {"prompt": user(prompt), "chosen": assistant(texts[better]), "rejected": assistant(texts[worse])}


def other_responses(folder: Path, world: WorldSettings, prompts: Sequence[str]) -> list[list[str]]:
    """Two samples to each prompt of a policy that has learned from the best writer."""
    rng = random.Random(f"adaptpo sandbox, other policy {world.seed}")
    best = writers(world.writer_qualities, random.Random(f"adaptpo sandbox {world.seed}"))[-1]
    rows = sft_rows(prompts, best, world, rng, OTHER_QUALITIES)
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    with TemporaryDirectory() as scratch:
        fit_policy(tokenizer, rows, world, False, Path(scratch) / "other", build_other_policy)
        policy = AutoModelForCausalLM.from_pretrained(Path(scratch) / "other")
    return sample_responses(policy, tokenizer, prompts, CANDIDATES, world.seed)


SIDES = ("chosen", "rejected")
RELABELLED, OTHER_POLICY = "relabelled.jsonl", "other-policy.jsonl"
KINDS: dict[str, Callable[[Path], Iterator[Row]]] = {RELABELLED: relabelled, OTHER_POLICY: of_other_policy}
"""The files by name, and what makes their rows."""
