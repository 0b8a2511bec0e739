"""Checks before the first phase for what would otherwise fail hours later."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pyarrow.compute as pc
import torch
from transformers import TrainingArguments
from transformers.utils import is_liger_kernel_available

from adaptpo.choices.learners.base import Estimator, Schedule
from adaptpo.choices.method import Method
from adaptpo.choices.reference import Synced
from adaptpo.config.recipe import AlignmentConfig
from adaptpo.config.reward import FunctionReward, reward_parts
from adaptpo.data.repeats import REPEATS, doubts_of_repeats
from adaptpo.data.templates import unread_options
from adaptpo.data.vocabulary import check_tokenizer_fits
from adaptpo.distributed.launch import is_set, is_sharded, parallel_size
from adaptpo.errors import ConfigError, DataError
from adaptpo.models.loading import (
    changes_base,
    check_loading,
    leave_out_unread,
    load_tokenizer,
    read_config,
    read_generation_config,
)
from adaptpo.models.positions import positions_of
from adaptpo.pipeline.arguments import (
    check_compilation,
    check_scheduler,
    optimizer_of,
    refuse_unread,
    refuse_unread_by_optimizer,
)
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.dtypes import announce_dtype, dtype_doubts, trained_dtype
from adaptpo.pipeline.generator import check_generation
from adaptpo.pipeline.phases.reward import reward_arguments
from adaptpo.pipeline.trackers import make_trackers
from adaptpo.run.arrow_rows import MappedRows
from adaptpo.run.progress import caution, say
from adaptpo.training.optimizer_rules import check_optimizer

SLOW = 1e-6
"""A learning rate up to this one is for whole models."""
SHOWN_BY_PEFT = ("tie", "ignored", "excluded", "matched")
"""Words in those of peft's warnings that tell of settings without effect, or with an unexpected one."""


def refuse_impossible(context: Context) -> None:
    """Raises an error for what would otherwise fail hours later."""
    check_ranks(context)
    check_executor(context)
    if context.reward is None and context.annotates:
        raise ConfigError(
            f"method '{context.method.name}' annotates fresh responses, but the run has no reward; "
            "set `reward` to a reward model, to `train`, or to python:module:function"
        )
    check_sampling(context)
    check_generation(context)
    check_objectives(context)
    check_following(context)
    context.method.refuse_impossible()
    options = context.config.options_of(context.initial)
    config = read_config(context.initial, options)
    check_tokenizer_fits(context.tokenizer, config)
    check_lengths(context, config)
    check_loading(config, options, context.config.peft is not None)
    check_reference(context)
    check_training(context)
    check_reward(context)
    announce_dtype(context, config)
    announce_unread(context)
    announce_devices(context)


def announce_devices(context: Context) -> None:
    """Says that accelerators are left idle."""
    count = torch.cuda.device_count()
    alone = context.ranks.count == 1 and context.config.executor.kind == "local"
    if count > 1 and alone and context.inference_arguments.device.type == "cuda":
        say(
            f"this process computes on one of {count} GPUs; to use all, start "
            "`accelerate launch -m adaptpo train ...`; to choose one, set CUDA_VISIBLE_DEVICES",
            context.shows,
        )


def announce_unread(context: Context) -> None:
    """Says what of its `generation_config.json` the aligned model will not have."""
    stored = read_generation_config(context.initial, context.config.options_of(context.initial))
    if unread := leave_out_unread(stored) if stored else []:
        say(
            f"the model's generation_config.json has {', '.join(unread)}, which transformers does not read without "
            "do_sample (or several beams) and does not save; the aligned model leaves it out",
            context.shows,
        )


