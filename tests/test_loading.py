"""Where models are loaded, in which precision, and how often."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import TrainingArguments

from adaptpo.config.recipe import AlignmentConfig
from adaptpo.data.mixture import Mixture
from adaptpo.generation.base import Sampling
from adaptpo.generation.transformers_engine import TransformersGenerator
from adaptpo.models.inference import autocast, evaluate_pairs
from adaptpo.models.loading import onto
from adaptpo.models.precision import keep_linear_layers
from adaptpo.pipeline import context as contexts
from adaptpo.pipeline.context import Context
from adaptpo.run.directory import open_run
from tests.groups import random_groups
from tests.runs import SETTINGS, start
from tests.tiny import byte_tokenizer, save_policy, tiny_model, vowel_reward

MIXED = TrainingArguments(output_dir="unused", use_cpu=True, bf16=True)


def linear_dtypes(model: Any) -> set[torch.dtype]:
    head = model.get_output_embeddings()
    return {m.weight.dtype for m in model.modules() if isinstance(m, nn.Linear) and m is not head}


def size(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen2"])
def test_kept_layers_compute_the_same_bits(family: str, tied: bool) -> None:
    """Log-probs and responses of a reading model are those of the model that trains."""
    tokenizer = byte_tokenizer()
    sampling = Sampling(1.0, 1.0, 0, 8, frozenset({0}))
    items = [(group.prompt, pair) for group in random_groups(5) for pair in group.pairs]
    prompts = [prompt for prompt, _ in items]
    found = []
    for keeps in (False, True):
        model = tiny_model(tokenizer, family, tie_word_embeddings=tied)
        before = size(model)
        if keeps:
            keep_linear_layers(model, torch.bfloat16, model.get_output_embeddings())
            assert linear_dtypes(model) == {torch.bfloat16} and size(model) < before
            assert model.get_output_embeddings().weight.dtype == torch.float32
        logps = evaluate_pairs(model, 0, items, MIXED)
        sampler = TransformersGenerator(model, tokenizer, sampling, precision=lambda: autocast(MIXED))
        ids = [one.ids for several in sampler.generate(prompts, 2, range(len(prompts))) for one in several]
        found.append((logps.chosen.tolist(), logps.rejected.tolist(), ids))
    assert found[0] == found[1]


def test_what_runs_outside_autocast_keeps_its_precision() -> None:
    """A head that an adapter wraps, and the layers whose norms DoRA takes."""
    wrapped = get_peft_model(tiny_model(byte_tokenizer()), LoraConfig(target_modules=["q_proj", "lm_head"]))
    head = wrapped.get_base_model().get_output_embeddings()
    keep_linear_layers(wrapped, torch.bfloat16, head)
    assert {m.weight.dtype for m in head.modules() if isinstance(m, nn.Linear)} == {torch.float32}
    dora = get_peft_model(tiny_model(byte_tokenizer()), LoraConfig(target_modules=["q_proj"], use_dora=True))
    keep_linear_layers(dora, torch.bfloat16, dora.get_output_embeddings())
    attention = {name for name, m in dora.named_modules() if type(m) is nn.Linear and m.weight.dtype == torch.float32}
    assert all("q_proj" in name or "lm_head" in name for name in attention)
    assert any("q_proj.base_layer" in name for name in attention)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"))


def test_weights_go_straight_to_the_accelerator(policy: str, tmp_path: Path) -> None:
    """The device `meta` stands for an accelerator: each model is there when its loading ends, so that no value has
    passed through the memory of the host. Only the one that trains keeps float32 in its layers."""
    device, cpu = torch.device("meta"), torch.device("cpu")
    assert onto(cpu, {"dtype": torch.float32}) == {"dtype": torch.float32}
    assert onto(device, {"dtype": torch.float32}) == {"dtype": torch.float32, "device_map": {"": device}}
    loaded: list[dict[str, Any]] = []
    with open_run(tmp_path / "run") as run:
        context = Context(run, AlignmentConfig(output_dir="run"), None, policy, None, Mixture(()))  # type: ignore[arg-type]
        context.__dict__["inference_arguments"] = SimpleNamespace(
            device=device, bf16=True, fp16=False, use_liger_kernel=False
        )
        real = contexts.load_policy

        def noting(path: str, base: str, peft: Any, options: dict[str, Any], seed: int) -> nn.Module:
            model = real(path, base, peft, options, seed)
            loaded.append({"devices": {p.device for p in model.parameters()}, "dtypes": linear_dtypes(model)})
            return model

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(contexts, "load_policy", noting)
            reading, training = linear_dtypes(context.policy(policy)), linear_dtypes(context.take_policy(policy))
    assert loaded == [{"devices": {device}, "dtypes": {torch.float32}}] * 2
    assert (reading, training) == ({torch.bfloat16}, {torch.float32})


def test_an_iteration_loads_three_models(policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation, scores and responses share a policy; the reference of the new pairs and training load one each. The
    opening loads the initial one for the self-check, the reference, evaluation and the warm-up."""
    loads: Counter[str] = Counter()

    def counting(name: str) -> None:
        real = getattr(contexts, name)

        def load(path: str, *rest: Any) -> nn.Module:
            loads[Path(path).parent.name if "checkpoint" in path else "initial"] += 1
            return real(path, *rest)

        monkeypatch.setattr(contexts, name, load)

    counting("load_policy")
    counting("load_causal_lm")
    training = SETTINGS["training"] | {"use_cpu": True, "bf16": True}
    start(policy, tmp_path / "run", vowel_reward, rows=16, training=training)
    assert loads == {"initial": 4 + 2, "warmup": 1 + 1, "0": 1 + 1, "1": 1}
