"""Writes the task to disk: data files, a recipe, and the settings."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptpo.distributed.device import fastest_device
from adaptpo.distributed.quiet import quiet_libraries
from adaptpo.errors import RunError
from adaptpo.run.files import write_json, write_text
from adaptpo.sandbox.build import write_rows
from adaptpo.sandbox.instructions.questions import draw_tasks
from adaptpo.sandbox.instructions.writers import preference_row, prompt_row, write_drafts

REWARD = "python:adaptpo.sandbox.instructions.grading:reward"
BATCH = 8
"""Prompts of an optimizer step."""


@dataclass(frozen=True)
class Material:
    """The settings of the task: `prompts` with offline pairs, of which the share `flipped` has a wrong label, and
    `heldout` prompts without. `model`: the policy to align, which also writes the drafts of the offline answers."""

    model: str
    prompts: int
    heldout: int
    seed: int = 0
    flipped: float = 0.1


def build(folder: Path, material: Material, progress: bool = True) -> None:
    """Writes `train.jsonl`, `heldout.jsonl`, `recipe.yaml` and, last, `material.json`; does nothing if they are there.

    The same arguments give the same files on the same machine. Raises RunError if the folder holds other settings.
    """
    finished = folder / "material.json"
    if finished.exists():
        if json.loads(finished.read_text(encoding="utf-8")) != asdict(material):
            raise RunError(f"{folder} holds a task with other settings; choose another --out, or remove it")
        return
    quiet_libraries()
    rng = random.Random(f"adaptpo instructions {material.seed}")
    tasks = draw_tasks(material.prompts, rng, held_out=False)
    held_out = draw_tasks(material.heldout, rng, held_out=True)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(material.model).to(fastest_device()),
        AutoTokenizer.from_pretrained(material.model),
    )
    questions = list(dict.fromkeys(task.question for task in tasks))
    drafts = write_drafts(model, tokenizer, questions, material.seed, progress)
    pairs = [preference_row(task, drafts[task.question], material.flipped, rng) for task in tasks]
    write_rows(folder / "train.jsonl", pairs)
    write_rows(folder / "heldout.jsonl", [prompt_row(task) for task in held_out])
    write_text(folder / "recipe.yaml", yaml.safe_dump(recipe(folder, material), sort_keys=False))
    write_json(finished, asdict(material))


def recipe(folder: Path, material: Material) -> dict[str, Any]:
    """The settings that align the policy; learning rate and beta suit a model of 135 million parameters.

    The likelihood of the chosen response beside DPO: such a small model, trained on answers that it would hardly give,
    otherwise loses the chosen ones together with the rejected ones.
    """
    return {
        "model": material.model,
        "reward": REWARD,
        "data": {"path": "train.jsonl", "split": "train"},
        "eval_data": {"path": "heldout.jsonl", "max_prompts": material.heldout},
        "method": {"name": "metaapo", "objective": [{"name": "dpo", "beta": 0.1}, {"name": "sft"}]},
        "num_iterations": 2,
        "warmup_epochs": 1,
        "max_prompt_length": 256,
        "generation": {"num_generations": 4, "temperature": 0.7, "top_p": 1.0, "max_new_tokens": 32},
        "training": {
            "learning_rate": 3.0e-4,
            "per_device_train_batch_size": BATCH,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 4,
            "save_strategy": "no",
        },
        "peft": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
        "meta": {"learning_rate": 2.0e-2, "update_interval": 4},
        "seed": material.seed,
        "output_dir": str(folder / "run"),
    }
