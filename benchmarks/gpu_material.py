"""Models of the shapes that people align, with random weights, and what it takes to measure them on a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
from material import prompt_groups
from measure import synchronize
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from adaptpo.models.precision import keep_linear_layers
from adaptpo.models.shared_prompt import varlen
from adaptpo.models.shared_prompt.attention import share_prompts
from adaptpo.plan.arithmetic import Passes, forward_operations, shared_prompt
from adaptpo.plan.model import shape_of
from adaptpo.types import PromptGroup

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 8192, "tie_word_embeddings": True,
    },
    "smol": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    },
    "1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "8b-4layers": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 4, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""`smol` is SmolLM2-135M's, `1b` Llama 3.2 1B's, `8b-4layers` four layers of Llama 3.1 8B."""


@dataclass(frozen=True)
class Setting:
    """Where and what to measure. `tokens`: those of a training pass; `scale` divides lengths and counts on a CPU."""

    device: str
    shape: str
    bf16: bool
    repeats: int
    tokens: int = 8192
    scale: int = 1

    def precision(self) -> Any:
        return torch.autocast(self.device, torch.bfloat16) if self.bf16 else nullcontext()

    def short(self, length: int) -> int:
        return max(2, length // self.scale)

    def config(self) -> LlamaConfig:
        return LlamaConfig(**SHAPES[self.shape], max_position_embeddings=8192, pad_token_id=0)

    def model(self, shared: bool = True) -> Any:
        torch.manual_seed(0)
        with torch.device(self.device):
            model = LlamaForCausalLM(self.config())
        assert not shared or share_prompts(model)
        return model

    def prepared(self) -> Any:
        """A model whose forward alone runs in the precision, as accelerate prepares it."""
        model = self.model()
        model.forward = self.precision()(model.forward) if self.bf16 else model.forward
        return model

    def reading(self) -> Any:
        """A model that only reads, as a run loads it."""
        model = self.model().eval()
        return keep_linear_layers(model, torch.bfloat16, model.get_output_embeddings()) if self.bf16 else model

    def classifier(self, dtype: torch.dtype) -> Any:
        torch.manual_seed(0)
        with torch.device(self.device):
            return LlamaForSequenceClassification(
                LlamaConfig(**SHAPES[self.shape], max_position_embeddings=8192, pad_token_id=0, num_labels=1)
            ).to(dtype)

    def groups(self, prompt: int, response: int, pairs: int, tokens: int | None = None) -> list[PromptGroup]:
        """As many groups as fill a pass when the prompt is shared."""
        prompt, response = self.short(prompt), self.short(response)
        count = max(1, (tokens or self.tokens) // self.scale // (prompt + 2 * pairs * response))
        return prompt_groups(count, prompt, response, pairs)


@dataclass(frozen=True)
class Row:
    """A measured variant of a section: median seconds of its unit of work, their lowest and highest, the peak of memory
    in GB, and further `facts`."""

    section: str
    case: str
    variant: str
    seconds: float
    spread: tuple[float, float]
    peak_gb: float | None = None
    facts: dict[str, float | str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        return asdict(self)


def row(section: str, case: str, variant: str, times: Sequence[float], peak: float | None = None, **facts: Any) -> Row:
    return Row(section, case, variant, median(times), (min(times), max(times)), peak, facts)


def peak_of(work: Callable[[], object], device: str) -> float | None:
    """The peak of the GPU's memory while `work` runs, in GB, with what is there before it."""
    if device != "cuda":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    synchronize()
    return torch.cuda.max_memory_allocated() / 1e9


@contextmanager
def without_varlen() -> Iterator[None]:
    """Within it, shared prompts go through buckets."""
    fits, varlen.fits = varlen.fits, lambda *_: False
    try:
        yield
    finally:
        varlen.fits = fits


def group_passes(groups: Sequence[PromptGroup]) -> Passes:
    """What a forward pass over groups with shared prompts must compute."""
    total = Passes()
    for group in groups:
        responses = [side for pair in group.pairs for side in (pair.chosen, pair.rejected)]
        lengths = [np.array([float(len(side.ids))]) for side in responses]
        total = total + shared_prompt(np.array([float(len(group.prompt.ids))]), lengths)
    return total


def forward_flops(model: nn.Module, passes: Passes) -> float:
    return forward_operations(shape_of(model.config), passes)


def matrix_rate(device: str, dtype: torch.dtype, size: int = 8192) -> float:
    """FLOP/s of a square matrix product of random numbers."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    from measure import seconds

    for _ in range(3):
        a @ b
    return 2 * size**3 / median(seconds(lambda: a @ b) for _ in range(7))


def significant(value: float, digits: int = 3) -> str:
    if value == 0 or not math.isfinite(value):
        return str(value)
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, places)}f}" if abs(value) < 10**digits else f"{round(value, places):,.0f}"
