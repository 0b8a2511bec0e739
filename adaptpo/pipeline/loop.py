"""The sequence of phases that a run goes through."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoConfig, Trainer
from transformers.integrations import get_reporting_integration_callbacks

from adaptpo.choices.filters import KeepAll
from adaptpo.choices.learners.base import METHOD_STATE
from adaptpo.config.reward import FunctionReward, reward_parts
from adaptpo.data.tokenization import check_tokenizer_fits
from adaptpo.errors import ConfigError
from adaptpo.models.loading import first_line
from adaptpo.pipeline.context import SCRATCH, Context
from adaptpo.pipeline.generator import check_generation
from adaptpo.pipeline.iteration import Work, iteration_phases
from adaptpo.pipeline.model_card import model_card
from adaptpo.pipeline.phases.check import check_model
from adaptpo.pipeline.phases.data import prepare_data
from adaptpo.pipeline.phases.evaluate import evaluate_policy
from adaptpo.pipeline.phases.features import keep_feature
from adaptpo.pipeline.phases.filter import filter_pairs, proxies
from adaptpo.pipeline.phases.hold_out import hold_out
from adaptpo.pipeline.phases.reward import train_reward_model
from adaptpo.pipeline.phases.score import keep_reference
from adaptpo.pipeline.phases.stage import measure_stage
from adaptpo.pipeline.phases.train import refuse_unreachable_head, warm_up
from adaptpo.run.files import whole_folder, write_json
from adaptpo.run.progress import announce, say
from adaptpo.training.actor_critic import CRITIC
from adaptpo.training.optimizer_rules import check_optimizer
from adaptpo.training.prompt_group_trainer import load_method

NOT_PART_OF_A_MODEL = (METHOD_STATE, "training_args.bin", CRITIC)


def align(context: Context) -> Path:
    """Run every phase that is not done yet; returns the folder of the aligned model."""
    if context.run.done("final"):
        say(context, f"{context.run.path} is finished already")
        return context.run.path / "final"
    run_opening(context)
    for iteration in range(context.config.num_iterations):
        run_iteration(context, iteration)
    do_once(context, "final", partial(write_final, context))
    return context.run.path / "final"


def run_opening(context: Context) -> None:
    """Everything before the first iteration; other runs may share it (see `adaptpo.run.branch`)."""
    context.ranks.on_first(partial(refuse_impossible, context))
    context.method.reset(context.config.seed)
    snapshot(context, "start")
    prepare(context)
    evaluate(context, "initial", context.initial)
    if context.warmup_epochs:
        do(context, "warmup", partial(warm_up, context))
        remove_training_folder(context, "warmup")
        evaluate(context, "warmup", context.start_policy(0))
    context.run.mark_opened()


def prepare(context: Context) -> None:
    do_once(context, "data", partial(prepare_data, context))
    do_once(context, "check", partial(check_model, context))
    refuse_unreachable_head(context)
    if context.reward == "train" and needs_annotation(context):
        do(context, "reward", partial(train_reward_model, context))
        remove_training_folder(context, "reward")
    if context.method.needs_reference and uses_offline_pairs(context):
        do(context, "reference", lambda: keep_reference(context, "reference", context.initial, context.offline()))
    if not isinstance(context.method.filter, KeepAll):
        do(context, "filter", partial(filter_pairs, context))
        for proxy in proxies(context):
            remove_training_folder(context, proxy)
    for feature in context.method.features():
        if not feature.follows_policy:
            do(context, f"features/{feature.name}", partial(keep_feature, context, feature))
    if context.method.validation is not None:
        do_once(context, "validation", partial(hold_out, context, context.method.validation))


def run_iteration(context: Context, iteration: int) -> None:
    """The method's phases on one sequential part of the data, then an evaluation."""
    folder = context.folder(iteration)
    start_method(context, iteration)
    for name, work in iteration_phases(context, iteration).items():
        do(context, f"{folder}/{name}", work)
    remove_training_folder(context, folder)
    load_method(context.method, context.checkpoint(iteration))
    snapshot(context, f"iteration-{iteration}")
    evaluate(context, f"iteration-{iteration}", str(context.checkpoint(iteration)))


def do(context: Context, phase: str, work: Work) -> None:
    if not context.run.done(phase):
        announce(context, phase, context.run.phase(phase, work))


def do_once(context: Context, phase: str, work: Work) -> None:
    """A phase that rank 0 does while the others wait."""
    do(context, phase, partial(context.ranks.on_first, work))


def evaluate(context: Context, stage: str, policy: str) -> None:
    if context.eval_rows is not None:
        do(context, f"evaluate/{stage}", partial(evaluate_policy, context, stage, policy))


def uses_offline_pairs(context: Context) -> bool:
    method = context.method
    return method.trainer.uses_pairs or context.warmup_epochs > 0 or method.selection.needs_margins


def needs_annotation(context: Context) -> bool:
    fresh = context.method.pairing.num_generations > 0
    measures = any(context.method.needs_stage(iteration) for iteration in range(context.config.num_iterations))
    return fresh or measures or context.eval_rows is not None or "reward_gap" in context.method.filter.needs


def start_method(context: Context, iteration: int) -> None:
    """The learners as the iteration before left them, or at their start, whatever this process did until now, and the
    stage of the policy where the method asks for it."""
    if iteration > 0:
        load_method(context.method, context.checkpoint(iteration - 1))
    else:
        context.method.reset(context.config.seed)
    if context.method.needs_stage(iteration):
        do(context, context.stage_folder(iteration), partial(measure_stage, context, iteration))
    context.method.start_iteration(context.iteration(iteration))


