"""How many tokens a model reads, by its configuration."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from adaptpo.models.positions import positions_of


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("llama", {"max_position_embeddings": 128}, 128),
        ("gpt2", {"n_positions": 128}, 128),
        ("llama", {"max_position_embeddings": 128, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 512),
        ("llama", {"max_position_embeddings": 128, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 256),
        ("falcon", {"alibi": True}, None),
        ("rwkv", {}, None),
        ("xlnet", {}, None),
        ("gemma3", {"text_config": {"max_position_embeddings": 96}}, 96),
    ],
)
def test_positions(kind: str, settings: dict[str, Any], expected: int | None) -> None:
    assert positions_of(AutoConfig.for_model(kind, **settings)) == expected
