"""Pairwise annotators: the tournament by hand, and PairRM's rows, head and loading on a tiny model of its shape."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import DebertaV2Config, PreTrainedTokenizerFast

from adaptpo.annotation.base import Request
from adaptpo.annotation.pairwise_model import MARKERS, PairRM, PairwiseModel, load_pairwise_model
from adaptpo.annotation.tournament import Match, Tournament
from adaptpo.errors import ModelError
from adaptpo.remote.usage import Usage
from adaptpo.types import Prompt, Response
from tests.tiny import byte_tokenizer, save_policy


def request(prompt: Any, response: str, number: int = 0) -> Request:
    return Prompt(number, prompt, []), Response(response, [])


# --- tournaments -----------------------------------------------------------------------------------------------------


class Table:
    """Compares by a table of (first, second); what is not in it is no verdict."""

    def __init__(self, values: dict[str, float | None]) -> None:
        self.values, self.asked = values, list[str]()
        self.usage: Usage = Counter()

    def probe(self) -> None:
        pass

    def compare(self, matches: Sequence[Match]) -> list[float | None]:
        names = [f"{match.first.text}{match.second.text}" for match in matches]
        self.asked += names
        return [self.values.get(name) for name in names]


ABC = [request("p", text) for text in "abc"]


def test_mean_over_opponents_and_orders_by_hand() -> None:
    """s_ab = (3 + 1) / 2 = 2, s_ac = (4 - 2) / 2 = 1, s_bc = (-1 - 3) / 2 = -2."""
    table = Table({"ab": 3, "ba": -1, "ac": 4, "ca": 2, "bc": -1, "cb": 3})
    assert Tournament(table).rewards(ABC) == [(2 + 1) / 2, (-2 - 2) / 2, (-1 + 2) / 2]
    assert sorted(table.asked) == ["ab", "ac", "ba", "bc", "ca", "cb"]


def test_liking_for_a_place_cancels() -> None:
    table = Table(dict.fromkeys(("ab", "ba", "ac", "ca", "bc", "cb"), 1.0))
    tournament = Tournament(table)
    assert tournament.rewards(ABC) == [0.0, 0.0, 0.0]
    assert tournament.take_usage() == {"orders_disagree": 3}
    assert tournament.take_usage() == {}


def test_against_the_first_response() -> None:
    """Two comparisons each; the first response is the zero of the scale."""
    table = Table({"ab": 1, "ba": -1, "ac": -1, "ca": 1})
    assert Tournament(table, "first").rewards(ABC) == [0.0, -1.0, 1.0]
    assert sorted(table.asked) == ["ab", "ac", "ba", "ca"]


@pytest.mark.parametrize("opponents", ["all", "first"])
def test_a_match_counts_only_with_both_verdicts(opponents: Any) -> None:
    tournament = Tournament(Table({"ab": 1, "ba": -1, "ac": 1, "bc": 1}), opponents)
    rewards = tournament.rewards(ABC)
    assert rewards == [0.0 if opponents == "first" else 1.0, -1.0, None]
    assert tournament.take_usage()["matches_without_verdict"] == (1 if opponents == "first" else 2)


def test_equal_texts_are_a_draw_that_nobody_judges() -> None:
    table = Table({"ab": 1, "ba": -1})
    same = [request("p", text) for text in "aab"]
    assert Tournament(table).rewards(same) == [0.5, 0.5, -1.0]
    assert Tournament(Table({})).rewards(same[:2]) == [0.0, 0.0]


def test_a_response_alone_has_no_reward_and_prompts_never_meet() -> None:
    table = Table({})
    assert Tournament(table).rewards([request("p", "a", 1), request("q", "b", 2)]) == [None, None]
    assert table.asked == []


def test_order_of_requests_is_kept_where_prompts_interleave() -> None:
    requests = [request("p", "a", 1), request("q", "c", 2), request("p", "b", 1), request("q", "d", 2)]
    table = Table({"ab": 1, "ba": -1, "cd": -3, "dc": 3})
    assert Tournament(table).rewards(requests) == [1.0, -3.0, -1.0, 3.0]


# --- PairRM ----------------------------------------------------------------------------------------------------------


def pair_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes with DeBERTa's frame `[CLS] text [SEP]` and PairRM's markers."""
    tokenizer = byte_tokenizer(chat=False)
    tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]"})
    tokenizer.add_tokens(list(MARKERS))
    frame = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    return tokenizer


TOKENIZER = pair_tokenizer()
CLS, SEP, SOURCE, FIRST, SECOND = TOKENIZER.convert_tokens_to_ids(["[CLS]", "[SEP]", *MARKERS])


