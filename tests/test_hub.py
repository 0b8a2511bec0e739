"""Pushing to the hub: the real client against a local stub of the hub's addresses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from adaptpo import AlignmentConfig, AlignmentTrainer
from adaptpo.errors import AdaptpoError, ConfigError, RunError
from tests.hub import Hub, running_hub
from tests.tiny import preference_rows, save_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_writer")
        yield hub


def trainer(policy: str, out: Path, peft: Any = None, **training: Any) -> AlignmentTrainer:
    settings: dict[str, Any] = {"num_iterations": 1, "max_prompt_length": 64, "show_progress": False, "peft": peft}
    args = AlignmentConfig(output_dir=str(out), training={"push_to_hub": True, **training}, **settings)
    return AlignmentTrainer(policy, args, "dpo", preference_rows(4))


def test_the_final_model_is_pushed_once(policy: str, hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "tea"
    final = trainer(policy, out, hub_private_repo=True).train().folder
    assert hub.repositories == {"ann/tea": True} and hub.commits == ["End of training"]
    pushed = {path.name: path.read_bytes() for path in final.iterdir() if path.name != ".cache"}
    assert hub.files["ann/tea"] == pushed
    assert "base_model" not in pushed["README.md"].decode()  # It is a folder, which the hub refuses as a base.
    assert "secret" not in (out / "config.yaml").read_text() and "hf_writer" not in (out / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("token", "name", "message"),
    [
        (None, "tea", "log in with `hf auth login`"),
        ("hf_reader", "tea", "use a token with write permission"),
        ("hf_writer", "other/tea", "use a token with write permission"),
        ("hf_writer", "not a name", "owner/name, with letters"),
        ("hf_unknown", "tea", "log in with `hf auth login`"),
    ],
)
def test_what_the_hub_refuses_is_refused_before_anything_is_spent(
    token: str | None, name: str, message: str, policy: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.repositories["other/tea"] = False
    with pytest.raises(ConfigError) as caught:
        trainer(policy, tmp_path / "runs" / "run", hub_model_id=name).train()
    assert message in str(caught.value) and f"cannot push to '{name}'" in str(caught.value)
    assert not (tmp_path / "runs").exists() and not hub.commits


def test_without_an_answer(policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    with pytest.raises(ConfigError, match="check the connection"):
        trainer(policy, tmp_path / "run").train()


def test_a_push_that_failed_is_repeated_alone(policy: str, hub: Hub, tmp_path: Path) -> None:
    hub.down = True
    with pytest.raises(RunError, match="the same command, started again, pushes it"):
        trainer(policy, tmp_path / "tea").train()
    hub.down = False
    before = (tmp_path / "tea" / "metrics.jsonl").read_text()
    trainer(policy, tmp_path / "tea").train()
    assert hub.commits == ["End of training"] and (tmp_path / "tea" / "metrics.jsonl").read_text() == before


def test_another_place_is_pushed_to(policy: str, hub: Hub, tmp_path: Path) -> None:
    """A finished run with another repository pushes there; the same command again does not push again."""
    trainer(policy, tmp_path / "tea").train()
    for _ in range(2):
        trainer(policy, tmp_path / "tea", hub_model_id="ann/coffee").train()
    assert len(hub.commits) == 2 and hub.files["ann/coffee"].keys() == hub.files["ann/tea"].keys()


def test_push_to_hub_of_the_trainer(policy: str, hub: Hub, tmp_path: Path) -> None:
    """As in TRL: after training, with a message and a token of its own."""
    made = trainer(policy, tmp_path / "tea", push_to_hub=False)
    with pytest.raises(RunError, match=r"call train\(\) first"):
        made.push_to_hub()
    made.train()
    assert not hub.requests
    assert made.push_to_hub("Second thoughts", private=True) == f"{hub.url}/ann/tea/commit/{'1' * 40}"
    assert hub.commits == ["Second thoughts"] and hub.repositories == {"ann/tea": True}
    with pytest.raises(AdaptpoError, match="write permission"):
        made.push_to_hub(token="hf_reader")


def test_weights_of_an_earlier_model_go(policy: str, hub: Hub, tmp_path: Path) -> None:
    """A whole model beside the adapter of an earlier one, or shards beside whole weights, would be loaded wrong."""
    hub.repositories["ann/tea"] = False
    kept = {"notes.md", "other/model.safetensors", "data.bin", "training_args.bin"}
    gone = {"adapter_config.json", "adapter_model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin"}
    hub.files["ann/tea"] = dict.fromkeys(kept | gone, b"old")
    final = trainer(policy, tmp_path / "tea").train().folder
    own = {path.name for path in final.iterdir() if path.name != ".cache"}
    assert set(hub.files["ann/tea"]) == own | kept


def test_a_public_repository_is_not_taken_for_a_private_one(policy: str, hub: Hub, tmp_path: Path) -> None:
    hub.repositories["ann/tea"] = False
    with pytest.raises(ConfigError, match=r"'ann/tea' exists and is public.*change its visibility"):
        trainer(policy, tmp_path / "tea", hub_private_repo=True).train()
    assert not hub.commits


def test_an_adapter_of_a_local_model_is_not_pushed(policy: str, hub: Hub, tmp_path: Path) -> None:
    made = trainer(policy, tmp_path / "tea", peft={"r": 2})
    with pytest.raises(ConfigError, match=r"a folder of this machine here .*hub id"):
        made.train()
    made = trainer(policy, tmp_path / "tea", peft={"r": 2}, push_to_hub=False)
    made.train()
    with pytest.raises(ConfigError, match=r"a folder of this machine here"):
        made.push_to_hub()
    assert not hub.commits


def test_a_copy_stands_alone(policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = trainer(policy, tmp_path / "tea", peft={"r": 2}, push_to_hub=False)
    made.train()
    made.save_model(tmp_path / "copy")
    made.save_model(tmp_path / "copy")
    assert f"needs its model in {policy}" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "training_args.bin").touch()
    (tmp_path / "other" / "model.safetensors").touch()
    with pytest.raises(RunError, match=r"holds model\.safetensors of another model"):
        made.save_model(tmp_path / "other")


def test_a_token_does_not_belong_in_a_recipe() -> None:
    with pytest.raises(ConfigError, match="set HF_TOKEN"):
        AlignmentConfig(output_dir="x", training={"hub_token": "hf_secret"})
