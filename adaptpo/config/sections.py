"""The sections of a recipe that take another library's fields: `training`, `reward_training`, `peft` and more."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_type_hints

from annotated_types import Ge, Le
from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from adaptpo.config.elsewhere import elsewhere
from adaptpo.config.numbers import (
    DEEPEST,
    Count,
    CountOrZero,
    Decay,
    Fraction,
    LearningRate,
    NonNegative,
    Positive,
    Whole,
    check_number,
    check_plain,
)
from adaptpo.config.secrets import shown
from adaptpo.errors import ConfigError

LAUNCHED = "share out the weights in accelerate launch's file, as in recipes/accelerate"
OWNED_TRAINING_ARGUMENTS = {
    "output_dir": "set output_dir of the recipe",
    "seed": "set seed of the recipe",
    "data_seed": "set seed of the recipe",
    "resume_from_checkpoint": "a run resumes by itself",
    "save_total_limit": "a run keeps its last complete checkpoint",
    "save_only_model": "a run resumes from the state of its optimizer",
    "ignore_data_skip": "a resumed run trains on each prompt once",
    "remove_unused_columns": "batches are made from prompt groups",
    "load_best_model_at_end": "an iteration ends with its last step",
    "metric_for_best_model": "an iteration ends with its last step",
    "greater_is_better": "an iteration ends with its last step",
    "per_device_eval_batch_size": "set max_tokens_per_batch of the recipe",
    "auto_find_batch_size": "set max_tokens_per_batch of the recipe; larger batches are computed in several passes",
    "disable_tqdm": "set show_progress of the recipe",
    "eval_strategy": "set eval_data of the recipe; every iteration ends with an evaluation",
    "label_smoothing_factor": "set method.label_smoothing of the method conservative_dpo, robust_dpo, exo_pair or cpo",
    "label_names": "batches are made from prompt groups",
    "length_column_name": "batches are made from prompt groups",
    "include_num_input_tokens_seen": "adaptpo counts the tokens of prompt groups itself",
    "do_train": "`adaptpo train` trains",
    "do_eval": "set eval_data of the recipe",
    "do_predict": "set eval_data of the recipe",
    "local_rank": "`accelerate launch` and `torchrun` set it",
    "average_tokens_across_devices": "leave it out; the loss is divided by the prompts of a whole optimizer step",
    "dataloader_drop_last": "leave it out; a run trains on every prompt, and its last batch may be smaller",
    "logging_nan_inf_filter": "leave it out; a loss that is not finite ends the run",
    "neftune_noise_alpha": "leave it out; the reference has no noise on its embeddings, so the policy has none",
    "enable_jit_checkpoint": "leave it out; a run that is ended resumes from its last checkpoint (training.save_steps)",
    "save_on_each_node": "leave it out; all machines share output_dir, and the first process saves",
    **dict.fromkeys(("fsdp", "fsdp_config", "deepspeed", "parallelism_config"), LAUNCHED),
    "skip_memory_metrics": "leave it out; no memory is measured in a run",
    "use_cache": "leave it out; a forward pass of training keeps no cache",
    "hub_token": "log in with `hf auth login`, or set HF_TOKEN; a run stores its settings, so none may be a secret",
    "hub_strategy": "set push_to_hub; the final model is pushed once, when the run ends",
    "hub_always_push": "set push_to_hub; the final model is pushed once, when the run ends",
} | dict.fromkeys(
    [
        *("eval_steps", "eval_delay", "eval_on_start", "eval_accumulation_steps", "eval_do_concat_batches"),
        *("eval_use_gather_object", "batch_eval_metrics", "include_for_metrics", "prediction_loss_only"),
        *("bf16_full_eval", "fp16_full_eval"),
    ],
    "every iteration ends with an evaluation on eval_data, in the precision of training",
)
"""Fields of `TrainingArguments` that the run sets itself, or that nothing would read, with what to set instead."""

NEEDS_EVALUATIONS = "it needs evaluations between optimizer steps, and a run evaluates after an iteration"
UNUSABLE_VALUES = {
    "save_strategy": {"best": f"set steps, epoch or no; {NEEDS_EVALUATIONS}"},
    "lr_scheduler_type": dict.fromkeys(
        ("reduce_lr_on_plateau", "greedy"), f"set another schedule, such as cosine; {NEEDS_EVALUATIONS}"
    ),
    "max_steps": {"0": "transformers takes it for no limit; leave it out, or set a number of steps"},
}
"""Values of `TrainingArguments` that no run can follow, with what to set instead."""

RANGES: dict[str, Any] = {
    # transformers.TrainingArguments
    **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps", "torch_empty_cache_steps"), Count),
    **dict.fromkeys(("dataloader_prefetch_factor", "ddp_bucket_cap_mb", "ddp_timeout"), Count),
    **dict.fromkeys(("num_train_epochs", "logging_steps", "save_steps", "adam_epsilon"), Positive),
    **dict.fromkeys(("warmup_steps", "weight_decay", "max_grad_norm", "neftune_noise_alpha"), NonNegative),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), Decay),
    **dict.fromkeys(("warmup_ratio",), Fraction),
    "max_steps": Annotated[Whole, Ge(-1)],
    "learning_rate": LearningRate,
    "dataloader_num_workers": Annotated[CountOrZero, Le(1024)],
    # trl.RewardConfig
    **dict.fromkeys(("dataset_num_proc", "max_length", "pad_to_multiple_of"), Count),
    "center_rewards_coefficient": NonNegative,
    # peft.LoraConfig
    **dict.fromkeys(("r", "lora_alpha", "qalora_group_size"), Count),
    "lora_dropout": Decay,
}
"""The ranges of fields whose own libraries take any number; one that is not here is finite."""


DTYPES = ("auto", "bfloat16", "float16", "float32", "float64")


PLACED_BY_THE_RUN = (
    "model_init_kwargs.device_map: a run places its models itself, each on the device of its process; leave it out. To "
    "choose a GPU set CUDA_VISIBLE_DEVICES, and to share a model among several start `accelerate launch` with FSDP"
)


def load_options(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `from_pretrained`, checked. Raises ConfigError for `device_map`, and as `with_dtype` does."""
    if "device_map" in options:
        raise ConfigError(PLACED_BY_THE_RUN)
    return with_dtype(options)


