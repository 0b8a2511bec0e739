"""Where a key belongs that is unknown in the place it was given: names from TRL, and keys of other sections."""

from __future__ import annotations

from dataclasses import fields

FOLLOW = "set reference: {ref_model_sync_steps: 512, ref_model_mixup_alpha: 0.6}, or the method tr_dpo"
AS_AOT = (
    "aot and aot_unpaired are not offered: they sort a micro-batch, so that a pair's loss depends on its neighbours"
)
IN_PYTHON = (
    "in Python it is an argument of the method, such as methods.metaapo(num_generations=8); only a recipe has it in "
    "generation"
)
FROM_TRL = {
    "beta": "set method.objective.beta, for instance method: {name: dpo, beta: 0.05}",
    "label_smoothing": "set method.label_smoothing of the method conservative_dpo, robust_dpo, exo_pair or cpo",
    "loss_type": (
        "the method is the loss: dpo is sigmoid, robust_dpo is robust, and hinge, ipo, exo_pair, nca_pair, bco_pair, "
        "sppo_hard, apo_zero, apo_down, discopop, sigmoid_norm, simpo, cpo and alphapo have TRL's names "
        f"(`adaptpo methods`). A list is method.objective: [{{name: dpo, weight: 0.8}}, sft]. {AS_AOT}"
    ),
    "loss_weights": (
        "give each objective its weight, method.objective: [{name: dpo, weight: 0.8}, {name: sft, weight: 1.0}], or "
        "set the method mpo or rpo"
    ),
    "simpo_gamma": "set method.objective.gamma of the method simpo",
    "cpo_alpha": "set method: {name: cpo, cpo_alpha: 1.0}",
    "rpo_alpha": "set method: {name: rpo, rpo_alpha: 1.0}",
    "f_divergence_type": "set method: {name: dpo, f_divergence_type: js_divergence}, or another method of DPO's margin",
    "f_alpha_divergence_coef": "set it in method, beside f_divergence_type: alpha_divergence",
    "ld_alpha": "set method: {name: dpo, ld_alpha: 0.5}, or another method with a reference",
    "use_weighting": "set the method wpo, or method.weighting: on_policy",
    "discopop_tau": "set method: {name: discopop, discopop_tau: 0.05}",
    "desirable_weight": "set method: {name: kto, desirable_weight: 1.0}",
    "undesirable_weight": "set method: {name: kto, undesirable_weight: 1.0}",
    "max_completion_length": "set max_completion_length at the top of the recipe",
    "max_prompt_length": "set max_prompt_length at the top of the recipe",
    "max_length": "set max_length at the top of the recipe",
    "truncation_mode": "responses that are too long are cut at the end; prompts that are too long are left out",
    "precompute_ref_log_probs": "leave it out; a run always stores the reference's log-probs",
    "precompute_ref_batch_size": "set max_tokens_per_batch",
    "sync_ref_model": FOLLOW,
    "ref_model_sync_steps": FOLLOW,
    "ref_model_mixup_alpha": FOLLOW,
    "reference_free": "set a method without a reference, such as simpo",
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
    "group_by_length": "leave it out; batches are sorted by length",
    "padding_free": "leave it out; rows are packed so that a prompt is computed once",
    "missing_eos_penalty": "set method.cut_penalty of the method ppo",
    "dataset_kwargs": "leave it out; rows are read by `data`",
    "pad_to_multiple_of": "leave it out; rows are packed, so little is padded",
    "pad_token": "set it in the tokenizer (processing_class)",
    "eos_token": "set it in the tokenizer (processing_class)",
    "chat_template_path": "set tokenizer.chat_template (processing_class)",
    "router_aux_loss_coef": "leave it out; the router's auxiliary loss is not trained",
    "activation_offloading": "set training.activation_checkpointing",
    "min_p": "leave it out; responses are sampled with generation.temperature, top_p and top_k",
    "repetition_penalty": "leave it out; fresh responses must be the policy's own, which a penalty would change",
    "generation_kwargs": "set the keys of `generation`",
    "cache_implementation": "leave it out; the engine chooses its cache",
    "vllm_mode": "leave it out; vLLM runs as a server, with generation.engine vllm",
    "vllm_model_impl": "set generation.arguments, for instance '--model-impl transformers'",
    "vllm_structured_outputs_regex": "leave it out; fresh responses must be the policy's own",
    "vllm_gpu_memory_utilization": "set generation.gpu_memory_utilization",
    "vllm_tensor_parallel_size": "set generation.tensor_parallel_size",
    "vllm_server_base_url": "set generation.engine to server, and generation.base_url",
    "vllm_server_host": "set generation.engine to server, and generation.base_url",
    "vllm_server_port": "set generation.engine to server, and generation.base_url",
    "vllm_server_timeout": "set generation.start_timeout",
    "vllm_group_port": "leave it out; a server is given each policy as a folder",
    "vllm_enable_sleep_mode": "leave it out; on an accelerator, a vLLM that the run starts sleeps between phases",
    "ds3_gather_for_generation": "leave it out; policies are generated from as whole models",
    "reward_weights": "set reward to a list of annotators, each with its weight",
    "center_rewards_coefficient": "set reward_training.center_rewards_coefficient",
    "eval_strategy": "set eval_data; every iteration ends with an evaluation",
    "evaluation_strategy": "set eval_data; every iteration ends with an evaluation",
}
"""What TRL's users write, and what it is here."""

