"""`adaptpo init`: writes a commented recipe for a model, data, a reward, a method and a machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from adaptpo.choices.method import Method
from adaptpo.config.base import nearest
from adaptpo.config.recipe import Recipe, load_recipe
from adaptpo.config.strict_yaml import read_yaml
from adaptpo.errors import ConfigError
from adaptpo.methods import METHODS
from adaptpo.plan.machines import ACCELERATORS, Machine, read_machine

QUESTIONS = {
    "model": "model (folder or hub id)",
    "data": "data (file, folder or hub id of preference pairs)",
    "method": "method",
    "reward": "reward (reward model, `train`, or python:module:function)",
    "machine": f"machine (cpu, or for instance {', '.join(f'{name}x1' for name in ACCELERATORS)})",
}
USUAL = {"method": Recipe.model_fields["method"].default, "machine": "cpu"}
PROMPTS_PER_STEP = 128
"""Of the MetaAPO paper (Table 3)."""


@dataclass(frozen=True)
class Answers:
    """What the recipe is made from. `machine`: `cpu`, or a name or YAML that `adaptpo plan` takes."""

    model: str
    data: str
    method: str
    reward: str | None
    machine: str
    eval_data: str | None = None

    @property
    def accelerator(self) -> Machine | None:
        return None if self.machine == "cpu" else read_machine(self.machine)

    @property
    def chosen(self) -> Method:
        if self.method not in METHODS:
            raise ConfigError(f"unknown method '{self.method}': {nearest(self.method, list(METHODS))}")
        return METHODS[self.method]()


def run_init(given: Mapping[str, str | None], out: Path) -> None:
    """Writes the recipe, and loads it once. Raises ConfigError for a wrong answer, and if the file exists."""
    if out.exists():
        raise ConfigError(f"{out} exists; name another file with --out, or remove it")
    answers = complete(given, ask if sys.stdin.isatty() else refuse)
    text = recipe_text(answers, f"runs/{out.stem}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    load_recipe(out)
    machine = f" --machine {answers.machine}" if answers.accelerator else ""
    print(f"{out} is written. Next:\n  adaptpo check {out}\n  adaptpo plan {out}{machine}\n  adaptpo train {out}")


def complete(given: Mapping[str, str | None], missing: Callable[[str], str]) -> Answers:
    """The answers, with `missing` asked for those that are not given and needed."""
    found = {name: given.get(name) or missing(name) for name in ("model", "data", "method", "machine")}
    answers = Answers(**found, reward=given.get("reward"), eval_data=given.get("eval_data"))
    if answers.reward is None and annotates(answers.chosen):
        return replace(answers, reward=missing("reward"))
    return answers


def annotates(method: Method) -> bool:
    return method.pairing.num_generations > 0


def ask(name: str) -> str:
    usual = USUAL.get(name)
    while True:
        answer = input(f"{QUESTIONS[name]}{f' [{usual}]' if usual else ''}: ").strip() or usual
        if answer:
            return answer


def refuse(name: str) -> str:
    if name in USUAL:
        return USUAL[name]
    raise ConfigError(f"--{name} is missing: {QUESTIONS[name]}")


def recipe_text(answers: Answers, output_dir: str) -> str:
    """A recipe with a comment on each line that one may want to change."""
    method = answers.chosen
    lines = [
        f"# adaptpo train RECIPE. {summary(answers.method)}",
        "# Every key: docs/recipes.md. What it takes: adaptpo plan. What is read: adaptpo check.",
        line("model", answers.model),
        line("data", answers.data, "adaptpo check shows how its rows are read"),
        held_out(answers.eval_data),
        line("method", answers.method, "adaptpo methods lists them"),
    ]
    if answers.reward is not None:
        reward = as_setting(answers.reward)
        lines.append(line("reward", reward, "judges, servers and lists of annotators: docs/annotation.md"))
    lines += [*schedule_lines(method), *training_lines(answers.accelerator, method), line("seed", 0)]
    return "\n".join([*lines, line("output_dir", output_dir, "start the same command again to resume"), ""])


def held_out(data: str | None) -> str:
    comment = "pairs that are never trained on; without them, nothing says whether the policy improved"
    written = line("eval_data", data or "held_out.jsonl", comment)
    return written if data else f"# {written}"


def as_setting(reward: str) -> object:
    """A reward as a recipe has it: mappings and lists are YAML. Raises ConfigError for an address alone."""
    if reward.startswith(("http://", "https://")):
        raise ConfigError(f"--reward is an address; a server is '{{server: {reward}}}', a judge '{{judge: MODEL}}'")
    try:
        return read_yaml(reward) if reward.startswith(("{", "[")) else reward
    except yaml.YAMLError as error:
        raise ConfigError(f"--reward: not valid YAML: {error}") from error


def line(key: str, value: object, comment: str = "", indent: str = "") -> str:
    written = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
    return f"{indent}{key}: {written}" + (f"  # {comment}" if comment else "")


def summary(method: str) -> str:
    return (METHODS[method].__doc__ or "").split("\n")[0]


def schedule_lines(method: Method) -> list[str]:
    lines = [line("max_prompt_length", 1024, "longer prompts are left out and recorded")]
    if not annotates(method):
        return [line("num_iterations", 1, "one pass over the data; the method never generates"), *lines]
    return [
        line("num_iterations", 3, "sequential parts of the data; fresh responses come from the latest policy"),
        *lines,
        "generation:",
        line("num_generations", method.pairing.num_generations, "fresh responses per prompt", "  "),
        line("max_new_tokens", 512, "longer fresh responses are cut", "  "),
    ]


def training_lines(machine: Machine | None, method: Method) -> list[str]:
    """Batches of 128 prompts; on an accelerator bf16, on a CPU small passes and an adapter."""
    count, each = (machine.count, 2) if machine else (1, 4)
    lines = [
        "training:",
        line("learning_rate", 5e-7 if machine else 1e-5, "full fine-tuning takes 5e-7, adapters 5e-6 to 1e-4", "  "),
        line("num_train_epochs", method.num_train_epochs, "passes over an iteration's pairs", "  "),
        line("per_device_train_batch_size", each, "prompts, not pairs", "  "),
        line(
            "gradient_accumulation_steps",
            max(1, PROMPTS_PER_STEP // (each * count)),
            f"{each} x {count} x this = prompts per optimizer step",
            "  ",
        ),
        line("save_steps", 50, "optimizer steps between checkpoints, from which a killed run resumes", "  "),
    ]
    if machine:
        lines += [line("bf16", True, "", "  "), line("gradient_checkpointing", True, "less memory, same result", "  ")]
    adapter = {"r": 16, "target_modules": "all-linear"}
    if machine is None:
        return [*lines, line("peft", adapter, "an adapter; remove it to train all weights")]
    return [*lines, "# " + line("peft", adapter, "uncomment it to train an adapter")]
