"""Rows, objects and arguments that people bring from other tools: read as meant, or refused with the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow as pa
import pytest
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments

from adaptpo import AlignmentConfig
from adaptpo.annotation.reward_model import load_reward_model
from adaptpo.config.base import nearest
from adaptpo.data import iter_examples, open_rows, problems
from adaptpo.data.rendered import with_words_rendered
from adaptpo.errors import AdaptpoError, ConfigError, ModelError
from adaptpo.methods import METHODS
from adaptpo.models.loading import load_causal_lm
from adaptpo.pipeline.arguments import check_compilation, check_scheduler, optimizer_of, refuse_unread
from adaptpo.pipeline.data_inputs import in_memory
from adaptpo.pipeline.given import lora_settings
from adaptpo.types import Dropped, PreferenceExample
from tests.tiny import byte_tokenizer, save_policy, save_reward_model

Row = dict[str, Any]


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def assistant(text: str, **further: Any) -> Row:
    return {"role": "assistant", "content": text, **further}


CHAT: Row = {"prompt": [user("q")], "chosen": [assistant("yes")], "rejected": [assistant("no")]}


def only(row: Row) -> PreferenceExample | Dropped:
    (found,) = iter_examples([row])
    return found


# --- D: turns that say more than their words -------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [{"weight": 0}, {"loss": False}, {"train": False}, {"weight": 0.0}])
def test_a_response_that_is_marked_as_not_trained_is_left_out(mark: Row) -> None:
    """As rows of OpenAI, ms-swift and axolotl mark it."""
    assert only(CHAT | {"chosen": [assistant("yes", **mark)]}) == Dropped(0, problems.UNTRAINED)
    several = [assistant("x", **mark), user("more"), assistant("yes")]
    assert only(CHAT | {"chosen": several}) == Dropped(0, problems.UNTRAINED)


@pytest.mark.parametrize("mark", [{"weight": 1}, {"loss": True}, {"train": True}, {"weight": None}])
def test_other_marks_change_nothing(mark: Row) -> None:
    assert isinstance(only(CHAT | {"chosen": [assistant("yes", **mark)]}), PreferenceExample)
    prompt = [user("a"), assistant("b", weight=0), user("q")]  # Turns of a prompt are never trained.
    assert isinstance(only(CHAT | {"prompt": prompt}), PreferenceExample)


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_thoughts_that_the_template_does_not_write_leave_the_row_out(key: str) -> None:
    row, tokenizer = CHAT | {"chosen": [assistant("yes", **{key: "hm"})]}, byte_tokenizer()
    (left_out,) = with_words_rendered(iter_examples([row]), tokenizer)
    assert left_out == Dropped(0, f"the chat template leaves out the {key}")
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m[KEY] if KEY in m }}{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ).replace("KEY", repr(key))
    assert list(with_words_rendered(iter_examples([row]), tokenizer)) == [only(row)]


def test_thoughts_among_the_words_that_the_template_cuts_leave_the_row_out() -> None:
    """As templates of reasoning models cut them from each assistant's turn."""
    row, tokenizer = CHAT | {"chosen": [assistant("<think>two and two</think>yes")]}, byte_tokenizer()
    assert list(with_words_rendered(iter_examples([row]), tokenizer)) == [only(row)]
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    left_out, plain = with_words_rendered(iter_examples([row, CHAT]), tokenizer)
    assert left_out == Dropped(0, "the chat template leaves out the block before </think>")
    assert isinstance(plain, PreferenceExample)


@pytest.mark.parametrize("name", ["prompt", "chosen", "rejected"])
def test_a_list_of_texts_is_no_text(name: str) -> None:
    assert only({"prompt": "q", "chosen": "a", "rejected": "b"} | {name: ["c", "d"]}) == Dropped(
        0, problems.LIST_OF_TEXTS
    )


# --- F: objects in memory --------------------------------------------------------------------------------------------

