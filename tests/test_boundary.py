"""The boundary of inputs: every number has a range, YAML is strict, reward functions are not trusted."""

from __future__ import annotations

import gzip
import json
import math
import os
import posix
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from peft import LoraConfig
from pydantic import BaseModel
from transformers import TrainingArguments
from trl import RewardConfig

from adaptpo import methods
from adaptpo.annotation.function import FunctionAnnotator, import_function
from adaptpo.choices.filters import FILTERS
from adaptpo.choices.learners.meta_learner import DegreeLearner, MetaLearner
from adaptpo.choices.learners.temporal.cadence import Cadence
from adaptpo.choices.learners.temporal.features import FeatureSet
from adaptpo.choices.learners.temporal.goal import ValidationGoal
from adaptpo.choices.learners.temporal.temporal_learner import TemporalLearner
from adaptpo.choices.objectives import DPO, OBJECTIVES
from adaptpo.choices.pairing import PAIRINGS
from adaptpo.choices.policy_update import POLICY_TRAINERS
from adaptpo.choices.selection import SELECTIONS
from adaptpo.choices.weighting import WEIGHTINGS
from adaptpo.cli import main
from adaptpo.config.base import Settings
from adaptpo.config.code import refuse_code
from adaptpo.config.numbers import has_range
from adaptpo.config.recipe import AlignmentConfig, Recipe, make_recipe
from adaptpo.config.sections import OWNED_TRAINING_ARGUMENTS, RANGES
from adaptpo.config.strict_yaml import read_yaml
from adaptpo.data import open_rows
from adaptpo.errors import AnnotationError, ConfigError, DataError
from adaptpo.methods import METHODS
from adaptpo.methods.build import build_method
from adaptpo.types import Prompt, Response

NEEDED = {"model": "m", "data": "d.jsonl", "output_dir": "o"}


def build(text: str, *assignments: str) -> Any:
    recipe = make_recipe(NEEDED | read_yaml(text), assignments, Path())
    build_method(recipe)
    return recipe


# --- numbers ---------------------------------------------------------------------------------------------------------

OUT_OF_RANGE = {
    "training.learning_rate": [".nan", ".inf", "-1e-6", "1e9", "true"],
    "training.num_train_epochs": ["0", "-1", ".nan"],
    "training.adam_beta1": ["1", "-0.1", ".inf"],
    "training.weight_decay": ["-0.1", ".nan"],
    "training.max_steps": ["-2", "99999999999"],
    "training.per_device_train_batch_size": ["0", "-4", "true"],
    "training.optim_args": ["3"],
    "training.lr_scheduler_kwargs": ["{a: .nan}"],
    "reward_training.learning_rate": [".nan"],
    "reward_training.center_rewards_coefficient": ["-1"],
    "peft.r": ["0", "-1", "true"],
    "peft.lora_dropout": ["1.0", ".nan", "-0.1"],
    "generation.temperature": [".inf", ".nan", "-1", "1e9"],
    "generation.top_p": ["0", "1.1", ".nan"],
    "generation.max_new_tokens": ["0", "1e30", "99999999999999999999", "true"],
    "generation.concurrency": ["0", "100000000"],
    "generation.memory_gb": ["0", ".inf"],
    "generation.timeout": ["0", ".inf", "1e300"],
    "meta.learning_rate": ["0", ".nan", "-1"],
    "meta.update_interval": ["0", "1.5", "true"],
    "stage.precision": ["0.5", "0", ".nan"],
    "num_iterations": ["0", "-3", "true", "99999999999", ".nan"],
    "seed": ["-1", "99999999999999999999", "true", "1.5"],
    "max_length": ["1"],
    "chat_template_kwargs": ["{a: .nan}", "{a: [.inf]}", "{a: 99999999999999999999}"],
    "method.objective.beta": ["-1", "0", ".nan", ".inf", "true", "'1'"],
    "method.objective.label_smoothing": ["0.6", "-0.1"],
    "method.num_generations": ["0", "-1", "1", "100000000"],
    "method.learning_rate": [".nan", "-1", ".inf"],
    "method.update_interval": ["0", "-1", "true"],
    "eval_data.max_prompts": ["0", ".inf"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in OUT_OF_RANGE.items() for value in values])
