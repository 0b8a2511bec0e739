"""Models as people bring them: without a pad token, with dropout, longer than their tokenizer, as adapters, with their
own code, in low precision. The cases are those of `shared/cases`; each was seen to fail before it was mended."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
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
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
)

from adaptpo import AlignmentConfig, AlignmentTrainer, methods
from adaptpo.annotation.reward_model import RewardModelAnnotator, load_reward_model
from adaptpo.cli.annotate import annotate_file
from adaptpo.cli.stage import Options, recipe_of, run_stage
from adaptpo.config.generation import Api
from adaptpo.config.recipe import load_recipe
from adaptpo.data.vocabulary import foreign_ids
from adaptpo.errors import ConfigError, ModelError, RunError
from adaptpo.generation.answers import AnswerReader
from adaptpo.generation.base import NEUTRAL, Sampling
from adaptpo.generation.dialects import DIALECTS
from adaptpo.pipeline.inputs import as_folder, model_digest
from adaptpo.plan.command import read_job
from adaptpo.remote.usage import Usage
from adaptpo.types import Prompt, Response
from tests.runs import SETTINGS, tables
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


def run(model: Any, out: Path, method: Any = None, reward: Any = None, **settings: Any) -> Path:
    """One iteration over 8 offline pairs; returns the folder of the run."""
    defaults = SETTINGS | {"num_iterations": 1, "warmup_epochs": 0}
    processing = settings.pop("processing_class", None)
    trainer = AlignmentTrainer(
        model=model,
        args=AlignmentConfig(output_dir=str(out), **(defaults | settings)),
        method=method or methods.dpo(),
        train_dataset=preference_rows(8),
        reward_funcs=reward,
        processing_class=processing,
    )
    trainer.train()
    return out


def training_logs(out: Path, key: str = "loss") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if key in line and "train" in line["phase"]]


# --- 06: dropout in training -----------------------------------------------------------------------------------------

STILL = {"training": SETTINGS["training"] | {"learning_rate": 0.0, "logging_steps": 1}}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def save_noisy(folder: Path, family: str = "gpt2") -> str:
    """GPT-2 with its dropout of 0.1, or OPT, which keeps rates as numbers."""
    tokenizer = byte_tokenizer()
    sizes: dict[str, Any]
    torch.manual_seed(0)
    if family == "gpt2":
        sizes = {"n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 4}
        model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes, **TOKENS))
    else:
        sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        limits = {"max_position_embeddings": 256, "word_embed_proj_dim": 32, "layerdrop": 0.5}
        rates = {"dropout": 0.1, "attention_dropout": 0.1}
        model = OPTForCausalLM(OPTConfig(vocab_size=len(tokenizer), **sizes, **limits, **rates, **TOKENS))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_first_losses_are_ln_2_without_dropout(family: str, tmp_path: Path) -> None:
    path = save_noisy(tmp_path / family, family)
    out = run(path, tmp_path / "run", **STILL)
    logs = training_logs(out)
    assert len(logs) == 2
    assert [log["loss"] for log in logs] == pytest.approx([0.693147] * 2, abs=1e-6)
    assert [log["rewards/margins"] for log in logs] == pytest.approx([0.0] * 2, abs=1e-6)
    stored, saved = (json.loads((Path(folder) / "config.json").read_text()) for folder in (path, out / "final"))
    assert {k: v for k, v in saved.items() if "drop" in k} == {k: v for k, v in stored.items() if "drop" in k}
    check = json.loads((out / "state.json").read_text())["phases"]["check"]
    assert check["loss_at_reference"] == pytest.approx(0.693147, abs=1e-5)


def test_kernels_of_layers_reach_policy_and_reference_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels need a GPU; which models get them, and that none replaces the head, is shown here."""
    applied: list[tuple[str, Any]] = []

    def apply(place: str) -> Callable[[Any, Any], None]:
        return lambda model, kernels: applied.append((place, kernels))

    monkeypatch.setattr("adaptpo.pipeline.context.apply_liger_kernel", apply("load"))
    monkeypatch.setattr("transformers.trainer.apply_liger_kernel", apply("training"))
    monkeypatch.setattr("adaptpo.pipeline.preflight.is_liger_kernel_available", lambda: True)
    kernels = {"use_liger_kernel": True, "liger_kernel_config": {"rope": False}}
    run(save_policy(tmp_path / "policy"), tmp_path / "run", training=STILL["training"] | kernels)
    places = [place for place, _ in applied]
    assert places.index("load") < places.index("training")
    assert all(
        given == {"fused_linear_cross_entropy": False, "cross_entropy": False, "rope": False} for _, given in applied
    )
    asked = kernels | {"liger_kernel_config": {"fused_linear_cross_entropy": True}}
    with pytest.raises(ConfigError, match="replaces the model's head"):
        run(tmp_path / "policy", tmp_path / "other", training=STILL["training"] | asked)