MANY = [CHAT | {"score": number} for number in range(3)]
TABLE = pa.Table.from_pylist(MANY)


class LikePolars:
    """What polars' DataFrame offers."""

    def to_arrow(self) -> pa.Table:
        return TABLE


def arrays(row: Row) -> Row:
    return {name: np.array(value, dtype=object) if isinstance(value, list) else value for name, value in row.items()}


@pytest.mark.parametrize(
    "data",
    [
        pandas.DataFrame(MANY),
        pandas.DataFrame([arrays(row) for row in MANY]),
        TABLE.to_pandas().to_dict("records"),
        [{name: tuple(v) if isinstance(v, list) else v for name, v in row.items()} for row in MANY],
        TABLE,
        LikePolars(),
        datasets.Dataset.from_list(MANY),
        datasets.Dataset.from_list(MANY).with_format("numpy"),
    ],
    ids=["frame", "frame of arrays", "records of arrays", "tuples", "arrow", "polars", "data set", "numpy format"],
)
def test_rows_in_memory_are_those_of_a_file(data: Any) -> None:
    assert list(iter_examples(open_rows(in_memory(data)))) == list(iter_examples(MANY))


# --- H: what to do with rows of other tools --------------------------------------------------------------------------

ADVICE: dict[str, tuple[Row, str]] = {
    "battles": (
        {"model_a": "x", "model_b": "y", "winner": "model_a"}
        | {f"conversation_{side}": [user("q"), assistant(side)] for side in "ab"},
        "two responses, `conversation_a` and `conversation_b`, and which of them is better differs by row (`winner`)",
    ),
    "ranked answers": (
        {"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]},
        "several responses in `answers`, and a run learns from pairs",
    ),
    "no rejected": ({"prompt": "q", "chosen": "a"}, "lacks the column `rejected`: found prompt, chosen"),
    "text_chosen": (
        {"prompt": "q", "text_chosen": "a", "text_rejected": "b"},
        "data.columns: {chosen: text_chosen, rejected: text_rejected}",
    ),
    "chosen_messages": (
        {f"{side}_messages": [user("q"), assistant(side)] for side in ("chosen", "rejected")},
        "data.columns: {chosen: chosen_messages, rejected: rejected_messages}",
    ),
    "response and rejected_response": (
        {"query": "q", "response": "a", "rejected_response": "b"},
        "data.columns: {prompt: query, chosen: response, rejected: rejected_response}",
    ),
    "good and bad": ({"prompt": "q", "good": "a", "bad": "b"}, "data.columns: {chosen: good, rejected: bad}"),
}


@pytest.mark.parametrize("name", ADVICE)
def test_advice(name: str) -> None:
    row, message = ADVICE[name]
    with pytest.raises(AdaptpoError) as caught:
        list(iter_examples([row]))
    assert message in str(caught.value)
    if "data.columns" in message:  # The advice works.
        columns = dict(part.split(": ") for part in message.split("{")[1].rstrip("}").split(", "))
        (found,) = iter_examples(open_rows([row], columns=columns))
        assert isinstance(found, PreferenceExample)


# --- A and E: arguments of transformers ------------------------------------------------------------------------------


def arguments(**settings: Any) -> TrainingArguments:
    return TrainingArguments(output_dir="unused", use_cpu=True, report_to="none", **settings)


@pytest.mark.parametrize(
    ("settings", "unread"),
    [
        ({"optim": "sgd", "optim_args": "foo=1"}, "the optimizer sgd reads no foo=1"),
        ({"optim": "sgd", "optim_args": "momentum=0.9, betas=0.5"}, "reads no betas=0.5"),
        ({"optim": "adamw_torch", "optim_args": "weight_decay=0.1"}, "reads no weight_decay=0.1"),
    ],
)
def test_arguments_that_the_optimizer_does_not_read_are_refused(settings: Row, unread: str) -> None:
    with pytest.raises(ConfigError) as caught:
        optimizer_of(arguments(**settings))
    assert unread in str(caught.value)


def test_arguments_that_the_optimizer_reads_are_taken() -> None:
    assert optimizer_of(arguments(optim="sgd", optim_args="momentum=0.9, nesterov=true"))[1]["momentum"] == 0.9
    assert optimizer_of(arguments())[1]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"lr_scheduler_type": "cosine_with_min_lr"},
            "the scheduler cosine_with_min_lr cannot be made with no arguments",
        ),
        (
            {"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"min_lr": 1e-7}},
            "linear cannot be made with {'min_lr'",
        ),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "warmup_stable_decay cannot be made"),
    ],
)
def test_schedulers_that_cannot_be_made_are_refused(settings: Row, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_scheduler(arguments(**settings))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 3},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0}},
    ],
)
def test_schedulers_that_can_be_made_are_taken(settings: Row) -> None:
    check_scheduler(arguments(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"torch_compile_mode": "nope"}, "torch_compile_mode is 'nope'; give one of default"),
        ({"torch_compile_backend": "nope"}, "torch_compile_backend is 'nope'; give one of "),
    ],
)
def test_what_the_compiler_does_not_have_is_refused(settings: Row, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_compilation(arguments(torch_compile=True, **settings))
    assert message in str(caught.value)
    check_compilation(arguments(torch_compile_mode="reduce-overhead"))
    check_compilation(arguments())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task_type": "SEQ_CLS"}, "a policy is a causal language model"),
        (LoraConfig(task_type="SEQ_2_SEQ_LM"), "a policy is a causal language model"),
        ({"inference_mode": True}, "nothing would be trained"),
    ],
)
def test_adapters_that_are_not_those_of_a_policy_in_training_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AlignmentConfig(output_dir="x", peft=lora_settings(settings))
    assert message in str(caught.value)
    AlignmentConfig(output_dir="x", peft=lora_settings(LoraConfig(task_type="CAUSAL_LM")))