def test_a_number_out_of_range_is_refused_by_its_key(key: str, value: str) -> None:
    whole = "method: {name: metaapo, objective: {name: dpo}}\neval_data: {path: e}"
    with pytest.raises(ConfigError) as caught:
        build(whole, f"{key}={value}")
    assert key.removeprefix("method.") in str(caught.value) and "Traceback" not in str(caught.value)


def test_annotators_have_ranges_too() -> None:
    for reward in ({"judge": "m", "temperature": math.nan}, {"reward_model": "m", "weight": math.inf}):
        with pytest.raises(ConfigError, match=r"reward\.(temperature|weight)"):
            make_recipe(NEEDED | {"reward": reward}, [], Path())


@pytest.mark.parametrize("beta", [-1, 0, math.nan, math.inf, "0.1", True, np.float32(-1), None])
def test_python_has_the_same_ranges(beta: Any) -> None:
    with pytest.raises(ConfigError, match=r"'DPO\.beta'"):
        DPO(beta=beta)
    with pytest.raises(ConfigError, match=r"'DPO\.beta'"):
        methods.dpo(beta=beta)


def test_numbers_of_arrays_are_numbers() -> None:
    assert DPO(beta=np.float32(0.5)).beta == 0.5 and methods.metaapo(num_generations=np.int64(4)).name == "metaapo"


def test_arguments_in_python_have_ranges() -> None:
    for wrong in ({"num_generations": -1}, {"learning_rate": math.nan}, {"update_interval": 0}):
        with pytest.raises(ConfigError, match=rf"'metaapo\.{min(wrong)}'"):
            methods.metaapo(**wrong)
    with pytest.raises(ConfigError, match=r"'MetaLearner\.layers'"):
        MetaLearner(layers=0)
    with pytest.raises(ConfigError, match=r"'Cadence\.interval'"):
        Cadence(interval=-3)
    with pytest.raises(ConfigError, match=r"'TemporalLearner\.max_weight'"):
        TemporalLearner(max_weight=0.5)


def settings_classes(kind: type[BaseModel] = Settings) -> Iterator[type[BaseModel]]:
    for derived in kind.__subclasses__():
        yield derived
        yield from settings_classes(derived)


def is_bare(hint: Any) -> bool:
    """Whether the type is a number without a range."""
    parts = getattr(hint, "__args__", ()) if not has_range(hint) else ()
    return hint in (int, float) or any(part in (int, float) for part in parts)


def test_every_setting_that_is_a_number_has_a_range() -> None:
    tables = (SELECTIONS, PAIRINGS, WEIGHTINGS, FILTERS, POLICY_TRAINERS, OBJECTIVES)
    choices = [kind for table in tables for kind in table.values() if is_dataclass(kind)]
    bare = []
    for kind in [*choices, FeatureSet, ValidationGoal]:
        hints = get_type_hints(kind, include_extras=True)
        bare += [f"{kind.__name__}.{f.name}" for f in fields(kind) if f.init and is_bare(hints[f.name])]
    for function in [*METHODS.values(), MetaLearner.__init__, DegreeLearner.__init__, TemporalLearner.__init__]:
        hints = get_type_hints(function, include_extras=True)
        bare += [f"{function.__qualname__}.{name}" for name, hint in hints.items() if is_bare(hint)]
    for model in settings_classes():
        hints = get_type_hints(model, include_extras=True)
        bare += [f"{model.__name__}.{name}" for name in model.model_fields if is_bare(hints[name])]
    assert bare == []
    assert len(choices) > 25


def test_every_number_of_other_libraries_has_a_range() -> None:
    """New versions bring new fields: they need their range here, or a place in the list of what is finite and free."""
    free = {"lora_alpha", "alpha_pattern", "layers_to_transform", "neftune_noise_alpha"}
    for kind in (TrainingArguments, RewardConfig, LoraConfig):
        hints = get_type_hints(kind)
        numbers = {f.name for f in fields(kind) if f.init and is_bare(hints[f.name])}
        assert numbers - RANGES.keys() - OWNED_TRAINING_ARGUMENTS.keys() - free == set(), kind.__name__