def test_dropout_of_an_adapter_is_off(tmp_path: Path) -> None:
    """An adapter that changes the policy has the losses of the same adapter without dropout."""
    path, peft = save_policy(tmp_path / "policy"), {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": False}
    out = [run(path, tmp_path / str(rate), peft=peft | {"lora_dropout": rate}, **STILL) for rate in (0.0, 0.5)]
    losses = [[log["loss"] for log in training_logs(folder)] for folder in out]
    assert losses[0] == losses[1] and losses[0][0] != pytest.approx(0.693147, abs=1e-6)
    assert json.loads((out[1] / "final" / "adapter_config.json").read_text())["lora_dropout"] == 0.5


def test_dropout_acts_if_it_is_asked_for(tmp_path: Path) -> None:
    out = run(save_noisy(tmp_path / "gpt2"), tmp_path / "run", disable_dropout=False, **STILL)
    assert all(abs(log["loss"] - 0.693147) > 1e-4 for log in training_logs(out))


class Noisy(GPT2LMHeadModel):
    def forward(self, *arguments: Any, **named: Any) -> Any:
        output = super().forward(*arguments, **named)
        output.logits = output.logits + 0.1 * self.training * torch.randn_like(output.logits)
        return output


def test_noise_that_cannot_be_turned_off_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from adaptpo.pipeline import context

    path = save_noisy(tmp_path / "gpt2")
    monkeypatch.setattr(context, "load_policy", lambda *_: Noisy.from_pretrained(path))
    with pytest.raises(ModelError, match=r"noise in training mode.*instead of 0.693147.*disable_dropout: false"):
        run(path, tmp_path / "run", **STILL)


@pytest.mark.parametrize(("name", "measure"), [("ppo", "policy/approx_kl"), ("grpo", "kl")])
def test_policies_trained_on_rewards_have_no_dropout(name: str, measure: str, tmp_path: Path) -> None:
    """They do not diverge from the policy that sampled, nor from the reference."""
    settings = {"num_generations": 4} | ({"beta": 0.1} if name == "grpo" else {})
    path = save_noisy(tmp_path / "opt", "opt")
    out = run(path, tmp_path / "run", methods.METHODS[name](**settings), vowel_reward, **STILL)
    logs = training_logs(out, measure)
    assert logs and [log[measure] for log in logs] == pytest.approx([0.0] * len(logs), abs=1e-8)


def test_trained_reward_model_has_no_dropout(tmp_path: Path) -> None:
    """Every epoch at learning rate 0 measures the same loss."""
    slow = SETTINGS["reward_training"] | {"learning_rate": 0.0, "num_train_epochs": 6}
    method = methods.online_dpo(num_generations=2)
    out = run(save_noisy(tmp_path / "opt", "opt"), tmp_path / "run", method, "train", reward_training=slow, **STILL)
    losses = [log["reward_model/loss"] for log in all_logs(out, "reward_model/loss")]
    assert losses == pytest.approx([losses[0]] * 6, abs=1e-6)


def all_logs(out: Path, key: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if key in line]


# --- 07: ids beyond the tokenizer ------------------------------------------------------------------------------------


def save_longer(folder: Path) -> str:
    """An embedding of 384 rows under a tokenizer of 262 tokens."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = tiny_config(tokenizer)
    config.vocab_size = 384
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", ["online_dpo", "grpo"])
def test_no_id_beyond_the_tokenizer_is_sampled(name: str, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    out = run(
        save_longer(tmp_path / "policy"), tmp_path / "run", methods.METHODS[name](num_generations=4), vowel_reward
    )
    ids = [token for name, rows in tables(out).items() if "responses" in name for row in rows for token in row["ids"]]
    assert len(ids) > 100 and max(ids) < len(tokenizer)


def test_sampling_leaves_the_other_probabilities_in_proportion() -> None:
    tokenizer = byte_tokenizer()
    assert foreign_ids(tokenizer, len(tokenizer)) == []
    assert foreign_ids(tokenizer, len(tokenizer) + 2) == [len(tokenizer), len(tokenizer) + 1]
    assert foreign_ids(tokenizer, len(tokenizer) + 2, frozenset({len(tokenizer)})) == [len(tokenizer) + 1]


def test_answers_with_ids_beyond_the_tokenizer_are_left_out_and_counted() -> None:
    usage: Usage = Counter()
    tokenizer = byte_tokenizer()
    choices = [{"finish_reason": "length", "token_ids": ids, "text": ""} for ids in ([40, 41], [40, 300])]
    answer = {"choices": choices, "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
    sampling = Sampling(1.0, 1.0, 0, 8, frozenset({2}))
    found = AnswerReader(tokenizer, usage).responses(answer, Prompt(0, "abc", [7, 8, 9]), 2, sampling)
    assert [response.ids for response in found] == [[40, 41]]
    assert usage["ids_beyond_the_tokenizer"] == 1


@pytest.mark.parametrize("api", DIALECTS)
def test_requests_say_that_there_is_no_penalty(api: Api) -> None:
    """A server would fill what is left out from the model's generation_config.json."""
    fields = DIALECTS[api].sampling_fields(Sampling(1.0, 1.0, 0, 8, frozenset({2})))
    if api == "transformers":
        said = json.loads(fields["generation_config"])
        assert (said["repetition_penalty"], said["no_repeat_ngram_size"], said["min_p"]) == (1.0, 0, 0.0)
        return
    assert (fields["presence_penalty"], fields["frequency_penalty"]) == (0.0, 0.0)
    assert api == "openai" or (fields["repetition_penalty"], fields["min_p"]) == (1.0, 0.0)


@pytest.mark.parametrize("api", DIALECTS)
def test_requests_say_how_to_sample(api: Api) -> None:
    fields = DIALECTS[api].sampling_fields(Sampling(0.3, 0.4, 7, 8, frozenset({2})))
    said = json.loads(fields["generation_config"]) if api == "transformers" else fields
    assert (said["temperature"], said["top_p"], said.get("top_k")) == (0.3, 0.4, None if api == "openai" else 7)


def test_a_neutral_generation_config_overrules_that_of_the_model() -> None:
    """As `transformers serve` and TRL apply it: the model's penalties would change greedy answers."""
    tokenizer = byte_tokenizer()
    model, ids = tiny_model(tokenizer).eval(), torch.tensor([[7, 8, 9]])
    kept = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": 2}
    expected = model.generate(ids, generation_config=GenerationConfig(**NEUTRAL, **kept))
    model.generation_config.update(repetition_penalty=0.01, no_repeat_ngram_size=4, min_new_tokens=5)
    assert torch.equal(model.generate(ids, generation_config=GenerationConfig(**NEUTRAL, **kept)), expected)
    assert not torch.equal(model.generate(ids, generation_config=GenerationConfig(**kept)), expected)


@pytest.mark.parametrize("name", ["online_dpo", "grpo"])
def test_penalties_of_a_generation_config_change_no_response(name: str, tmp_path: Path) -> None:
    plain = save_policy(tmp_path / "plain")
    shutil.copytree(plain, tmp_path / "strict")
    path = tmp_path / "strict" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"repetition_penalty": 3.0, "no_repeat_ngram_size": 1}))
    method = methods.METHODS[name](num_generations=4)
    found = [run(str(tmp_path / kind), tmp_path / f"run-{kind}", method, vowel_reward) for kind in ("plain", "strict")]
    one, other = ({k: v for k, v in tables(out).items() if "responses" in k} for out in found)
    assert one and one == other


