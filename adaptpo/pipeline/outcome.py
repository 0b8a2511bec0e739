"""What a run returns to a user of Python: numbers and log under transformers' names, read from the run's folder."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerState
from transformers.trainer_utils import TrainOutput

from adaptpo.models.loading import load_policy, load_tokenizer
from adaptpo.pipeline.request import Request
from adaptpo.run.history import global_step, log_history, policy_phases, training_loss
from adaptpo.seeds import seed_for
from adaptpo.types import Row


class AlignmentOutput(TrainOutput):
    """What `train` returns: `global_step`, `training_loss` and `metrics`, as transformers' trainers return them.

    `folder` is that of the aligned model. The output can be used as this path: `from_pretrained(trainer.train())`.
    """

    folder: Path

    def __new__(cls, global_step: int, training_loss: float, metrics: Row, folder: Path) -> AlignmentOutput:
        output = super().__new__(cls, global_step, training_loss, metrics)
        output.folder = folder
        return output

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.folder)

    def __fspath__(self) -> str:
        return str(self.folder)

    def __str__(self) -> str:
        return str(self.folder)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def __getattr__(self, name: str) -> Any:
        """What it has not itself is the path's: `output.parent`, `output.rglob(...)`."""
        if name == "folder" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.folder, name)


def outcome(run: Path) -> AlignmentOutput:
    """The numbers of a finished run. Times are those of each phase's last attempt; the rates leave out phases that were
    interrupted, whose last attempt did a part of the work."""
    phases, steps = policy_phases(run), global_step(run)
    loss = training_loss(run, phases)
    whole = [facts for facts in phases.values() if facts["attempts"] == 1]
    prompts = sum(facts.get("prompts", 0) * facts.get("epochs", 1) for facts in whole)
    metrics = {
        "train_runtime": round(sum(facts["seconds"] for facts in phases.values()), 4),
        "train_samples_per_second": rate(prompts, whole),
        "train_steps_per_second": rate(sum(facts.get("steps", 0) for facts in whole), whole),
        "train_loss": float("nan") if loss is None else loss,
    }
    return AlignmentOutput(steps, metrics["train_loss"], metrics, run / "final")


def rate(count: float, phases: Sequence[Row]) -> float:
    """So many a second of these phases; 0 without any."""
    seconds = sum(facts["seconds"] for facts in phases)
    return round(count / seconds, 3) if seconds else 0.0


def load_newest(request: Request) -> Any:
    """The run's aligned model; before it exists, the model in memory, or the policy that the run would start from."""
    final = Path(request.args.output_dir) / "final"
    if not final.exists() and not isinstance(request.model, str | PathLike):
        return request.model
    initial, seed = initial_of(request), seed_for(request.args.seed, "adapter") % 2**31
    path = str(final) if final.exists() else initial
    options = request.args.options_of(initial if request.args.peft else path)
    return load_policy(path, initial, request.args.peft, options, seed)


def tokenizer_of_run(request: Request) -> PreTrainedTokenizerBase:
    initial = initial_of(request)
    return load_tokenizer(initial, request.args.options_of(initial))


def initial_of(request: Request) -> str:
    """The folder or hub id of the model that the run starts from, with its adapter merged."""
    saved = Path(request.args.output_dir) / "inputs" / "model"
    return str(saved if saved.exists() else request.model)


def run_state(run: Path) -> TrainerState:
    """transformers' state of the run so far; empty before its start."""
    return TrainerState(global_step=global_step(run), log_history=log_history(run))
