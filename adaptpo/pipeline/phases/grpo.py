"""GRPO and RLOO with TRL's trainers, on responses sampled while they train, to an iteration's prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, compress
from operator import not_
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from adaptpo.choices.policy_update import GroupPolicyGradient
from adaptpo.distributed.quiet import turn_off_telemetry
from adaptpo.errors import TrainingError
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.generator import sampler
from adaptpo.pipeline.phases.select import selected_ids
from adaptpo.pipeline.phases.train import (
    own_folder,
    phase_callbacks,
    prepared,
    recomputes_activations,
    resumed,
    take_average,
)
from adaptpo.run.directory import Summary
from adaptpo.run.files import disk_errors
from adaptpo.run.schemas import ANNOTATIONS_SCHEMA, RESPONSES_SCHEMA, table
from adaptpo.run.training_bar import TrainingBar
from adaptpo.seeds import seed_for
from adaptpo.training.checkpoints import Logs, mark_complete, step_of
from adaptpo.training.prompt_group_trainer import save_method
from adaptpo.types import Prompt, Response

READ_OTHERWISE = (
    "TRL's trainer reads this prompt differently: it renders neither tools nor template arguments of a row, and does "
    "not continue an assistant's turn"
)
PLAIN: dict[str, Any] = {"num_train_epochs": 1, "bf16": False, "gradient_checkpointing": False}
"""Defaults for keys that the recipe's `training` does not set; TRL's own defaults differ."""


def train_on_groups(context: Context, iteration: int, settings: GroupPolicyGradient) -> Summary:
    """Trains with TRL and writes the checkpoint. Responses and rewards go to the same files as with other methods.

    TRL leaves out the last prompts if they do not fill an optimizer step; they are recorded.
    """
    phase = context.folder(iteration)
    args = trl_arguments(context, iteration, settings)
    selected = list(context.prompts_of(selected_ids(context, iteration)))
    readable = [read_by_trl(context, prompt) for prompt in selected]
    prompts = list(compress(selected, readable))
    trained = len(prompts) - len(prompts) % prompts_per_step(context, args)
    others = [{"prompt_id": p.id, "reason": READ_OTHERWISE} for p in compress(selected, map(not_, readable))]
    left_out = [{"prompt_id": p.id, "reason": "too few prompts to fill an optimizer step"} for p in prompts[trained:]]
    context.run.drop(f"{phase}/train", [*others, *left_out])
    model = prepared(context, context.take_policy(context.start_policy(iteration)), recomputes_activations(args))
    steps = train_with_trl(context, iteration, settings, args, model, prompts[:trained]) if trained else 0
    with own_folder(context, f"{phase}/checkpoint") as folder:
        model.save_pretrained(folder)
        context.tokenizer.save_pretrained(folder)
        save_method(context.method, folder)
    rewards = [row["reward"] for row in context.run.read_shards(f"{phase}/annotations", ["reward"])]
    invalid = sum(reward is None for reward in rewards)
    return {"prompts": trained, "annotated": len(rewards), "invalid": invalid, "steps": steps}


def prompts_per_step(context: Context, args: Any) -> int:
    return args.generation_batch_size // context.method.pairing.num_generations


def trl_arguments(context: Context, iteration: int, settings: GroupPolicyGradient) -> Any:
    """The recipe's training arguments for TRL, whose batch size counts responses; the recipe's counts prompts."""
    import trl

    training = PLAIN | context.config.training
    count, sampling = context.method.pairing.num_generations, context.sampling
    batch = training.pop("per_device_train_batch_size", context.inference_arguments.per_device_train_batch_size)
    return context.arguments(
        context.folder(iteration),
        getattr(trl, f"{settings.algorithm}Config"),
        **training,
        per_device_train_batch_size=batch * count,
        num_generations=count,
        max_completion_length=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        chat_template_kwargs=context.config.chat_template_kwargs,
        disable_dropout=context.config.disable_dropout,
        trust_remote_code=context.config.trusts_code,
        beta=settings.beta,
        epsilon=settings.epsilon,
        model_init_kwargs=reference_options(context),
    )


def reference_options(context: Context) -> dict[str, Any] | None:
    """How TRL loads the reference, which are the arguments of `from_pretrained`; None leaves all to TRL."""
    is_previous = context.reference_choice == "previous"
    given = {} if is_previous else context.given_options(context.first_reference)
    own = {name: value for name, value in given.items() if name in context.config.model_init_kwargs}
    return own | reference_place(context.inference_arguments.device) or None


def reference_place(device: torch.device) -> dict[str, Any]:
    """Where TRL loads the reference; by itself, it would spread it over every GPU that a lone process sees."""
    return {"device_map": {"": str(device)}} if device.type == "cuda" else {}


def read_by_trl(context: Context, prompt: Prompt) -> bool:
    """Whether TRL's trainers turn the prompt into the run's tokens."""
    tokenizer, text = context.tokenizer, prompt.text
    if isinstance(text, str):
        return list(tokenizer(text)["input_ids"]) == prompt.ids
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
    return tokenizer.apply_chat_template(text, **options, **context.config.chat_template_kwargs) == prompt.ids


def train_with_trl(
    context: Context,
    iteration: int,
    settings: GroupPolicyGradient,
    args: Any,
    model: nn.Module,
    prompts: Sequence[Prompt],
) -> int:
    """Trains `model` in place and returns the number of optimizer steps."""
    import trl

    turn_off_telemetry()
    phase = f"{context.folder(iteration)}/train"
    choose_reference(context, iteration, model)
    trainer = sampling_by_prompt(getattr(trl, f"{settings.algorithm}Trainer"))(
        model=model,
        reward_funcs=Rewarding(context, iteration, prompts),
        args=args,
        train_dataset=Dataset.from_list([{"prompt": p.text, "prompt_id": p.id} for p in prompts]),
        processing_class=context.tokenizer,
        callbacks=[GroupHooks(context, iteration), TrainingBar(phase, context.shows), *phase_callbacks(context)],
    )
    trainer.sample = partial(sample, context, iteration, {prompt.id: prompt for prompt in prompts})
    trainer.remove_callback(PrinterCallback)
    if context.reference_choice == "initial":
        forget_adapter(model)
    checkpoint = resumed(context.run, Path(args.output_dir), Logs(context.run.metrics.path, phase))
    context.run.forget_after(phase, step_of(checkpoint) if checkpoint else 0)
    with disk_errors(Path(args.output_dir)):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    take_average(trainer.optimizer)
    forget_adapter(model)
    return int(trainer.state.global_step)


def sampling_by_prompt(kind: Any) -> Any:
    """TRL's trainer with responses by `sample`, where it would draw from one generator per process."""

    class SamplingByPrompt(kind):
        sample: Callable[[nn.Module, int, list[int]], list[list[int]]]

        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
            self.asked = [row["prompt_id"] for row in inputs]
            return super()._generate_and_score_completions(inputs)

        def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any) -> Any:
            ids = self.sample(self.model, self.state.global_step, self.asked)
            return (ids, None) if kind.__name__ == "GRPOTrainer" else ids

    return SamplingByPrompt


