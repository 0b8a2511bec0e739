"""Where a key belongs that is unknown in the place it was given: names from TRL, and keys of other sections."""

from __future__ import annotations

from dataclasses import fields

FROM_TRL = {
    "beta": "set method.objective.beta, for instance method: {name: dpo, beta: 0.05}",
    "label_smoothing": "set method.objective.label_smoothing, or the method conservative_dpo",
    "loss_type": "the method is the loss: set method to dpo, ipo, hinge, simpo, ... (`adaptpo methods`)",
    "loss_weights": "set one objective: method.objective",
    "simpo_gamma": "set method.objective.gamma of the method simpo",
    "cpo_alpha": "set the method: `adaptpo methods` lists them",
    "max_completion_length": "set max_completion_length at the top of the recipe",
    "max_prompt_length": "set max_prompt_length at the top of the recipe",
    "max_length": "set max_length at the top of the recipe",
    "truncation_mode": "responses that are too long are cut at the end; prompts that are too long are left out",
    "precompute_ref_log_probs": "leave it out; a run always stores the reference's log-probs",
    "precompute_ref_batch_size": "set max_tokens_per_batch",
    "sync_ref_model": "set reference: previous, the policy that starts each iteration",
    "ref_model_sync_steps": "set reference: previous, the policy that starts each iteration",
    "ref_model_mixup_alpha": "set reference: previous, the policy that starts each iteration",
    "reference_free": "set a method without a reference, such as simpo",
    "ref_model": "set reference to initial or previous",
    "model_name_or_path": "set model",
    "dataset_name": "set data",
    "dataset": "set data",
    "train_dataset": "set data",
    "eval_dataset": "set eval_data",
    "reward_model_path": "set reward",
    "reward_funcs": "set reward",
    "peft_config": "set peft",
    "num_generations": "set generation.num_generations in a recipe, or the argument num_generations of the method",
    "max_new_tokens": "set generation.max_new_tokens",
    "use_vllm": "set generation.engine to vllm",
    "dataset_num_proc": "leave it out; rows are tokenized in one pass",
    "padding_free": "leave it out; rows are packed so that a prompt is computed once",
    "missing_eos_penalty": "set method.cut_penalty of the method ppo",
    "eval_strategy": "set eval_data; every iteration ends with an evaluation",
    "evaluation_strategy": "set eval_data; every iteration ends with an evaluation",
}
"""What TRL's users write, and what it is here."""


def elsewhere(name: str, section: str = "") -> str | None:
    """The remedy for a key that another place takes, if there is one."""
    if name in FROM_TRL:
        return FROM_TRL[name]
    if section != "training" and name in training_fields():
        return f"set training.{name}"
    if section != "generation" and name in ("temperature", "top_p", "top_k", "max_new_tokens", "base_url", "engine"):
        return f"set generation.{name}"
    if section != "peft" and name in ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora"):
        return f"set peft.{name}"
    return None


def training_fields() -> set[str]:
    from transformers import TrainingArguments

    return {field.name for field in fields(TrainingArguments)}