# --- YAML ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\na: 2", "the key 'a' occurs twice"),
        ("a: {b: 1, b: 2}", "the key 'b' occurs twice"),
        ("a: 1\n'a': 2", "the key 'a' occurs twice"),
        ("a: &x [*x]", r"the alias \*x contains itself"),
        ("a: &x {b: *x}", r"the alias \*x contains itself"),
        ("[" * 5000 + "]" * 5000, "more than 32 lists within one another"),
        ("{a: " * 5000 + "1" + "}" * 5000, "more than 32"),
        ("- " * 5000 + "1", "more than 32"),
        ("a: 2024-02-30", "'2024-02-30' is no timestamp"),
        ("a: 2024-13-01 25:00:00", "is no timestamp"),
        ("a: !!bool x", "'x' is no bool"),
        ("lang: [en, no]", "'no' is a boolean in YAML 1.1 and text in 1.2; write true or false, or put it in quotes"),
        ("a: On", "'On' is a boolean"),
        ("seed: 010", "'010' is another number in YAML 1.1 than in 1.2; write plain digits, or put it in quotes"),
        ("a: [12:30]", "'12:30' is another number"),
        ("a: 1:30.5", "'1:30.5' is another number"),
        ("a: 1_000", "'1_000' is another number"),
        ("a: 0b11", "'0b11' is another number"),
        ("yes: 1", "'yes' is a boolean"),
        ("a: !!int x", "'x' is no int"),
        ("a: !!float x", "'x' is no float"),
        ("a: " + "9" * 5000, "is no int"),
        ('a: "\\ud83d"', "half of a surrogate pair"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("? [1]\n: 2", "unhashable key"),
        ("a: b: c", "mapping values"),
        ("a: 1\n---\na: 2", "single document"),
        ("a: *x", "undefined alias"),
        ("a: \x00", "special characters"),
        ("x" * 600_000, "the maximum is"),
        ("a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n" + "".join(
            f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 10)}]\n" for n in range(8)
        ), "its aliases stand for more than 100000 values"),
    ],
)  # fmt: skip
def test_yaml_that_is_refused(text: str, problem: str) -> None:
    with pytest.raises(yaml.YAMLError, match=problem):
        read_yaml(text)


def test_yaml_that_is_read() -> None:
    """Aliases and merge keys mean what they mean in YAML, and a key beside a merge wins."""
    text = "a: &x {b: 1, c: 2}\nd: *x\ne: {<<: *x, c: 3}\nf: [1e-6, 0x10, false, ~]"
    found = {"b": 1, "c": 2}
    assert read_yaml(text) == {"a": found, "d": found, "e": {"b": 1, "c": 3}, "f": [1e-6, 16, False, None]}


def test_a_home_directory_is_meant_wherever_a_path_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = AlignmentConfig(output_dir="~/runs/x", branch_of="~/runs/y", annotation_cache="~/cache")
    assert [config.output_dir, config.branch_of, config.annotation_cache] == [
        f"{tmp_path}/{part}" for part in ("runs/x", "runs/y", "cache")
    ]
    with pytest.raises(ConfigError, match=r"output_dir.*write the whole path"):
        AlignmentConfig(output_dir="~nobody-of-this-name/x")


# --- paths and files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "  ", "a\0b", "x" * 300, "a/" * 3000, "a\nb"])
@pytest.mark.parametrize("key", ["model", "output_dir", "data", "branch_of", "annotation_cache"])
def test_paths_that_are_none(key: str, path: str) -> None:
    with pytest.raises(ConfigError, match=f"'{key}"):
        make_recipe(NEEDED | {key: path}, [], Path())


PAIRS = [{"prompt": f"p{n}", "chosen": "a b", "rejected": "c d"} for n in range(50)]
LINES = "".join(json.dumps(row) + "\n" for row in PAIRS).encode()