def with_dtype(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `from_pretrained` with their dtype under `dtype`, by name: also that of `torch_dtype`, its older
    name, and of an object such as `torch.bfloat16`. Raises ConfigError for two different ones, or another name."""
    given = {name: str(options[name]).removeprefix("torch.") for name in ("dtype", "torch_dtype") if options.get(name)}
    rest = {name: value for name, value in options.items() if name not in ("dtype", "torch_dtype")}
    for name, value in given.items():
        if value not in DTYPES:
            raise ConfigError(f"model_init_kwargs.{name} is {value!r}; give one of {', '.join(DTYPES)}")
    if len(set(given.values())) > 1:
        raise ConfigError("model_init_kwargs names two dtypes; torch_dtype is the older name of dtype, so drop one")
    return rest | ({"dtype": min(given.values())} if given else {})


def check_names(section: str, values: dict[str, Any], target: Callable[..., Any]) -> None:
    """Raises ConfigError for the first key of `values` that is not a field (or argument) of `target`."""
    if is_dataclass(target):
        valid = [field.name for field in fields(target) if field.init]
    else:
        valid = list(inspect.signature(target).parameters)
    for name in values:
        if name not in valid:
            close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'?" if close else f"see the fields of {target.__name__}"
            raise ConfigError(f"unknown key '{section}.{name}': {elsewhere(name, section) or hint}")


def check_types(section: str, values: dict[str, Any], target: Callable[..., Any]) -> None:
    """Raises ConfigError for the first value that is not of the type that `target` declares for it, or out of range."""
    declares = target.__init__ if isinstance(target, type) and not is_dataclass(target) else target  # type: ignore[misc]
    hints = get_type_hints(declares, include_extras=True)
    for name, value in values.items():
        try:
            TypeAdapter(hints.get(name, Any)).validate_python(value, strict=True)
        except ValidationError as error:
            raise ConfigError(f"'{section}.{name}': {error.errors()[0]['msg']} (found {shown(value, name)})") from error
        except PydanticSchemaGenerationError as error:
            raise ConfigError(
                f"'{section}.{name}' is an object, which a recipe cannot give (found {shown(value, name)})"
            ) from error
    refuse_out_of_range(section, values)


def refuse_other_adapters(values: dict[str, Any]) -> None:
    """Raises ConfigError for an adapter that is not trained, or not one of a causal language model."""
    kind = values.get("task_type")
    if kind not in (None, "CAUSAL_LM"):
        raise ConfigError(f"peft.task_type is {kind}, and a policy is a causal language model; leave it out")
    start = str(values.get("init_lora_weights"))
    if start.startswith("pissa_niter") or start in ("eva", "corda", "lora_ga"):
        raise ConfigError(
            f"peft.init_lora_weights is {start}, which depends on chance or on data, so an adapter that is loaded "
            "again would lie on other weights; set true, gaussian, orthogonal, olora or pissa"
        )
    if values.get("inference_mode"):
        raise ConfigError("peft.inference_mode freezes the adapter, and nothing would be trained; leave it out")


def refuse_owned(section: str, values: dict[str, Any]) -> None:
    for name, remedy in OWNED_TRAINING_ARGUMENTS.items():
        if name in values:
            raise ConfigError(f"{section}.{name} is not taken from a recipe: {remedy}")
    for name, unusable in UNUSABLE_VALUES.items():
        value = str(getattr(values.get(name), "value", values.get(name)))
        if value in unusable:
            raise ConfigError(f"{section}.{name} is {value}: {unusable[value]}")


def refuse_out_of_range(section: str, values: dict[str, Any]) -> None:
    for name, value in values.items():
        try:
            check_plain(value, DEEPEST)
        except ValueError as error:
            raise ConfigError(f"'{section}.{name}': {error} (found {shown(value, name)})") from error
        if name in RANGES and isinstance(value, int | float):
            check_number(f"{section}.{name}", value, TypeAdapter(RANGES[name]))


OF_THE_POLICY = "leave it out; the reward model is trained and read with the policy's tokenizer and chat template"
OF_THE_WHOLE_RUN = {
    **dict.fromkeys(("chat_template_path", "eos_token", "pad_token"), OF_THE_POLICY),
    "model_init_kwargs": "set model_init_kwargs of the recipe",
    "trust_remote_code": "set trust_remote_code of the recipe",
    "report_to": "set training.report_to; its trackers follow the whole run",
    "run_name": "set training.run_name; its trackers follow the whole run",
    "push_to_hub": "training.push_to_hub pushes the aligned model; push the folder reward/model of the run yourself",
}


def refuse_shared(values: dict[str, Any]) -> None:
    for name, remedy in OF_THE_WHOLE_RUN.items():
        if values.get(name) not in ("none", False, None, {}):
            raise ConfigError(f"reward_training.{name} is not taken from a recipe: {remedy}")