def sample(
    context: Context, iteration: int, prompts: dict[int, Prompt], model: nn.Module, step: int, asked: list[int]
) -> list[list[int]]:
    """The token ids of a response to each of the prompts `asked` for, in which each stands as often as it has
    responses. They depend on the run's seed, the step and the prompt: they are the same on any number of processes."""
    count = context.method.pairing.num_generations
    chosen = [prompts[number] for number in asked[::count]]
    seeds = [seed_for(context.config.seed, "generate", iteration, step, prompt.id) for prompt in chosen]
    found = sampler(context, model).generate(chosen, count, seeds)
    return [response.ids for responses in found for response in responses]


def choose_reference(context: Context, iteration: int, model: nn.Module) -> None:
    """Sets the model's `_name_or_path`, from which TRL loads the reference."""
    previous = context.reference_choice == "previous"
    model.config._name_or_path = context.start_policy(iteration) if previous else context.first_reference


def forget_adapter(model: Any) -> None:
    """Deletes TRL's copy of the adapter that the iteration starts with. TRL uses that copy as the reference; without
    it, the reference is the initial model."""
    if "ref" in getattr(model, "peft_config", {}):
        model.delete_adapter("ref")


class Rewarding:
    """The run's annotator as a reward function for TRL. Every call writes one shard of responses and rewards, those of
    all ranks in their order.

    A shard is named after its step, so a resumed run replaces the shards of the steps that it repeats.
    """

    __name__ = "reward"

    def __init__(self, context: Context, iteration: int, prompts: Sequence[Prompt]) -> None:
        self.context, self.phase = context, f"{context.folder(iteration)}/train"
        self.folder = context.folder(iteration)
        self.prompts = {prompt.id: prompt for prompt in prompts}

    def __call__(
        self,
        completions: list[Any],
        completion_ids: list[list[int]],
        prompt_id: list[int],
        trainer_state: Any,
        **_: Any,
    ) -> list[float | None]:
        responses = [self.response(*pair) for pair in zip(completions, completion_ids, strict=True)]
        requests = [(self.prompts[number], response) for number, response in zip(prompt_id, responses, strict=True)]
        rewards = self.context.annotate(self.phase, requests)
        everywhere = zip(*self.context.ranks.gather((prompt_id, responses, rewards)), strict=True)
        if self.context.ranks.is_first:
            self.write(trainer_state.global_step, *([*chain.from_iterable(parts)] for parts in everywhere))
        return rewards

    def response(self, completion: Any, ids: list[int]) -> Response:
        text = completion if isinstance(completion, str) else completion[-1]["content"]
        return Response(text, list(ids), ended=bool(ids) and ids[-1] in self.context.stop_ids)

    def write(
        self, step: int, prompt_id: list[int], responses: list[Response], rewards: Sequence[float | None]
    ) -> None:
        count = self.context.method.pairing.num_generations
        places = [{"prompt_id": number, "index": row % count} for row, number in enumerate(prompt_id)]
        said = [
            place | {"text": response.text, "ids": response.ids, "ended": response.ended}
            for place, response in zip(places, responses, strict=True)
        ]
        rated = [place | {"reward": reward} for place, reward in zip(places, rewards, strict=True)]
        self.context.run.write_shard(f"{self.folder}/responses", step, table(said, RESPONSES_SCHEMA))
        self.context.run.write_shard(f"{self.folder}/annotations", step, table(rated, ANNOTATIONS_SCHEMA))


class GroupHooks(TrainerCallback):
    def __init__(self, context: Context, iteration: int) -> None:
        self.context, self.iteration = context, iteration

    def on_log(self, args: TrainingArguments, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "loss" not in logs:
            return
        if not torch.isfinite(torch.tensor(float(logs["loss"]))):
            raise TrainingError("the loss is not finite; lower training.learning_rate or check the rewards")
        # TRL's token count restarts at 0 in a resumed process, and its times differ between runs.
        values = {name: value for name, value in logs.items() if name not in ("num_tokens", "step_time")}
        self.context.run.log(f"{self.context.folder(self.iteration)}/train", values, self.iteration, state.global_step)

    def on_save(self, args: TrainingArguments, state: Any, *_: Any, **__: Any) -> None:
        logs = Logs(self.context.run.metrics.path, f"{self.context.folder(self.iteration)}/train")
        self.context.ranks.wait()
        if self.context.ranks.is_first:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}", logs)
        self.context.ranks.wait()  # As in `StepHooks`.