def pair_config(**changes: Any) -> DebertaV2Config:
    """PairRM's config but for its sizes."""
    values = {
        "vocab_size": len(TOKENIZER), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "relative_attention": True, "position_buckets": 16, "max_position_embeddings": 64,
        "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0,
        "position_biased_input": False, "pad_token_id": 0, "n_tasks": 1, "drop_out": 0.05,
        "source_prefix_id": SOURCE, "cand1_prefix_id": FIRST, "cand2_prefix_id": SECOND, "initializer_range": 0.3,
    }  # fmt: skip
    return DebertaV2Config(**(values | changes))


@pytest.fixture(scope="module")
def model() -> PairRM:
    torch.manual_seed(0)
    return PairRM(pair_config()).eval()


def save_pairwise_model(folder: Path, model: PairRM | None = None) -> str:
    (PairRM(pair_config()) if model is None else model).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


def text_ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def test_row_by_hand(model: PairRM) -> None:
    row = PairwiseModel(model, TOKENIZER).row(Match(Prompt(0, "say tea", []), Response("tea", []), Response("no", [])))
    parts = [(SOURCE, "say tea"), (FIRST, "tea"), (SECOND, "no")]
    assert row.ids == [token for marker, text in parts for token in (CLS, marker, *text_ids(text), SEP)]
    assert [row.ids[place] for place in row.markers] == [SOURCE, FIRST, SECOND]


def test_markers_inside_the_texts_change_nothing_of_the_frame(model: PairRM) -> None:
    match = Match(Prompt(0, "what is <|candidate1|>?", []), Response("<|source|>", []), Response("no", []))
    row = PairwiseModel(model, TOKENIZER).row(match)
    starts = [place for place, token in enumerate(row.ids) if token == CLS]
    assert list(row.markers) == [start + 1 for start in starts]


def test_cutting(model: PairRM) -> None:
    """The prompt is cut at 20 tokens; each candidate gets half of what it leaves of 20 + 2 * 10."""
    comparer = PairwiseModel(model, TOKENIZER, source_tokens=20, candidate_tokens=10)
    long = Match(Prompt(0, "p" * 50, []), Response("a" * 50, []), Response("b" * 50, []))
    assert [len(part) for part in split_at_cls(comparer.row(long).ids)] == [20, 10, 10]
    assert comparer.usage["texts_read_in_part"] == 3
    short = Match(Prompt(0, "p" * 3, []), Response("a" * 50, []), Response("b", []))
    assert [len(part) for part in split_at_cls(comparer.row(short).ids)] == [6, 17, 4]
    comparer.row(Match(Prompt(0, "p" * 17, []), Response("a" * 7, []), Response("b", [])))  # 20 and 10 tokens.
    assert comparer.usage["texts_read_in_part"] == 4


def split_at_cls(ids: list[int]) -> list[list[int]]:
    starts = [place for place, token in enumerate(ids) if token == CLS]
    return [ids[start:end] for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)]


def test_a_chat_of_one_question_is_its_question_and_more_a_transcript(model: PairRM) -> None:
    comparer = PairwiseModel(model, TOKENIZER)
    one = [{"role": "user", "content": "say tea"}]
    several = [{"role": "system", "content": "be kind"}, *one]

    def row(prompt: Any) -> Any:
        return comparer.row(Match(Prompt(0, prompt, []), Response("tea", []), Response("no", [])))

    assert row(one) == row("say tea")
    assert row(several) == row("SYSTEM: be kind\n\nUSER: say tea")


def test_head_by_hand() -> None:
    """Hidden size 1, states s = 1, c1 = 2, c2 = 4; head: 3 tanh(0.5 s - 0.25 c + 0.1) + 7, whose 7 cancels."""
    model = PairRM(pair_config(hidden_size=1, num_attention_heads=1, intermediate_size=2)).eval()
    inner, outer = model.head_layer[1], model.head_layer[4]
    with torch.no_grad():
        inner.weight.copy_(torch.tensor([[0.5, -0.25]]))
        inner.bias.fill_(0.1)
        outer.weight.fill_(3.0)
        outer.bias.fill_(7.0)
    expected = 3 * (torch.tanh(torch.tensor(0.1)) - torch.tanh(torch.tensor(-0.4)))
    logit = model.compare(torch.tensor([[[1.0], [2.0], [4.0]]]))
    assert logit.item() == pytest.approx(expected.item())
    assert model.compare(torch.tensor([[[1.0], [4.0], [2.0]]])).item() == pytest.approx(-expected.item())


MATCHES = [
    Match(Prompt(0, "say tea", []), Response("tea", []), Response("no, never", [])),
    Match(Prompt(1, "a much longer question than that one", []), Response("yes " * 9, []), Response("", [])),
    Match(Prompt(2, "?", []), Response("a", []), Response("b", [])),
]


