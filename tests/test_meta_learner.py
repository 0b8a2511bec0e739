"""MetaAPO's learner against the hand-derived gradient of Eqs. 6 and 7, and the rules of its buffer."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from adaptpo.choices.iteration import Iteration
from adaptpo.choices.learners.meta_learner import MetaLearner, new_network
from adaptpo.choices.selection import ScoredPrompts
from adaptpo.types import OFFLINE, ONLINE, PairBatch


def pair_batch(offline: list[float], online: list[float]) -> PairBatch:
    """One offline and one online pair a prompt, with these margins."""
    count = len(offline)
    group = torch.arange(count).repeat(2)
    return PairBatch(
        prompt_id=group,
        group=group,
        group_size=torch.full((2 * count,), 2),
        source=torch.tensor([OFFLINE] * count + [ONLINE] * count),
        reward_gap=torch.zeros(2 * count),
        data_weight=torch.ones(2 * count),
        margin=torch.tensor(offline + online),
        ratios=torch.zeros(2 * count, 2),
    )


def trust(learner: MetaLearner, margins: list[float]) -> torch.Tensor:
    return learner.weight(ScoredPrompts(len(margins), torch.tensor(margins)))


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def identity(rows: torch.Tensor) -> torch.Tensor:
    return rows


def test_curve_starts_near_zero_and_reaches_one_half_at_score_zero() -> None:
    learner = MetaLearner()
    weights = trust(learner, [-100.0, -5.0, 0.0, 100.0])
    assert weights[0] < 0.01
    assert torch.all(weights.diff() > 0)
    assert weights[3].item() == pytest.approx(0.5, abs=1e-6)


def test_hidden_units_differ_unless_filled_with_a_constant() -> None:
    random, constant = new_network(seed=0), new_network(seed=0, constant_fill=True)
    assert random[0].weight.mean().item() == pytest.approx(0.1, abs=0.02)
    assert (random[0].weight > 0).all() and random[0].weight.unique().numel() == 100
    assert constant[0].weight.unique().tolist() == pytest.approx([0.1])


def test_gradient_of_eq_6_by_hand() -> None:
    """With z = v . tanh(u l + a) + c and h = sigmoid(z), Eq. 7 gives for instance
    dL/dc = mean[(l_on - l_off) h (1 - h)] and dL/dv_k = mean[(l_on - l_off) h (1 - h) tanh(u_k l_off + a_k)]."""
    learner = MetaLearner()
    learner.reset(seed=4)
    scores = torch.tensor([[-0.2, -0.9], [-1.5, -0.4], [-0.7, -0.7]])
    learner.loss(scores).backward()
    u, v = learner.network[0].weight[:, 0].detach(), learner.network[2].weight[0].detach()
    bias, outputs, inputs = 0.0, torch.zeros(100), torch.zeros(100)
    for offline, online in scores.tolist():
        hidden = torch.tanh(u * offline)
        h = torch.sigmoid(v @ hidden).item()
        advantage = (online - offline) * h * (1 - h) / 3
        bias += advantage
        outputs += advantage * hidden
        inputs += advantage * v * (1 - hidden**2) * offline
    assert learner.network[2].bias.grad.item() == pytest.approx(bias, abs=1e-7)
    torch.testing.assert_close(learner.network[2].weight.grad[0], outputs, atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(learner.network[0].weight.grad[:, 0], inputs, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(("offline", "online", "direction"), [(-2.0, 2.0, -1), (2.0, -2.0, +1)])
def test_update_trusts_the_side_with_the_better_score(offline: float, online: float, direction: int) -> None:
    learner = MetaLearner(update_interval=1)
    before = trust(learner, [offline]).item()
    for _ in range(5):
        learner.observe(pair_batch([offline], [online]))
        learner.update(identity)
    after = trust(learner, [offline]).item()
    assert (after - before) * direction > 0


def test_buffer_holds_all_micro_batches_of_the_interval_and_is_emptied() -> None:
    learner = MetaLearner(update_interval=2)
    learner.observe(pair_batch([1.0], [2.0]))
    learner.observe(pair_batch([3.0, 4.0], [5.0, 6.0]))
    learner.update(identity)
    assert learner.updates == 0
    learner.observe(pair_batch([7.0], [8.0]))
    expected = [[log_sigmoid(a), log_sigmoid(b)] for a, b in ((1, 2), (3, 5), (4, 6), (7, 8))]
    torch.testing.assert_close(learner.buffer, torch.tensor(expected))
    learner.update(identity)
    assert (learner.updates, len(learner.buffer)) == (1, 0)
    assert learner.metrics()["meta/loss"] == pytest.approx(learner.last_loss)


def test_update_learns_from_the_buffers_of_all_ranks() -> None:
    """Two ranks with half of the pairs each end with the network of one process that saw all of them."""
    alone, rank = MetaLearner(update_interval=1), MetaLearner(update_interval=1)
    alone.observe(pair_batch([1.0, -2.0], [0.5, 1.0]))
    alone.update(identity)
    rank.observe(pair_batch([1.0], [0.5]))
    other = MetaLearner(update_interval=1)
    other.observe(pair_batch([-2.0], [1.0]))
    rank.update(lambda rows: torch.cat([rows, other.buffer]))
    for a, b in zip(alone.network.parameters(), rank.network.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_prompts_without_an_online_pair_are_not_learned_from() -> None:
    learner = MetaLearner(update_interval=1)
    whole = pair_batch([1.0], [2.0])
    lonely = PairBatch(
        prompt_id=whole.prompt_id[:1],
        group=whole.group[:1],
        group_size=torch.tensor([1]),
        source=whole.source[:1],
        reward_gap=whole.reward_gap[:1],
        data_weight=whole.data_weight[:1],
        margin=whole.margin[:1],
        ratios=whole.ratios[:1],
    )
    learner.observe(lonely)
    learner.update(identity)
    assert learner.updates == 0


def test_iteration_starts_with_an_empty_buffer_but_keeps_what_was_learned() -> None:
    learner = MetaLearner(update_interval=3)
    learner.observe(pair_batch([1.0], [2.0]))
    learner.update(identity)
    network = [p.clone() for p in learner.network.parameters()]
    learner.start_iteration(Iteration(1, 2))
    assert (learner.steps, len(learner.buffer)) == (0, 0)
    assert all(torch.equal(a, b) for a, b in zip(network, learner.network.parameters(), strict=True))


def test_state_survives_saving() -> None:
    learner, copy = MetaLearner(update_interval=2), MetaLearner(update_interval=2)
    copy.reset(seed=9)
    for step in range(3):
        learner.observe(pair_batch([float(step)], [1.0]))
        learner.update(identity)
    copy.load_state_dict(learner.state_dict())
    for each in (learner, copy):
        each.observe(pair_batch([0.3], [0.1]))
        each.update(identity)
    assert all(torch.equal(a, b) for a, b in zip(learner.network.parameters(), copy.network.parameters(), strict=True))


def test_unscaled_score_is_that_of_the_margin_without_beta() -> None:
    learner = MetaLearner(score_scale=1 / 0.1)
    assert learner.scores(torch.tensor([0.3])).item() == pytest.approx(log_sigmoid(3.0))


def test_five_layers_start_with_the_same_kind_of_curve() -> None:
    weights = trust(MetaLearner(layers=5), [-100.0, -5.0, 0.0, 100.0])
    assert weights[0] < 0.05
    assert torch.all(weights.diff() > 0)
    assert weights[3].item() == pytest.approx(0.5, abs=1e-6)


def test_log_ratios_are_inputs_of_their_own() -> None:
    learner = MetaLearner(features=("score", "ratios"), update_interval=1)
    margins, ratios = torch.tensor([0.5, 0.5, 0.5]), torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    weights = learner.weight(ScoredPrompts(3, margins, ratios))
    assert len(set(weights.tolist())) == 3
    batch = pair_batch([1.0, -2.0], [0.5, 1.0])
    learner.observe(replace(batch, ratios=torch.arange(8.0).view(4, 2)))
    expected = [[log_sigmoid(1.0), 0.0, 1.0, log_sigmoid(0.5)], [log_sigmoid(-2.0), 2.0, 3.0, log_sigmoid(1.0)]]
    torch.testing.assert_close(learner.buffer, torch.tensor(expected))
    learner.update(identity)
    assert learner.updates == 1
    assert not torch.equal(learner.network[0].weight, MetaLearner(features=("score", "ratios")).network[0].weight)


def test_a_frozen_learner_neither_collects_nor_learns() -> None:
    learner = MetaLearner(update_interval=1, frozen=True)
    before = trust(learner, [-1.0])
    learner.observe(pair_batch([1.0], [2.0]))
    learner.update(identity)
    assert torch.equal(trust(learner, [-1.0]), before) and learner.updates == 0


def test_the_learning_rate_is_the_length_of_the_first_step() -> None:
    learner = MetaLearner(learning_rate=0.02, update_interval=1)
    learner.reset(seed=0)
    last = list(learner.network.parameters())[-1]
    before = last.detach().clone()
    learner.observe(pair_batch([-1.0, 0.5], [1.0, 2.0]))
    learner.update(identity)
    assert (last - before).abs().item() == pytest.approx(0.02, rel=1e-3), "Adam's first step is that of the sign"


def test_an_adaptive_interval_waits_for_drift() -> None:
    learner = MetaLearner(update_interval=2, drift=0.5)

    def step(margins: list[float]) -> int:
        learner.observe(pair_batch(margins, [0.0] * len(margins)))
        learner.update(identity)
        return learner.updates

    assert [step([-1.0, 1.0]), step([-1.0, 1.0])] == [0, 1]
    assert learner.last_mean == pytest.approx((log_sigmoid(-1.0) + log_sigmoid(1.0)) / 2), "of the offline scores"
    assert [step([-1.0, 1.0]) for _ in range(7)] == [1] * 7
    assert step([-1.0, 1.0]) == 2, "after four intervals at the latest"
    assert step([-9.0, -7.0]) == 3, "the scores are far from those of the update before"
    assert len(learner.buffer) == 0
    other = MetaLearner(update_interval=2, drift=0.5)
    other.load_state_dict(learner.state_dict())
    assert other.last_mean == learner.last_mean
