"""Loading policies, references and tokenizers from ordinary Hugging Face folders or hub ids."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    dynamic_module_utils,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.quantizers.auto import AutoHfQuantizer

from adaptpo.data.pairs import TextFormat
from adaptpo.data.tokenization import stop_token_ids
from adaptpo.errors import ConfigError, ModelError
from adaptpo.models.adapters import WHERE, adapter_settings, adapter_shapes, base_of, base_options, is_adapter
from adaptpo.models.shared_prompt.attention import base_model

# A question on standard input would wait for ever in a batch job; with 0, transformers raises an error instead.
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0

Options = dict[str, Any]
"""Arguments of `from_pretrained`."""
LOAD_ERRORS = (
    *(OSError, ValueError, TypeError, AttributeError, ImportError, KeyError, IndexError, RuntimeError),
    *(SyntaxError, SafetensorError),
)
"""What transformers raises for a folder, an id or arguments that do not fit, and a model's own code for itself."""
WHERE_AND_WHOSE = (*WHERE, "trust_remote_code", "code_revision")
"""The arguments of `from_pretrained` that hold for the configuration and the tokenizer of a model too."""
OF_A_LAYER = re.compile(r"^(?!score|classifier|lm_head).*\.\d+\.")
"""Names of weights that a model of every kind has."""
OF_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
OF_BEAMS = ("early_stopping", "length_penalty")
"""Settings of a `GenerationConfig` that are read with `do_sample` alone, and with several beams."""
HAS_NO_MODEL = "Give a folder that `save_pretrained` wrote, or a hub id that this machine can reach."
TRUST = (
    "it comes with Python code of its own. Read that code, then set trust_remote_code: true in the recipe "
    "(AlignmentConfig(trust_remote_code=True), or --trust-remote-code of `adaptpo annotate`)"
)


def cannot_load(what: str, path: str, error: Exception, remedy: str, options: Options | None = None) -> ModelError:
    """The error for a model, or a part of it, that transformers refuses to load with these options."""
    if "trust_remote_code" in str(error) and not (options or {}).get("trust_remote_code"):
        return ModelError(f"cannot load {what} from '{path}': {TRUST}")
    return ModelError(f"cannot load {what} from '{path}': {first_line(error)}\n{remedy}")


def shared_options(options: Options | None) -> Options:
    """The arguments for the configuration and the tokenizer of a model that is loaded with `options`."""
    found = {name: value for name, value in (options or {}).items() if name in WHERE_AND_WHOSE}
    return {"trust_remote_code": False} | found  # None would ask on standard input.


def whole_model(path: str, options: Options | None) -> tuple[str, Options]:
    """The place of a whole model, with its arguments of `from_pretrained`: this one, or that of the adapter here."""
    settings, given = adapter_settings(path, options), options or {}
    return (path, given) if settings is None else (base_of(path, options) or "", base_options(settings, given))


def read_config(path: str, options: Options | None = None) -> PretrainedConfig:
    """The configuration of a model, or of the model that an adapter was trained on. Raises ModelError."""
    try:
        place, own = whole_model(path, options)
        return AutoConfig.from_pretrained(place, **shared_options(own))
    except LOAD_ERRORS as error:
        raise cannot_load("a configuration", path, error, HAS_NO_MODEL, options) from error


