"""Every code block of the docs is taken at its word: recipes load, commands parse, Python runs on a tiny model."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import adaptpo
from adaptpo import AlignmentTrainer
from adaptpo.cli import build_parser
from adaptpo.config.recipe import make_recipe
from tests.tiny import preference_rows, save_policy, vowel_reward, write_jsonl

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LEAST = {"model": "m", "data": "d", "output_dir": "o"}
STARTS = {"adaptpo", "make", "pip", "python", "python3", "git", "accelerate", "ray", "vllm", "torchrun"}


@dataclass(frozen=True)
class Block:
    page: Path
    number: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}-{self.number}"


BLOCKS = [
    Block(page, number, *match.groups())
    for page in PAGES
    for number, match in enumerate(BLOCK.finditer(page.read_text("utf-8")))
]


def commands() -> Iterator[pytest.param]:
    """The lines of shell blocks that call adaptpo, directly or through a launcher."""
    for block in BLOCKS:
        lines = block.text.replace("\\\n", " ").splitlines() if block.language in ("", "bash") else []
        for number, line in enumerate(lines):
            if line.split(" ")[0] in STARTS and re.search(r"(^|-m )adaptpo ", line):
                yield pytest.param(line, id=f"{block}-{number}")


@pytest.mark.parametrize("line", commands())
def test_command_parses_and_its_settings_exist(line: str) -> None:
    words = shlex.split(re.sub(r"\[.*?\]", "", line), comments=True)
    arguments = words[words.index("adaptpo") + 1 :]
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
        try:
            options = build_parser().parse_args(arguments)
        except SystemExit as ended:
            assert not ended.code, errors.getvalue()
            return
    recipe = getattr(options, "recipe", None)
    values = dict(LEAST)
    if recipe is not None and (ROOT / recipe).exists():
        values = yaml.safe_load((ROOT / recipe).read_text("utf-8"))
    make_recipe(values, getattr(options, "set", []), ROOT)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=str)
def test_recipe_is_valid(block: Block) -> None:
    make_recipe(LEAST | yaml.safe_load(block.text), (), ROOT)


class TinyTrainer(AlignmentTrainer):
    """A trainer on a tiny model with a tiny reward, whatever the docs name."""

    def __init__(self, model: Any, args: Any, method: Any, train_dataset: Any, **given: Any) -> None:
        small = {"max_prompt_length": 64, "max_tokens_per_batch": 512, "show_progress": False, "num_iterations": 1}
        generation = args.generation.model_copy(update={"max_new_tokens": 4})
        training = args.training | {"bf16": False, "gradient_accumulation_steps": 1}
        args = args.model_copy(update=small | {"generation": generation, "warmup_epochs": 0, "training": training})
        reward = given.pop("reward_funcs", None)
        given["reward_funcs"] = reward if callable(reward) else vowel_reward
        super().__init__(Path("policy"), args, method, train_dataset=train_dataset, **given)


RUNNABLE = [b for b in BLOCKS if b.language == "python" and ".train()" in b.text]
PARTS = [b for b in BLOCKS if b.language == "python" and b not in RUNNABLE]


@pytest.mark.parametrize("block", RUNNABLE, ids=str)
def test_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(adaptpo, "AlignmentTrainer", TinyTrainer, raising=False)
    save_policy(tmp_path / "policy")
    rows = preference_rows(4)
    for name in ("pairs", "held_out"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    exec(compile(block.text, str(block), "exec"), {"dataset": rows, "held_out": rows, "__name__": "docs"})
    assert len([path for path in tmp_path.rglob("final") if any(path.iterdir())]) == 1


@pytest.mark.parametrize("block", PARTS, ids=str)
def test_python_is_python(block: Block) -> None:
    compile(re.sub(r"(^\s*|{)\.\.\., ", r"\1", block.text, flags=re.MULTILINE), str(block), "exec")
