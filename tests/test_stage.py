"""Boundary measurement: counts by hand, an interval that keeps its promise, runs that resume, and what acts on them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from adaptpo import AlignmentConfig, AlignmentTrainer
from adaptpo.annotation.combined import CombinedAnnotator
from adaptpo.annotation.function import FunctionAnnotator
from adaptpo.annotation.tournament import Match, Opponents, Tournament
from adaptpo.choices.iteration import Iteration, StageReading
from adaptpo.choices.learners.meta_learner import MetaLearner
from adaptpo.choices.pairing import Offline, Online, PairingByStage, PairingSchedule
from adaptpo.choices.selection import ScoredPrompts, SelectByStage
from adaptpo.choices.weighting import StageBlend
from adaptpo.cli import main
from adaptpo.cli.stage import Options, recipe_of
from adaptpo.distributed.quiet import quiet_libraries
from adaptpo.errors import ConfigError
from adaptpo.methods import METHODS
from adaptpo.methods.stages import stage_blend, two_stage
from adaptpo.pipeline.boundary_candidates import candidate_rows
from adaptpo.pipeline.boundary_measure import Contest, Subject, compared, draw, looks, summary
from adaptpo.remote.usage import Usage
from adaptpo.run.files import JsonLines, read_rows
from adaptpo.stage.diagnostics import CandidateFacts, describe, intra_diversity
from adaptpo.stage.groups import group_prompts, scores_by_prompt
from adaptpo.stage.preference import AnnotatorPreference, Comparison
from adaptpo.stage.score import LEVELS, BoundaryScore, decide, interval
from adaptpo.stage.tally import Tally
from adaptpo.stage.words import readings
from adaptpo.types import PairBatch, PreferencePair, Prompt, Response
from tests.runs import SETTINGS, assert_same_run, run_in_process
from tests.test_meta_learner import pair_batch
from tests.tiny import preference_rows, save_policy, vowel_reward, write_jsonl

# Hand-made candidates: a response's one token is its quality.


@dataclass
class ByToken:
    """Prefers the higher token; no answer where a token is negative. Counts what it was asked."""

    asked: int = 0

    def preferences(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        self.asked += len(comparisons)
        return [self.judged(c.first.ids[0], c.second.ids[0]) for c in comparisons]

    def judged(self, first: int, second: int) -> float | None:
        if min(first, second) < 0:
            return None
        return 0.5 if first == second else float(first > second)


def contest(number: int, fresh: tuple[int, int], offline: tuple[int, int]) -> Contest:
    first, second, chosen, rejected = (Response(str(token), [token]) for token in (*fresh, *offline))
    return Prompt(number, f"prompt {number}", [1]), PreferencePair(number, "offline", chosen, rejected), [first, second]


CONTESTS = [
    contest(0, (5, 5), (1, 2)),  # 4 won
    contest(1, (5, 1), (3, 2)),  # 2 won
    contest(2, (3, 1), (3, 2)),  # 1 won (3 > 2), 1 tie
    contest(3, (0, 1), (8, 9)),  # none won
    contest(4, (-1, 7), (1, 2)),  # two without an answer
]


def swapped(item: Contest) -> Contest:
    prompt, pair, (first, second) = item
    return prompt, PreferencePair(prompt.id, "offline", first, second), [pair.chosen, pair.rejected]


def tally_of(contests: Sequence[Contest]) -> Tally:
    return Tally.of(compared(ByToken(), contests))


def test_score_ties_and_missing_answers_by_hand() -> None:
    tally = tally_of(CONTESTS)
    assert tally.scores == {0: 1.0, 1: 0.5, 2: 1.5 / 4, 3: 0.0}
    assert tally.incomplete == {4: 2}
    boundary = tally.boundary
    assert (boundary.won, boundary.lost, boundary.ties) == (7.5, 8.5, 1)
    assert boundary.score == 7.5 / 16
    assert boundary.leans_to_injection and boundary.decision == "undecided"
    assert summary(tally)["injection"] is True, "Algorithm 1 compares the counts, however wide the interval"


@pytest.mark.parametrize(
    ("fresh", "offline", "score", "decision"),
    [
        ((9, 8), (1, 2), 1.0, "preference fine-tuning"),
        ((0, 1), (8, 9), 0.0, "preference injection"),
        ((3, 3), (3, 3), 0.5, "undecided"),
        ((9, 0), (5, 5), 0.5, "undecided"),
    ],
)
def test_decision_on_known_candidates(
    fresh: tuple[int, int], offline: tuple[int, int], score: float, decision: str
) -> None:
    boundary = tally_of([contest(number, fresh, offline) for number in range(50)]).boundary
    assert boundary.score == score and boundary.decision == decision
    assert boundary.leans_to_injection == (score < 0.5)


def test_swapping_the_two_sets_mirrors_everything() -> None:
    rng = random.Random(0)
    contests = [
        contest(n, (rng.randrange(9), rng.randrange(9)), (rng.randrange(6), rng.randrange(6))) for n in range(90)
    ]
    one, other = tally_of(contests).boundary, tally_of([swapped(item) for item in contests]).boundary
    assert (one.won, one.lost, one.ties) == (other.lost, other.won, other.ties)
    assert one.counts == other.counts[::-1]
    low, high = other.interval
    assert one.interval == pytest.approx((1 - high, 1 - low), abs=1e-12)
    assert {one.decision, other.decision} == {"preference injection", "preference fine-tuning"}


def test_relabelling_prompts_changes_nothing() -> None:
    relabelled = [contest(100 - item[0].id, *tokens(item)) for item in reversed(CONTESTS)]
    assert tally_of(relabelled).boundary == tally_of(CONTESTS).boundary


def tokens(item: Contest) -> tuple[tuple[int, int], tuple[int, int]]:
    _, pair, (first, second) = item
    return (first.ids[0], second.ids[0]), (pair.chosen.ids[0], pair.rejected.ids[0])


def test_an_annotator_is_asked_once_per_response() -> None:
    seen: list[int] = []

    def reward(completions: list, completion_ids: list, **_: Any) -> list[float]:
        seen.extend(ids[0] for ids in completion_ids)
        return [float(ids[0]) for ids in completion_ids]

    rows = compared(AnnotatorPreference(FunctionAnnotator(reward)), CONTESTS[:4])
    assert Tally.of(rows).scores == tally_of(CONTESTS[:4]).scores
    assert sorted(seen) == [0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 5, 5, 8, 9]


class ByFirstToken:
    """A comparer without noise."""

    def __init__(self) -> None:
        self.usage, self.asked = Usage(), 0

    def compare(self, matches: Sequence[Match]) -> list[float | None]:
        self.asked += len(matches)
        return [float(np.sign(match.first.ids[0] - match.second.ids[0])) for match in matches]

    def probe(self) -> None:
        pass


@pytest.mark.parametrize("opponents", ["first", "all"])
@pytest.mark.parametrize("parts", [1, 2])
def test_an_annotator_that_compares_is_asked_for_each_comparison(opponents: Opponents, parts: int) -> None:
    """Both fresh responses, 1 and 2, lose to both offline ones, 4 and 3. A ranking by comparisons with the first fresh
    one alone would have called 2 against 3 a tie. Four comparisons in both orders."""
    comparer = ByFirstToken()
    tournament = Tournament(comparer, opponents)
    annotator = tournament if parts == 1 else CombinedAnnotator([(tournament, 1.0), (tournament, 0.5)])
    rows = compared(AnnotatorPreference(annotator), [contest(0, (1, 2), (4, 3))])
    assert [row["preference"] for row in rows] == [0.0] * 4
    assert comparer.asked == 8 * parts


def test_a_response_without_a_reward_leaves_its_comparisons_unanswered() -> None:
    annotator = FunctionAnnotator(lambda completions, **_: [math.nan if c == "9" else float(c) for c in completions])
    rows = compared(AnnotatorPreference(annotator), CONTESTS)
    assert Tally.of(rows).incomplete == {3: 2}


def test_only_the_side_of_one_half_counts() -> None:
    rows = [{"prompt_id": 0, "preference": value} for value in (0.51, 0.99, 0.5, 0.2)]
    assert Tally.of(rows).scores == {0: 2.5 / 4}


# The interval


def test_interval_is_the_bootstrap_distribution() -> None:
    """Against a million resamples of the same prompts; the two added ones are part of the definition."""
    counts = np.array([3, 0, 5, 1, 6, 0, 9, 0, 4])
    padded = counts.copy()
    padded[[0, -1]] += 1
    draws = np.random.default_rng(0).multinomial(padded.sum(), padded / padded.sum(), 200_000) @ np.arange(9) / 8
    expected = np.quantile(draws / padded.sum(), [0.025, 0.975])
    np.testing.assert_allclose(interval(counts), expected, atol=1 / (8 * padded.sum()) + 1e-9)


def simulated(probability: float, kind: str, runs: int, prompts: int) -> np.ndarray:
    """Levels k of scores k/8, [runs, prompts], of mean `probability`: each comparison a coin (`independent`), all four
    of a prompt the same (`whole prompts`), or prompts of different difficulty between them."""
    rng = np.random.default_rng(round(1000 * probability))
    size = (runs, prompts)
    if kind == "whole prompts":
        return LEVELS * rng.binomial(1, probability, size)
    chance = probability if kind == "independent" else rng.beta(probability, 1 - probability, size)
    return 2 * rng.binomial(4, chance, size)


def histograms(levels: np.ndarray) -> np.ndarray:
    return np.stack([(levels == level).sum(axis=1) for level in range(LEVELS + 1)], axis=1)


def covered(intervals: np.ndarray, probability: float) -> float:
    return float(((intervals[:, 0] <= probability) & (probability <= intervals[:, 1])).mean())


KINDS = [(0.5, "independent"), (0.3, "whole prompts"), (0.5, "difficulty"), (0.8, "difficulty")]


@pytest.mark.parametrize(("probability", "kind"), KINDS)
def test_interval_holds_the_truth_as_often_as_it_says(probability: float, kind: str) -> None:
    intervals = interval(histograms(simulated(probability, kind, 1000, 300)))
    assert 0.93 <= covered(intervals, probability) <= 0.97


@pytest.mark.parametrize(("probability", "kind"), KINDS)
def test_interval_holds_the_truth_where_the_measurement_stops_by_its_width(probability: float, kind: str) -> None:
    levels = simulated(probability, kind, 1000, 1024)
    intervals, going = np.zeros((1000, 2)), np.arange(1000)
    for prompts in range(128, 1025, 128):
        if not len(going):
            break
        intervals[going] = interval(histograms(levels[going, :prompts]))
        going = going[np.diff(intervals[going], axis=1)[:, 0] / 2 > 0.05]
    assert len(going) == 0
    assert 0.93 <= covered(intervals, probability) <= 0.97


def test_agreeing_prompts_have_an_interval_too() -> None:
    """The rule of three: after n wins and no loss, a share of 3/n may still be lost."""
    for prompts in (5, 60, 600):
        low, high = BoundaryScore.of([1.0] * prompts).interval
        assert high == 1.0 and 0 < 1 - low < 1 and 1 - low >= 2 / prompts


def test_prompts_to_decide() -> None:
    """Scores of 0 and 1 alone have the standard deviation sqrt(p (1 - p)); that many prompts more do decide."""
    boundary = BoundaryScore.of([1.0] * 105 + [0.0] * 95)
    assert boundary.decision == "undecided"
    needed = boundary.prompts_to_decide
    assert needed == pytest.approx(1.96**2 * 0.25 / 0.025**2, rel=0.02)
    times = math.ceil(needed / 200) + 1
    assert BoundaryScore.of([1.0] * 105 * times + [0.0] * 95 * times).decision == "preference fine-tuning"
    assert BoundaryScore.of([0.0, 1.0]).prompts_to_decide is None


def test_boundary_itself_is_undecided() -> None:
    assert [decide(0.4, 0.5), decide(0.5, 0.6), decide(0.4, 0.49)] == ["undecided", "undecided", "preference injection"]


# Diagnostics


def test_diagnostics_by_hand() -> None:
    candidates = CandidateFacts(
        prompt_ids=(7, 8),
        fresh_logps=np.array([[-1.0, -2.0], [-5.0, -4.0]]),
        offline_logps=np.array([[-1.5, -9.0], [-4.0, -6.0]]),
        fresh_tokens=np.array([[3, 4], [2, 2]]),
        offline_tokens=np.array([[5, 3], [2, 9]]),
    )
    fresh_wins = {(7, 0, "chosen"): 1.0, (7, 1, "rejected"): 1.0, (8, 0, "rejected"): 0.0, (8, 1, "chosen"): 0.5}
    names = ("prompt_id", "fresh", "offline")
    rows = [dict(zip(names, place, strict=True)) | {"preference": won} for place, won in fresh_wins.items()]
    found = describe(candidates, rows)
    assert found["offline_diversity"] == {"mean": (7.5 + 2) / 2, "std": (7.5 - 2) / 2}
    assert (found["fresh_distance"], found["offline_distance"]) == (1.0, 4.75)
    assert (found["fresh_tokens"], found["chosen_tokens"], found["rejected_tokens"]) == (2.75, 3.5, 6.0)
    assert found["distinctness"] == (3 / 4 + 2 / 4) / 2
    assert found["quality_against_chosen"] == 0.75 and found["quality_against_rejected"] == 0.5
    # Shorter 3 beats 5, longer 4 beats 3, shorter 2 loses to 9; the tie does not count.
    assert found["longer_wins"] == {"comparisons": 3, "share": pytest.approx(2 / 3)}
    assert intra_diversity(-candidates.offline_logps)["mean"] == -found["offline_diversity"]["mean"]
    unanswered = describe(candidates, [row | {"preference": None} for row in rows])
    assert readings(unanswered)["quality"].startswith("none of comparisons won against chosen responses, none against")


def test_log_probs_of_candidates_are_stored_side_by_side() -> None:
    prompt, pair, _ = contest(3, (1, 2), (4, 5))
    logps = SimpleNamespace(chosen=torch.tensor([-1.0]), rejected=torch.tensor([-2.0]))
    (row,) = candidate_rows([(prompt, pair)], logps)  # type: ignore[arg-type]
    assert (row["prompt_id"], row["source"], row["first"], row["second"]) == (3, "offline", -1.0, -2.0)


# The choices


def reading(score: float, **by_prompt: float) -> StageReading:
    return StageReading(score, score < 0.5, {int(name[1:]): value for name, value in by_prompt.items()})


def test_schedule_shares_the_iterations() -> None:
    off_on = PairingSchedule((Offline(), Online(3)))
    kinds = [type(off_on.at(Iteration(number, 5))).__name__ for number in range(5)]
    assert kinds == ["Offline"] * 3 + ["Online"] * 2
    assert off_on.num_generations == 3
    assert not off_on.needs_stage(0) and replace(off_on, measured=True).needs_stage(1)
    with pytest.raises(ConfigError, match="at least one"):
        PairingSchedule(())


def test_pairing_by_stage_follows_the_measurement() -> None:
    pairing = PairingByStage(3)
    assert pairing.needs_stage(0) and pairing.needs_stage(5)
    assert pairing.at(Iteration(0, 2, reading(0.2))) == Offline()
    assert pairing.at(Iteration(1, 2, reading(0.7))) == Online(3)
    with pytest.raises(ValueError, match="was not measured"):
        pairing.at(Iteration(0, 2))


def test_blend_weighs_and_selects_by_the_score() -> None:
    now = Iteration(0, 1, reading(0.3, p1=0.9))
    batch: PairBatch = pair_batch([0.0, 0.0], [0.0, 0.0])
    weights = StageBlend().at(now).weights(batch)
    torch.testing.assert_close(weights, torch.tensor([0.7, 0.1, 0.3, 0.9]))
    prompts = ScoredPrompts(3, prompt_id=torch.tensor([0, 1, 2]))
    torch.testing.assert_close(SelectByStage().at(now).probability(prompts), torch.tensor([0.3, 0.9, 0.3]))


@pytest.mark.parametrize(("score", "trust"), [(0.2, 0.8), (0.5, 0.5), (0.75, 0.25), (0.0, 0.95)])
def test_metaapo_starts_from_the_stage(score: float, trust: float) -> None:
    learner = MetaLearner(stage_start=True)
    learner.start_iteration(Iteration(0, 3, reading(score)))
    weight = learner.weight(ScoredPrompts(1, torch.tensor([200.0])))
    assert weight.item() == pytest.approx(trust, abs=1e-6)
    assert [learner.needs_stage(number) for number in range(3)] == [True, False, False]


def test_who_asks_for_a_measurement() -> None:
    asking = {name: [METHODS[name]().needs_stage(number) for number in range(2)] for name in METHODS}
    assert {name for name, asked in asking.items() if any(asked)} == {"two_stage", "stage_blend", "metaapo_stage"}
    assert asking["metaapo_stage"] == [True, False] and asking["two_stage"] == [True, True]


# Groups


def test_groups_by_wording_have_their_own_scores() -> None:
    prompts = [Prompt(n, "", [n % 2 * 50 + token for token in (3, 4, 5)] + [100 + n]) for n in range(40)]
    group = group_prompts(prompts, 2, seed=1)
    assert len(set(group[::2])) == len(set(group[1::2])) == 1 and group[0] != group[1]
    scores = scores_by_prompt(prompts, group, {n: float(n % 2) for n in range(16)})
    assert scores[38] == pytest.approx((8 * 0.5) / (8 + 8)) and scores[39] == pytest.approx((8 + 4) / 16)


def test_one_prompt_and_no_measurement_make_groups_too() -> None:
    prompts = [Prompt(0, "", [1])]
    assert scores_by_prompt(prompts, group_prompts(prompts, 4, seed=0), {}) == {0: 0.5}
    assert len(group_prompts([], 4, seed=0)) == 0


# In runs


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    quiet_libraries()
    return save_policy(tmp_path_factory.mktemp("policy"))


def stage_facts(out: Path, iteration: int = 0) -> dict[str, Any]:
    return json.loads((out / "state.json").read_text())["phases"][f"iterations/{iteration}/stage"]


def align(policy: str, out: Path, method: Any, reward: Any, **settings: Any) -> Path:
    AlignmentTrainer(
        model=policy,
        args=AlignmentConfig(output_dir=str(out), **(SETTINGS | settings)),
        method=method,
        train_dataset=preference_rows(16),
        reward_funcs=reward,
    ).train()
    return out


def is_words(text: str) -> bool:
    """As the responses of the data are, and those of a random model are not."""
    return text.replace(" ", "").isalpha() and text.isascii()


def likes_offline(completions: list, **_: Any) -> list[float]:
    return [float(is_words(completion[-1]["content"])) for completion in completions]


def likes_fresh(completions: list, **_: Any) -> list[float]:
    texts = [completion[-1]["content"] for completion in completions]
    return [0.0 if is_words(text) else 1 + sum(map(ord, text)) % 97 for text in texts]


@pytest.mark.parametrize(("reward", "source", "score"), [(likes_offline, "offline", 0), (likes_fresh, "online", 1)])
def test_two_stage_trains_on_what_the_policy_needs(
    reward: Any, source: str, score: float, policy: str, tmp_path: Path
) -> None:
    out = align(policy, tmp_path / "run", two_stage(num_generations=3), reward)
    for iteration in (0, 1):
        assert stage_facts(out, iteration)["boundary_score"] == pytest.approx(score, abs=0.1)
        pairs = read_rows(out / f"iterations/{iteration}/pairs.parquet")
        assert pairs and {row["source"] for row in pairs} == {source}
        assert (out / f"iterations/{iteration}/responses").exists() == (source == "online")


def test_a_blend_weighs_pairs_by_the_stage_that_was_measured(policy: str, tmp_path: Path) -> None:
    out = align(policy, tmp_path / "run", stage_blend(num_generations=3), likes_fresh)
    score = stage_facts(out)["boundary_score"]
    lines = JsonLines(out / "iterations/0/pair_weights.jsonl").read()
    both = {line["prompt_id"] for line in lines if line["source"] == "offline"}
    both &= {line["prompt_id"] for line in lines if line["source"] == "online"}
    expected = {"online": score, "offline": 1 - score}
    assert score > 0.9 and both
    for line in lines:
        if line["prompt_id"] in both:
            assert line["weight"] == pytest.approx(expected[line["source"]], abs=1e-6)


def test_groups_reach_selection_and_weights(policy: str, tmp_path: Path) -> None:
    out = align(
        policy, tmp_path / "run", stage_blend(num_generations=2), vowel_reward, stage={"groups": 3, "prompts": 6}
    )
    assert stage_facts(out)["measured"] == 6
    groups = {row["prompt_id"]: row["score"] for row in read_rows(out / "iterations/0/stage/groups.parquet")}
    chances = {row["prompt_id"]: row["probability"] for row in read_rows(out / "iterations/0/selection.parquet")}
    assert len(groups) == 8 and chances == pytest.approx(groups)


@pytest.mark.engines
def test_a_killed_measurement_goes_on(policy: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"model": policy, "method": "two_stage", "rows": 18, "reward": vowel_reward}
    assert run_in_process(out=tmp_path / "straight", **arguments) == 0
    assert run_in_process("file:iterations/1/stage/comparisons", out=tmp_path / "killed", **arguments) == -9
    assert run_in_process(out=tmp_path / "killed", **arguments) == 0
    assert_same_run(tmp_path / "straight", tmp_path / "killed")


# The command


def test_looks_come_after_whole_shards() -> None:
    settings = AlignmentConfig(output_dir="run").stage
    assert list(looks(1000, settings, 64)) == [1000]
    assert list(looks(700, settings.model_copy(update={"precision": 0.1}), 64)) == [256, 512, 700]
    assert list(looks(256, settings.model_copy(update={"precision": 0.1}), 64)) == [256]


def test_prompts_are_drawn_from_all() -> None:
    """Four of eighteen prompts, other ones with another seed, and with more the same first."""

    def drawn(name: str, seed: int, prompts: int) -> list[int]:
        context = SimpleNamespace(
            config=AlignmentConfig(output_dir="run", seed=seed, stage={"prompts": prompts}), pairs_of=list
        )
        return draw(context, Subject(name, "policy", range(5, 23)))  # type: ignore[arg-type]

    few, more, other = drawn("a", 0, 4), drawn("a", 0, 9), drawn("a", 1, 4)
    assert few == more[:4] and len(set(more)) == 9 and set(more) <= set(range(5, 23))
    assert few != other != sorted(other) and set(more) != set(range(5, 14))


REWARDS = """
def picky(prompts, completions, **_):
    texts = [c[-1]["content"] for c in completions]
    return [None if "12" in p[-1]["content"] else float(len(t)) for p, t in zip(prompts, texts)]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "stage_rewards.py").write_text(REWARDS)
    write_jsonl(tmp_path / "pairs.jsonl", preference_rows(60))
    return tmp_path