@pytest.mark.parametrize("kind", ["policy", "reward model"])
def test_a_model_without_one_of_its_shards_is_incomplete(kind: str, tmp_path: Path) -> None:
    """And not of another kind, as one without its head is."""
    save, load = {"policy": (save_policy, load_causal_lm), "reward model": (save_reward_model, load_reward_model)}[kind]
    file = Path(save(tmp_path)) / "model.safetensors"
    weights = load_file(file)
    save_file({name: value for name, value in weights.items() if ".0.self_attn.q" not in name}, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"incomplete: 1 of its weights .*layers\.0\.self_attn\.q_proj\.weight; copy"):
        load(str(tmp_path), {})


@pytest.mark.parametrize(("given", "meant"), [("DPO", "dpo"), ("MetaAPO", "metaapo"), ("Online-DPO", "online_dpo")])
def test_capitals_do_not_hide_what_is_meant(given: str, meant: str) -> None:
    assert nearest(given, list(METHODS)) == f"did you mean '{meant}'?"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hub_model_id": "ann/tea"}, "push_to_hub is not set"),
        ({"hub_private_repo": True}, "push_to_hub is not set"),
        ({"optim_target_modules": ["q_proj"]}, "it is for GaLore and APOLLO, which a run cannot use"),
        ({"accelerator_config": {"split_batches": True}}, "is not read, because per_device_train_batch_size"),
    ],
)
def test_fields_that_nothing_reads_beside_the_others_are_refused(settings: Row, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        refuse_unread(settings, arguments(optim="adamw_torch", **settings))
    assert message in str(caught.value)
    refuse_unread({"accelerator_config": {"split_batches": False}}, arguments())


def test_the_older_name_of_sorting_by_length_is_answered() -> None:
    with pytest.raises(ConfigError, match=r"training\.group_by_length': leave it out; batches are sorted by length"):
        AlignmentConfig(output_dir="x", training={"group_by_length": True})
