"""The sequence of phases that a run goes through."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from adaptpo.choices.learners.base import METHOD_STATE
from adaptpo.errors import RunError
from adaptpo.models.loading import check_loads
from adaptpo.pipeline.by_dataset import flat
from adaptpo.pipeline.context import SCRATCH, Context
from adaptpo.pipeline.hub import Repository, check_repository, push_final, refuse_local_base, repository_of
from adaptpo.pipeline.iteration import Work, iteration_phases
from adaptpo.pipeline.model_card import model_card
from adaptpo.pipeline.phases.check import check_model
from adaptpo.pipeline.phases.data import prepare_data
from adaptpo.pipeline.phases.datasets import PHASE as DATASETS
from adaptpo.pipeline.phases.datasets import count_datasets, has_datasets
from adaptpo.pipeline.phases.evaluate import evaluate_policy, evaluation_phase
from adaptpo.pipeline.phases.features import keep_feature
from adaptpo.pipeline.phases.filter import filter_pairs, proxies
from adaptpo.pipeline.phases.hold_out import hold_out
from adaptpo.pipeline.phases.reference import keep_initial_reference
from adaptpo.pipeline.phases.reward import train_reward_model
from adaptpo.pipeline.phases.stage import measure_stage
from adaptpo.pipeline.phases.train import refuse_unreachable_head, warm_up
from adaptpo.pipeline.preflight import doubts_of, refuse_impossible, refuse_unfit_data
from adaptpo.pipeline.trackers import tracking
from adaptpo.run.damage import unlisted_records
from adaptpo.run.directory import RunDirectory, Summary, metrics_of
from adaptpo.run.files import whole_folder, write_json
from adaptpo.run.history import global_step
from adaptpo.run.manifest import checksum, files_of
from adaptpo.run.progress import announce, caution, say
from adaptpo.training.actor_critic import CRITIC
from adaptpo.training.following_reference import FOLLOWING
from adaptpo.training.prompt_group_trainer import load_method

NOT_PART_OF_A_MODEL = (METHOD_STATE, "training_args.bin", CRITIC, FOLLOWING)


def align(context: Context) -> Path:
    """Runs every phase that is not done yet and returns the folder of the aligned model."""
    final = context.run.path / "final"
    if context.run.finished and not context.ranks.on_first(lambda: list(unlisted_records(context.run))):
        say(f"{context.run.path} is already finished", context.shows)
    else:
        check(context)
        with tracking(context):
            run_phases(context)
    if context.config.training.get("push_to_hub"):
        push_once(context, final, hub_repository(context))
    return final


def push_once(context: Context, final: Path, repository: Repository) -> None:
    """Pushes the model unless this place has it; another repository or branch is another place."""
    place = "@".join(filter(None, (repository.name, repository.revision)))
    do_once(context, f"push/{place}", partial(push_final, final, repository, context.shows))


def hub_repository(context: Context) -> Repository:
    return repository_of(context.config.training, context.run.path)


def run_phases(context: Context) -> None:
    open_phases(context)
    for iteration in range(context.config.num_iterations):
        run_iteration(context, iteration)
    do_once(context, "final", partial(write_final, context))
    warn_untrained(context)


def run_opening(context: Context) -> None:
    """Runs everything before the first iteration; other runs may share it (see `adaptpo.run.branch`)."""
    check(context)
    open_phases(context)


def check(context: Context) -> None:
    """Raises an error for what would otherwise fail hours later."""
    context.ranks.on_first(partial(refuse_impossible, context))
    if context.config.training.get("push_to_hub"):
        adapts = context.config.peft is not None
        refuse_local_base(context.initial if adapts and Path(context.initial).exists() else None)
        context.ranks.on_first(partial(check_repository, hub_repository(context)))


def open_phases(context: Context) -> None:
    context.method.reset(context.config.seed)
    snapshot(context, "start")
    prepare(context)
    warn(context)
    evaluate(context, "initial", context.initial)
    if context.warmup_epochs:
        do(context, "warmup", partial(warm_up, context))
        remove_training_folder(context, "warmup")
        evaluate(context, "warmup", context.start_policy(0))
    context.run.mark_opened()


def evaluate_now(context: Context, data: str = "") -> Summary:
    """Evaluates the newest policy, and the initial one before it, on the context's held-out data. `data`, which ends
    in a slash, names a data set other than the run's. Returns the newest one's metrics."""
    check(context)
    context.method.reset(context.config.seed)
    prepare(context)
    stage, policy = newest_policy(context)
    evaluate(context, f"{data}initial", context.initial)
    evaluate(context, f"{data}{stage}", policy)
    found = metrics_of(context.run.state["phases"][evaluation_phase(f"{data}{stage}")])
    return {name: value for name, value in found.items() if name != DATASETS} | flat(found.get(DATASETS, {}))


def newest_policy(context: Context) -> tuple[str, str]:
    """The stage and the folder of the policy that the run has trained last. Restores its learners."""
    for iteration in reversed(range(context.config.num_iterations)):
        if context.run.done(f"{context.folder(iteration)}/train"):
            restore_method(context, iteration)
            return f"iteration-{iteration}", str(context.checkpoint(iteration))
    warm = context.run.done("warmup")
    return ("warmup", context.start_policy(0)) if warm else ("initial", context.initial)


def prepare(context: Context) -> None:
    do_once(context, "data", partial(prepare_data, context))
    context.ranks.on_first(partial(refuse_unfit_data, context))
    do_once(context, "check", partial(check_model, context))
    refuse_unreachable_head(context)
    if context.trains_reward:
        do(context, "reward", partial(train_reward_model, context))
        remove_training_folder(context, "reward")
    if context.method.needs_reference and context.has_pairs and uses_offline_pairs(context):
        do(context, "reference", lambda: keep_initial_reference(context, "reference", context.offline()))
    if not context.method.filter.keeps_all:
        do(context, "filter", partial(filter_pairs, context))
        for proxy in proxies(context):
            remove_training_folder(context, proxy)
    for feature in context.method.features():
        if not feature.follows_policy:
            do(context, f"features/{feature.name}", partial(keep_feature, context, feature))
    if context.method.validation is not None:
        do_once(context, "validation", partial(hold_out, context, context.method.validation))


def run_iteration(context: Context, iteration: int) -> None:
    """Runs the method's phases on one sequential part of the data, then evaluates."""
    folder = context.folder(iteration)
    start_method(context, iteration)
    for name, work in iteration_phases(context, iteration).items():
        do(context, f"{folder}/{name}", work)
    if has_datasets(context):
        do_once(context, f"{folder}/{DATASETS}", partial(count_datasets, context, iteration))
    remove_training_folder(context, folder)
    restore_method(context, iteration)
    snapshot(context, f"iteration-{iteration}")
    evaluate(context, f"iteration-{iteration}", str(context.checkpoint(iteration)))


