"""Keys: recognized by name and by form, in no file of a run and in no message."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import TrainingArguments

from adaptpo.config.recipe import AlignmentConfig, make_recipe
from adaptpo.config.secrets import MASK, holds_key, is_secret_name, known, masked, masked_text, remember
from adaptpo.errors import ConfigError
from adaptpo.generation.process import StartedServer
from adaptpo.remote.store import AnswerStore, content_key
from adaptpo.run.files import JsonLines, write_json
from adaptpo.run.identity import plain
from tests.planted import KEYS, PLAIN

NEEDED = {"model": "m", "data": "d.jsonl", "output_dir": "o"}


@pytest.fixture(autouse=True)
def _forget() -> Any:
    before = set(known)
    yield
    known.clear()
    known.update(before)


@pytest.mark.parametrize(
    "name",
    ["token", "hub_token", "HF_TOKEN", "--api-key", "x-api-key", "apiKey", "api_key", "OPENAI_API_KEY", "password",
     "Authorization", "client_secret", "aws_secret_access_key", "private-key", "accessToken", "credentials"],
)  # fmt: skip
def test_names_of_keys(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    ["max_tokens", "max_tokens_per_batch", "eos_token", "pad_token", "tokenizer", "api_key_env", "monkey", "keys",
     "source_tokens", "max_new_tokens", "tokens", "secretary", "image_token", "learning_rate", "", "7"],
)  # fmt: skip
def test_names_of_other_things(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("text", ["{}", "run {} failed", 'h "{}"', "https://h/v1/{}/x", "https://h/x?a=1&b={}"])
def test_keys_are_known_by_their_form(key: str, text: str) -> None:
    assert key not in masked_text(text.format(key)) and MASK in masked_text(text.format(key))


@pytest.mark.parametrize(
    "text",
    ["--api-key {}", "--api-key={}", "HF_TOKEN={} vllm serve", "-H 'Authorization: Bearer {}'", '"password": "{}"',
     "https://user:{}@host/x", "https://host/x?token={}&a=1", "https://host/x?sig={}", "api_key: {}"],
)  # fmt: skip
def test_keys_are_known_by_what_stands_before_them(text: str) -> None:
    assert "Planted" not in masked_text(text.format("Planted0008"))


@pytest.mark.parametrize(
    "text",
    ["--max-tokens 5", "the key is missing", "eos_token: </s>", "org/model-7B", "sk-learn", "loss 0.1 at step 3",
     "the token budget of 100", "--tokenizer org/model", "api_key_env: OPENAI_API_KEY", "https://host:8000/v1"],
)  # fmt: skip
def test_other_texts_stay(text: str) -> None:
    assert masked_text(text) == text


def test_masking_reaches_every_depth() -> None:
    value = {"a": [{"token": PLAIN, "n": 3}], "args": ["--x", KEYS["hf"]], "eos_token": "</s>", "token": True}
    assert masked(value) == {
        "a": [{"token": MASK, "n": 3}], "args": ["--x", MASK], "eos_token": "</s>", "token": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    "url",
    ["https://u:p@host/v1", "https://host/v1?api_key=x", "https://host/v1?key=x", "https://host/v1?sig=x",
     f"https://host/{KEYS['openai']}/v1", "https://host/token/abc/v1", "https://host/services/T0/aB3dE5gH7jK9mN1pQ3sT5vW7"],
)  # fmt: skip
def test_addresses_with_keys_are_refused_and_not_shown(url: str) -> None:
    assert holds_key(url)
    with pytest.raises(ConfigError, match="an address must hold no key") as caught:
        make_recipe(NEEDED | {"reward": {"server": url}}, [], Path())
    assert KEYS["openai"] not in str(caught.value) and "u:p@" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000/v1", "https://api.openai.com/v1", "https://h/v1/models/Meta-Llama-3.1-8B-Instruct"]
)
def test_ordinary_addresses_hold_none(url: str) -> None:
    assert not holds_key(url)


@pytest.mark.parametrize("name", [*KEYS.values(), "not a name", "0123456789abcdef0123456789abcdef", "unset_variable"])
def test_a_key_in_place_of_a_variable_is_refused_and_not_shown(name: str) -> None:
    with pytest.raises(ConfigError, match="must name an environment variable") as caught:
        make_recipe(NEEDED | {"reward": {"judge": "m", "api_key_env": name}}, [], Path())
    assert not any(key in str(caught.value) for key in KEYS.values())


def test_wrong_values_are_shown_without_keys() -> None:
    wrong = {
        "training": {"hub_token": PLAIN, "run_name": 3},
        "peft": {"r": KEYS["hf"]},
        "generation": {"temperature": KEYS["hf"], "tokn": 1},
    }
    for section, values in wrong.items():
        with pytest.raises(ConfigError) as caught:
            AlignmentConfig(output_dir="o", **{section: values})
        assert PLAIN not in str(caught.value) and KEYS["hf"] not in str(caught.value)


def test_a_run_can_use_a_key_that_no_pickle_holds(tmp_path: Path) -> None:
    config = AlignmentConfig(
        output_dir="o",
        training={"run_name": f"run {KEYS['hf']}"},
        model_init_kwargs={"token": PLAIN, "revision": "main"},
    )
    assert config.load_options["token"] == PLAIN
    arguments = TrainingArguments(
        str(tmp_path), **config.training, report_to="none", hub_token=config.load_options["token"]
    )
    assert arguments.hub_token == PLAIN and copy.deepcopy(arguments).hub_token == PLAIN
    torch.save(arguments, tmp_path / "training_args.bin")
    content = (tmp_path / "training_args.bin").read_bytes() + pickle.dumps(config)
    assert PLAIN.encode() not in content and KEYS["hf"].encode() not in content
    assert torch.load(tmp_path / "training_args.bin", weights_only=False).hub_token is None


def test_what_a_run_stores_holds_no_key() -> None:
    options = {"token": PLAIN, "revision": KEYS["hf"]}
    config = AlignmentConfig(output_dir="o", training={"run_name": KEYS["hf"]}, model_init_kwargs=options)
    stored = yaml.safe_dump(plain(config.model_dump(mode="json")))
    assert PLAIN not in stored and KEYS["hf"] not in stored
    assert yaml.safe_load(stored)["model_init_kwargs"] == {"token": MASK, "revision": MASK}


def test_what_is_remembered_is_written_nowhere(tmp_path: Path) -> None:
    """By the functions that write all text of a run: a library's message may quote a key."""
    remember(PLAIN)
    said = f"the hub refused {PLAIN}"
    write_json(tmp_path / "state.json", {"problem": said})
    JsonLines(tmp_path / "metrics.jsonl").append({"problem": said})
    AnswerStore(tmp_path).add({content_key(1): said})
    assert json.loads((tmp_path / "state.json").read_text()) == {"problem": f"the hub refused {MASK}"}
    assert not [path for path in tmp_path.iterdir() if PLAIN.encode() in path.read_bytes()]