# --- 11: LoRA adapters as policy and as reward model -----------------------------------------------------------------

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


def adapted(base: str, seed: int = 3) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(seed)
    return get_peft_model(model, LoraConfig(**LORA, init_lora_weights=False, task_type="CAUSAL_LM"))


def save_adapter(base: str, folder: Path, with_tokenizer: bool = True) -> str:
    adapted(base).save_pretrained(folder)
    if with_tokenizer:
        byte_tokenizer().save_pretrained(folder)
    return str(folder)


def reward_adapter(base: str) -> Any:
    adapted(base)  # The seed of the head, as in the case.
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.config.pad_token_id = 0
    torch.manual_seed(5)
    settings = LoraConfig(**LORA, init_lora_weights=False, task_type="SEQ_CLS", modules_to_save=["score"])
    return get_peft_model(model, settings)


def save_reward_adapter(base: str, folder: Path) -> str:
    reward_adapter(base).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def merged_logits(base: str) -> torch.Tensor:
    with torch.no_grad():
        return adapted(base).merge_and_unload()(torch.arange(20)[None]).logits


def logits_of(path: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(path)(torch.arange(20)[None]).logits


@pytest.mark.parametrize("peft", [None, LORA], ids=["full", "peft"])
@pytest.mark.parametrize("kind", ["folder", "without tokenizer", "in memory"])
def test_adapter_is_merged_as_start_and_reference(kind: str, peft: dict[str, Any] | None, tmp_path: Path) -> None:
    base = save_policy(tmp_path / "base")
    folder = save_adapter(base, tmp_path / "adapter", with_tokenizer=kind == "folder")
    model: Any = adapted(base) if kind == "in memory" else folder
    tokenizer = {"processing_class": byte_tokenizer()} if kind == "in memory" else {}
    out = run(model, tmp_path / "run", peft=peft, **STILL, **tokenizer)
    assert torch.allclose(logits_of(out / "inputs" / "model"), merged_logits(base), atol=1e-5)
    assert training_logs(out)[0]["loss"] == pytest.approx(0.693147, abs=1e-6)
    if peft is None:
        assert torch.allclose(logits_of(out / "final"), merged_logits(base), atol=1e-5)
    if kind == "in memory":
        assert hasattr(model, "peft_config") and torch.allclose(
            adapted(base)(torch.arange(20)[None]).logits, model.cpu()(torch.arange(20)[None]).logits, atol=1e-6
        )


def test_a_run_starts_from_the_adapter_of_another(tmp_path: Path) -> None:
    first = run(save_policy(tmp_path / "base"), tmp_path / "first", peft=LORA)
    second = run(str(first / "final"), tmp_path / "second", peft=LORA)
    third = run(str(second / "final"), tmp_path / "third", **STILL)
    start = AutoModelForCausalLM.from_pretrained(first / "final")  # transformers puts the adapter on its model
    with torch.no_grad():
        expected = start(torch.arange(20)[None]).logits
    assert torch.allclose(logits_of(second / "inputs" / "model"), expected, atol=1e-5)
    assert not torch.allclose(logits_of(third / "final"), expected, atol=1e-5)


def test_digest_covers_adapter_and_model(tmp_path: Path) -> None:
    base = save_policy(tmp_path / "base")
    folder = save_adapter(base, tmp_path / "adapter")
    digests = [model_digest(folder)]
    save_policy(tmp_path / "base", seed=7)
    digests.append(model_digest(folder))
    adapted(base, seed=9).save_pretrained(folder)
    digests.append(model_digest(folder))
    assert len(set(digests)) == 3


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}", b"null"])
def test_damaged_note_about_a_merged_adapter_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "merged_from.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"merged_from\.json is damaged .*give the adapter itself"):
        model_digest(str(tmp_path))


