"""`adaptpo train` on the real model, with the models, rows and settings that people bring."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from adaptpo import AlignmentTrainer
from adaptpo.cli import main
from adaptpo.config.recipe import load_recipe
from adaptpo.data import read_examples
from adaptpo.pipeline.phases.data import prepare_data
from adaptpo.types import Dropped
from tests.real_model import linked, load_real_model, needs_real_model, real_model, real_tokenizer
from tests.runs import tables
from tests.test_cases_models import with_own_code
from tests.test_real_data import HH, needs_hh
from tests.tiny import vowel_reward, write_jsonl

pytestmark = [needs_real_model, pytest.mark.engines]
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
QUESTIONS = [("Name a fruit.", "An apple.", "Fruit."), ("Say tea.", "Tea.", "No tea.")]
"""A run takes as long as its rows have tokens."""
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
TRANSFORMERS = f"{Path(sys.executable).with_name('transformers')} serve {{model}} --device cpu --port {{port}}"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose gigabytes go with the test."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def write_recipe(folder: Path, data: Any, **settings: Any) -> Path:
    """DPO with LoRA on these rows, in one step, unless set otherwise."""
    recipe = {
        "model": real_model(),
        "data": write_jsonl(folder / "rows.jsonl", data) if isinstance(data, list) else data,
        "output_dir": str(folder / "run"),
        "method": "dpo",
        "num_iterations": 1,
        "warmup_epochs": 0,
        "max_prompt_length": 256,
        "training": {"learning_rate": 1e-3, "per_device_train_batch_size": 8, "use_cpu": True},
        "peft": LORA,
        "show_progress": False,
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe | settings))
    return folder / "recipe.yaml"


def train(folder: Path, data: Any, **settings: Any) -> Path:
    """The folder of a run by the command line."""
    recipe = write_recipe(folder, data, **settings)
    with pytest.raises(SystemExit) as ended:
        main(["train", str(recipe)])
    assert ended.value.code == 0
    return folder / "run"


def read(folder: Path, data: Any, **settings: Any) -> Path:
    """The folder of a run that has read its data and no more."""
    with AlignmentTrainer.from_recipe(load_recipe(write_recipe(folder, data, **settings))).open() as context:
        prepare_data(context)
    return folder / "run"


def prompts_of(out: Path, tokenizer: Any = None) -> list[str]:
    """The text of each prompt, as the policy reads it."""
    decode = (tokenizer or real_tokenizer()).decode
    return [decode(row["prompt_ids"]) for row in tables(out)["data/offline.parquet"]]


def prompts_of_sets(out: Path) -> dict[str, list[str]]:
    """Those of each data set."""
    found: dict[str, list[str]] = {}
    for row, prompt in zip(tables(out)["data/offline.parquet"], prompts_of(out), strict=True):
        found.setdefault(row["dataset"], []).append(prompt)
    return found


def losses_of(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def turns(*said: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in said]


def rendered(question: str, system: str | None = None, before: tuple[tuple[str, str], ...] = ()) -> str:
    """The prompt as the model's own template has it."""
    opening = (("system", system),) if system else ()
    conversation = turns(*opening, *before, ("user", question))
    return real_tokenizer().apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)


# --- rows ------------------------------------------------------------------------------------------------------------

Make = Callable[[str, str, str], dict[str, Any]]
SYSTEM = "Answer in one word."


def orca(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"system": SYSTEM, "question": question, "chosen": chosen, "rejected": rejected}