def expected_schedule(context: Context) -> Schedule:
    """The training steps ahead, once the data is prepared; there will be fewer if prompts leave an iteration."""
    args, epochs = context.inference_arguments, context.num_train_epochs
    together = args.per_device_train_batch_size * args.gradient_accumulation_steps * context.ranks.count
    prompts = [len(context.prompt_ids(iteration)) for iteration in range(context.config.num_iterations)]
    steps = [args.max_steps if args.max_steps > 0 else math.ceil(epochs * math.ceil(n / together)) for n in prompts]
    return Schedule(tuple(steps), epochs if args.max_steps <= 0 else min(steps) * together / max(1, min(prompts)))


def doubts_of(context: Context) -> list[str]:
    """Settings without effect, and reasons why learners or the reference may stay as they are."""
    schedule = expected_schedule(context)
    unread = unread_options(context.tokenizer, context.config.chat_template_kwargs)
    data = context.run.state["phases"]["data"]
    repeats = doubts_of_repeats(data.get(REPEATS, 0), data["kept"])
    doubts = [*context.method.doubts(schedule), *reference_doubts(context, schedule)]
    return [*doubts, *dtype_doubts(context), *adapter_doubts(context), *unread, *repeats]


def adapter_doubts(context: Context) -> list[str]:
    rate = context.inference_arguments.learning_rate
    if context.config.peft is None or rate > SLOW or context.optimizer is not None:
        return []
    return [
        f"training.learning_rate is {rate:g}, which is for training all weights; an adapter hardly moves with it: set "
        "10 to 100 times as much, such as 1e-5"
    ]


def reference_doubts(context: Context, schedule: Schedule) -> list[str]:
    rule, steps, method = context.reference_choice, sum(schedule.steps), context.method
    if rule == "previous" and method.trainer.uses_pairs and not method.needs_reference:
        return ["reference: previous has no effect: nothing in this method reads the reference; leave it out"]
    if not isinstance(rule, Synced) or steps >= rule.ref_model_sync_steps:
        return []
    return [
        f"the reference never follows the policy: the run has {steps} optimizer steps, and ref_model_sync_steps is "
        f"{rule.ref_model_sync_steps}; lower it"
    ]


def check_following(context: Context) -> None:
    """Raises ConfigError for a reference that cannot follow the policy."""
    if not isinstance(context.reference_choice, Synced):
        return
    if not (context.method.needs_reference and context.method.trainer.uses_pairs):
        raise ConfigError(
            f"method '{context.method.name}' compares pairs with no reference that could follow the policy; leave "
            "reference out, or set it to initial"
        )
    if context.config.peft is not None:
        raise ConfigError(
            "a reference that follows the policy needs full weights, because the mean of two adapters is not that of "
            "their models; leave peft out, or set reference to previous"
        )
    if is_sharded():
        raise ConfigError(
            "a reference that follows the policy needs whole weights on every process; train without FSDP and "
            "DeepSpeed, or set reference to previous"
        )


def check_ranks(context: Context) -> None:
    """Raises ConfigError for what does not support several processes."""
    if context.ranks.count == 1:
        return
    method = context.method
    if not method.trainer.uses_pairs and is_sharded():
        raise ConfigError(
            f"method '{method.name}' trains on rewards, which needs whole models on every process; train without FSDP "
            "and DeepSpeed, and set peft if the models do not fit"
        )
    if method.looks_ahead:
        check_look_ahead(context, method.looks_ahead)


def check_look_ahead(context: Context, estimator: Estimator) -> None:
    """Raises ConfigError if learners cannot differentiate the policy's steps over several processes."""
    name, sharded = context.method.name, is_set("ACCELERATE_USE_FSDP")
    if estimator != "central":
        raise ConfigError(
            f"method '{name}' differentiates the policy's optimizer steps with estimator {estimator}, which needs a "
            "single process; start one, or set method.estimator to central"
        )
    if is_set("ACCELERATE_USE_DEEPSPEED"):
        raise ConfigError(
            f"method '{name}' differentiates the policy's optimizer steps, and DeepSpeed hides them; train with FSDP2 "
            "(recipes/accelerate/fsdp2.yaml) or whole models, or choose another method"
        )
    if parallel_size("dp_replicate") > 1:
        raise ConfigError(
            f"method '{name}' adds up over all weights, and with parallelism_config_dp_replicate_size several "
            "processes hold the same ones; set it to 1, which shares out the weights among all processes"
        )
    if sharded and context.inference_arguments.bf16:
        caution(
            f"method '{name}' learns from small differences of losses. FSDP2 computes them in bfloat16, with an error "
            "of about 7 % instead of 0.1 %; training.bf16: false, with mixed_precision: 'no' in the launcher's file, "
            "computes them, and all of training, in float32",
            context.ranks.is_first,
        )


