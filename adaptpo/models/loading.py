"""Loading policies, references and tokenizers from ordinary Hugging Face folders or hub ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from adaptpo.data.pairs import TextFormat
from adaptpo.data.tokenization import stop_token_ids
from adaptpo.errors import ConfigError, ModelError
from adaptpo.models.shared_prompt.attention import base_model


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Loads a tokenizer; raises ModelError if there is none, or one without a token to end or pad with."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load a tokenizer from '{path}': {first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of '{path}' has no end-of-sequence token; set its eos_token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def stop_ids_of(path: str, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of the tokens that end a response of the model at `path`."""
    try:
        generation_config = GenerationConfig.from_pretrained(path)
    except OSError:  # A model folder without generation_config.json.
        generation_config = None
    return stop_token_ids(tokenizer, generation_config)


def text_mode_of(tokenizer: PreTrainedTokenizerBase, text_format: Literal["auto", "messages", "text"]) -> TextFormat:
    """Resolves `auto`: plain-text dialogues become chat messages if the tokenizer can render them."""
    if text_format != "auto":
        return text_format
    return "messages" if tokenizer.chat_template else "text"


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def load_causal_lm(path: str, options: dict[str, Any]) -> nn.Module:
    """Loads a causal language model, in float32 unless `options` (arguments of `from_pretrained`) set another dtype.

    Raises ModelError if there is none, or if weights are missing, which would otherwise be random.
    """
    arguments = {"dtype": torch.float32, **options, "output_loading_info": True}
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(path, **arguments)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            f"cannot load a causal language model from '{path}': {first_line(error)}\n"
            "Give a folder that `save_pretrained` wrote, or a hub id that this machine can reach, and check "
            "model_init_kwargs."
        ) from error
    if missing := sorted(loaded["missing_keys"]):
        raise ModelError(
            f"the model at '{path}' is not a causal language model: it has no {', '.join(missing[:3])}; "
            "give a model that generates text (a reward model belongs under `reward`)"
        )
    return model


def load_encoder(path: str) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Loads a model from texts to hidden states, in float32, and its tokenizer.

    Raises ModelError if there is none, or if weights are missing (other than the pooler's, which are unused).
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model, loaded = AutoModel.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot load an encoder from '{path}': {first_line(error)}\n"
            "Give a folder that `save_pretrained` wrote, or a hub id that this machine can reach."
        ) from error
    if missing := sorted(name for name in loaded["missing_keys"] if "pooler" not in name):
        raise ModelError(f"the encoder at '{path}' lacks {', '.join(missing[:3])}; give one with all its weights")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def is_adapter(path: str) -> bool:
    return (Path(path) / "adapter_config.json").exists()


def load_policy(path: str, base: str, peft: dict[str, Any] | None, options: dict[str, Any], seed: int) -> nn.Module:
    """Loads the policy at `path`: the initial model itself, a checkpoint of the run, or the run's adapter on `base`.

    With `peft` (arguments of `LoraConfig`) and no adapter at `path` yet, the model gets a new adapter, whose
    initialization depends on `seed` alone.
    """
    if peft is None:
        return load_causal_lm(path, options)
    model = load_causal_lm(base, options)
    if is_adapter(path) and path != base:
        return PeftModel.from_pretrained(model, path, is_trainable=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, lora_config(peft))
        except ValueError as error:
            raise ConfigError(f"peft: {first_line(error)}") from error


def base_is_untouched(policy: nn.Module, peft: dict[str, Any]) -> bool:
    """Whether the policy without its adapter is the original model, and the adapter leaves the head unchanged.

    Some LoRA settings change weights of the model itself.
    """
    config = lora_config(peft)
    head = base_model(policy).get_output_embeddings()
    adapted_head = any(parameter.requires_grad for parameter in head.parameters())
    return config.bias == "none" and config.init_lora_weights in (True, False, "gaussian") and not adapted_head


def lora_config(peft: dict[str, Any]) -> LoraConfig:
    return LoraConfig(**{"task_type": "CAUSAL_LM", **peft})