def test_adapter_is_merged_once(tmp_path: Path) -> None:
    folder = save_adapter(save_policy(tmp_path / "base"), tmp_path / "adapter")
    out = run(folder, tmp_path / "run")
    written = (out / "inputs" / "model" / "model.safetensors").stat().st_mtime_ns
    run(folder, tmp_path / "run")
    assert (out / "inputs" / "model" / "model.safetensors").stat().st_mtime_ns == written
    save_policy(tmp_path / "base", seed=7)
    with pytest.raises(RunError, match=r"inputs\.model"):
        run(folder, tmp_path / "run")


def test_reward_adapter_is_merged(tmp_path: Path) -> None:
    path = save_reward_adapter(save_policy(tmp_path / "base"), tmp_path / "rm_adapter")
    saved = as_folder(tmp_path / "saved", reward_adapter(str(tmp_path / "base")), byte_tokenizer())
    for given in (path, saved):
        assert rewards_of(given, tmp_path) == pytest.approx([0.11316, 0.06592], abs=1e-5)
    run(save_policy(tmp_path / "policy"), tmp_path / "run", methods.online_dpo(num_generations=2), path)


def test_reward_adapter_trained_with_end_of_sequence_as_padding(tmp_path: Path) -> None:
    """TRL stores the pad token of a reward adapter's training in its tokenizer alone."""
    folder = save_reward_adapter(save_policy(tmp_path / "base"), tmp_path / "rm_adapter")
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    model, loaded = load_reward_model(folder, {})
    assert model.config.pad_token_id == loaded.eos_token_id


