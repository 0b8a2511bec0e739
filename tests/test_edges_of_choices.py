"""Settings of objectives, learners and selections away from their defaults, by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import tensor

from adaptpo import AlignmentConfig, AlignmentTrainer, methods
from adaptpo.choices.learners.meta_learner import MetaLearner
from adaptpo.choices.learners.reward_gap import RunningGap
from adaptpo.choices.learners.temporal.cadence import Cadence
from adaptpo.choices.objectives import CPO, DPO, KTO, SFT, DPOShift, OptimisticDPO
from adaptpo.choices.objectives.log_ratio import alpha_divergence
from adaptpo.choices.objectives.weighted_sum import WeightedSum
from adaptpo.choices.selection import ScoredPrompts, SelectLowest
from adaptpo.data.mixture import Mixture
from adaptpo.models.logps import divergence
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.phases.ppo import rollout_facts
from adaptpo.pipeline.phases.reward import reward_arguments
from adaptpo.run.directory import open_run
from adaptpo.run.files import read_rows
from adaptpo.training.ppo import PPOTokens, token_metrics
from adaptpo.training.preference_trainer import PreferenceTrainer
from adaptpo.training.rollouts import RatedPrompt
from adaptpo.types import PairLogps, Prompt, Response
from tests.test_mixture import source
from tests.tiny import save_policy


def test_cpo_with_smoothed_labels_by_hand() -> None:
    """beta 0.1 of 14 nats is a margin of 1.4, sigmoid(1.4) = 0.80218; the chosen response has 3 tokens of -2 nats."""
    tokens = tensor([3]), tensor([5])
    chosen, rejected = tensor([-6.0], requires_grad=True), tensor([-20.0], requires_grad=True)
    zero = tensor([0.0])
    pair = PairLogps(chosen, rejected, *tokens, zero, zero)
    loss = CPO(0.1, cpo_alpha=0.5, label_smoothing=0.1).loss(pair)
    slopes = torch.autograd.grad(loss.sum(), (chosen, rejected))
    p = 1 / (1 + math.exp(-1.4))
    assert loss.item() == pytest.approx(-0.9 * math.log(p) - 0.1 * math.log(1 - p) + 1.0)
    assert [slope.item() for slope in slopes] == pytest.approx([-0.1 * (0.9 - p) - 0.5 / 3, 0.1 * (0.9 - p)])


def test_a_sum_of_objectives_keeps_what_its_parts_need() -> None:
    """The second one's learner and progress, and the first one's third response."""
    both = WeightedSum((DPO(), KTO()), (1.0, 1.0))
    assert both.learners() == both.parts[1].learners() != ()
    shifting = WeightedSum((DPOShift(), SFT()), (1.0, 1.0)).at(1.0)
    assert shifting.parts[0].start == DPOShift().at(1.0).start != DPOShift().start  # type: ignore[attr-defined]
    assert methods.selm(WeightedSum((OptimisticDPO(), SFT()), (1.0, 1.0))).pairing.keep_sample  # type: ignore[attr-defined]


def test_the_look_ahead_has_the_objective_of_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """DPO-Shift is another loss at the end of the run than at its start."""
    kept = "adaptpo.training.preference_trainer.LookAhead"
    monkeypatch.setattr(kept, lambda **given: SimpleNamespace(**given))
    anything: Any = SimpleNamespace(
        method=SimpleNamespace(look_ahead=lambda: "central", objective=DPOShift()),
        progress=1.0,
        rows=SimpleNamespace(chunked_head=False),
        model=torch.nn.Linear(1, 1),
        optimizer=SimpleNamespace(optimizer=None),
        trained=[],
        args=SimpleNamespace(max_grad_norm=1.0),
        validation_batches=lambda prompts: [],
        compute_loss_context_manager=None,
        ranks=None,
        layout="",
        fillers=lambda count: [],
    )
    found: Any = PreferenceTrainer.look_ahead(anything, 4)
    assert found.losses.objective == DPOShift().at(1.0)


def test_drift_counts_in_standard_deviations() -> None:
    """The mean moves by 5.2 nats, and the scores' standard deviation is 8.5."""
    learner = MetaLearner(update_interval=1, drift=1.0)
    learner.last_mean, learner.steps = -0.8133, 1
    assert not learner.drifted(tensor([-12.0, 0.0]))
    assert learner.drifted(tensor([-12.0, -10.0]))