def command(policy: str, *more: str) -> list[str]:
    sizes = ["generation.max_new_tokens=8", "max_prompt_length=64", "shard_size=8", "show_progress=false"]
    settings = [part for size in sizes for part in ("--set", size)]
    inputs = ["--model", policy, "--data", "pairs.jsonl", "--reward", "python:stage_rewards:picky", "--out", "out"]
    return ["stage", *inputs, *settings, *more]


def test_command_says_and_writes_what_it_found(policy: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(command(policy))
    said = capsys.readouterr().out
    assert ended.value.code == 0
    found = json.loads((folder / "out/stage.json").read_text())
    assert found["decision"].split()[0] in said and f"{found['score']:.3f}" in said
    assert (found["prompts"], found["unanswered_prompts"]) == (59, 1)
    assert found["v_on"] + found["v_off"] == 4 * 59
    assert found["cost"]["responses"] == 120 and found["sampling"]["temperature"] == 0.7
    assert found["diagnostics"]["longer_wins"]["share"] == 1.0
    dropped = (folder / "out/dropped.jsonl").read_text()
    assert "no answer from the preference model to 4 of 4" in dropped
    page = (folder / "out/report/report.html").read_text()
    assert found["decision"] in page and page.count("<figure") == 4


def test_precision_stops_early_and_an_interrupted_measurement_goes_on(policy: str, folder: Path) -> None:
    with pytest.raises(SystemExit):
        main(command(policy, "--precision", "0.25"))
    found = json.loads((folder / "out/stage.json").read_text())
    assert found["half_width"] <= 0.25 and found["cost"]["prompts_sampled"] == 32
    shards = sorted((folder / "out/stage").rglob("*.parquet"))
    before = {path: path.read_bytes() for path in shards}
    assert len(shards) == 3 * 4
    for path in [folder / "out/state.json", *shards[1:4]]:
        path.unlink()
    for line in (["repair", "out", "--apply"], command(policy, "--precision", "0.25")):
        with pytest.raises(SystemExit):
            main(line)
    again = json.loads((folder / "out/stage.json").read_text())
    assert {path: path.read_bytes() for path in shards} == before
    assert again | {"cost": None} == found | {"cost": None}


def test_recipe_settings_win_over_the_papers(policy: str, folder: Path) -> None:
    (folder / "recipe.yaml").write_text(
        "model: policy\ndata: pairs.jsonl\nreward: train\noutput_dir: runs/one\ngeneration: {temperature: 1.0}\n"
    )
    recipe = recipe_of(Options(recipe=Path("recipe.yaml"), prompts=50))
    assert recipe.output_dir == "runs/one-stage"
    assert (recipe.generation.temperature, recipe.generation.top_p, recipe.generation.top_k) == (1.0, 0.9, 50)
    assert recipe.stage.prompts == 50


def test_without_a_reward_the_remedy_is_named(policy: str) -> None:
    with pytest.raises(ConfigError, match="--reward"):
        recipe_of(Options(model=policy, data="pairs.jsonl"))
    with pytest.raises(ConfigError, match="'model' is missing"):
        recipe_of(Options(data="pairs.jsonl", reward="train"))


def test_the_command_takes_a_judge(folder: Path) -> None:
    reward = "{judge: gpt-4o-mini, base_url: 'http://127.0.0.1:1/v1'}"
    recipe = recipe_of(Options(model="policy", data="pairs.jsonl", reward=reward))
    assert recipe.reward == {"judge": "gpt-4o-mini", "base_url": "http://127.0.0.1:1/v1"}
    assert recipe_of(Options(model="policy", data="pairs.jsonl", reward="train")).reward == "train"
