"""What the phases of a run share: settings, models, data and paths.

One model is in memory at a time, except for a reference that is needed in training (`Context.live_reference`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.integrations.liger import apply_liger_kernel

from adaptpo.annotation.base import Annotator, Request
from adaptpo.annotation.build import Workplace, build_annotator
from adaptpo.annotation.function import RewardFunction
from adaptpo.choices.iteration import Iteration, StageReading
from adaptpo.choices.method import Method
from adaptpo.choices.reference import Reference, Synced
from adaptpo.config.recipe import AlignmentConfig, SyncedReference, without_place
from adaptpo.config.reward import RewardPart, reward_parts
from adaptpo.data.mixture import Mixture
from adaptpo.distributed.launch import converts_weights
from adaptpo.distributed.ranks import Ranks
from adaptpo.errors import ConfigError
from adaptpo.generation.base import Sampling
from adaptpo.generation.process import StartedServer
from adaptpo.models.adapters import is_adapter
from adaptpo.models.dropout import turn_off_dropout
from adaptpo.models.layer_kernels import layer_kernels
from adaptpo.models.loading import (
    base_is_untouched,
    first_line,
    load_causal_lm,
    load_encoder,
    load_policy,
    load_tokenizer,
    load_whole_models,
    onto,
    reading_dtype,
    stop_ids_of,
)
from adaptpo.models.packing import RowPacking
from adaptpo.models.precision import keep_linear_layers, keep_weights
from adaptpo.models.shared_prompt.attention import base_model, share_prompts
from adaptpo.pipeline.reading import Reader
from adaptpo.pipeline.stored_prompts import StoredPrompts
from adaptpo.run.directory import RunDirectory
from adaptpo.run.files import read_rows
from adaptpo.seeds import seed_for
from adaptpo.training.actor_critic import CRITIC, Critic
from adaptpo.training.following_reference import FollowingReference
from adaptpo.training.own_optimizer import OwnOptimizer
from adaptpo.training.whole_vocabulary import LiveReference

TRAINING_DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-7,
    "logging_steps": 1,
    "dataloader_pin_memory": torch.cuda.is_available(),
}


Placed = TypeVar("Placed", bound=nn.Module)
Arguments = TypeVar("Arguments", bound=TrainingArguments)

SCRATCH = "scratch"
MAX_EVAL_PROMPTS = 256


@dataclass
class ModelSlot:
    """Holds one model at a time, so that policy, reference and reward model never share the accelerator's memory."""

    key: tuple[str, str] | None = None
    value: Any = None

    def get(self, key: tuple[str, str], load: Callable[[], Any]) -> Any:
        if key != self.key:
            self.clear()
            load_whole_models()
            self.value, self.key = load(), key
        return self.value

    def clear(self) -> None:
        self.key = self.value = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass
class ServerSlot:
    """Holds the generation server that the run has started, if any; it may rest."""

    value: StartedServer | None = None

    def stop(self) -> None:
        if self.value is not None:
            self.value.stop()
            self.value = None


