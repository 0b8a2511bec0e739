"""Real data: HH-RLHF dialogues and AlpacaEval annotations, where the data folder beside the repository exists."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from adaptpo.data import fingerprint, open_rows, problems, read_examples, read_prompts
from adaptpo.errors import DataError
from adaptpo.evaluation.alpaca_eval import pairs
from adaptpo.evaluation.alpaca_eval.pairs import read_alpaca_eval_pairs
from adaptpo.types import Dropped, PreferenceExample

DATA = Path(__file__).parents[2] / "shared" / "data"
HH = DATA / "hh-rlhf-harmless-base-test.jsonl.gz"
ALPACA = DATA / "alpaca_eval"
BASELINE = ALPACA / "baseline_gpt4_1106_preview.jsonl.gz"
needs_hh = pytest.mark.skipif(not HH.exists(), reason="the HH-RLHF file is not there")
needs_alpaca = pytest.mark.skipif(not BASELINE.exists(), reason="the AlpacaEval files are not there")

# In these the assistant's text contains a further "Assistant:" turn of its own, so the dialogues part before the last
# reply; each was looked at.
PARTED_ROWS = [1254, 1688, 1950, 1952, 2036]
EMPTY_ROWS = [86, 516, 925, 1103]


def kept(results: Iterable[PreferenceExample | Dropped]) -> list[PreferenceExample]:
    return [result for result in results if isinstance(result, PreferenceExample)]


def dropped(results: Iterable[PreferenceExample | Dropped]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for result in results:
        if isinstance(result, Dropped):
            rows.setdefault(result.reason, []).append(result.row)
    return rows


@needs_hh
@pytest.mark.parametrize("text_format", ["messages", "text"])
def test_hh_rows_kept_and_dropped(text_format: Any) -> None:
    results = list(read_examples(HH, text_format=text_format))
    assert [result.row for result in results] == list(range(2312))
    assert len(kept(results)) == 2303
    assert dropped(results) == {problems.PARTED: PARTED_ROWS, problems.EMPTY_CHOSEN: EMPTY_ROWS}


@needs_hh
def test_hh_text_is_recovered_to_the_letter() -> None:
    rows = list(open_rows(HH))
    for example in kept(read_examples(HH, text_format="text")):
        assert isinstance(example.prompt, str) and isinstance(example.chosen, str)
        assert example.prompt + example.chosen == rows[example.row]["chosen"]
        assert f"{example.prompt}{example.rejected}" == rows[example.row]["rejected"]
        assert example.prompt.endswith("\n\nAssistant:")


@needs_hh
def test_hh_messages_keep_every_turn() -> None:
    texts = {example.row: example for example in kept(read_examples(HH, text_format="text"))}
    for example in kept(read_examples(HH)):
        assert not isinstance(example.prompt, str)
        assert example.prompt[0]["role"] == example.prompt[-1]["role"] == "user"
        text = texts[example.row].prompt
        assert (
            isinstance(text, str) and len(example.prompt) == text.count("\n\nHuman:") + text.count("\n\nAssistant:") - 1
        )
        assert all(message["content"] in text for message in example.prompt)


@needs_hh
def test_hh_prompts_and_fingerprint() -> None:
    prompts = [prompt for prompt in read_prompts(HH) if not isinstance(prompt, Dropped)]
    assert len(prompts) == 2303
    assert fingerprint(HH)[str(HH)].startswith("sha256:")


# Records left out: undecided (preference within 0.05 of 1.5), output equal to the baseline's.
ALPACA_DROPPED = {
    "FuseChat-Llama-3.2-1B-Instruct": (18, 2),
    "FuseChat-Qwen-2.5-7B-Instruct": (23, 1),
    "OpenHermes-2.5-Mistral-7B": (7, 3),
    "alpaca-7b": (2, 3),
    "claude-2.1_concise": (10, 1),
    "gpt-3.5-turbo-1106_verbose": (11, 2),
}


@needs_alpaca
@pytest.mark.parametrize("model", ALPACA_DROPPED)
def test_alpaca_eval_outputs_become_pairs(model: str) -> None:
    path = ALPACA / f"{model}.jsonl.gz"
    results = list(read_alpaca_eval_pairs(path, BASELINE))
    records = {record["index"]: record for record in open_rows(path)}
    assert [result.row for result in results] == list(range(805))
    undecided, equal = ALPACA_DROPPED[model]
    assert Counter({reason: len(rows) for reason, rows in dropped(results).items()}) == {
        pairs.UNDECIDED: undecided,
        pairs.EQUAL_OUTPUTS: equal,
    }
    for example in kept(results):
        record = records[example.row]
        assert example.prompt == [{"role": "user", "content": record["instruction"]}]
        won = example.chosen if record["preference"] > 1.5 else example.rejected
        assert won == [{"role": "assistant", "content": record["output"]}]
        assert example.columns["preference"] == record["preference"]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_alpaca_eval_records_left_out(tmp_path: Path) -> None:
    def record(index: int, preference: Any = 2.0, output: str = "mine", instruction: str = "do") -> dict[str, Any]:
        return {"index": index, "instruction": instruction, "output": output, "preference": preference}

    outputs = [record(0), record(1, 1.5), record(2, None), record(3, instruction="else"), record(4, output="base")]
    outputs += [record(5, output=" "), record(9), record(6, 1.0)]
    baseline = [{"index": index, "instruction": "do", "output": "base"} for index in range(7)]
    results = list(read_alpaca_eval_pairs(write(tmp_path / "o.jsonl", outputs), write(tmp_path / "b.jsonl", baseline)))
    assert [example.chosen[0]["content"] for example in kept(results)] == ["mine", "base"]  # type: ignore[index]
    assert Counter({reason: rows[0] for reason, rows in dropped(results).items()}) == {
        pairs.UNDECIDED: 1,
        pairs.NO_PREFERENCE: 2,
        pairs.OTHER_INSTRUCTION: 3,
        pairs.EQUAL_OUTPUTS: 4,
        pairs.EMPTY_OUTPUT: 5,
        pairs.NO_BASELINE: 9,
    }


def test_alpaca_eval_file_without_annotations_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "o.jsonl", [{"index": 0, "instruction": "do", "output": "x"}])
    with pytest.raises(DataError, match=r"lacks preference \(found index, instruction, output\)"):
        list(read_alpaca_eval_pairs(path, path))