def check_executor(context: Context) -> None:
    """Raises ConfigError for what the executor's workers cannot compute, and starts the executor."""
    kind = context.config.executor.kind
    if kind != "local" and context.ranks.count > 1:
        raise ConfigError(
            f"executor {kind} needs a single process, which distributes the shards; start one, or set executor to local"
        )
    context.run.executor.start(context.inference_arguments.device, context.slot.clear)


def check_objectives(context: Context) -> None:
    count = context.method.pairing.num_rewards
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
            f"method '{context.method.name}' compares with the sampling probabilities of its responses; set "
            "generation.temperature to 1, generation.top_p to 1 and generation.top_k to 0"
        )


def check_training(context: Context) -> None:
    """Checks trackers, optimizer and adapter, which would otherwise fail only when training starts."""
    args = context.inference_arguments
    if args.per_device_train_batch_size < 1:
        raise ConfigError("training.per_device_train_batch_size counts prompts; set it to 1 or more")
    make_trackers(context.report_to)
    optimizer, settings = optimizer_settings(context)
    check_arguments(context.config.training, args)
    refuse_unread(context.config.training, args)
    if args.fp16 and trained_dtype(context) in ("float16", "half"):
        raise ConfigError(
            "training.fp16 scales the gradients of float32 weights, and model_init_kwargs.dtype makes them float16; "
            "leave dtype out"
        )
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise ConfigError("training.use_liger_kernel needs the package liger-kernel; install it, or leave the key out")
    if context.method.looks_ahead:
        check_optimizer(optimizer, settings)
        if args.fp16:
            raise ConfigError(
                f"method '{context.method.name}' learns by differentiating the policy's optimizer steps, which "
                "training.fp16 scales; set training.bf16, or neither"
            )
    if context.config.peft is not None:
        check_adapter(context, context.config.peft)


def check_adapter(context: Context, peft: dict[str, Any]) -> None:
    """Makes the adapter once, which raises ConfigError for settings that do not fit the model, and shows what peft
    says of settings without effect."""
    if context.method.trainer.trains_on == "groups" and changes_base(peft):
        raise ConfigError(
            f"method '{context.method.name}' takes the model below the adapter as its reference, and "
            "peft.init_lora_weights or peft.bias changes that model; leave both out, or train without peft"
        )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        context.trainable_policy(context.initial)
    messages = dict.fromkeys(str(warning.message) for warning in said)
    for message in (each for each in messages if any(word in each for word in SHOWN_BY_PEFT)):
        caution(f"peft: {' '.join(message.split())}", context.ranks.is_first)


def optimizer_settings(context: Context) -> tuple[type, dict[str, Any]]:
    """The class and the settings of the optimizer. Raises ConfigError if it is missing, or not the method's to take."""
    if context.optimizer is not None:
        if not context.method.trainer.uses_pairs:
            raise ConfigError(
                f"method '{context.method.name}' makes its own optimizer; leave optimizers out and set training.optim"
            )
        return context.optimizer.kind, context.optimizer.settings
    return optimizer_of(context.inference_arguments)