@dataclass
class Context(StoredPrompts):
    """What the phases of a run share. `initial` is the folder or hub id of the policy that the run starts from;
    `reward` is `train`, what `adaptpo.config.reward.reward_parts` reads, or None for methods that never annotate."""

    run: RunDirectory
    config: AlignmentConfig
    method: Method
    initial: str
    reward: str | RewardFunction | dict[str, Any] | list[Any] | None
    data: Mixture
    eval_data: Mixture | None = None
    max_eval_prompts: int = MAX_EVAL_PROMPTS
    tokenizer_folder: str | None = None
    """The folder or hub id of the tokenizer, if it is not the initial model's."""
    reference_model: str | None = None
    """The folder or hub id of the reference `initial`, if it is not the initial model."""
    callbacks: Sequence[TrainerCallback] = ()
    """The user's; they see every phase that trains the policy."""
    optimizer: OwnOptimizer | None = None
    """The user's, in place of that of `training`."""
    slot: ModelSlot = field(default_factory=ModelSlot)
    without_model: Annotator | None = None
    """The annotator, if it takes no accelerator memory."""
    server: ServerSlot = field(default_factory=ServerSlot)

    def __getstate__(self) -> dict[str, Any]:
        """The state sent to a worker of the executor: settings and paths. It loads models and connects by itself."""
        left_here: dict[str, Any] = {"data": Mixture(()), "eval_data": None, "slot": ModelSlot(), "without_model": None}
        left_here |= {"callbacks": (), "server": ServerSlot()}
        return {kept.name: getattr(self, kept.name) for kept in fields(self)} | left_here

    def close(self) -> None:
        """Ends what must not outlive the run."""
        self.server.stop()

    @property
    def ranks(self) -> Ranks:
        return self.run.ranks

    @property
    def shows(self) -> bool:
        """Whether this process shows progress on the terminal."""
        return self.config.show_progress and self.ranks.is_first

    @property
    def is_repeatable(self) -> bool:
        """Whether the same run computes the same bits: on a CPU, unless the recipe says otherwise."""
        chosen = self.config.training.get("full_determinism")
        return self.inference_arguments.device.type == "cpu" if chosen is None else bool(chosen)

    # Paths

    def folder(self, iteration: int) -> str:
        return f"iterations/{iteration}"

    def checkpoint(self, iteration: int) -> Path:
        return self.run.path / self.folder(iteration) / "checkpoint"

    def start_policy(self, iteration: int) -> str:
        """The path of the policy that the iteration starts from."""
        if iteration > 0:
            return str(self.checkpoint(iteration - 1))
        return str(self.run.path / "warmup" / "checkpoint") if self.warmup_epochs else self.initial

    def stage_folder(self, iteration: int) -> str:
        return f"{self.folder(iteration)}/stage"

    @property
    def reward_folder(self) -> Path:
        return self.run.path / "reward" / "model"

    # Settings

    @property
    def warmup_epochs(self) -> int:
        """Epochs of the warm-up: none if no prompt has an offline pair, which is known once the data is read."""
        if self.run.done("data") and not self.has_pairs:
            return 0
        chosen = self.config.warmup_epochs
        return self.method.warmup_epochs if chosen is None else chosen

    @property
    def annotates(self) -> bool:
        """Whether the run needs rewards, to train or to evaluate."""
        evaluates = self.eval_data is not None and self.reward is not None
        return evaluates or self.method.annotates(self.config.num_iterations)

    @property
    def trains_reward(self) -> bool:
        """Whether the run trains a reward model of its own."""
        return self.reward == "train" and self.annotates

    @property
    def num_train_epochs(self) -> float:
        """Epochs of an iteration's training on pairs."""
        return float(self.config.training.get("num_train_epochs", self.method.num_train_epochs))

    @property
    def reference_choice(self) -> Reference:
        chosen = self.config.reference
        return self.method.reference if chosen is None else as_reference(chosen)

    @property
    def keeps_reference(self) -> bool:
        """Whether the run stores the reference's log-probs of an iteration's pairs, before it trains on them."""
        return self.method.needs_reference and not isinstance(self.reference_choice, Synced)

    def reference_path(self, iteration: int) -> str:
        """The path of the model whose log-probs the loss of an iteration compares with, at first if it follows."""
        return self.start_policy(iteration) if self.reference_choice == "previous" else self.first_reference

    @property
    def first_reference(self) -> str:
        """The path of the model whose log-probs stand for the start: the initial one, unless the user gave another."""
        return self.reference_model or self.initial

    def iteration(self, number: int) -> Iteration:
        """What the method's choices may know about an iteration; includes the stage once it is measured."""
        folder = self.stage_folder(number)
        if not self.run.done(folder):
            return Iteration(number, self.config.num_iterations)
        found = self.run.state["phases"][folder]
        groups = self.run.path / folder / "groups.parquet"
        rows = read_rows(self.run.checked(groups)) if self.config.stage.groups > 1 else []
        by_prompt = {row["prompt_id"]: row["score"] for row in rows}
        stage = StageReading(found["boundary_score"], found["injection"], by_prompt)
        return Iteration(number, self.config.num_iterations, stage)

    def method_in(self, iteration: int) -> Method:
        """The method as it is in this iteration."""
        return self.method.at(self.iteration(iteration))

    def arguments(
        self, phase: str, kind: type[TrainingArguments] = TrainingArguments, /, **overrides: Any
    ) -> TrainingArguments:
        settings = TRAINING_DEFAULTS | self.config.training | overrides
        if settings.get("use_liger_kernel"):
            settings["liger_kernel_config"] = layer_kernels(settings.get("liger_kernel_config"))
        owned = {
            "output_dir": str(self.run.path / phase / "training"),
            "seed": seed_for(self.config.seed, "training", phase) % 2**31,
            "remove_unused_columns": False,
            "disable_tqdm": True,  # `adaptpo.run.training_bar` draws the bar.
            "report_to": "none",  # `adaptpo.pipeline.trackers` follows the whole run.
            "push_to_hub": False,  # `adaptpo.pipeline.hub` pushes the final model.
        }
        try:
            return on_one_device(with_launcher_precision(kind(**{**settings, **owned})))
        except (ValueError, TypeError, ImportError) as error:
            raise ConfigError(training_fault(first_line(error))) from error

    @property
    def report_to(self) -> list[str]:
        """The names of the trackers, as `training.report_to` gives them."""
        given = self.config.training.get("report_to") or "none"
        names = [given] if isinstance(given, str) else list(given)
        return [] if names == ["none"] else names

    @cached_property
    def inference_arguments(self) -> TrainingArguments:
        return self.arguments("inference")

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        folder = self.tokenizer_folder or self.initial
        return load_tokenizer(folder, self.config.options_of(folder))

    @cached_property
    def reader(self) -> Reader:
        """How the run's rows are read and tokenized."""
        return Reader.of(self.config, self.initial, self.tokenizer, self.method, self.trains_reward)

    @cached_property
    def sampling(self) -> Sampling:
        settings = self.config.generation
        return Sampling(
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            max_new_tokens=settings.max_new_tokens,
            stop_ids=self.stop_ids,
        )

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        return stop_ids_of(self.initial, self.tokenizer, self.config.options_of(self.initial))

    @property
    def is_mixed(self) -> bool:
        """Whether matrix products are in another precision than the weights that train."""
        return bool(self.inference_arguments.bf16 or self.inference_arguments.fp16)

    @cached_property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of matrix products: that of mixed precision, else that of the weights."""
        if self.is_mixed:
            return torch.bfloat16 if self.inference_arguments.bf16 else torch.float16
        return next(self.policy(self.initial).parameters()).dtype

    @property
    def rows(self) -> RowPacking:
        """How log-probs are computed throughout the run, as decided by the self-check at its start."""
        found = self.run.state["phases"]["check"]
        return RowPacking(found["rows"] == "shared", found["chunked_head"], self.config.max_tokens_per_batch)

    # Models

    def policy(self, path: str) -> nn.Module:
        """The policy at `path`, for passes without gradients."""
        return self._sharing(self.slot.get(("policy", path), lambda: self._reading(self._load_policy(path))))

    def trainable_policy(self, path: str) -> nn.Module:
        """The policy at `path` with the weights that train, which mixed precision keeps in float32."""
        if not self.is_mixed:
            return self.policy(path)
        return self._sharing(self.slot.get(("trainable", path), lambda: self._placed(self._load_policy(path))))

    def _reading(self, model: nn.Module) -> nn.Module:
        computing = self._computing(model)
        head = base_model(computing).get_output_embeddings()
        return keep_linear_layers(computing, self.compute_dtype, head) if self.is_mixed else computing

    def _computing(self, model: nn.Module) -> nn.Module:
        """The model, whose forward pass computes as that of the policy in training."""
        placed = self._placed(model)
        return keep_weights(placed, self.compute_dtype) if self.is_mixed and converts_weights() else placed

    def given_options(self, path: str) -> dict[str, Any]:
        """The arguments of `from_pretrained` for one of the run's models; `revision` and the like are not a
        `ref_model`'s."""
        options = self.config.options_of(path)
        return without_place(options) if path == self.reference_model != self.initial else options

    def options_of(self, path: str) -> dict[str, Any]:
        """`given_options`, and the device."""
        return onto(self.inference_arguments.device, self.given_options(path))

    def _load_policy(self, path: str) -> nn.Module:
        self.run.checked(Path(path))
        adapter_seed = seed_for(self.config.seed, "adapter") % 2**31
        options = self.options_of(self.initial if self.config.peft else path)
        return self._prepared(load_policy(path, self.initial, self.config.peft, options, adapter_seed))

    def _prepared(self, model: nn.Module) -> nn.Module:
        """The model without dropout, unless the recipe keeps it, and with the kernels that training asks for: every
        policy and reference comes through here, so that they compute alike."""
        if self.config.disable_dropout:
            turn_off_dropout(model)
        if self.inference_arguments.use_liger_kernel:
            apply_liger_kernel(model, self.inference_arguments.liger_kernel_config)
        return model

    def reference(self, path: str) -> nn.Module:
        """The frozen reference: the model at `path` as it is, without a fresh adapter."""
        if is_adapter(path) and path != self.initial:
            return self.policy(path)
        return self._sharing(self.slot.get(("reference", path), lambda: self._reading(self._load_reference(path))))

    def _load_reference(self, path: str) -> nn.Module:
        if is_adapter(path) and path != self.initial:
            return self._load_policy(path)
        self.run.checked(Path(path))
        return self._prepared(load_causal_lm(path, self.options_of(path)))

    def live_reference(self, path: str, policy: nn.Module) -> LiveReference:
        """The reference at `path`, for use beside a policy in training, which has left the slot: the policy without its
        adapter if the two are the same model, else a second model."""
        peft = self.config.peft
        if path == self.initial and peft is not None and not is_adapter(path) and base_is_untouched(policy, peft):
            return LiveReference(policy, policy.disable_adapter)
        # Autocast would cache low-precision copies of weights that require gradients.
        load = lambda: self._placed(self._load_reference(path)).requires_grad_(False)  # noqa: E731
        return LiveReference(self._sharing(self.slot.get(("live reference", path), load)))

    def following_reference(self, iteration: int) -> FollowingReference | None:
        """The reference that follows the policy in this iteration, as the last one left it; None for other choices."""
        rule = self.reference_choice
        if not isinstance(rule, Synced) or not self.method.needs_reference:
            return None
        model = self._sharing(self._placed(self._load_reference(self.first_reference)))
        by_token, chunked = self.method.weighting.needs_reference_tokens, self.rows.chunked_head
        reference = FollowingReference(model, rule, chunked, by_token)
        if iteration > 0:
            reference.load(self.checkpoint(iteration - 1))
        return reference

    def _sharing(self, model: nn.Module) -> nn.Module:
        if self.run.done("check") and self.rows.shared_prompts:
            share_prompts(model)
        return model

    def take_policy(self, path: str) -> nn.Module:
        """The policy for training, which changes it, so the slot releases it."""
        model = self.trainable_policy(path)
        self.slot.key = self.slot.value = None
        return model

    def critic(self, iteration: int) -> Critic:
        """PPO's critic at the start of the iteration: the previous one's, or a copy of the policy with a zero head."""
        return self.slot.get(("critic", str(iteration)), lambda: self._placed(self._load_critic(iteration)))

    def _load_critic(self, iteration: int) -> Critic:
        if iteration == 0:
            return Critic(self._sharing(self._load_policy(self.start_policy(0))))
        folder = self.checkpoint(iteration - 1) / CRITIC
        critic = Critic(self._sharing(self._load_policy(str(folder))))
        critic.load_head(folder)
        return critic

    def take_critic(self, iteration: int) -> Critic:
        """The critic for training, which changes it, so the slot releases it."""
        critic = self.critic(iteration)
        self.slot.key = self.slot.value = None
        return critic

    def _placed(self, model: Placed) -> Placed:
        return model.to(self.inference_arguments.device)

    def annotator(self) -> Annotator:
        if self.reward is None:
            raise ConfigError(
                f"method '{self.method.name}' annotates fresh responses, but the run has no reward; "
                "set `reward` to a reward model, to `train`, or to python:module:function"
            )
        parts = reward_parts(self._trained_reward if self.reward == "train" else self.reward)
        if any(part.holds_model for part in parts):
            return self.slot.get(("reward", repr(parts)), lambda: self._build_annotator(parts))
        if self.without_model is None:
            self.without_model = self._build_annotator(parts)
        return self.without_model

    @property
    def _trained_reward(self) -> dict[str, Any]:
        """The reward model that the run trains, which has the policy's chat template."""
        folder = self.run.checked(self.reward_folder)
        return {"reward_model": str(folder), "chat_template_kwargs": self.config.chat_template_kwargs}

    def _build_annotator(self, parts: Sequence[RewardPart]) -> Annotator:
        cache = Path(self.config.annotation_cache or self.run.path / "annotation_cache")
        tokens, num_rewards = self.config.max_tokens_per_batch, self.method.pairing.num_rewards
        trusts = self.config.trusts_code
        place = Workplace(self.inference_arguments.device, tokens, cache, num_rewards, trusts)
        return build_annotator(parts, place)

    def annotate(self, phase: str, requests: Sequence[Request]) -> list[float | None]:
        """The rewards of the requests; their usage goes to the metrics of the phase."""
        with self.annotating(phase) as annotator:
            return annotator.rewards(requests)

    def annotate_objectives(self, phase: str, requests: Sequence[Request], count: int) -> list[list[float] | None]:
        """Like `annotate`, with `count` rewards per request."""
        with self.annotating(phase) as annotator:
            return annotator.reward_vectors(requests, count)

    @contextmanager
    def annotating(self, phase: str) -> Iterator[Annotator]:
        """Yields the annotator; its usage goes to the metrics of the phase."""
        annotator = self.annotator()
        try:
            yield annotator
        finally:
            if usage := annotator.take_usage():
                self.run.log_own(phase, {f"annotation/{name}": count for name, count in usage.items()})

    def encoder(self, path: str) -> tuple[nn.Module, PreTrainedTokenizerBase]:
        """A text encoder and its tokenizer, for features of the offline pairs."""
        return self.slot.get(("encoder", path), lambda: self._load_encoder(path))

    def _load_encoder(self, path: str) -> tuple[nn.Module, PreTrainedTokenizerBase]:
        options, dtype = {"trust_remote_code": self.config.trusts_code}, reading_dtype(self.inference_arguments.device)
        model, tokenizer = load_encoder(path, options, dtype)
        return self._placed(model), tokenizer

    # Files

    def scratch(self, phase: str, name: str) -> Path:
        """The path of a file that is needed only until the phase, or its iteration, is over."""
        return self.run.path / phase / SCRATCH / f"{name}.arrow"


def training_fault(message: str) -> str:
    """transformers' complaint about `training`, with the key where it names none."""
    if "support bf16" in message:
        return (
            "training.bf16: this machine has no GPU with bfloat16. Set training.bf16 to false to compute in float32, "
            "or training.use_cpu to true to compute in bfloat16 on the CPU; leave both on the machine with the GPU"
        )
    return f"training: {message}"


def with_launcher_precision(args: Arguments) -> Arguments:
    """The arguments with the mixed precision of accelerate's configuration, if the recipe names none: training takes it
    from there, and what is compared with training must be computed in the same."""
    args.bf16, args.fp16 = (args.mixed_precision == name for name in ("bf16", "fp16"))
    return args


def on_one_device(args: Arguments) -> Arguments:
    """The arguments of a process that computes on one accelerator. Where it sees several, transformers would take
    `DataParallel`, which cuts up what belongs to a whole batch."""
    args._n_gpu = min(args.n_gpu, 1)
    return args


def as_reference(chosen: str | SyncedReference) -> Reference:
    """The reference that a recipe chooses."""
    return Synced(**chosen.model_dump()) if isinstance(chosen, SyncedReference) else chosen  # type: ignore[return-value]