def test_a_running_gap_is_of_all_ranks() -> None:
    """The gaps 1 and 3 here, 8 on another rank: their mean is 4."""
    gap = RunningGap()
    gap.observe(SimpleNamespace(reward_gap=tensor([1.0, 3.0])))  # type: ignore[arg-type]
    gap.update(lambda rows: torch.cat([rows, tensor([8.0])]))
    assert gap.mean == 4


def test_quotas_and_intervals_are_rounded() -> None:
    """2.75 of 5 prompts are 3; 2.7 of 9 steps are 3."""
    prompts = ScoredPrompts(5, tensor([0.5, -1.0, 2.0, -3.0, 1.0]))
    assert SelectLowest(0.55).probability(prompts).tolist() == [1, 1, 0, 1, 0]
    assert Cadence(0.3).steps_between(9) == 3


def test_one_token_does_not_dominate_a_divergence() -> None:
    """A token that the policy has ruled out counts 10; the mean is over the pair's two tokens."""
    batch = {"reference_tokens": tensor([[-1.0], [-1.0]]), "response_mask": torch.ones(2, 1)}
    found = divergence(tensor([[-30.0], [-1.0]]), batch)
    assert found is not None and found.tolist() == [5.0]


def test_an_alpha_divergence_does_not_overflow() -> None:
    assert alpha_divergence(tensor([-200.0]), 0.5).isfinite().all()
    assert alpha_divergence(tensor([1.0]), 0.5).item() == pytest.approx(math.expm1(-0.5) / -0.5)


def test_every_data_set_is_drawn_with_its_own_seed() -> None:
    """Two sets of one size would otherwise give the same rows."""
    drawn = [
        [number for number, _ in sample.numbered()]
        for sample in Mixture([source(20, max_rows=5, name="a"), source(20, max_rows=5, name="b")]).samples(7)
    ]
    assert len(drawn[0]) == len(drawn[1]) == 5 and drawn[0] != drawn[1]


def test_metrics_of_ppo_by_hand() -> None:
    """Ratios 0.5 and 1: one of two tokens is clipped, and half the mean square of ln 2 and 0 is 0.12."""
    old, mask = tensor([[0.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool)
    zeros = torch.zeros(1, 2)
    tokens = PPOTokens(old=old, advantages=zeros, values=zeros, returns=zeros, mask=mask)
    found = token_metrics(tensor([[-math.log(2), 0.0]]), zeros[mask], zeros[mask], tokens, clip=0.2)
    assert found["policy/clipped"] == 0.5
    assert found["policy/approx_kl"] == pytest.approx(0.5 * math.log(2) ** 2 / 2)


def test_facts_of_ppos_responses_by_hand() -> None:
    """A response of -3 nats whose reference has -5: its KL (k1) is 2. Returns 3 nats above the values are the error."""
    prompt = RatedPrompt(Prompt(0, "p", [1]), [0], [Response("a", [2, 3], True)], [0.5])
    mask, zeros = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2)
    tokens = PPOTokens(old=zeros, advantages=zeros, values=zeros, returns=zeros + 3, mask=mask)
    found = rollout_facts([prompt], [[-1.0, -2.0]], [[-2.0, -3.0]], tokens)
    assert found == {"reward_mean": 0.5, "kl_mean": 2.0, "critic_error": 3.0}


@pytest.mark.parametrize(("completion", "response"), [(40, None), (20, 20)])
def test_the_shorter_limit_of_a_response_holds(completion: int, response: int | None, tmp_path: Path) -> None:
    """`max_completion_length`, or what the prompt leaves of a `max_length` of 30."""
    rows = [{"prompt": "say ", "chosen": "t" * 900, "rejected": "ice"}] * 2
    settings: dict[str, Any] = {"num_iterations": 1, "max_prompt_length": 64, "show_progress": False}
    limits = {"max_completion_length": completion, "max_length": 30}
    args = AlignmentConfig(output_dir=str(tmp_path / "run"), **settings, **limits)
    AlignmentTrainer(save_policy(tmp_path / "policy"), args, "dpo", rows).train()
    for row in read_rows(tmp_path / "run" / "data" / "offline.parquet"):
        assert len(row["chosen_ids"]) == (response or 30 - len(row["prompt_ids"]))


def test_a_reward_model_has_room_for_the_end_of_its_template(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        config = AlignmentConfig(output_dir=str(tmp_path / "run"), max_prompt_length=64, max_length=100)
        policy = save_policy(tmp_path / "policy")
        context = Context(run, config, methods.online_dpo(), policy, reward="train", data=Mixture(()))
        args = reward_arguments(context)
        assert (args.max_length, args.learning_rate, args.num_train_epochs) == (164, 1e-5, 1)
