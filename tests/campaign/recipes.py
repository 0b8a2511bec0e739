"""Recipes: a valid one with one fault each, drawn by the seed."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from adaptpo.config.recipe import Recipe, load_recipe
from adaptpo.config.secrets import known
from adaptpo.errors import AdaptpoError, ConfigError
from adaptpo.methods.build import build_method
from adaptpo.run.identity import plain
from tests.campaign.outcomes import Nonsense

VALID: dict[str, Any] = {
    "model": "org/model",
    "data": {"path": "pairs.jsonl", "split": "train", "columns": {"prompt": "question"}},
    "eval_data": {"path": "held.jsonl", "max_prompts": 16},
    "output_dir": "runs/one",
    "reward": {"judge": "m", "temperature": 0.0, "max_tokens": 64, "concurrency": 4, "retries": 2, "timeout": 30.0},
    "method": {
        "name": "metaapo", "objective": {"name": "dpo", "beta": 0.1, "label_smoothing": 0.0}, "num_generations": 4,
        "learning_rate": 0.005, "update_interval": 8,
    },
    "num_iterations": 3,
    "warmup_epochs": 1,
    "max_prompt_length": 512,
    "max_completion_length": 256,
    "max_length": 1024,
    "generation": {"num_generations": 8, "temperature": 1.0, "top_p": 0.9, "top_k": 5, "max_new_tokens": 64},
    "training": {
        "learning_rate": 1e-6, "num_train_epochs": 1.0, "per_device_train_batch_size": 4, "weight_decay": 0.01,
        "gradient_accumulation_steps": 2, "warmup_steps": 0.1, "max_grad_norm": 1.0, "adam_beta1": 0.9,
        "adam_epsilon": 1e-8, "logging_steps": 1, "save_steps": 20,
    },
    "reward_training": {"learning_rate": 1e-5, "per_device_train_batch_size": 4},
    "peft": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05},
    "meta": {"learning_rate": 0.005, "update_interval": 8},
    "stage": {"prompts": 100, "precision": 0.02, "groups": 1},
    "model_init_kwargs": {"dtype": "float32", "revision": "main"},
    "chat_template_kwargs": {"enable_thinking": False},
    "max_tokens_per_batch": 4096,
    "shard_size": 16,
    "seed": 0,
    "show_progress": False,
}  # fmt: skip
NEVER: list[Any] = [
    float("nan"),
    float("inf"),
    float("-inf"),
    1e300,
    -1e300,
    10**400,
    2**70,
    -7,
    True,
    "abc",
    [1],
    {"a": 1},
]
"""No number of a recipe is any of these."""
STRANGE: list[Any] = [
    *NEVER,
    None,
    "",
    "\0",
    "x" * 5000,
    [],
    {},
    -1,
    0,
    0.5,
    1e-30,
    "null",
    "../..",
    "é\u200f",
    [[[[]]]],
]
STRANGE += [{"name": "x"}, {"path": 3}, False, "1e-3", "train", "python:", "python:a:b", ["train"], {"judge": {}}]
KEY = "hf_PlantedPlantedPlanted"
SECRET_PLACES = ["training.hub_token", "model_init_kwargs.token", "reward.options.api_key", "reward.api_key_env"]
SECRET_PLACES += ["reward.base_url", "generation.command", "chat_template_kwargs.token", "model", "training.run_name"]
PIECES = [
    ":",
    "- ",
    "{",
    "[",
    "}",
    "]",
    "&a ",
    "*a ",
    "<<: ",
    "\n",
    "  ",
    "\t",
    "'",
    '"',
    "#",
    "!!",
    "---\n",
    "\x07",
    "? ",
]
PIECES += ["|", "%", "é", "\u2028", "\ud83d", "2024-02-30", "0b12", "1:2:3", ".nan", "~", ",", "[" * 400, "{a: " * 400]
PIECES += ["9" * 5000]


def numbers_of(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The places of the numbers."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from numbers_of(value, (*path, name))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (*path, name)


def places_of(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in values.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from places_of(value, (*path, name))


def put(values: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    found = copy.deepcopy(values)
    inner = found
    for name in path[:-1]:
        inner = inner.setdefault(name, {})
    inner[path[-1]] = value
    return found


NUMBERS, PLACES = list(numbers_of(VALID)), list(places_of(VALID))
TEXT = yaml.safe_dump(VALID, sort_keys=False)


def load(folder: Path, content: str | bytes, *assignments: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
    recipe = load_recipe(path, list(assignments))
    build_method(recipe)
    return recipe


def dumped(values: Any) -> str:
    return yaml.safe_dump(values, sort_keys=False)


def refuse_nonsense(load_it: Callable[[], Recipe], what: str) -> None:
    load_it()
    raise Nonsense(f"accepted: {what}")


def number(rng: random.Random, folder: Path) -> None:
    """A number that no setting takes."""
    path, value = rng.choice(NUMBERS), rng.choice(NEVER)
    content = dumped(put(VALID, path, value))
    try:
        refuse_nonsense(lambda: load(folder, content), f"{'.'.join(path)}: {str(value)[:20]}")
    except ConfigError as error:
        if path[-1] not in str(error):
            raise Nonsense(f"the refusal does not name {'.'.join(path)}: {error}") from error
        raise


def assignment(rng: random.Random, folder: Path) -> None:
    """The same on the command line."""
    path, value = rng.choice(NUMBERS), rng.choice(NEVER)
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")
    refuse_nonsense(lambda: load(folder, TEXT, f"{'.'.join(path)}={text}"), f"--set {'.'.join(path)}={text[:20]}")


def structure(rng: random.Random, folder: Path) -> None:
    """Any value in any place."""
    values = VALID
    for _ in range(rng.choice([1, 1, 2, 4])):
        try:
            values = put(values, rng.choice(PLACES), rng.choice(STRANGE))
        except (AttributeError, TypeError):
            continue  # Its section is gone already.
    check(load(folder, dumped(values)))


def text(rng: random.Random, folder: Path) -> None:
    """Pieces of YAML, and bytes, anywhere in the file."""
    content = TEXT
    for _ in range(rng.choice([1, 1, 2, 8])):
        start = rng.randrange(len(content))
        content = content[:start] + rng.choice(PIECES) + content[start + rng.choice([0, 0, 1, 20]) :]
    raw = bytearray(content.encode(errors="surrogatepass"))
    if rng.random() < 0.3:
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    check(load(folder, bytes(raw)))


def repeated(rng: random.Random, folder: Path) -> None:
    """A key twice."""
    lines = TEXT.splitlines()
    line = rng.choice([line for line in lines if not line.endswith(":") and ":" in line])
    place = lines.index(line)
    content = "\n".join([*lines[: place + 1], line, *lines[place + 1 :]])
    refuse_nonsense(lambda: load(folder, content), f"a second {line.strip()}")


def misspelt(rng: random.Random, folder: Path) -> None:
    """A key that nothing reads."""
    path = rng.choice([path for path in PLACES if path[0] not in ("chat_template_kwargs", "model_init_kwargs")])
    path = path if path[:2] != ("data", "columns") else ("data",)
    wrong = (*path[:-1], path[-1] + rng.choice("xyz_"))
    refuse_nonsense(lambda: load(folder, dumped(put(VALID, wrong, 1))), ".".join(wrong))


def secret(rng: random.Random, folder: Path) -> None:
    """A key in a place where people put them: stored nowhere, shown nowhere."""
    key = f"{KEY}{rng.randrange(10**6):06}"
    place = rng.choice(SECRET_PLACES)
    values = put(VALID, tuple(place.split(".")), around(place, key))
    if place == "generation.command":
        values["generation"] |= {"engine": "server"}
    try:
        recipe = load(folder, dumped(values))
    except AdaptpoError as error:
        if key in str(error):
            raise Nonsense(f"the message shows the key in {place}") from error
        raise
    finally:
        known.discard(key)
    if key in yaml.safe_dump(plain(recipe.model_dump(mode="json"))):
        raise Nonsense(f"the stored recipe has the key of {place}")


def around(place: str, key: str) -> str:
    if place.endswith("url"):
        return f"https://host/v1?x={key}"
    return f"vllm serve {{model}} --port {{port}} --api-key {key}" if place.endswith("command") else key


def valid(rng: random.Random, folder: Path) -> None:
    """Ordinary values: all of them are taken."""
    values = VALID
    for path in rng.sample(NUMBERS, 5):
        usual: Any = VALID
        for name in path:
            usual = usual[name]
        values = put(values, path, usual * rng.choice([1, 2, 3] if isinstance(usual, int) else [1, 0.5]))
    try:
        load(folder, dumped(values))
    except ConfigError as error:
        raise Nonsense(f"an ordinary recipe is refused: {error}") from error


def check(recipe: Recipe) -> None:
    """What was accepted can be stored, and means what it says."""
    for path in numbers_of(plain(recipe.model_dump(mode="json"))):
        found: Any = recipe.model_dump(mode="json")
        for name in path:
            found = found[name]
        if not abs(found) < 2**63:
            raise Nonsense(f"accepted: {'.'.join(path)}: {found}")


CLASSES: dict[str, tuple[int, Callable[[random.Random, Path], None]]] = {
    "recipe: number": (3, number),
    "recipe: --set": (2, assignment),
    "recipe: structure": (4, structure),
    "recipe: text": (6, text),
    "recipe: repeated key": (1, repeated),
    "recipe: misspelt key": (1, misspelt),
    "recipe: key planted": (2, secret),
    "recipe: valid": (1, valid),
}
"""By class, how often it is drawn and one case of it."""