def sharegpt(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    said = [{"from": "system", "value": SYSTEM}, {"from": "human", "value": question}]
    replies = {side: {"from": "gpt", "value": text} for side, text in (("chosen", chosen), ("rejected", rejected))}
    return {"conversations": said} | replies


def alpaca(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    texts = {"instruction": question, "input": "Think first.", "chosen": chosen, "rejected": rejected}
    return texts | {"system": SYSTEM, "history": [["Hi", "Hello."]]}


def system_column(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    replies = {"chosen": turns(("assistant", chosen)), "rejected": turns(("assistant", rejected))}
    return {"system": SYSTEM, "prompt": turns(("user", question))} | replies


def messages(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    replies = {"chosen": turns(("assistant", chosen)), "rejected": turns(("assistant", rejected))}
    return {"prompt": turns(("system", SYSTEM), ("user", question))} | replies


KINDS: dict[str, tuple[Make, Callable[[str], str]]] = {
    "orca": (orca, lambda question: rendered(question, SYSTEM)),
    "sharegpt": (sharegpt, lambda question: rendered(question, SYSTEM)),
    "alpaca": (alpaca, lambda q: rendered(f"{q}\nThink first.", SYSTEM, (("user", "Hi"), ("assistant", "Hello.")))),
    "system_column": (system_column, lambda question: rendered(question, SYSTEM)),
}


def test_rows_of_other_tools(folder: Path) -> None:
    """A file of each kind, in one run."""
    rows = {kind: [make(*texts) for texts in QUESTIONS] for kind, (make, _) in KINDS.items()}
    sets = {kind: {"path": write_jsonl(folder / f"{kind}.jsonl", some)} for kind, some in rows.items()}
    out = train(folder, {"sets": sets})
    expected = {kind: [render(question) for question, _, _ in QUESTIONS] for kind, (_, render) in KINDS.items()}
    assert prompts_of_sets(out) == expected
    assert losses_of(out) == pytest.approx([0.693147], abs=1e-5)


ROWS = [messages(*texts) for texts in QUESTIONS]

# --- models ----------------------------------------------------------------------------------------------------------


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(20, 40)[None]).logits


def test_an_adapter_as_start(folder: Path) -> None:
    """Loss ln 2 shows that the reference has it too."""
    torch.manual_seed(0)
    adapted = get_peft_model(load_real_model(), LoraConfig(**LORA, init_lora_weights=False, task_type="CAUSAL_LM"))
    adapted.save_pretrained(folder / "adapter")
    out = train(folder, ROWS, model=str(folder / "adapter"), max_completion_length=32)
    started = AutoModelForCausalLM.from_pretrained(out / "inputs" / "model").eval()
    assert torch.allclose(logits_of(started), logits_of(adapted.eval()), atol=1e-3)
    assert losses_of(out) == pytest.approx([0.693147], abs=1e-5)


def test_a_model_with_its_own_code(folder: Path) -> None:
    source = linked(folder / "linked")
    own = with_own_code(str(source), folder / "own", "LlamaForCausalLM", "AutoModelForCausalLM")
    out = train(folder, ROWS, model=own, trust_remote_code=True)
    assert losses_of(out) == pytest.approx([0.693147], abs=1e-5)


def test_a_model_stored_in_bfloat16(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is trained in float32, and the run says so; a CPU without bfloat16 would take minutes for the other."""
    load_real_model().to(torch.bfloat16).save_pretrained(folder / "bf16")
    real_tokenizer().save_pretrained(folder / "bf16")
    out = train(folder, ROWS, model=str(folder / "bf16"), show_progress=True)
    assert "to compute in bfloat16, set training.bf16" in capsys.readouterr().out
    assert losses_of(out) == pytest.approx([0.693147], abs=1e-5)


HALVES: dict[str, dict[str, Any]] = {
    "mixed precision": {"training": {"bf16": True}},
    "weights in bfloat16": {"model_init_kwargs": {"dtype": "bfloat16"}},
}


def first_layers(folder: Path, count: int) -> str:
    """The real model without its later layers."""
    config = AutoConfig.from_pretrained(real_model(), num_hidden_layers=count)
    AutoModelForCausalLM.from_pretrained(real_model(), config=config, dtype=torch.float32).save_pretrained(folder)
    real_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", HALVES)
def test_training_in_bfloat16(kind: str, folder: Path) -> None:
    """Policy and reference are computed alike, so the loss begins at ln 2; it falls in the steps that follow. Weights
    in bfloat16 have the first layers alone: a CPU without it would take minutes for all."""
    training = {"learning_rate": 2e-3, "per_device_train_batch_size": 8, "use_cpu": True, "num_train_epochs": 4}
    given = HALVES[kind] if kind == "mixed precision" else HALVES[kind] | {"model": first_layers(folder / "model", 8)}
    out = train(folder, ROWS, **given | {"training": training | given.get("training", {})})
    losses = losses_of(out)
    assert losses[0] == pytest.approx(0.693147, abs=1e-3)
    assert len(losses) == 4 and losses[-1] < losses[0] - 0.05, losses


# --- templates -------------------------------------------------------------------------------------------------------

THINKING = {"qwen3": "<think>\n\n</think>\n\n", "nemotron_3_nano": "<think></think>"}
"""What the template writes before an answer without thoughts."""


def with_template(folder: Path, name: str) -> str:
    """The real model with a chat template that TRL ships."""
    tokenizer = AutoTokenizer.from_pretrained(linked(folder))
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", THINKING)
def test_a_thinking_template_without_thoughts(name: str, folder: Path) -> None:
    model = with_template(folder / "model", name)
    tokenizer = AutoTokenizer.from_pretrained(model)
    out = (train if name == "qwen3" else read)(
        folder, ROWS, model=model, chat_template_kwargs={"enable_thinking": False}
    )
    ends = [f"{question}<|im_end|>\n<|im_start|>assistant\n{THINKING[name]}" for question, _, _ in QUESTIONS]
    assert all(prompt.endswith(end) for prompt, end in zip(prompts_of(out, tokenizer), ends, strict=True))
    chosen = [tokenizer.decode(row["chosen_ids"]) for row in tables(out)["data/offline.parquet"]]
    assert chosen == [f"{text}<|im_end|>" for _, text, _ in QUESTIONS]


FIND = {"name": "find", "description": "Looks a word up.", "parameters": {"type": "object", "properties": {}}}
CALL = {"type": "function", "function": {"name": "find", "arguments": {"word": "tea"}}}


def test_tools_and_tool_turns(folder: Path) -> None:
    """As the template renders them; the policy reads what the tool said."""
    model = with_template(folder / "model", "qwen3")
    tools = [{"type": "function", "function": FIND}]
    called = [{"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "a drink"}]
    rows = [row | {"prompt": row["prompt"] + called, "tools": json.dumps(tools)} for row in ROWS[:1]]
    out = train(folder, rows, model=model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    options = {"tools": tools, "tokenize": False, "add_generation_prompt": True}
    assert prompts_of(out, tokenizer) == [tokenizer.apply_chat_template(row["prompt"], **options) for row in rows]
    assert losses_of(out) == pytest.approx([0.693147], abs=1e-5)


# --- fresh responses -------------------------------------------------------------------------------------------------

REWARD = f"python:{vowel_reward.__module__}:{vowel_reward.__qualname__}"
SHORT = {"num_generations": 2, "max_new_tokens": 8}


def fresh(out: Path) -> list[dict[str, Any]]:
    return [row for name, rows in tables(out).items() if "responses" in name for row in rows]


@needs_hh
def test_metaapo_on_hh_rlhf_with_lora(folder: Path) -> None:
    """32 dialogues with short texts: some are selected, and the meta-learner learns from their fresh pairs."""
    found = (e for e in read_examples(HH) if not isinstance(e, Dropped) and len(json.dumps(e.prompt)) < 200)
    rows = [{"prompt": e.prompt, "chosen": e.chosen, "rejected": e.rejected} for e in islice(found, 32)]
    training = {"learning_rate": 1e-3, "per_device_train_batch_size": 8, "use_cpu": True}
    settings = {"method": "metaapo", "reward": REWARD, "generation": SHORT, "max_completion_length": 24}
    out = train(folder, rows, **settings, training=training, meta={"update_interval": 2})
    selected = sum(row["selected"] for row in tables(out)["iterations/0/selection.parquet"])
    assert 0 < selected < 32 and len(fresh(out)) == 2 * selected
    learner = torch.load(out / "iterations/0/checkpoint/method.pt")["learners"][0]
    assert len(losses_of(out)) >= 2 and learner["updates"] >= 1


def test_transformers_serve_generates(folder: Path) -> None:
    """The greedy check at the start of the phase compares its answers with the policy's own."""
    pytest.importorskip("fastapi", reason="needs transformers[serving]")
    generation = SHORT | {"engine": "server", "command": TRANSFORMERS}
    out = train(folder, ROWS, method="online_dpo", reward=REWARD, generation=generation)
    assert len(fresh(out)) == 2 * len(ROWS)
    assert all(row["text"] == real_tokenizer().decode(row["ids"], skip_special_tokens=True) for row in fresh(out))
