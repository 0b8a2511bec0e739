"""The sandbox: its true reward by hand, and that a world is what it says."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import is_conversational

from adaptpo.annotation.function import import_function
from adaptpo.choices.hold_out import Validation
from adaptpo.config.recipe import load_recipe
from adaptpo.data import iter_examples, open_rows
from adaptpo.distributed.quiet import quiet_libraries
from adaptpo.errors import AnnotationError, ConfigError, RunError
from adaptpo.methods.build import build_method
from adaptpo.sandbox import candidates
from adaptpo.sandbox.build import build
from adaptpo.sandbox.candidates import KINDS, OTHER_POLICY, RELABELLED, write_candidates
from adaptpo.sandbox.check import agreements, best_above_worst, check, gain, learned_rewards, share
from adaptpo.sandbox.data import compared, offline_answers, preference_row, sft_rows
from adaptpo.sandbox.fit import pair_dataset, sft_dataset
from adaptpo.sandbox.models import build_policy, build_reward_model, build_tokenizer, copy_word_embeddings
from adaptpo.sandbox.sampling import sample_responses
from adaptpo.sandbox.settings import WorldSettings
from adaptpo.sandbox.world import (
    FILLERS,
    OPENERS,
    PROMPT_SPACE,
    TOPIC_OF,
    assistant,
    best_response,
    parse_prompt,
    plain_text,
    prompt_at,
    response_words,
    reward_terms,
    sample_prompts,
    true_reward,
    user,
)
from adaptpo.sandbox.writers import Writer, leave_topic, run_on, scramble, writers
from adaptpo.types import Dropped

PROMPT = "please list few fruits for friends in plain style today"  # 3 items, opener "here", separator ","
FLAWLESS = "here apple , fig , pear ."
Corruption = Callable[[list[str], random.Random], None]


def reward(response: str, prompt: str = PROMPT) -> float:
    return true_reward([prompt], [response])[0]


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (FLAWLESS, 1.0),
        ("here indeed apple , fig , pear .", 1.0),  # A filler is a habit, not a flaw.
        ("sure apple , fig , pear .", 1 - 1 / 6),  # Wrong opener: half of a third.
        ("here apple ; fig ; pear .", 1 - 1 / 6),  # Wrong separators.
        ("here apple ; fig , pear .", 1 - 1 / 12),  # One of two separators wrong.
        ("here apple , fig .", 1 - 1 / 9),  # Two of three items: a third of a third.
        ("here apple , fig , oak .", 1 - 1 / 9),  # One item off topic.
        ("here apple , fig , pear", 1 - 0.3),  # No full stop.
        ("here apple , apple , pear .", 1 - 0.3 / 2),  # One of two gaps repeats.
        ("here apple , fig , pear soon .", 1 - 0.1 / 8),  # One of eight tokens out of place.
        ("", -0.3),
    ],
)
def test_true_reward_by_hand(response: str, expected: float) -> None:
    assert reward(response) == pytest.approx(expected)


def test_true_reward_takes_messages_and_extra_columns() -> None:
    rewards = true_reward([user(PROMPT)], [assistant(FLAWLESS)], completion_ids=[[1]], flipped=[False])
    assert rewards == [1.0]


def test_true_reward_refuses_prompts_of_another_world() -> None:
    with pytest.raises(AnnotationError, match="not a sandbox prompt"):
        reward("here .", prompt="what is love")


def test_every_prompt_has_a_flawless_response() -> None:
    prompts = [prompt_at(index) for index in range(0, PROMPT_SPACE, 997)]
    assert all(reward(best_response(prompt), prompt) == pytest.approx(1.0) for prompt in prompts)


def test_prompts_are_different() -> None:
    assert len(set(sample_prompts(2000, random.Random(0)))) == 2000
    with pytest.raises(ValueError, match="ask for fewer"):
        sample_prompts(PROMPT_SPACE + 1, random.Random(0))


def test_better_writers_earn_more_and_style_matters() -> None:
    rng = random.Random(0)
    prompts = sample_prompts(300, rng)
    means = [fmean(true_reward(prompts, [w.respond(p, rng) for p in prompts])) for w in writers((0.2, 0.5, 0.8), rng)]
    assert means[0] + 0.1 < means[1] < means[2] - 0.1
    assert {reward_terms(PROMPT, f"{opener} apple .").opener for opener in OPENERS.values()} == {0.0, 1.0}


def test_a_writers_responses_vary_in_quality_around_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    monkeypatch.setattr(Writer, "respond_with", lambda self, quality, task, rng: str(seen.append(quality)))
    for quality, low, high in ((0.5, 0.35, 0.65), (0.95, 0.8, 1.0), (0.05, 0.0, 0.2)):
        rng = random.Random(0)
        for _ in range(2000):
            Writer("w", quality, "well", {}).respond(PROMPT, rng)
        assert (min(seen), max(seen)) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))
        seen.clear()


def offline_rows(world: WorldSettings, prompts: list[str]) -> list[dict[str, Any]]:
    rng = random.Random(0)
    authors = writers(world.writer_qualities, rng)
    answers = offline_answers(prompts, authors, world, rng)
    return [preference_row(item, authors, world.flipped_of(n, item[0]), rng) for n, item in enumerate(answers)]


def test_a_tenth_of_the_labels_is_wrong() -> None:
    rows = offline_rows(WorldSettings(), sample_prompts(4000, random.Random(0)))
    assert fmean(row["flipped"] for row in rows) == pytest.approx(0.1, abs=0.02)


def test_labels_can_be_wrong_in_the_last_rows_alone() -> None:
    """Those that a run with `validation_split: last` holds out; the other rows stay what they were."""
    prompts = sample_prompts(2000, random.Random(0))
    usual = offline_rows(WorldSettings(prompts=2000), prompts)
    wrong = offline_rows(WorldSettings(prompts=2000, last_flipped=1.0), prompts)
    held_out = Validation(0.03, "last").choose(torch.zeros(2000), seed=0)
    assert [n for n, row in enumerate(wrong) if row["flipped"] and not usual[n]["flipped"]] == [
        n for n in held_out if not usual[n]["flipped"]
    ]
    assert wrong[: held_out[0]] == usual[: held_out[0]]


def test_labels_can_be_wrong_for_some_topics_alone() -> None:
    world = WorldSettings(flipped=0.0, other_flipped=0.4)
    prompts = sample_prompts(2000, random.Random(0))
    flipped: dict[bool, list[bool]] = {True: [], False: []}
    for prompt, row in zip(prompts, offline_rows(world, prompts), strict=True):
        flipped[parse_prompt(prompt).topic in ("cities", "drinks", "sports", "trees")].append(row["flipped"])
    assert not any(flipped[False])
    assert fmean(flipped[True]) == pytest.approx(0.4, abs=0.06)


def test_offline_data_can_be_near_the_policy_for_long_lists_alone() -> None:
    world = WorldSettings(others="many", other_near=True)
    prompts = sample_prompts(600, random.Random(0))
    habit = FILLERS[0]
    fillers: dict[bool, set[str]] = {True: set(), False: set()}
    for prompt, row in zip(prompts, offline_rows(world, prompts), strict=True):
        words = f"{plain_text(row['chosen'])} {plain_text(row['rejected'])}".split()[1:]
        fillers[parse_prompt(prompt).count == 8] |= set(words[:1]) & set(FILLERS)
    assert fillers == {True: {habit}, False: set(FILLERS)}


def test_a_policy_can_have_mastered_some_topics() -> None:
    rng = random.Random(0)
    world = WorldSettings(sft_qualities=(0.1, 0.3), other_sft_qualities=(1.0, 1.0))
    mastered, poor = (prompt_about(topic) for topic in ("trees", "fruits"))
    rows = dict(sft_rows([mastered, poor], writers((0.2,), rng)[0], world, rng))
    assert {true_reward([mastered], [text])[0] for text in rows[mastered]} == {1.0}
    assert max(true_reward([poor], [text])[0] for text in rows[poor]) < 1.0


def prompt_about(topic: str) -> str:
    return f"please list several {topic} for poets in plain style today"


def test_reward_pairs_use_each_response_once_and_leave_out_ties() -> None:
    pairs = compared((PROMPT, [FLAWLESS, "here .", "here .", "here ."]), 0.0, random.Random(0))
    assert pairs == [(PROMPT, FLAWLESS, "here .")]
    assert compared((PROMPT, [FLAWLESS, "here ."]), 1.0, random.Random(0)) == [(PROMPT, "here .", FLAWLESS)]


def test_the_better_response_of_a_reward_pair_is_the_chosen_one() -> None:
    tokenizer = build_tokenizer()
    row = pair_dataset(tokenizer, [(PROMPT, FLAWLESS, "here .")])[0]
    chosen, rejected = (tokenizer.decode(row[name]) for name in ("chosen_ids", "rejected_ids"))
    assert "apple" in chosen and "apple" not in rejected


@pytest.mark.parametrize("seed", range(8))
def test_leaving_the_topic_swaps_items_for_those_of_other_topics(seed: int) -> None:
    words = FLAWLESS.split()
    leave_topic(words, random.Random(seed))
    swapped = [(old, new) for old, new in zip(FLAWLESS.split(), words, strict=True) if old != new]
    assert swapped
    assert all(TOPIC_OF[old] != TOPIC_OF[new] for old, new in swapped)


@pytest.mark.parametrize("seed", range(8))
def test_running_on_writes_behind_the_end(seed: int) -> None:
    words = FLAWLESS.split()
    run_on(words, random.Random(seed))
    length = len(FLAWLESS.split())
    assert " ".join(words[:length]) == FLAWLESS
    assert length < len(words) <= length + 16


@pytest.mark.parametrize(("corruption", "fewest", "most"), [(scramble, -3, 3), (leave_topic, 0, 0), (run_on, 1, 16)])
@pytest.mark.parametrize("response", ["", "here ."])
def test_corruptions_bear_responses_without_items(
    corruption: Corruption, fewest: int, most: int, response: str
) -> None:
    """Words of other topics need items to take the place of; the other edits work on anything."""
    for seed in range(20):
        words = response.split()
        corruption(words, random.Random(seed))
        assert fewest <= len(words) - len(response.split()) <= most
        assert set(words) <= set(response_words())
        assert corruption is not leave_topic or " ".join(words) == response


def test_reward_model_starts_from_the_policys_word_embeddings() -> None:
    tokenizer = build_tokenizer()
    policy, reward_model = build_policy(tokenizer, 0), build_reward_model(tokenizer, 0)
    copy_word_embeddings(policy, reward_model)
    one, other = (model.get_input_embeddings().weight for model in (policy, reward_model))
    assert torch.equal(one, other)
    assert one.data_ptr() != other.data_ptr()


def test_policy_learns_the_response_and_its_end_alone() -> None:
    tokenizer = build_tokenizer()
    row = sft_dataset(tokenizer, [(PROMPT, [FLAWLESS])])[0]
    learned = [id_ for id_, mask in zip(row["input_ids"], row["completion_mask"], strict=True) if mask]
    assert tokenizer.decode(learned) == f"{FLAWLESS} <eos>"


SMALL = {"prompts": 64, "heldout": 24, "sft_epochs": 1}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    quiet_libraries()
    out = tmp_path_factory.mktemp("world")
    build(out, seed=3, **SMALL)
    return out


def rows_of(world: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (world / name).read_text().splitlines()]


def test_pairs_of_other_kinds_have_the_labels_of_the_reward_model(world: Path) -> None:
    """The relabelled ones have the same responses; those of another policy hold no response of the data."""
    texts, before, rewards = {}, rows_of(world, "train.jsonl"), {}
    for name in KINDS:
        write_candidates(world, name)
        rows = rows_of(world, name)
        texts[name] = [[plain_text(row[side]) for side in ("chosen", "rejected")] for row in rows]
        rewards[name] = learned_rewards(world, [plain_text(row["prompt"]) for row in rows], texts[name])
    assert all(chosen >= rejected for found in rewards.values() for chosen, rejected in found)
    given = [[plain_text(row[side]) for side in ("chosen", "rejected")] for row in before]
    swapped = [pair[::-1] for pair in given]
    assert all(new in (old, turned) for new, old, turned in zip(texts[RELABELLED], given, swapped, strict=True))
    assert given != texts[RELABELLED]
    flipped = [row["flipped"] for row in rows_of(world, RELABELLED)]
    assert flipped == [
        row["flipped"] != (new != old) for row, new, old in zip(before, texts[RELABELLED], given, strict=True)
    ]
    written = {text for pair in given for text in pair}
    own = [text for pair in texts[OTHER_POLICY] for text in pair]
    assert len(own) > 10 and len(set(own) & written) < len(own) / 4


def test_the_other_policy_learns_from_the_best_writer(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With that writer's habits, which are not those of the writer that the world's policy imitates, and better."""
    asked: list[tuple[Any, ...]] = []

    def noted(prompts: Any, author: Writer, settings: Any, rng: Any, *qualities: Any) -> Any:
        asked.append((author.name, author.filler, *qualities))
        raise StopIteration

    monkeypatch.setattr(candidates, "sft_rows", noted)
    settings = WorldSettings(**json.loads((world / "world.json").read_text()))
    with pytest.raises(StopIteration):
        candidates.other_responses(world, settings, [PROMPT])
    authors = writers(settings.writer_qualities, random.Random(f"adaptpo sandbox {settings.seed}"))
    assert asked == [(authors[-1].name, authors[-1].filler, (0.6, 0.9))]
    assert authors[-1].filler != authors[0].filler and settings.sft_qualities_of(PROMPT)[1] < 0.9