def check_reference(context: Context) -> None:
    """Raises ConfigError for a reference model that the run would not read, or that reads other tokens."""
    path = context.reference_model
    if path is None:
        return
    if not context.method.needs_reference:
        raise ConfigError(f"method '{context.method.name}' compares with no reference; leave ref_model out")
    if context.reference_choice == "previous":
        raise ConfigError("ref_model stands for the reference 'initial'; set reference to initial, or leave it out")
    if context.method.trainer.trains_on == "groups" and context.config.peft is not None:
        raise ConfigError(
            f"method '{context.method.name}' with peft takes the model below the adapter as its reference; leave "
            "ref_model out, or train without peft"
        )
    options = context.given_options(path)
    config = read_config(path, options)
    check_tokenizer_fits(context.tokenizer, config)
    if load_tokenizer(path, options).get_vocab() != context.tokenizer.get_vocab():
        raise ConfigError(
            f"ref_model '{path}' has another tokenizer than the policy, so their log-probs cannot be compared; give "
            "a model with the policy's tokenizer"
        )


def check_lengths(context: Context, model_config: Any) -> None:
    positions = positions_of(model_config)
    needed = context.config.max_prompt_length + context.config.generation.max_new_tokens
    if positions is not None and needed > positions and context.annotates:
        raise ConfigError(
            f"max_prompt_length plus generation.max_new_tokens is {needed} tokens, but the model has {positions} "
            "positions; lower one of them"
        )


def check_arguments(given: dict[str, Any], args: TrainingArguments) -> None:
    """Raises ConfigError for fields of `training` or `reward_training` that do not fit together, or this machine."""
    optimizer_of(args)
    check_scheduler(args)
    check_compilation(args)
    refuse_unread_by_optimizer(given, args)


def check_reward(context: Context) -> None:
    """Loads the annotator once and probes it, so that a wrong one fails before any work is done."""
    trained_later = context.trains_reward and not context.reward_folder.exists()
    if trained_later:
        check_reward_training(context)
    if context.reward is not None and context.annotates and not trained_later:
        context.annotator().probe()


def check_reward_training(context: Context) -> None:
    try:
        check_arguments(context.config.reward_training, reward_arguments(context))
    except ConfigError as error:
        raise ConfigError(str(error).replace("training.", "reward_training.")) from error


def refuse_unfit_data(context: Context) -> None:
    """Raises DataError if the data, which has just been read, lacks what the run needs."""
    if not context.has_pairs:
        refuse_without_pairs(context.method, context.config, context.reward)
        if context.method.warmup_epochs:
            say("no row has an offline pair: the run has no warm-up, which would train on them", context.shows)
    if context.trains_reward or context.method.trainer.trains_on == "groups":
        refuse_mixed_formats(context.offline_rows)


def refuse_without_pairs(method: Method, config: AlignmentConfig, reward: Any) -> None:
    """Raises DataError for what cannot be done if no row has an offline pair."""
    uses = method.uses_of_pairs(config.num_iterations)
    if uses:
        raise DataError(
            f"method '{method.name}' needs offline pairs: {', and '.join(uses)}. No row of the data has one: give "
            "`chosen` and `rejected` in some rows (prompts alone may stand beside them), or choose a method that needs "
            "none (`adaptpo methods`)"
        )
    if config.warmup_epochs:
        raise DataError(
            f"warmup_epochs is {config.warmup_epochs}, and a warm-up trains on offline pairs, but no row of the data "
            "has one; leave warmup_epochs out"
        )
    if reward == "train":
        raise DataError(
            "`reward: train` trains a reward model on offline pairs, and no row of the data has one; set `reward` to a "
            "reward model or a function"
        )


def refuse_mixed_formats(rows: MappedRows) -> None:
    """Raises DataError if some prompts are plain text and others conversations, which TRL's trainers cannot read."""
    conversations = sum(pc.sum(pc.starts_with(batch["prompt"], "[")).as_py() for batch in rows.batches())
    if 0 < conversations < len(rows):
        raise DataError(
            f"{conversations:,} prompts are conversations and {len(rows) - conversations:,} plain text, and TRL's "
            "trainer, which this run uses, needs one format; write the latter as messages, or use one of them"
        )
