"""Selection, pairing and weighting, and the seams between them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from adaptpo import methods
from adaptpo.choices.learners.meta_learner import DegreeLearner, MetaLearner
from adaptpo.choices.learners.reward_gap import RunningGap
from adaptpo.choices.learners.trust import ConstantTrust, SigmoidTrust
from adaptpo.choices.pairing import (
    PAIRINGS,
    Candidates,
    MixedPool,
    NestedPool,
    NoPair,
    Offline,
    OfflineAndOnline,
    OnePairPerObjective,
    Online,
    best_against_worst,
)
from adaptpo.choices.selection import (
    SELECTIONS,
    ScoredPrompts,
    SelectAll,
    SelectAtSameRate,
    SelectByLearner,
    SelectLowest,
    SelectNone,
    SelectRandom,
    SelectUncertain,
)
from adaptpo.choices.weighting import DataWeight, Focal, LabelDegrees, LearnedBlend, RewardDifference, Uniform
from adaptpo.data.pair_numbers import data_weight
from adaptpo.errors import ConfigError, TrainingError
from adaptpo.pipeline.phases.select import drawn
from adaptpo.seeds import seed_for, uniform_for
from adaptpo.types import MIXED, OFFLINE, ONLINE, PairBatch, PreferencePair, Response
from tests.test_meta_learner import pair_batch

LEARNERS = {
    SelectByLearner: MetaLearner,
    SelectAtSameRate: MetaLearner,
    LearnedBlend: MetaLearner,
    LabelDegrees: MetaLearner,
    RewardDifference: RunningGap,
}


def built(kind: type) -> Any:
    return kind(LEARNERS[kind]()) if kind in LEARNERS else kind()


def candidates(*rewards: float | None) -> Candidates:
    responses = tuple(Response(f"r{i}", [10 + i]) for i in range(len(rewards)))
    return Candidates(prompt_id=3, iteration=1, responses=responses, rewards=rewards)


OFFLINE_PAIR = PreferencePair(3, "offline", Response("a", [1]), Response("b", [2]))


@pytest.mark.parametrize("name", SELECTIONS)
def test_every_selection_gives_one_probability_per_prompt(name: str) -> None:
    probability = built(SELECTIONS[name]).probability(ScoredPrompts(5, torch.linspace(-9, 9, 5)))
    assert probability.shape == (5,)
    assert ((probability >= 0) & (probability <= 1)).all()


def test_the_same_rate_is_the_learners_mean_for_every_prompt() -> None:
    learner, prompts = MetaLearner(), ScoredPrompts(2, torch.tensor([-20.0, 20.0]))
    mean = SelectByLearner(learner).probability(prompts).mean()
    assert torch.equal(SelectAtSameRate(learner).probability(prompts), mean.expand(2))


def test_learner_selects_where_the_policy_disagrees_with_the_pair() -> None:
    probability = SelectByLearner(MetaLearner()).probability(ScoredPrompts(2, torch.tensor([-20.0, 20.0])))
    assert probability[0] > 0.99
    assert probability[1].item() == pytest.approx(0.5, abs=1e-3)


def test_all_selects_all_and_none_selects_none_whatever_was_drawn() -> None:
    u = np.array([0.0, 0.5, 1 - 2**-53])
    assert drawn(SelectAll().probability(ScoredPrompts(3)).double().numpy(), u).all()
    assert not drawn(SelectNone().probability(ScoredPrompts(3)).double().numpy(), u).any()
    assert drawn(np.array([0.7, 0.7]), np.array([0.31, 0.29])).tolist() == [True, False]


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


@pytest.mark.parametrize("kind", [Uniform, LearnedBlend, LabelDegrees, DataWeight])
def test_weights_of_a_prompt_sum_to_one(kind: type) -> None:
    weights = built(kind).weights(pair_batch([-3.0, 0.5, 4.0], [1.0, -1.0, 0.0]))
    torch.testing.assert_close(weights[:3] + weights[3:], torch.ones(3))


def test_learned_blend_gives_the_offline_pair_what_the_learner_says() -> None:
    learner = MetaLearner()
    margins = torch.tensor([-3.0, 0.5])
    weights = LearnedBlend(learner).weights(pair_batch(margins.tolist(), [1.0, -1.0]))
    torch.testing.assert_close(weights[:2], learner.weight(ScoredPrompts(2, margins)))


def test_pairs_without_an_offline_one_beside_them_count_one_each() -> None:
    """There is no score to trust, as where a ranking pool gives two mixed pairs."""
    batch = replace(pair_batch([0.5], [1.0]), source=torch.tensor([MIXED, ONLINE]))
    assert LearnedBlend(MetaLearner()).weights(batch).tolist() == [1.0, 1.0]


def test_a_kept_offline_pair_counts_one() -> None:
    one = torch.tensor([1])
    margin = torch.tensor([-5.0])
    batch = PairBatch(one, one * 0, one, one * OFFLINE, one.float(), one.float(), margin, torch.zeros(1, 2))
    assert LearnedBlend(MetaLearner()).weights(batch).tolist() == [1.0]


def test_torn_group_raises() -> None:
    two = torch.tensor([2])
    with pytest.raises(TrainingError, match=r"prompts \[2\].*whole prompt groups"):
        PairBatch(two, two * 0, two, torch.tensor([ONLINE]), two.float(), two.float(), two.float(), torch.zeros(1, 2))


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


# --- the rows of the papers' tables ----------------------------------------------------------------------------------


def test_lowest_scores_are_selected() -> None:
    prompts = ScoredPrompts(5, torch.tensor([3.0, -1.0, 0.0, -2.0, 9.0]))
    assert SelectLowest(0.4).probability(prompts).tolist() == [0, 1, 0, 1, 0]
    assert SelectLowest(1.0).probability(prompts).tolist() == [1] * 5


def test_undecided_prompts_are_selected() -> None:
    prompts = ScoredPrompts(4, torch.tensor([3.0, -1.0, 0.2, -2.0]))
    assert SelectUncertain(1.0).probability(prompts).tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("wrong", [lambda: SelectRandom(1.5), lambda: SelectLowest(-0.1), lambda: SelectUncertain(-1)])
def test_impossible_selections_are_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"share|threshold"):
        wrong()


def test_sigmoid_trust_by_hand() -> None:
    """sigmoid(log sigmoid(0)) = sigmoid(log 0.5) = 1/3; it goes to 1/2 for large margins."""
    trust = SigmoidTrust().weight(ScoredPrompts(2, torch.tensor([0.0, 50.0])))
    assert trust.tolist() == pytest.approx([1 / 3, 0.5])


def test_a_blend_with_constant_trust_one_half_is_uniform() -> None:
    batch = pair_batch([-3.0, 0.5, 4.0], [1.0, -1.0, 0.0])
    assert torch.equal(LearnedBlend(ConstantTrust(0.5)).weights(batch), Uniform().weights(batch))


def test_focal_by_hand() -> None:
    batch = pair_batch([0.0], [2.0])
    expected = [0.5**2 / 2, torch.sigmoid(torch.tensor(2.0)).item() ** 2 / 2]
    assert Focal(gamma=2).weights(batch).tolist() == pytest.approx(expected)
    assert torch.equal(Focal(gamma=0).weights(batch), Uniform().weights(batch))
    with pytest.raises(ConfigError, match="gamma"):
        Focal(gamma=-1)


def test_reward_difference_by_hand() -> None:
    """Running mean 0.9 * 2 + 0.1 * 4 = 2.2 after steps of mean 2 and 4; a gap of 1.1 then counts 0.5."""
    weighting = RewardDifference(RunningGap(0.9), limit=3.0)
    batch = pair_batch([0.0, 0.0], [0.0, 0.0])
    for gaps in ([1.0, 3.0, float("nan"), 2.0], [4.0, 4.0, 4.0, float("nan")]):
        weighting.scale.observe(replace(batch, reward_gap=torch.tensor(gaps)))
        weighting.scale.update(lambda rows: rows)
    assert weighting.scale.mean == pytest.approx(2.2)
    weights = weighting.weights(replace(batch, reward_gap=torch.tensor([1.1, float("nan"), 100.0, 2.2])))
    assert (2 * weights).tolist() == pytest.approx([0.5, 1.0, 3.0, 1.0])
    other = RunningGap()
    other.load_state_dict(weighting.scale.state_dict())
    assert other.mean == weighting.scale.mean


def test_data_weight_is_the_column() -> None:
    batch = replace(pair_batch([0.0], [0.0]), data_weight=torch.tensor([3.0, 1.0]))
    assert DataWeight().weights(batch).tolist() == [1.5, 0.5]


@pytest.mark.parametrize(
    ("columns", "weight"),
    [({}, 1.0), ({"weight": 2}, 2.0), ({"weight": 0.0}, 0.0), ({"weight": "high"}, None), ({"weight": -1}, None),
     ({"weight": float("nan")}, None), ({"weight": None}, None), ({"weight": "0.5"}, 0.5), ({"weight": "nan"}, None),
     ({"weight": "-1"}, None)],
)  # fmt: skip
def test_weights_of_rows(columns: dict[str, Any], weight: float | None) -> None:
    assert data_weight(columns) == weight


def test_mixed_pool_ranks_offline_and_fresh_responses_together() -> None:
    def outcome(fresh: tuple[float, ...], chosen: float | None, rejected: float | None) -> Any:
        pool = replace(candidates(*fresh), offline_rewards=(chosen, rejected))
        return MixedPool().pairs(OFFLINE_PAIR, pool)[0]

    online = outcome((0.0, 5.0), 1.0, 2.0)
    assert (online.chosen.text, online.rejected.text, online.source) == ("r1", "r0", "online")
    mixed = outcome((0.0, 5.0), 9.0, 2.0)
    assert (mixed.chosen.text, mixed.rejected.text, mixed.source) == ("a", "r0", "mixed")
    kept = outcome((0.5, 0.6), 1.0, 0.0)
    assert kept.source == "offline" and kept.chosen is OFFLINE_PAIR.chosen and kept.reward_gap == 1.0
    swapped = outcome((0.5, 0.6), 0.0, 1.0)
    assert (swapped.chosen.text, swapped.rejected.text, swapped.source) == ("b", "a", "mixed")
    assert outcome((0.5, 0.6), None, None).source == "online"


def test_nested_pool_pairs_best_with_worst_and_then_what_lies_between() -> None:
    def outcome(fresh: tuple[float, ...], chosen: float | None, rejected: float | None) -> Any:
        pool = replace(candidates(*fresh), offline_rewards=(chosen, rejected))
        return [
            (p.chosen.text, p.rejected.text, p.source, p.reward_gap) for p in NestedPool().pairs(OFFLINE_PAIR, pool)
        ]

    assert outcome((0.0, 2.0), 9.0, 1.0) == [("a", "r0", "mixed", 9.0), ("r1", "b", "mixed", 1.0)]
    assert outcome((0.0, 5.0), 2.0, 1.0) == [("r1", "r0", "online", 5.0), ("a", "b", "offline", 1.0)]
    assert outcome((0.0, 5.0), 1.0, 2.0) == [("r1", "r0", "online", 5.0), ("b", "a", "mixed", 1.0)]
    assert outcome((0.0, 5.0, 3.0), 1.0, 2.0)[1:] == [("r2", "a", "mixed", 2.0)]
    assert outcome((0.0, 5.0), 1.0, 1.0) == [("r1", "r0", "online", 5.0)]
    assert outcome((0.0, 5.0), None, None) == [("r1", "r0", "online", 5.0)]
    equal = replace(candidates(1.0, 1.0), offline_rewards=(1.0, 1.0))
    assert isinstance(NestedPool().pairs(OFFLINE_PAIR, equal), NoPair)


def test_mixed_pool_keeps_the_first_fresh_response_as_a_sample_where_asked() -> None:
    for rewards, offline in (((0.0, 5.0, 1.0), (9.0, 2.0)), ((0.5, 0.6), (1.0, 0.0))):
        pool = replace(candidates(*rewards), offline_rewards=offline)
        (pair,) = MixedPool(keep_sample=True).pairs(OFFLINE_PAIR, pool)
        assert pair.sample is not None and pair.sample.text == "r0"
        assert MixedPool().pairs(OFFLINE_PAIR, pool)[0].sample is None


def test_each_objective_ranks_for_itself() -> None:
    pool = replace(candidates(0.0, 0.0, 0.0), reward_vectors=((0.0, 5.0), (1.0, 3.0), (2.0, 4.0)))
    offline, first, second = OnePairPerObjective().pairs(OFFLINE_PAIR, pool)
    assert offline is OFFLINE_PAIR
    assert (first.chosen.text, first.rejected.text, first.objective, first.reward_gap) == ("r2", "r0", 0, 2.0)
    assert (second.chosen.text, second.rejected.text, second.objective) == ("r0", "r1", 1)
    flat = OnePairPerObjective().pairs(OFFLINE_PAIR, replace(pool, reward_vectors=((0.0, 1.0), (1.0, 1.0), None)))
    assert isinstance(flat, NoPair) and flat.reason.startswith("objective 1: best and worst")
    with pytest.raises(ConfigError, match="set 2 or more"):
        OnePairPerObjective(num_rewards=1)


def three_pairs_a_prompt(margins: list[float]) -> PairBatch:
    count = len(margins) // 3
    group = torch.arange(count).repeat_interleave(3)
    one = torch.ones(len(margins))
    source = torch.tensor([OFFLINE, ONLINE, ONLINE] * count)
    return PairBatch(group, group, (3 * one).long(), source, one, one, torch.tensor(margins), torch.zeros(len(one), 2))


def test_label_degrees_are_the_learners_weights_over_their_sum() -> None:
    learner = DegreeLearner()
    margins = [-3.0, 0.5, 2.0, 1.0, -8.0, 0.0]
    degrees = learner.weight(ScoredPrompts(6, torch.tensor(margins))).view(2, 3)
    expected = degrees / degrees.sum(dim=1, keepdim=True)
    batch = three_pairs_a_prompt(margins)
    torch.testing.assert_close(LabelDegrees(learner).weights(batch), expected.view(-1))


def test_degrees_are_learned_by_eq_6_over_all_pairs() -> None:
    """With D = sum_j d_j, dL/dd_i = -(l_i - sum_j d_j l_j / D) / D for one prompt; through h it is the chain rule."""
    learner = DegreeLearner(objectives=2, update_interval=1)
    learner.reset(seed=3)
    learner.observe(three_pairs_a_prompt([-3.0, 0.5, 2.0]))
    scores = learner.buffer[0]
    assert learner.buffer.shape == (1, 3)
    learner.loss(learner.buffer).backward()
    found = learner.network[2].bias.grad.item()
    d = learner.weight(ScoredPrompts(3, torch.tensor([-3.0, 0.5, 2.0])))
    mean = (d * scores).sum() / d.sum()
    assert found == pytest.approx((-(scores - mean) / d.sum() * d * (1 - d)).sum().item(), rel=1e-5)
    before = learner.network[2].bias.item()
    learner.update(lambda rows: rows)
    assert learner.updates == 1 and len(learner.buffer) == 0 and learner.network[2].bias.item() != before


def test_mixed_pool_without_fresh_responses_is_the_offline_pair() -> None:
    assert MixedPool().pairs(OFFLINE_PAIR, None) == (OFFLINE_PAIR,)