def test_adapters_in_the_wrong_place(tmp_path: Path) -> None:
    base = save_policy(tmp_path / "base")
    policy = save_adapter(base, tmp_path / "adapter")
    reward = save_reward_adapter(base, tmp_path / "rm_adapter")
    with pytest.raises(ModelError, match=r"was trained for SEQ_CLS, not for CAUSAL_LM; .* belongs under `reward`"):
        run(reward, tmp_path / "one")
    with pytest.raises(ModelError, match="was trained for CAUSAL_LM, not for SEQ_CLS; give the adapter of a reward"):
        load_reward_model(policy, {})


def test_adapters_that_cannot_be_merged(tmp_path: Path) -> None:
    base = save_policy(tmp_path / "base")
    folder = Path(save_adapter(base, tmp_path / "adapter"))
    config = folder / "adapter_config.json"
    whole = json.loads(config.read_text())
    config.write_text("{")
    with pytest.raises(ModelError, match=r"cannot read .*adapter_config.json: .*; save the adapter again"):
        run(str(folder), tmp_path / "run")
    for change, message in (
        ({"base_model_name_or_path": None}, "does not name its model; set base_model_name_or_path"),
        ({"base_model_name_or_path": str(tmp_path / "gone")}, "was trained on .*gone', which is not there; correct"),
        ({"target_modules": ["no_such"]}, "cannot be merged into its model"),
        ({"target_modules": ["k_proj"]}, "cannot be merged into its model: Found missing adapter keys"),
    ):
        config.write_text(json.dumps(whole | change))
        with pytest.raises(ModelError, match=message):
            run(str(folder), tmp_path / "run")