def damaged_gzip() -> bytes:
    whole = bytearray(gzip.compress(LINES, mtime=0))
    whole[len(whole) // 2] ^= 0xFF
    return bytes(whole)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", damaged_gzip()),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9]),
        ("a.jsonl.gz", LINES),
        ("a.json", b"[" * 100_000),
        ("a.jsonl", LINES + b'{"a": ' + b"[" * 100_000 + b"\n"),
        ("a.jsonl", LINES + b'{"a": ' + b"9" * 5000 + b"}\n"),
        ("a.jsonl", LINES + b"\xff\xfe\n"),
        ("a.jsonl", LINES + b"{\n"),
        ("a.csv", b"prompt,chosen,rejected\na,b\n"),
        ("a.csv", b"prompt,chosen,rejected\na,\x00b,c\n" + b'"' * 10),
        ("a.parquet", b"PAR1" + b"\0" * 100 + b"PAR1"),
        ("a.parquet", b""),
    ],
)
def test_a_damaged_file_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        list(open_rows(tmp_path / name))


def test_every_bit_of_a_parquet_file_may_change(tmp_path: Path) -> None:
    """It reads as rows, or it is named."""
    pq.write_table(pa.Table.from_pylist(PAIRS), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    for position in range(0, len(whole), 37):
        changed = bytearray(whole)
        changed[position] ^= 0x10
        (tmp_path / "b.parquet").write_bytes(changed)
        try:
            list(open_rows(tmp_path / "b.parquet"))
        except DataError as error:
            assert "b.parquet" in str(error)


# --- reward functions ------------------------------------------------------------------------------------------------

REQUESTS = [(Prompt(n, f"p{n}", []), Response("x", [])) for n in range(3)]


class Hostile:
    def __float__(self) -> float:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "returned",
    [
        "123", b"123", ["1", "2", "3"], [True, False, True], [1, 2], [1, 2, 3, 4], 3, None, {0: 1, 1: 2, 2: 3},
        [[1], [2], [3]], [1j, 2, 3], [10**400, 1, 2], np.ones((3, 2)), np.array(["1", "2", "3"]),
        np.array([True, False, True]), torch.ones(3, 2), torch.tensor(1.0), (n for n in range(3)), {1, 2, 3},
        [Hostile(), 1, 2], [object(), 1, 2], [{}, 1, 2],
    ],
)  # fmt: skip
def test_what_is_no_reward_is_refused(returned: Any) -> None:
    with pytest.raises(AnnotationError, match="reward function 'f' returned"):
        FunctionAnnotator(named_f(lambda **_: returned)).rewards(REQUESTS)


@pytest.mark.parametrize(
    "returned",
    [[1, 2.0, 3], (1, 2, 3), np.array([1, 2, 3]), np.float32([1, 2, 3]).tolist(), list(np.float32([1, 2, 3])),
     torch.tensor([1.0, 2.0, 3.0], requires_grad=True), torch.tensor([1, 2, 3]), list(torch.tensor([1.0, 2.0, 3.0])),
     torch.tensor([1, 2, 3], dtype=torch.bfloat16)],
)  # fmt: skip
def test_what_is_a_reward_is_read(returned: Any) -> None:
    assert FunctionAnnotator(named_f(lambda **_: returned)).rewards(REQUESTS) == [1.0, 2.0, 3.0]


def test_no_number_is_no_reward() -> None:
    values = [None, math.nan, -math.inf]
    assert FunctionAnnotator(named_f(lambda **_: values)).rewards(REQUESTS) == [None] * 3


def named_f(function: Callable[..., Any]) -> Callable[..., Any]:
    function.__name__ = "f"
    return function


class Strange(BaseException):
    pass


@pytest.mark.parametrize(
    "error",
    [SystemExit(0), SystemExit(3), Strange(), GeneratorExit(), MemoryError(), RecursionError(), StopIteration(),
     ValueError("x" * 10_000_000), OSError(5, "Input/output error")],
)  # fmt: skip
def test_whatever_a_reward_function_raises_is_an_error_of_it(error: BaseException) -> None:
    def f(**_: Any) -> list[float]:
        raise error

    with pytest.raises(AnnotationError, match=f"reward function 'f' raised {type(error).__name__}") as caught:
        FunctionAnnotator(f).rewards(REQUESTS)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("status", [0, 3])
def test_a_reward_function_cannot_end_the_run_behind_its_back(status: int) -> None:
    def f(**_: Any) -> list[float]:
        os._exit(status)

    with pytest.raises(AnnotationError, match=rf"reward function 'f' raised SystemExit: {status}"):
        FunctionAnnotator(f).rewards(REQUESTS)
    assert os._exit is posix._exit