def load_tokenizer(path: str, options: Options | None = None) -> PreTrainedTokenizerBase:
    """Loads a tokenizer, with EOS as padding if it has none. Raises ModelError if there is none, or one without EOS."""
    tokenizer = stored_tokenizer(path, options)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def stored_tokenizer(path: str, options: Options | None = None) -> PreTrainedTokenizerBase:
    """Loads a tokenizer as it is stored: that of an adapter's model if the adapter has none, and the one at the top if
    the `subfolder` has none. Raises like `load_tokenizer`."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **shared_options(options))
    except LOAD_ERRORS as error:
        base, own = whole_model(path, options)
        if base != path:
            return stored_tokenizer(base, own)
        if own.get("subfolder"):
            return stored_tokenizer(path, own | {"subfolder": ""})
        raise cannot_load("a tokenizer", path, error, "Save its tokenizer into its folder.", options) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of '{path}' has no end-of-sequence token; set its eos_token")
    return tokenizer


def stop_ids_of(path: str, tokenizer: PreTrainedTokenizerBase, options: Options | None = None) -> frozenset[int]:
    """Ids of the tokens that end a response of the model at `path`."""
    return stop_token_ids(tokenizer, read_generation_config(path, options))


def read_generation_config(path: str, options: Options | None = None) -> GenerationConfig | None:
    """None for a model without `generation_config.json`."""
    try:
        place, own = whole_model(path, options)
        where = {name: value for name, value in shared_options(own).items() if name != "trust_remote_code"}
        return GenerationConfig.from_pretrained(place, **where)
    except OSError:
        return None


def text_mode_of(tokenizer: PreTrainedTokenizerBase, text_format: Literal["auto", "messages", "text"]) -> TextFormat:
    """Resolves `auto`: plain-text dialogues become chat messages if the tokenizer can render them."""
    if text_format != "auto":
        return text_format
    return "messages" if tokenizer.chat_template else "text"


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def onto(device: torch.device, options: Options) -> Options:
    """The arguments of `from_pretrained` that also load weights straight onto an accelerator, file by file.

    By default, each process would load a whole model into host memory first.
    """
    return options if device.type == "cpu" else {**options, "device_map": {"": device}}


def load_whole_models() -> None:
    """Makes transformers load whole models. Under DeepSpeed's ZeRO-3, it would load one shard per process once settings
    or a trainer exist, but here a single process may load a model. Training shards the weights later."""
    unset_hf_deepspeed_config()


def load_causal_lm(path: str, options: dict[str, Any]) -> nn.Module:
    """Loads a causal language model, in float32 unless `options` (arguments of `from_pretrained`) set another dtype.

    Raises ModelError if there is none, or if weights are missing, which would otherwise be random.
    """
    defaults = {"dtype": torch.float32, "trust_remote_code": False}
    load_whole_models()
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(path, **(defaults | options), output_loading_info=True)
    except LOAD_ERRORS as error:
        remedy = f"{HAS_NO_MODEL} Also check model_init_kwargs."
        raise cannot_load("a causal language model", path, error, remedy, options) from error
    remedy = "give a model that generates text (a reward model belongs under `reward`)"
    refuse_missing(path, loaded["missing_keys"], "is not a causal language model", remedy)
    leave_out_unread(model.generation_config)
    return model


def leave_out_unread(config: GenerationConfig) -> list[str]:
    """Takes out what transformers does not read, such as a temperature without `do_sample`: with it, it would not save
    the model once a special token changes. Returns the names."""
    try:
        config.validate(strict=True)
    except ValueError:
        sampling = () if config.do_sample else OF_SAMPLING
        beams = () if (config.num_beams or 1) > 1 else OF_BEAMS
        usual = GenerationConfig()
        unread = [name for name in (*sampling, *beams) if getattr(config, name, None) != getattr(usual, name, None)]
        for name in unread:
            setattr(config, name, getattr(usual, name))
        return unread
    return []


def refuse_missing(path: str, missing: Collection[str], other_kind: str, remedy: str) -> None:
    """Raises ModelError if weights are missing: of a layer, so that the files are incomplete, or only what models of
    another kind do not have."""
    if not missing:
        return
    if lost := sorted(name for name in missing if OF_A_LAYER.match(name)):
        raise ModelError(
            f"the model at '{path}' is incomplete: {len(missing)} of its weights are in none of its files, such as "
            f"{lost[0]}; copy or download all of them again"
        )
    raise ModelError(f"the model at '{path}' {other_kind}: it has no {', '.join(sorted(missing)[:3])}; {remedy}")


def dequantizes(quantization: Any) -> bool:
    """Whether a model is loaded with whole weights, whatever its files hold."""
    found = quantization if isinstance(quantization, dict) else vars(quantization or object)
    return bool(found.get("dequantize"))


def check_quantization(quantization: Any, is_stored: bool, adapted: bool) -> None:
    """Raises ConfigError for quantized weights that a run cannot train, or that this machine cannot load."""
    if not adapted:
        whose = (
            "the checkpoint's weights are quantized" if is_stored else "model_init_kwargs.quantization_config is set"
        )
        raise ConfigError(
            f"{whose}, and quantized weights are not trained; set peft (LoRA), or train a model without quantization"
        )
    try:
        quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=is_stored)
        quantizer.validate_environment(device_map=None)
        trains = quantizer.is_trainable
    except LOAD_ERRORS as error:
        raise ConfigError(f"the quantized weights cannot be loaded: {first_line(error)}") from error
    if not trains:
        raise ConfigError(
            f"weights quantized by {quantizer.quantization_config.quant_method.value} train with no adapter either; "
            "give a model that is not quantized, or quantized by bitsandbytes"
        )


def check_loading(config: PretrainedConfig, options: Options, adapted: bool) -> None:
    """Raises ModelError or ConfigError for arguments of `from_pretrained` that this machine cannot follow, such as an
    attention implementation or a quantization whose package is missing. Loads no weights."""
    given, stored = options.get("quantization_config"), getattr(config, "quantization_config", None)
    if (given or stored) and not dequantizes(given):
        check_quantization(given or stored, stored is not None, adapted)
    implementation = {name: options[name] for name in ("attn_implementation",) if name in options}
    try:
        if implementation:
            trust = bool(options.get("trust_remote_code"))
            with torch.device("meta"):
                AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust, **implementation)
    except LOAD_ERRORS as error:
        raise ConfigError(f"model_init_kwargs: {first_line(error)}") from error


def check_loads(path: str, options: Options | None = None) -> None:
    """Loads a policy's folder without its weights' values, on the meta device, and its tokenizer.

    Raises ModelError if that fails, or if weights are missing.
    """
    if is_adapter(path):
        adapter_shapes(path)
    else:
        load_causal_lm(path, shared_options(options) | {"device_map": "meta"})
    load_tokenizer(path, options)


def reading_dtype(device: torch.device) -> torch.dtype:
    """The precision of models that only read: bfloat16 on an accelerator that computes in it, else float32."""
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def load_encoder(
    path: str, options: Options | None = None, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Loads a model from texts to hidden states, and its tokenizer.

    Raises ModelError if there is none, or if weights are missing (other than the pooler's, which are unused).
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **shared_options(options))
        model, loaded = AutoModel.from_pretrained(
            path, dtype=dtype, output_loading_info=True, **shared_options(options)
        )
    except LOAD_ERRORS as error:
        raise cannot_load("an encoder", path, error, HAS_NO_MODEL, options) from error
    if missing := sorted(name for name in loaded["missing_keys"] if "pooler" not in name):
        raise ModelError(f"the encoder at '{path}' lacks {', '.join(missing[:3])}; give one with all its weights")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


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
            refuse_unmatched(peft, [name for name, _ in model.named_modules()])
            return get_peft_model(model, lora_config(peft), revision=options.get("revision"))
        except ValueError as error:
            raise ConfigError(f"peft: {first_line(error)}") from error


def refuse_unmatched(peft: dict[str, Any], modules: Collection[str]) -> None:
    """Raises ConfigError for names of modules that the model does not have; peft ignores all but the last."""
    for setting, edge in (("target_modules", "."), ("modules_to_save", "")):  # The latter may be the end of a name.
        names = peft.get(setting) or ()
        for name in () if isinstance(names, str) else names:
            if not any(f"{edge}{module}".endswith(f"{edge}{name}") for module in modules):
                known = ", ".join(sorted({module.rpartition(".")[2] for module in modules} - {""}, key=kind_of_name))
                raise ConfigError(f"peft.{setting}: the model has no module '{name}'; it has {known}")


def kind_of_name(module: str) -> tuple[bool, str]:
    """Sorts the names of modules, those of layers, which are numbers, last."""
    return module.isdigit(), module


def base_is_untouched(policy: nn.Module, peft: dict[str, Any]) -> bool:
    """Whether the policy without its adapter is the original model, and the adapter leaves the head unchanged.

    Some LoRA settings change weights of the model itself.
    """
    head = base_model(policy).get_output_embeddings()
    return not any(parameter.requires_grad for parameter in head.parameters()) and not changes_base(peft)


def changes_base(peft: dict[str, Any]) -> bool:
    """Whether such an adapter changes weights of the model itself, before the first step or with it."""
    config = lora_config(peft)
    return config.bias != "none" or config.init_lora_weights not in (True, False, "gaussian", "orthogonal")


def lora_config(peft: dict[str, Any]) -> LoraConfig:
    return LoraConfig(**{"task_type": "CAUSAL_LM", **peft})