def test_new_tokens_of_an_adapter(tmp_path: Path) -> None:
    """The adapter's tokenizer has more tokens than its model, and the adapter holds their embedding."""
    base, tokenizer = save_policy(tmp_path / "base"), byte_tokenizer()
    tokenizer.add_tokens(["<think>"])
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer))
    torch.manual_seed(3)
    settings = LoraConfig(**LORA, init_lora_weights=False, modules_to_save=["embed_tokens", "lm_head"])
    peft = get_peft_model(model, settings)
    peft.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    out = run(str(tmp_path / "adapter"), tmp_path / "run", **STILL)
    with torch.no_grad():
        expected = peft.merge_and_unload()(torch.arange(20)[None]).logits
    assert torch.allclose(logits_of(out / "inputs" / "model"), expected, atol=1e-5)


def test_stage_measures_an_adapter(tmp_path: Path) -> None:
    folder = save_adapter(save_policy(tmp_path / "base"), tmp_path / "adapter")
    data = write_jsonl(tmp_path / "pairs.jsonl", preference_rows(6))
    given = ("max_prompt_length=64", "generation.max_new_tokens=8", "show_progress=false")
    options = Options(model=folder, data=data, reward=REWARD, prompts=4, out=tmp_path / "stage", assignments=given)
    found = run_stage(recipe_of(options))
    assert found["policy"] == str(tmp_path / "stage" / "inputs" / "model")


REWARD = "python:tests.tiny:vowel_reward"


# --- 12: models with their own code ----------------------------------------------------------------------------------


MODELING = """
from torch import nn
from transformers import BASE, LlamaModel, LlamaPreTrainedModel

from .configuration_my import MyConfig


class MyModel(BASE):
    config_class = MyConfig

    def __init__(self, config):
        LlamaPreTrainedModel.__init__(self, config)
        self.model, self.vocab_size, self.num_labels = LlamaModel(config), config.vocab_size, config.num_labels
        name, width = ("score", 1) if "Sequence" in "BASE" else ("lm_head", config.vocab_size)
        setattr(self, name, nn.Linear(config.hidden_size, width, bias=False))
        self.post_init()
"""


def with_own_code(source: str, folder: Path, base: str, auto: str) -> str:
    """The model in `source` under configuration and model classes of its folder."""
    shutil.copytree(source, folder)
    (folder / "configuration_my.py").write_text(
        "from transformers import LlamaConfig\n\n\nclass MyConfig(LlamaConfig):\n    model_type = 'my_llama'\n"
    )
    (folder / "modeling_my.py").write_text(MODELING.replace("BASE", base))
    named = {"AutoConfig": "configuration_my.MyConfig", auto: "modeling_my.MyModel"}
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "my_llama", "architectures": ["MyModel"], "auto_map": named}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture
def own_policy(tmp_path: Path) -> str:
    return with_own_code(
        save_policy(tmp_path / "policy"), tmp_path / "own_policy", "LlamaForCausalLM", "AutoModelForCausalLM"
    )


@pytest.fixture
def own_reward(tmp_path: Path) -> str:
    source = save_reward_model(tmp_path / "rm")
    auto = "AutoModelForSequenceClassification"
    return with_own_code(source, tmp_path / "own_rm", "LlamaForSequenceClassification", auto)


@pytest.fixture
def no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> str:
        raise AssertionError("asked on standard input")

    monkeypatch.setattr("builtins.input", refuse)


TRUSTS = {"key": {"trust_remote_code": True}, "argument": {"model_init_kwargs": {"trust_remote_code": True}}}


@pytest.mark.parametrize("peft", [None, LORA], ids=["full", "peft"])
@pytest.mark.parametrize("given", TRUSTS)
@pytest.mark.usefixtures("no_input")
def test_own_code_of_policy_and_reward_model(
    given: str, peft: dict[str, Any] | None, own_policy: str, own_reward: str, tmp_path: Path
) -> None:
    settings = TRUSTS[given] | {"num_iterations": 2, "peft": peft}
    out = run(own_policy, tmp_path / "run", methods.online_dpo(num_generations=2), own_reward, **settings)
    if peft is None:
        AutoModelForCausalLM.from_pretrained(out / "final", trust_remote_code=True)


