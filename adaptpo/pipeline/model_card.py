"""The README of an aligned model."""

from __future__ import annotations

from pathlib import Path

from adaptpo.config.version import __version__
from adaptpo.pipeline.context import Context


def model_card(context: Context) -> str:
    choices = "\n".join(f"- {axis}: `{choice}`" for axis, choice in context.method.choices().items())
    trainer = "" if context.method.trainer.uses_pairs else f"\n- trainer: `{context.method.trainer!r}`"
    # The hub takes no other base than one of its own models.
    base = "" if Path(context.initial).exists() else f"base_model: {context.initial}\n"
    return f"""---
library_name: {"peft" if context.config.peft is not None else "transformers"}
{base}tags: [adaptpo, preference-optimization, {context.method.name}]
---

# Aligned with {context.method.name}

Trained from `{context.initial}` with adaptpo {__version__} in {context.config.num_iterations} iterations on
{context.source}.

The method's four choices:

{choices}{trainer}

The run directory (`config.yaml`, `metrics.jsonl`) holds every setting and metric.
"""