ARGUMENTS_OF_TRL = {
    "data_collator": "leave it out; batches are made from prompt groups",
    "compute_metrics": "leave it out; eval_dataset gives eval_loss and eval_rewards/*, and with reward_funcs rewards",
    "preprocess_logits_for_metrics": "leave it out; an evaluation computes log-probs, not logits",
    "quantization_config": "set model_init_kwargs={'quantization_config': ...} in args, with peft_config",
    "reward_processing_classes": "give reward_processing_class",
    "reward_weights": "give reward_funcs as a list of dicts, [{'reward_model': ..., 'weight': 0.5}, ...]",
    "reward_model": "give reward_funcs",
    "judge": "give reward_funcs={'judge': MODEL, 'base_url': ...}",
    "tokenizer": "give processing_class",
    "config": "give args",
    "dataset": "give train_dataset",
    "data": "give train_dataset",
    "eval_data": "give eval_dataset",
    "reward": "give reward_funcs",
    "peft": "give peft_config, or args.peft",
    "optimizer_cls_and_kwargs": "set training.optim and optim_args in args, or give optimizers=(optimizer, None)",
    "rollout_func": "set generation.engine in args",
    "tools": "give them in the rows' column `tools`",
    "environment_factory": "leave it out; responses are sampled from the prompts of the data",
}
"""Arguments of TRL's trainers, and a recipe's keys, that the Python trainer does not take: what to give instead."""

METHODS_OF_TRL = {
    "log_metrics": "print them; metrics.jsonl in the run's folder has every metric",
    "save_metrics": "metrics.jsonl in the run's folder has every metric",
    "save_state": "the run's folder has the state after every phase",
    "predict": "call evaluate(eval_dataset)",
    "create_model_card": "final/README.md is the model card",
    "create_optimizer": "give optimizers=(optimizer, None)",
    "create_scheduler": "set training.lr_scheduler_type",
    "get_train_dataloader": "batches are made from prompt groups in every phase",
    "compute_loss": "the objective is the loss: adaptpo.choices.objectives",
    "training_step": "every phase has its own trainer; give callbacks",
    "accelerator": "every phase has its own; start the script with accelerate launch",
    "optimizer": "every phase has its own; give optimizers=(optimizer, None)",
    "ref_model": "the reference's log-probs are in the run's folder; give ref_model to choose another",
    "tokenizer": "read processing_class",
    "is_world_process_zero": "rank 0 alone writes the run's folder",
}
"""Methods and attributes of TRL's trainers that this trainer has not, and what does their work."""


def elsewhere(name: str, section: str = "") -> str | None:
    """The remedy for a key that another place takes, if there is one."""
    if (section, name) == ("generation", "num_generations"):
        return IN_PYTHON
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