@pytest.mark.usefixtures("no_input")
def test_own_code_is_refused_by_the_name_of_the_key(own_policy: str, own_reward: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"own_policy.*set trust_remote_code: true"):
        run(own_policy, tmp_path / "one")
    with pytest.raises(ModelError, match=r"own_rm.*set trust_remote_code: true"):
        run(save_policy(tmp_path / "plain"), tmp_path / "two", methods.online_dpo(num_generations=2), own_reward)
    with pytest.raises(ModelError, match=r"own_rm.*--trust-remote-code"):
        rewards_of(own_reward, tmp_path)
    assert rewards_of(own_reward, tmp_path, trust_remote_code=True) == pytest.approx(EXPECTED, abs=1e-5)


@pytest.mark.usefixtures("no_input")
def test_adapter_of_a_model_with_own_code(own_policy: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(own_policy, trust_remote_code=True)
    get_peft_model(model, LoraConfig(**LORA, init_lora_weights=False)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="set trust_remote_code: true"):
        run(str(tmp_path / "adapter"), tmp_path / "one")
    run(str(tmp_path / "adapter"), tmp_path / "two", trust_remote_code=True)


@pytest.mark.usefixtures("no_input")
def test_plan_of_models_with_own_code(own_policy: str, own_reward: str, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", preference_rows(6))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"model": own_policy, "reward": own_reward, "data": data, "output_dir": "run"}))
    with pytest.raises(ModelError, match="set trust_remote_code: true"):
        read_job(load_recipe(recipe))
    assert read_job(load_recipe(recipe, ["trust_remote_code=true"])).shape.layers == 2


def test_plan_of_an_adapter(tmp_path: Path) -> None:
    folder = save_adapter(save_policy(tmp_path / "base"), tmp_path / "adapter", with_tokenizer=False)
    data = write_jsonl(tmp_path / "pairs.jsonl", preference_rows(6))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"model": folder, "data": data, "output_dir": "run", "method": "dpo"}))
    assert read_job(load_recipe(recipe)).shape.layers == 2


# --- dtypes ----------------------------------------------------------------------------------------------------------


def save_bf16(folder: Path) -> str:
    tokenizer = byte_tokenizer()
    tiny_model(tokenizer).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("in_memory", [False, True])
def test_dtype_of_a_checkpoint_is_announced(
    in_memory: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = save_bf16(tmp_path / "policy")
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto") if in_memory else path
    tokenizer = {"processing_class": byte_tokenizer()} if in_memory else {}
    out = run(model, tmp_path / "run", show_progress=True, **tokenizer)
    assert "train in float32, and the checkpoint's dtype is bfloat16" in capsys.readouterr().out
    assert AutoModelForCausalLM.from_pretrained(out / "final", dtype="auto").dtype == torch.float32


@pytest.mark.parametrize(
    "given", [{"dtype": "bfloat16"}, {"torch_dtype": "bfloat16"}, {"torch_dtype": torch.bfloat16}, {"dtype": "auto"}]
)
def test_dtype_that_is_named_is_used(given: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = save_bf16(tmp_path / "policy")
    out = run(path, tmp_path / "run", show_progress=True, model_init_kwargs=given)
    assert "the checkpoint's dtype" not in capsys.readouterr().out
    assert AutoModelForCausalLM.from_pretrained(out / "final", dtype="auto").dtype == torch.bfloat16


def test_dtypes_that_do_not_exist_or_agree() -> None:
    with pytest.raises(ConfigError, match=r"model_init_kwargs.torch_dtype is 'bf16'; give one of auto, bfloat16"):
        AlignmentConfig(output_dir="run", model_init_kwargs={"torch_dtype": "bf16"})
    with pytest.raises(ConfigError, match="names two dtypes"):
        AlignmentConfig(output_dir="run", model_init_kwargs={"torch_dtype": "float16", "dtype": "bfloat16"})
