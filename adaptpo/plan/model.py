"""Facts about a model, counted on torch's meta device; no weights are loaded."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from peft import get_peft_model
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig

from adaptpo.errors import ModelError
from adaptpo.models.loading import lora_config
from adaptpo.plan.arithmetic import Shape


def shape_of(config: PretrainedConfig, peft: dict[str, Any] | None = None, trusts_code: bool = False) -> Shape:
    """The shape of a model with an output head. Raises ModelError if it has none."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trusts_code)
        inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
        if outputs is None:
            raise ModelError(f"{type(model).__name__} has no output head; a plan needs a model that generates text")
        parameters = sum(p.numel() for p in model.parameters())
        trained = parameters if peft is None else trained_by(model, peft)
    return Shape(
        parameters=parameters,
        embedding=inputs.weight.numel(),
        head=outputs.weight.numel(),
        tied=outputs.weight is inputs.weight,
        trained=trained,
        **widths(config),
    )


def shape_of_encoder(config: PretrainedConfig, trusts_code: bool = False) -> Shape:
    """The shape of a model without an output head, such as an annotator."""
    with torch.device("meta"):
        model = bare_model(config, trusts_code)
        embedding = model.get_input_embeddings().weight.numel()
        parameters = sum(p.numel() for p in model.parameters())
    return Shape(parameters=parameters, embedding=embedding, head=0, tied=True, trained=parameters, **widths(config))


OTHER_HEADS = ("AutoModelForSequenceClassification", "AutoModelForCausalLM")


def bare_model(config: PretrainedConfig, trusts_code: bool) -> Any:
    """The model itself; a model with its own code may name only the class with a head, which is small."""
    named = getattr(config, "auto_map", None) or {}
    heads = [name for name in OTHER_HEADS if name in named] if "AutoModel" not in named else []
    kind = getattr(transformers, heads[0]) if heads else AutoModel
    return kind.from_config(config, trust_remote_code=trusts_code)


def widths(config: PretrainedConfig) -> dict[str, int]:
    text = config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    key_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return {
        "layers": text.num_hidden_layers,
        "hidden": text.hidden_size,
        "attention": text.num_attention_heads * width,
        "keys_values": 2 * key_heads * width,
    }


def trained_by(model: Any, peft: dict[str, Any]) -> int:
    return sum(p.numel() for p in get_peft_model(model, lora_config(peft)).parameters() if p.requires_grad)


def bytes_per_weight(config: PretrainedConfig, options: dict[str, Any]) -> int:
    """Bytes per weight as `load_causal_lm` loads it: float32 unless `model_init_kwargs` says otherwise."""
    dtype = options.get("dtype", torch.float32)
    if dtype == "auto":
        dtype = config.dtype or torch.float32
    found = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return torch.empty(0, dtype=found, device="meta").element_size()
