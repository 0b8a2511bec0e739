"""Whether a tokenizer and a model have the same tokens."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from adaptpo.errors import ModelError


def foreign_ids(
    tokenizer: PreTrainedTokenizerBase, vocabulary: int, stop_ids: frozenset[int] = frozenset()
) -> list[int]:
    """The ids below `vocabulary`, the length of a model's embedding, for which the tokenizer has no token: they would
    be trained on and read as nothing. A stop token is none of them, because it is never read."""
    known = {*tokenizer.get_vocab().values(), *stop_ids}
    return [token for token in range(vocabulary) if token not in known]


def check_tokenizer_fits(tokenizer: PreTrainedTokenizerBase, model_config: Any) -> None:
    """Raises ModelError if the tokenizer has ids for which the model has no embedding."""
    text_config = model_config.get_text_config() if hasattr(model_config, "get_text_config") else model_config
    needed = max(tokenizer.get_vocab().values(), default=-1) + 1
    if needed > text_config.vocab_size:
        raise ModelError(
            f"the tokenizer has token ids up to {needed - 1} (size {needed}), but the model's embedding has "
            f"{text_config.vocab_size} rows; use the model's own tokenizer, or call "
            f"model.resize_token_embeddings({needed}) and save the model."
        )