def test_a_process_that_a_reward_function_starts_ends_as_it_wants_to() -> None:
    def f(prompts: Any, **_: Any) -> list[float]:
        child = os.fork()
        if not child:
            os._exit(7)
        return [float(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))] * len(prompts)

    assert FunctionAnnotator(f).rewards(REQUESTS) == [7.0] * 3


def test_an_interrupt_stays_one() -> None:
    def f(**_: Any) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FunctionAnnotator(f).rewards(REQUESTS)


def test_a_module_that_exits_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="cannot import 'leaving'"):
        import_function("python:leaving:f")


def test_a_function_with_another_signature_is_named() -> None:
    module = types.ModuleType("odd")
    module.f = lambda: [1.0]  # type: ignore[attr-defined]
    sys.modules["odd"] = module
    with pytest.raises(AnnotationError, match="raised TypeError"):
        FunctionAnnotator(import_function("python:odd:f")).rewards(REQUESTS)


# --- code ------------------------------------------------------------------------------------------------------------

CODE = {
    "reward: 'python:rewards:f'": "python:rewards:f",
    "reward: {function: 'python:rewards:f', weight: 2}": "python:rewards:f",
    "reward: [m, {function: 'python:rewards:f'}]": "python:rewards:f",
    "method: {name: dpo, objective: 'python:losses:Mine'}": "method 'python:losses:Mine'",
    "method: {name: dpo, objective: [{name: dpo}, {name: 'python:losses:Mine'}]}": "method 'python:losses:Mine'",
    "trust_remote_code: true": "trust_remote_code",
    "model_init_kwargs: {trust_remote_code: true}": "trust_remote_code",
    "model_init_kwargs: {attn_implementation: org/kernel}": "attn_implementation",
    "generation: {engine: server, command: 'vllm serve {model} --port {port}'}": "generation.command",
    "generation: {engine: vllm, arguments: --trust-remote-code}": "generation.arguments",
    "peft: {megatron_config: {a: 1}}": "peft.megatron_config",
}


@pytest.mark.parametrize("text", CODE)
def test_no_code_refuses_a_recipe_with_code(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--no-code refuses .*{CODE[text]}"):
        refuse_code(make_recipe(NEEDED | read_yaml(text), [], Path()))


NO_RECIPE = {
    "check": ["check", "recipe.yaml", "--no-code"],
    "eval generate": ["eval", "generate", "mt_bench", "--model", "m", "--out", "o", "--no-code", "--generation"],
}


@pytest.mark.parametrize("command", NO_RECIPE)
def test_no_code_holds_for_every_command_that_takes_settings(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    setting = "{engine: vllm, arguments: --trust-remote-code}"
    Path("recipe.yaml").write_text(f"model: m\ndata: d\noutput_dir: o\nreward: r\ngeneration: {setting}\n")
    further = [setting] if command == "eval generate" else []
    with pytest.raises(SystemExit) as caught:
        main([*NO_RECIPE[command], *further])
    assert caught.value.code == 2
    assert "--no-code refuses generation.arguments" in capsys.readouterr().err


def test_no_code_takes_a_recipe_without() -> None:
    refuse_code(build("reward: org/reward-model\nmodel_init_kwargs: {attn_implementation: sdpa}"))
    refuse_code(build("reward: {judge: m}\ngeneration: {engine: vllm}"))
    assert Recipe(**NEEDED).reward is None and AlignmentConfig(output_dir="o").trusts_code is False


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (f"reward: {'x' * 5000}", "'reward': .*more than 255 bytes"),
        (f"method: {{name: metaapo_fixed, learner: {'x' * 5000}}}", "more than 255 bytes"),
        ("model: ~nobody-of-this-name/model", "home directory"),
        ("model_init_kwargs: {revision: 1.0e+300}", "model_init_kwargs.revision: .* is not text"),
        ("model_init_kwargs: {subfolder: 12}", "model_init_kwargs.subfolder: 12 is not text; put it in quotes"),
    ],
)
def test_what_is_no_name_is_refused(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make_recipe(NEEDED | read_yaml(text), [], Path())
