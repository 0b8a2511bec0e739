"""The trackers of `training.report_to`: one run in each, over all phases and all attempts of a run.

They get what `metrics.jsonl` gets, by the policy's optimizer steps since the start of the run. What a phase logs that
trains another model, such as a reward model, they get by that model's steps. The settings that they store are those of
the recipe.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, TensorBoardCallback

from adaptpo.config.secrets import masked
from adaptpo.errors import ConfigError
from adaptpo.models.loading import first_line
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.phases.train import TRACKERS
from adaptpo.run.directory import RunDirectory
from adaptpo.run.files import JsonLines, write_json
from adaptpo.run.history import WHERE, StepAxis, trains_policy
from adaptpo.run.progress import caution
from adaptpo.types import Row

IDENTITY = "trackers.json"
"""In the run's folder: the id under which a resumed run continues its tracked run."""
MODEL_IS_NOT_TRACKED = ("WANDB_LOG_MODEL", "WANDB_WATCH")
"""Variables by which trackers read a model in memory; a run has another one in every phase."""


def make_trackers(names: Any) -> list[TrainerCallback]:
    """transformers' callbacks of these trackers. Raises ConfigError for an unknown or missing one."""
    try:
        return [kind() for kind in get_reporting_integration_callbacks("all" if names == ["all"] else names)]
    except (ImportError, RuntimeError, ValueError) as error:
        raise ConfigError(f"training.report_to: {first_line(error)}") from error


class Trackers:
    """Sends the records of a run to its trackers; one that fails in a run is left out from then on, with a warning."""

    def __init__(self, callbacks: list[TrainerCallback], args: TrainingArguments, run: Path) -> None:
        self.callbacks, self.args, self.axis, self.last = callbacks, args, StepAxis(run), 0
        self.control = TrainerControl()
        for record in JsonLines(run / "metrics.jsonl").records():
            self.follow(record)

    def follow(self, record: Row) -> int:
        """The step of this record; one of the policy never lies before earlier ones."""
        place = self.axis.place(record)
        if record["step"] is not None and not trains_policy(record["phase"]):
            return place
        self.last = max(self.last, place)
        return self.last

    def state(self, step: int | None = None) -> TrainerState:
        return TrainerState(global_step=self.last if step is None else step, is_world_process_zero=True)

    def open(self) -> None:
        """Raises ConfigError if a tracker does not start, for instance without a login."""
        for callback in self.callbacks:
            try:
                callback.on_train_begin(self.args, self.state(), self.control, model=None)
            except Exception as error:
                raise ConfigError(
                    f"training.report_to: {tracker_name(callback)} does not start: {first_line(error)}; log in or "
                    "start it offline (WANDB_MODE=offline), or set training.report_to to none"
                ) from error

    def send(self, record: Row) -> None:
        step = self.follow(record)
        values = {shown_name(record["phase"], name): value for name, value in record.items() if name not in WHERE}
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        if record["iteration"] is not None:
            numbers["iteration"] = record["iteration"]
        self._tell("on_log", step, logs=numbers)

    def close(self) -> None:
        self._tell("on_train_end")

    def _tell(self, event: str, step: int | None = None, **values: Any) -> None:
        for callback in list(self.callbacks):
            given = {name: dict(value) for name, value in values.items()}
            try:
                getattr(callback, event)(self.args, self.state(step), self.control, model=None, **given)
            except Exception as error:  # noqa: BLE001 (a tracker's failure, of whatever kind, must not end the run)
                self.callbacks.remove(callback)
                caution(f"{tracker_name(callback)} failed ({first_line(error)}); the run continues without it", True)


def tracker_name(callback: TrainerCallback) -> str:
    return next(name for name, kind in INTEGRATION_TO_CALLBACK.items() if isinstance(callback, kind))


def shown_name(phase: str, name: str) -> str:
    """The metric's name for a tracker, which sorts by prefix: what an evaluation measured has transformers' `eval_`."""
    return f"eval_{name}" if phase.startswith("evaluate/") and not name.startswith("eval_") else name


@contextmanager
def tracking(context: Context) -> Iterator[None]:
    """Sends to the run's trackers, while the block runs, what is logged."""
    given = [callback for callback in context.callbacks if isinstance(callback, TRACKERS)]
    tracked = context.ranks.is_first and bool(given or context.report_to)
    if context.ranks.is_first and not tracked and context.run.manifest.entry(IDENTITY):
        tracked_id(context.run)  # Writes a damaged one again.
    if not tracked:
        yield
        return
    identity = tracked_id(context.run)
    with variables(identity), finishing():
        trackers = open_trackers(context, given, identity)
        context.run.listeners.append(trackers.send)
        try:
            yield
        finally:
            context.run.listeners.remove(trackers.send)
            trackers.close()


def open_trackers(context: Context, given: list[TrainerCallback], identity: str) -> Trackers:
    callbacks = [*make_trackers(context.report_to), *given]
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(context.run.path / "tensorboard")  # Its default is a new folder per attempt.
    args = context.arguments("inference")
    args.output_dir, args.report_to = str(context.run.path), context.report_to
    args.seed, args.num_train_epochs = context.config.seed, context.num_train_epochs
    args.run_name = context.config.training.get("run_name") or f"{context.run.path.absolute().name}-{identity}"
    trackers = Trackers(callbacks, with_recipe(without_keys(args), context.run), context.run.path)
    trackers.open()
    return trackers


def without_keys(args: TrainingArguments) -> Any:
    """The arguments as a pickle keeps them, which holds no key: trackers store all that they get."""
    return pickle.loads(pickle.dumps(args))


def with_recipe(args: TrainingArguments, run: RunDirectory) -> TrainingArguments:
    """The arguments, whose dictionary, which trackers store, also holds the settings of the run, without secrets."""
    recipe = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
    fields = args.to_dict()
    args.to_dict = lambda: fields | masked({name: recipe[name] for name in recipe if name not in fields})
    return args


def tracked_id(run: RunDirectory) -> str:
    """The id of the tracked run, made once; another one if the file that holds it is damaged, which the start of the
    run has said."""
    path = run.path / IDENTITY
    if not run.intact(path):
        damaged = run.manifest.entry(IDENTITY) is not None
        former = None if damaged or not path.exists() else read_id(path)  # Former versions did not list it.
        write_json(path, {"id": former or uuid.uuid4().hex[:8]})
        run.keep(path)
    return str(read_id(path))


def read_id(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    except (ValueError, KeyError, TypeError):
        return None


@contextmanager
def variables(identity: str) -> Iterator[None]:
    """Sets what wandb reads from the environment, unless the user has: the id by which an attempt continues its run."""
    wanted = {"WANDB_RUN_ID": identity, "WANDB_RESUME": "allow"}
    unread = {name: "false" for name in MODEL_IS_NOT_TRACKED if os.environ.get(name, "false") != "false"}
    if unread:
        caution(f"{', '.join(unread)} is not read; the aligned model is in the run's folder", True)
    before = {name: os.environ.get(name) for name in (*wanted, *unread)}
    os.environ.update({name: value for name, value in wanted.items() if before[name] is None} | unread)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def finishing() -> Iterator[None]:
    """Finishes the wandb run that the block begins, so that the next run in this process gets its own."""
    before = getattr(sys.modules.get("wandb"), "run", None)
    try:
        yield
    finally:
        wandb: Any = sys.modules.get("wandb")
        if wandb is not None and before is None and wandb.run is not None:
            wandb.finish()
