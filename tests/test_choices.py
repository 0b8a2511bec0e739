"""Selection, pairing and weighting, and the seams between them."""

from __future__ import annotations

import copy

import pytest
import torch

from adaptpo import methods
from adaptpo.errors import TrainingError
from adaptpo.learner import OFFLINE, ONLINE, PairBatch
from adaptpo.meta_learner import MetaLearner
from adaptpo.pairing import PAIRINGS, Candidates, NoPair, Offline, OfflineAndOnline, Online, best_against_worst
from adaptpo.seeds import seed_for, uniform_for
from adaptpo.selection import SELECTIONS, ScoredPrompts, SelectAll, SelectByLearner, SelectNone
from adaptpo.training.phases.sample import selection_row
from adaptpo.types import PreferencePair, Response
from adaptpo.weighting import WEIGHTINGS, LearnedBlend, Uniform
from tests.test_meta_learner import pair_batch


def built(kind: type) -> object:
    return kind(MetaLearner()) if kind in (SelectByLearner, LearnedBlend) else kind()


def candidates(*rewards: float | None) -> Candidates:
    responses = tuple(Response(f"r{i}", [10 + i]) for i in range(len(rewards)))
    return Candidates(prompt_id=3, iteration=1, responses=responses, rewards=rewards)


OFFLINE_PAIR = PreferencePair(3, "offline", Response("a", [1]), Response("b", [2]))


@pytest.mark.parametrize("name", SELECTIONS)
def test_every_selection_gives_one_probability_per_prompt(name: str) -> None:
    probability = built(SELECTIONS[name]).probability(ScoredPrompts(5, torch.linspace(-9, 9, 5)))
    assert probability.shape == (5,)
    assert ((probability >= 0) & (probability <= 1)).all()


def test_learner_selects_where_the_policy_disagrees_with_the_pair() -> None:
    probability = SelectByLearner(MetaLearner()).probability(ScoredPrompts(2, torch.tensor([-20.0, 20.0])))
    assert probability[0] > 0.99
    assert probability[1].item() == pytest.approx(0.5, abs=1e-3)


def test_all_selects_all_and_none_selects_none_whatever_was_drawn() -> None:
    for u in (0.0, 0.5, 1 - 2**-53):
        assert selection_row(0, SelectAll().probability(ScoredPrompts(1)).item(), u)["selected"]
        assert not selection_row(0, SelectNone().probability(ScoredPrompts(1)).item(), u)["selected"]
    assert selection_row(0, 0.7, u=0.31)["selected"] and not selection_row(0, 0.7, u=0.29)["selected"]


def test_draws_depend_on_seed_iteration_and_prompt_alone_and_are_uniform() -> None:
    assert uniform_for(0, "select", 1, 7) == uniform_for(0, "select", 1, 7)
    assert len({seed_for(s, "select", i, p) for s in range(3) for i in range(3) for p in range(50)}) == 450
    draws = torch.tensor([uniform_for(0, "select", 0, prompt) for prompt in range(20000)])
    assert draws.mean().item() == pytest.approx(0.5, abs=0.01)
    assert torch.histc(draws, bins=10, min=0, max=1).min() > 1800


def test_best_against_worst() -> None:
    pair = best_against_worst(candidates(0.3, 2.0, None, -1.0, 2.0))
    assert isinstance(pair, PreferencePair)
    assert (pair.chosen.text, pair.rejected.text, pair.source) == ("r1", "r3", "online")
    assert pair.reward_gap == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (candidates(1.0, 1.0), "same reward"),
        (candidates(None, 1.0, float("nan")), "1 responses"),
        (candidates(), "0 responses"),
        (Candidates(0, 0, (Response("x", [1]), Response("x", [1])), (0.0, 1.0)), "same text"),
    ],
)
def test_candidates_that_teach_nothing(given: Candidates, reason: str) -> None:
    outcome = best_against_worst(given)
    assert isinstance(outcome, NoPair) and reason in outcome.reason


def test_what_pairings_contribute() -> None:
    good, flat = candidates(0.0, 1.0), candidates(1.0, 1.0)
    assert Offline().pairs(OFFLINE_PAIR, good) == (OFFLINE_PAIR,)
    assert [p.source for p in Online().pairs(OFFLINE_PAIR, good)] == ["online"]
    assert [p.source for p in OfflineAndOnline().pairs(OFFLINE_PAIR, good)] == ["offline", "online"]
    for pairing in (Online(), OfflineAndOnline()):
        assert pairing.pairs(OFFLINE_PAIR, None) == ()
        assert isinstance(pairing.pairs(OFFLINE_PAIR, flat), NoPair)
    keeping = OfflineAndOnline(keep_unselected=True)
    assert keeping.pairs(OFFLINE_PAIR, None) == keeping.pairs(OFFLINE_PAIR, flat) == (OFFLINE_PAIR,)


@pytest.mark.parametrize("name", PAIRINGS)
def test_every_pairing_accepts_unselected_prompts(name: str) -> None:
    outcome = PAIRINGS[name]().pairs(OFFLINE_PAIR, None)
    assert isinstance(outcome, tuple)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weights_of_a_prompt_sum_to_one(name: str) -> None:
    weights = built(WEIGHTINGS[name]).weights(pair_batch([-3.0, 0.5, 4.0], [1.0, -1.0, 0.0]))
    torch.testing.assert_close(weights[:3] + weights[3:], torch.ones(3))


def test_learned_blend_gives_the_offline_pair_what_the_learner_says() -> None:
    learner = MetaLearner()
    margins = torch.tensor([-3.0, 0.5])
    weights = LearnedBlend(learner).weights(pair_batch(margins.tolist(), [1.0, -1.0]))
    torch.testing.assert_close(weights[:2], learner.weight(margins))


def test_a_kept_offline_pair_counts_one() -> None:
    one = torch.tensor([1])
    batch = PairBatch(one, one * 0, one, one * OFFLINE, one.float(), torch.tensor([-5.0]))
    assert LearnedBlend(MetaLearner()).weights(batch).tolist() == [1.0]


def test_torn_group_raises() -> None:
    two = torch.tensor([2])
    with pytest.raises(TrainingError, match=r"prompts \[2\].*whole prompt groups"):
        PairBatch(two, two * 0, two, torch.tensor([ONLINE]), two.float(), two.float())


def test_uniform_shares_a_prompt_among_its_pairs() -> None:
    assert Uniform().weights(pair_batch([0.0], [0.0])).tolist() == [0.5, 0.5]


def test_selection_and_weighting_share_one_learner_also_in_a_copy() -> None:
    method = copy.deepcopy(methods.metaapo())
    assert len(method.learners()) == 1
    assert method.selection.learner is method.weighting.learner


def test_warmup_is_plain_offline_training_with_the_same_objective() -> None:
    method = methods.metaapo()
    warmup = method.warmup()
    assert warmup.objective is method.objective
    assert warmup.learners() == ()
    assert (method.warmup_epochs, methods.metaapo_simpo().warmup_epochs) == (1, 0)