def test_world_loads_as_ordinary_models(world: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world / "policy")
    policy = AutoModelForCausalLM.from_pretrained(world / "policy")
    reward_model = AutoModelForSequenceClassification.from_pretrained(world / "reward_model")
    assert len(tokenizer) <= policy.get_input_embeddings().num_embeddings
    assert reward_model.config.num_labels == 1
    assert tokenizer.apply_chat_template(user(PROMPT), add_generation_prompt=True, tokenize=False).endswith(
        "<assistant>"
    )


def test_samples_depend_on_the_seed_alone(world: Path) -> None:
    policy = AutoModelForCausalLM.from_pretrained(world / "policy")
    tokenizer = AutoTokenizer.from_pretrained(world / "policy")
    state = torch.get_rng_state()
    one, same, other = (sample_responses(policy, tokenizer, [PROMPT] * 3, 2, seed, batch_rows=4) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert one == same != other
    assert [len(responses) for responses in one] == [2, 2, 2]
    assert len({tuple(responses) for responses in one}) > 1  # Also where the same prompt is asked again.


def test_world_reads_as_preference_data_without_loss(world: Path) -> None:
    for name, count in (("train.jsonl", SMALL["prompts"]), ("heldout.jsonl", SMALL["heldout"])):
        examples = list(iter_examples(open_rows(str(world / name))))
        assert len(examples) == count
        assert not any(isinstance(example, Dropped) for example in examples)


def test_rows_are_of_trls_conversational_preference_format(world: Path) -> None:
    row = rows_of(world, "train.jsonl")[0]
    assert is_conversational(row)
    assert [message["role"] for name in ("prompt", "chosen", "rejected") for message in row[name]] == [
        "user",
        "assistant",
        "assistant",
    ]


def test_heldout_prompts_do_not_occur_in_training(world: Path) -> None:
    train, heldout = (
        {row["prompt"][0]["content"] for row in rows_of(world, f"{n}.jsonl")} for n in ("train", "heldout")
    )
    assert not train & heldout


def test_labels_are_the_true_rewards_but_for_those_marked_flipped(world: Path) -> None:
    for row in rows_of(world, "train.jsonl") + rows_of(world, "heldout.jsonl"):
        better, worse = true_reward([row["prompt"]] * 2, [row["chosen"], row["rejected"]])
        assert (better <= worse) if row["flipped"] else (better >= worse)
    assert not any(row["flipped"] for row in rows_of(world, "heldout.jsonl"))
    assert 0 < sum(row["flipped"] for row in rows_of(world, "train.jsonl")) < 20


def test_recipe_of_the_world_is_metaapo_and_its_true_reward_can_be_imported(world: Path) -> None:
    recipe = load_recipe(world / "recipe.yaml")
    assert build_method(recipe).name == "metaapo"
    assert Path(recipe.model) == (world / "policy").resolve()
    settings = json.loads((world / "world.json").read_text())
    assert import_function(settings["true_reward"]) is true_reward


def test_same_seed_gives_the_same_world(world: Path, tmp_path: Path) -> None:
    build(tmp_path / "again", seed=3, cache=tmp_path / "models", **SMALL)
    for name in ("train.jsonl", "heldout.jsonl", "world.json"):
        assert (tmp_path / "again" / name).read_bytes() == (world / name).read_bytes()
    for model in ("policy", "reward_model"):
        one, other = (load_file(folder / model / "model.safetensors") for folder in (world, tmp_path / "again"))
        assert all(torch.equal(one[name], other[name]) for name in one)

    build(tmp_path / "noisy", seed=3, cache=tmp_path / "models", **SMALL | {"flipped": 0.4})
    assert len(list((tmp_path / "models").glob("*/config.json"))) == 2  # Labels make no other models.
    assert (tmp_path / "noisy" / "train.jsonl").read_bytes() != (world / "train.jsonl").read_bytes()
    build(tmp_path / "other", seed=3, cache=tmp_path / "models", **SMALL | {"reward_flipped": 0.4})
    assert len(list((tmp_path / "models").glob("*/config.json"))) == 3


def test_too_small_a_world_and_no_world_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 16"):
        build(tmp_path, prompts=3)
    with pytest.raises(ConfigError, match="ask for fewer"):
        build(tmp_path, prompts=PROMPT_SPACE)
    with pytest.raises(ConfigError, match="from 0 to 1"):
        build(tmp_path, flipped=10)
    with pytest.raises(RunError, match="adaptpo sandbox build"):
        check(tmp_path)


def test_checks_by_hand() -> None:
    assert agreements([0.0, 1.0, 1.0], [5.0, 6.0, 4.0]) == [1.0, 0.0]
    assert best_above_worst([0.0, 0.5, 1.0], [5.0, 6.0, 4.0]) == [0.0]
    assert best_above_worst([1.0, 1.0], [5.0, 6.0]) == []
    assert share([]) == 0.0
    better, same = gain("g", [1.0, 1.2, 0.9], [0.0, 0.1, 0.0]), gain("g", [0.0, 1.0], [1.0, 0.0])
    assert better.passed and better.value == pytest.approx(1.0)
    assert not same.passed