def test_data_that_looks_like_a_key_stays(tmp_path: Path) -> None:
    """A response of the model is no secret of this process, and nothing changes it."""
    JsonLines(tmp_path / "a.jsonl").append({"response": KEYS["openai"]})
    assert JsonLines(tmp_path / "a.jsonl").read() == [{"response": KEYS["openai"]}]


def test_a_server_that_shows_its_arguments_leaves_no_key_in_its_log(tmp_path: Path) -> None:
    script = "import sys; print('arguments:', sys.argv[1:]); print('key', sys.argv[4]); sys.exit(3)"
    command = f'{sys.executable} -c "{script}" {{model}} --port {{port}} --api-key Planted0009'
    AlignmentConfig(output_dir="o", generation={"engine": "server", "command": command, "api": "openai"})
    server = StartedServer(command, "m", tmp_path / "log.txt", 20.0, 0)
    with pytest.raises(Exception, match="ended before it was up") as caught:
        server.start()
    assert "Planted" not in str(caught.value) and "Planted" not in (tmp_path / "log.txt").read_text()
    assert "arguments:" in (tmp_path / "log.txt").read_text()


def test_a_password_that_is_a_word_changes_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DB_PASSWORD=postgres must not rewrite each response that speaks of postgres."""
    for word in ("postgres", "Password", "not-needed", "SWORDFISH"):
        remember(word)
        JsonLines(tmp_path / "a.jsonl").append({"response": f"Type {word}."})
        assert masked_text(f"refused {word}") == f"refused {MASK}"
    answers = [row["response"] for row in JsonLines(tmp_path / "a.jsonl").read()]
    assert answers == ["Type postgres.", "Type Password.", "Type not-needed.", "Type SWORDFISH."]
    assert masked("postgres", "database") == MASK
    letters = ("qwertyuiopasdfgh", "kdjfhgkdjhfg-qpwoeirutyqp", "ABCDEFGHIJKLMNOPQRS")
    for key in letters:
        remember(key)
        JsonLines(tmp_path / "b.jsonl").append({"response": key})
    assert all(row["response"] == MASK for row in JsonLines(tmp_path / "b.jsonl").read())
