"""`model_init_kwargs` that choose among the models of one folder or repository, here `subfolder`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from adaptpo import AlignmentConfig, AlignmentTrainer, Method
from adaptpo.methods import METHODS
from adaptpo.models.adapters import adapter_shapes, base_of
from adaptpo.models.loading import load_causal_lm, load_policy, load_tokenizer, read_config
from adaptpo.models.merging import merged_policy
from tests.runs import SETTINGS, weights
from tests.tiny import byte_tokenizer, preference_rows, save_policy, vowel_reward

METHODS_BY_REFERENCE = {
    "metaapo": {"num_generations": 2},
    "grpo": {"num_generations": 2},
    "iterative_dpo": {"num_generations": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model below, and another one at the top with other layers and another chat template."""
    folder = tmp_path_factory.mktemp("models")
    save_policy(folder, num_hidden_layers=2, seed=0)
    save_policy(folder / "sub", num_hidden_layers=1, seed=1)
    top = byte_tokenizer()
    top.chat_template = "{{ messages[-1].content }}"
    top.save_pretrained(folder)
    return folder


def final_weights(
    out: Path, model: Path, method: str, arguments: dict[str, Any], reward: Any = vowel_reward, **settings: Any
) -> Any:
    args = AlignmentConfig(output_dir=str(out), **(SETTINGS | settings))
    built = METHODS[method](**arguments)
    trainer = AlignmentTrainer(str(model), args, built, preference_rows(12), reward_funcs=reward)
    return weights(Path(trainer.train()))


@pytest.mark.parametrize("method", METHODS_BY_REFERENCE)
def test_a_run_from_a_subfolder_is_a_run_from_that_folder(method: str, folder: Path, tmp_path: Path) -> None:
    """Policy, reference and tokenizer are the one below, and the run's own checkpoints have no subfolder."""
    arguments = METHODS_BY_REFERENCE[method]
    options = {"subfolder": "sub"}
    named = final_weights(tmp_path / "named", folder, method, arguments, model_init_kwargs=options)
    direct = final_weights(tmp_path / "direct", folder / "sub", method, arguments)
    assert named.keys() == direct.keys()
    assert all(torch.equal(named[name], direct[name]) for name in direct)


def test_a_reward_model_is_trained_from_the_subfolder(folder: Path, tmp_path: Path) -> None:
    settings = {"num_iterations": 1, "reward_training": {"per_device_train_batch_size": 4}}
    named = tmp_path / "named"
    options = {"subfolder": "sub"}
    final_weights(named, folder, "online_dpo", {"num_generations": 2}, "train", model_init_kwargs=options, **settings)
    final_weights(tmp_path / "direct", folder / "sub", "online_dpo", {"num_generations": 2}, "train", **settings)
    one, other = (weights(tmp_path / name / "reward" / "model") for name in ("named", "direct"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_subfolder_may_be_all_there_is(folder: Path, tmp_path: Path) -> None:
    """Nothing lies at the top; or the tokenizer alone, which then is that of the model below."""
    shutil.copytree(folder / "sub", tmp_path / "alone" / "sub")
    assert read_config(str(tmp_path / "alone"), {"subfolder": "sub"}).num_hidden_layers == 1
    tokenizer = load_tokenizer(str(tmp_path / "alone"), {"subfolder": "sub"})
    for path in (tmp_path / "alone" / "sub").glob("*token*"):
        path.rename(tmp_path / "alone" / path.name)
    for path in (tmp_path / "alone" / "sub").glob("chat_template*"):
        path.rename(tmp_path / "alone" / path.name)
    assert load_tokenizer(str(tmp_path / "alone"), {"subfolder": "sub"}).chat_template == tokenizer.chat_template


def test_an_adapter_may_lie_in_a_subfolder(folder: Path, tmp_path: Path) -> None:
    base = load_causal_lm(str(folder / "sub"), {})
    adapted = get_peft_model(base, LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapters" / "one")
    byte_tokenizer().save_pretrained(tmp_path / "adapters" / "one")
    path, options = str(tmp_path / "adapters"), {"subfolder": "one"}
    assert base_of(path, options) == str(folder / "sub") and base_of(path) is None
    found = merged_policy(path, options).state_dict()
    expected = merged_policy(str(tmp_path / "adapters" / "one"), {}).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for file in (tmp_path / "adapters" / "one").glob("*token*"):
        file.unlink()
    assert read_config(path, options).num_hidden_layers == 1
    assert load_tokenizer(path, options).chat_template == load_tokenizer(str(folder / "sub")).chat_template
    assert adapter_shapes(path, options) == adapter_shapes(str(tmp_path / "adapters" / "one"))


@pytest.mark.parametrize("method", [METHODS["dpo"](), METHODS["grpo"](num_generations=2)], ids=lambda m: m.name)
def test_another_reference_does_not_lie_where_the_model_does(method: Method, folder: Path, tmp_path: Path) -> None:
    other = save_policy(tmp_path / "other", num_hidden_layers=1, seed=3)
    given: dict[str, Any] = {"ref_model": other, "reward_funcs": vowel_reward}
    settings = {"num_iterations": 1, "model_init_kwargs": {"subfolder": "sub"}}
    args = AlignmentConfig(output_dir=str(tmp_path / "run"), **(SETTINGS | settings))
    AlignmentTrainer(str(folder), args, method, preference_rows(12), **given).train()
    direct = AlignmentConfig(output_dir=str(tmp_path / "direct"), **(SETTINGS | {"num_iterations": 1}))
    AlignmentTrainer(str(folder / "sub"), direct, method, preference_rows(12), **given).train()
    one, two = (weights(tmp_path / name / "final") for name in ("run", "direct"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_adapter_names_the_revision_of_its_model(folder: Path) -> None:
    policy = load_policy(str(folder / "sub"), str(folder / "sub"), {"r": 2}, {"revision": "v2"}, 0)
    assert policy.peft_config["default"].revision == "v2"
