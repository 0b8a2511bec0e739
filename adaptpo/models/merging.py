"""Makes an ordinary model folder of an adapter, once, for all that only reads whole models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from adaptpo.errors import ModelError
from adaptpo.models.adapters import adapter_settings, base_of, base_options, merged, merged_weights, refuse_other_task
from adaptpo.models.loading import Options, load_causal_lm, load_tokenizer

REWARD_REMEDY = "give the adapter of a model that generates text (a reward model belongs under `reward`)"


def merged_policy(path: str, options: Options) -> nn.Module:
    """The causal language model that an adapter was trained on, with the adapter merged into its weights, in float32.

    Raises ModelError if one of them cannot be loaded, or they do not fit together.
    """
    settings, base = adapter_settings(path, options), base_of(path, options)
    if settings is None or base is None:
        raise ModelError(f"'{path}' holds no adapter; give the folder that `save_pretrained` of a PeftModel wrote")
    refuse_other_task(path, settings, "CAUSAL_LM", REWARD_REMEDY)
    inner = base_options(settings, options)
    model: Any = merged_policy(base, inner) if base_of(base, inner) else load_causal_lm(base, inner)
    fit_tokens(model, load_tokenizer(path, options))
    return merged(model, path, options)


def fit_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Adds the embedding rows of tokens that came with the adapter, which holds their values."""
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))


def whole(model: Any) -> Any:
    """A model in memory as one that `save_pretrained` writes whole: a `PeftModel` is copied and merged."""
    return merged_weights(copy.deepcopy(model), "in memory") if isinstance(model, PeftModel) else model


def save_merged(path: str, folder: Path, options: Options) -> None:
    """Writes the merged model and the tokenizer of the adapter at `path` to `folder`."""
    merged_policy(path, options).save_pretrained(folder)
    load_tokenizer(path, options).save_pretrained(folder)