@pytest.mark.parametrize("max_tokens", [1, 150, 10000])
def test_logits_are_those_of_single_rows(max_tokens: int, model: PairRM) -> None:
    """Computed alone, from the encoder's states at the markers; padding and order of a batch change nothing."""
    comparer = PairwiseModel(model, TOKENIZER, max_tokens)
    expected = []
    for match in MATCHES:
        row = comparer.row(match)
        with torch.no_grad():
            states = model.pretrained_model(torch.tensor([row.ids])).last_hidden_state[0]
            source, first, second = (states[place] for place in row.markers)
            scores = [model.head_layer(torch.cat([source, candidate])) for candidate in (first, second)]
        expected.append((scores[0] - scores[1]).item())
    assert len({round(logit, 2) for logit in expected}) == len(MATCHES)
    assert comparer.compare(MATCHES) == pytest.approx(expected, abs=1e-5)
    assert comparer.compare(MATCHES[::-1]) == pytest.approx(expected[::-1], abs=1e-5)


def test_several_tasks_are_averaged() -> None:
    torch.manual_seed(1)
    model = PairRM(pair_config(n_tasks=3)).eval()
    states = torch.randn(2, 3, 32)
    with torch.no_grad():
        scores = [model.head_layer(torch.cat([states[:, 0], states[:, i]], dim=-1)) for i in (1, 2)]
        assert torch.allclose(model.compare(states), (scores[0] - scores[1]).mean(dim=1))


def test_rewards_of_a_tournament_sum_to_zero_and_follow_the_responses(model: PairRM) -> None:
    """Every s_ij comes with its negative, and swapping responses swaps rewards."""
    tournament = Tournament(PairwiseModel(model, TOKENIZER))
    requests = [request("say tea", text) for text in ("tea", "no", "maybe tea", "coffee")]
    rewards = tournament.rewards(requests)
    assert sum(rewards) == pytest.approx(0.0, abs=1e-5)
    assert len({round(reward, 3) for reward in rewards}) == 4
    assert tournament.rewards(requests[::-1]) == pytest.approx(rewards[::-1], abs=1e-5)
    assert tournament.take_usage()["comparisons"] == 2 * 4 * 3


# --- PairRM from disk ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, model: PairRM) -> Path:
    return Path(save_pairwise_model(tmp_path, model))


def test_a_saved_model_compares_as_before(folder: Path, model: PairRM) -> None:
    loaded, tokenizer = load_pairwise_model(str(folder))
    assert not loaded.training
    expected = PairwiseModel(model, TOKENIZER).compare(MATCHES)
    assert PairwiseModel(loaded, tokenizer).compare(MATCHES) == pytest.approx(expected, abs=1e-6)


def test_tokenizer_without_a_pad_token(folder: Path, model: PairRM) -> None:
    """The mask hides padding, whatever token it is."""
    expected = PairwiseModel(model, TOKENIZER).compare(MATCHES)
    loaded, tokenizer = load_pairwise_model(str(folder))
    tokenizer.pad_token = None
    assert PairwiseModel(loaded, tokenizer).compare(MATCHES) == pytest.approx(expected, abs=1e-6)


def test_parts_are_named_as_in_the_published_checkpoint(model: PairRM) -> None:
    """`pretrained_model.` and `head_layer.{1,4}.` are the keys of llm-blender/PairRM-hf."""
    names = set(model.state_dict())
    assert {f"head_layer.{layer}.{kind}" for layer in (1, 4) for kind in ("weight", "bias")} <= names
    assert all(name.startswith(("head_layer.", "pretrained_model.")) for name in names)
    assert "pretrained_model.encoder.layer.0.attention.self.query_proj.weight" in names


def test_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a pairwise model like PairRM: its config has no source_prefix_id"):
        load_pairwise_model(save_policy(tmp_path / "policy"))
    with pytest.raises(ModelError, match=r"cannot load a pairwise model from '.*/none'"):
        load_pairwise_model(str(tmp_path / "none"))


def test_untrained_head_is_refused(folder: Path, model: PairRM) -> None:
    state = {name: value for name, value in model.state_dict().items() if "head_layer.4" not in name}
    model.save_pretrained(folder, state_dict=state)
    with pytest.raises(ModelError, match=r"not a trained pairwise model: it has no head_layer.4.bias"):
        load_pairwise_model(str(folder))


def test_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"cand1_prefix_id": 5}))
    with pytest.raises(ModelError, match=rf"has id {FIRST} for <\|candidate1\|> and the model expects 5"):
        load_pairwise_model(str(folder))
