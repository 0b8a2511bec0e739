"""Models as people bring them: without a pad token, with dropout, longer than their tokenizer, as adapters, with their
own code, in low precision. The cases are those of `shared/cases`; each was seen to fail before it was mended."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
)

from adaptpo import AlignmentConfig, AlignmentTrainer, methods
from adaptpo.annotation.reward_model import RewardModelAnnotator, load_reward_model
from adaptpo.cli.annotate import annotate_file
from adaptpo.types import Prompt, Response
from tests.runs import SETTINGS
from tests.tiny import (
    byte_tokenizer,
    preference_rows,
    save_policy,
    save_reward_model,
    tiny_config,
    tiny_model,
    vowel_reward,
    write_jsonl,
)

SAMPLE = {
    "prompt": [{"role": "user", "content": "say tea"}],
    "responses": [[{"role": "assistant", "content": text}] for text in ("tea", "ice and more")],
}
"""The row of cases 01 and 11."""
EXPECTED = [0.0272, 0.00576]
"""Each response alone through the reward model as saved."""


def rewards_of(path: str, folder: Path, **options: Any) -> list[float]:
    out = folder / "out.jsonl"
    annotate_file(write_jsonl(folder / "samples.jsonl", [SAMPLE]), path, out, **options)
    return json.loads(out.read_text())["rewards"]


# --- 01: a reward model without a pad token --------------------------------------------------------------------------


def save_padless(folder: Path, in_config: int | None) -> str:
    """The weights of `save_reward_model`, with a tokenizer that has no pad token."""
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    torch.manual_seed(1)
    config = tiny_config(byte_tokenizer(), num_labels=1)
    config.pad_token_id = in_config
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("in_config", [None, 0], ids=["rm_nopad", "rm_cfgpad"])
def test_reward_model_without_a_pad_token_is_scored_at_its_last_token(in_config: int | None, tmp_path: Path) -> None:
    assert rewards_of(save_padless(tmp_path / "rm", in_config), tmp_path) == pytest.approx(EXPECTED, abs=1e-5)


def test_reward_model_with_a_pad_token(tmp_path: Path) -> None:
    assert rewards_of(save_reward_model(tmp_path / "rm"), tmp_path) == pytest.approx(EXPECTED, abs=1e-5)


def alone(model: nn.Module, ids: list[int]) -> float:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, 0].item()


def requests(count: int) -> list[tuple[Prompt, Response]]:
    prompts = [Prompt(number, [{"role": "user", "content": f"why {number}? " * 4}], []) for number in range(3)]
    return [(prompt, Response(f"{'no ' * i}end", [])) for prompt in prompts for i in range(count)]


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("pad", [None, 0, 2, -1], ids=["none", "own", "EOS", "outside the embedding"])
def test_batches_agree_with_single_rows(pad: int | None, shares: bool, tmp_path: Path) -> None:
    path = save_padless(tmp_path / "rm", pad)
    model, tokenizer = load_reward_model(path, {})
    annotator = RewardModelAnnotator(model, tokenizer)
    asked = requests(6 if shares else 1)
    saved = AutoModelForSequenceClassification.from_pretrained(path)
    expected = [alone(saved, annotator.token_ids(*one)) for one in asked]
    assert annotator.rewards(asked) == pytest.approx(expected, abs=1e-5)
    assert annotator.shares is (True if shares else None)
    assert model.config.pad_token_id == pad


def test_end_of_sequence_stored_as_padding_is_kept(tmp_path: Path) -> None:
    """TRL's `RewardTrainer` stores it in both, and the model is read before its final EOS, as it was trained."""
    path = save_reward_model(tmp_path / "rm")
    tokenizer, config = AutoTokenizer.from_pretrained(path), Path(path, "config.json")
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(path)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"pad_token_id": tokenizer.eos_token_id}))
    assert rewards_of(path, tmp_path) == pytest.approx([-0.13199, 0.20995], abs=1e-5)


def test_any_token_pads_where_every_token_ends_a_row() -> None:
    from adaptpo.annotation.reward_model import padding_for

    assert padding_for([[5, 0], [5, 1], [5, 3]], None, 300) == 2
    assert padding_for([[5, 0]], 7, 300) == 7
    assert padding_for([[5, 0]], 300, 300) == 1