def snapshot(context: Context, name: str) -> None:
    path = context.run.path / "snapshots" / f"{name}.json"
    if context.ranks.is_first and not path.exists():
        write_json(path, context.method.snapshot())


def remove_training_folder(context: Context, phase: str) -> None:
    """Intermediate checkpoints and scratch files go once the phase's own checkpoint counts as done."""
    if context.ranks.is_first:
        for name in ("training", SCRATCH):
            shutil.rmtree(context.run.path / phase / name, ignore_errors=True)


def write_final(context: Context) -> dict[str, Any]:
    last = context.checkpoint(context.config.num_iterations - 1)
    with whole_folder(context.run.path / "final") as folder:
        shutil.copytree(last, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*NOT_PART_OF_A_MODEL))
        (folder / "README.md").write_text(model_card(context), encoding="utf-8")
    return {}


def refuse_impossible(context: Context) -> None:
    """What would otherwise fail hours later."""
    check_ranks(context)
    check_executor(context)
    if context.reward is None and needs_annotation(context):
        raise ConfigError(
            f"method '{context.method.name}' annotates fresh responses and the run has no reward; "
            "set `reward` to a reward model, to `train`, or to python:module:function"
        )
    check_sampling(context)
    check_generation(context)
    check_objectives(context)
    if context.method.objective.needs_sample and not context.method.pairing.keep_sample:
        raise ConfigError(
            f"the objective {context.method.objective!r} needs a fresh response beside each pair, and method "
            f"'{context.method.name}' keeps none; use the method selm, or another objective"
        )
    config = AutoConfig.from_pretrained(context.initial)
    check_tokenizer_fits(context.tokenizer, config)
    check_lengths(context, config)
    check_training(context)
    check_reward(context)


def check_ranks(context: Context) -> None:
    """What was not made for several processes."""
    if context.ranks.count == 1:
        return
    method = context.method
    if not method.trainer.uses_pairs:
        raise ConfigError(f"method '{method.name}' trains on rewards, which needs a single process; start one")
    if any(learner.looks_ahead for learner in method.learners()):
        raise ConfigError(
            f"method '{method.name}' learns weights by looking through the policy's optimizer steps, which needs a "
            "single process; start one, or give another method"
        )
    if (engine := context.config.generation.engine) != "transformers":
        raise ConfigError(
            f"generation.engine {engine} needs a single process, because every rank would start servers of its own; "
            "start one, or set generation.engine to transformers"
        )


def check_executor(context: Context) -> None:
    """What workers could not compute; the executor is ready afterwards."""
    kind, engine = context.config.executor.kind, context.config.generation.engine
    if kind != "local" and context.ranks.count > 1:
        raise ConfigError(
            f"executor {kind} needs a single process, whose shards it hands out; start one, or set executor to local"
        )
    if kind != "local" and engine != "transformers":
        raise ConfigError(
            f"generation.engine {engine} needs executor local, because every worker would start servers of its own; "
            "set executor to local, or generation.engine to transformers"
        )
    context.run.executor.start(context.inference_arguments.device, context.slot.clear)


def check_objectives(context: Context) -> None:
    count = context.method.pairing.objectives
    if not count or context.reward is None:
        return
    parts = [] if context.reward == "train" else reward_parts(context.reward)
    alone = len(parts) == 1 and isinstance(parts[0], FunctionReward)
    if not alone and len(parts) != count:
        raise ConfigError(
            f"method '{context.method.name}' ranks responses by {count} rewards; set `reward` to a list of {count} "
            f"annotators, or to python:module:function, a function that returns {count} floats per response"
        )


def check_sampling(context: Context) -> None:
    settings = context.config.generation
    whole = (settings.temperature, settings.top_p, settings.top_k) == (1, 1, 0)
    if context.method.trainer.samples_plainly and not whole:
        raise ConfigError(
            f"method '{context.method.name}' compares with the probabilities that its responses were drawn with; set "
            "generation.temperature to 1, generation.top_p to 1 and generation.top_k to 0"
        )


def check_training(context: Context) -> None:
    """Trackers, optimizer and adapter, which would otherwise be missed only when training starts."""
    args = context.inference_arguments
    if args.per_device_train_batch_size < 1:
        raise ConfigError("training.per_device_train_batch_size counts prompts; set it to 1 or more")
    try:
        for tracker in get_reporting_integration_callbacks(args.report_to):
            tracker()
        optimizer, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, RuntimeError, ValueError) as error:
        raise ConfigError(f"training: {first_line(error)}") from error
    if any(learner.looks_ahead for learner in context.method.learners()):
        check_optimizer(optimizer, settings)
        if args.fp16:
            raise ConfigError("MetaPO's weights cannot be learned with training.fp16; set training.bf16, or neither")
    if context.config.peft is not None:
        context.policy(context.initial)


def check_lengths(context: Context, model_config: Any) -> None:
    positions = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    longest = max(context.config.completion_limit, context.config.generation.max_new_tokens)
    needed = context.config.max_prompt_length + longest
    if positions is not None and needed > positions:
        raise ConfigError(
            f"max_prompt_length and the response limit make {needed} tokens, and the model has {positions} positions; "
            "lower max_prompt_length, max_completion_length or generation.max_new_tokens"
        )


def check_reward(context: Context) -> None:
    """Load the annotator once and probe it, so that a wrong one is an error before anything is spent."""
    trained_later = context.reward == "train" and not context.reward_folder.exists()
    if context.reward is not None and needs_annotation(context) and not trained_later:
        context.annotator().probe()