def warn(context: Context) -> None:
    """Prints what gives reason to doubt the run, and stores it for the report."""
    doubts = doubts_of(context)
    for doubt in doubts:
        say(f"warning: {doubt}", context.shows)
    context.ranks.on_first(partial(write_json, context.run.path / "warnings.json", {"before_training": doubts}))
    context.run.keep(context.run.path / "warnings.json")


def do(context: Context, phase: str, work: Work) -> None:
    if not context.run.done(phase):
        announce(phase, context.run.phase(phase, partial(leaving_room, context, work)), context.shows)


def leaving_room(context: Context, work: Work) -> Summary:
    """Does the work of a phase. Then, of several processes, each leaves the accelerator if a server may need it."""
    summary = work()
    if context.ranks.count > 1 and context.config.generation.engine != "transformers":
        context.slot.clear()
    return summary


def do_once(context: Context, phase: str, work: Work) -> None:
    """Runs a phase on rank 0 while the other ranks wait."""
    do(context, phase, partial(context.ranks.on_first, work))


def evaluate(context: Context, stage: str, policy: str) -> None:
    if context.eval_data is not None:
        do(context, evaluation_phase(stage), partial(evaluate_policy, context, stage, policy))


def warn_untrained(context: Context) -> None:
    """Says that the final model is the one that the run started from, if nothing was trained."""
    if not global_step(context.run.path):
        caution("nothing was trained: the policy is as before, and final/ is the initial model", context.ranks.is_first)


def uses_offline_pairs(context: Context) -> bool:
    method = context.method
    return method.trainer.uses_pairs or context.warmup_epochs > 0 or method.selection.needs_margins


def start_method(context: Context, iteration: int) -> None:
    """Restores the learners as the previous iteration left them, or resets them, whatever this process did before.
    Measures the policy's stage if the method needs it."""
    if iteration > 0:
        restore_method(context, iteration - 1)
    else:
        context.method.reset(context.config.seed)
    if context.method.needs_stage(iteration):
        do(context, context.stage_folder(iteration), partial(measure_stage, context, iteration))
    context.method.start_iteration(context.iteration(iteration))


def restore_method(context: Context, iteration: int) -> None:
    """Restores the learners as this iteration left them."""
    folder = context.checkpoint(iteration)
    context.run.checked(folder / METHOD_STATE)
    load_method(context.method, folder)


def snapshot(context: Context, name: str) -> None:
    path = context.run.path / "snapshots" / f"{name}.json"
    if context.ranks.is_first and not context.run.intact(path):
        write_json(path, context.method.snapshot())
        context.run.keep(path)


def remove_training_folder(context: Context, phase: str) -> None:
    """Removes intermediate checkpoints and scratch files; call it once the phase is done."""
    for name in ("training", SCRATCH):
        context.run.remove_folder(f"{phase}/{name}")


def write_final(context: Context) -> dict[str, Any]:
    """Copies the last policy, compares the copy with it, and loads the copy once before it gets its name."""
    last = context.run.checked(context.checkpoint(context.config.num_iterations - 1))
    final = context.run.path / "final"
    with whole_folder(final) as folder:
        shutil.copytree(last, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*NOT_PART_OF_A_MODEL))
        check_copy(context.run, last, folder)
        check_loads(str(folder), context.config.options_of(str(folder)))
        (folder / "README.md").write_text(model_card(context), encoding="utf-8")
    context.run.keep(final)
    return {}


def check_copy(run: RunDirectory, source: Path, copy: Path) -> None:
    """Raises RunError if a copied file is not what the run wrote in `source`."""
    listed = {entry.file: entry for entry in run.manifest.below(run.manifest.name(source))}
    for file in files_of(copy):
        entry = listed.get(run.manifest.name(source / file.relative_to(copy)))
        if entry is not None and checksum(file) != entry.xxh3:
            raise RunError(f"{copy.name}/{file.name} is not a true copy of {entry.file}; start the same command again")
