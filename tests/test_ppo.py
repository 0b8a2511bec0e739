"""PPO: its mathematics by hand, its gradient as an identity, its critic, and whole runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import TrainingArguments

from adaptpo import AlignmentConfig, AlignmentTrainer, methods
from adaptpo.choices.policy_update import PPO
from adaptpo.distributed.quiet import quiet_libraries
from adaptpo.errors import ConfigError
from adaptpo.models.logps import token_logps
from adaptpo.models.packing import PADDED, RowPacking
from adaptpo.models.shared_prompt.attention import share_prompts
from adaptpo.pipeline.phases import ppo as phase
from adaptpo.report.reading import RunData
from adaptpo.report.tables import iteration_counts
from adaptpo.run.files import read_rows
from adaptpo.training.actor_critic import CRITIC, ActorCritic, Critic
from adaptpo.training.ppo import (
    PPOTokens,
    generalized_advantages,
    policy_losses,
    ppo_loss,
    token_rewards,
    value_losses,
    whiten,
)
from adaptpo.training.ppo_trainer import PPOTrainer
from adaptpo.training.rollouts import (
    RatedPrompt,
    RolloutCollator,
    answer_batch,
    batch_tokens,
    evaluate_tokens,
    ppo_tokens,
    rollout_groups,
    scores,
)
from adaptpo.types import Prompt, Response
from tests.runs import SETTINGS, assert_same_run, run_in_process, weights
from tests.tiny import byte_tokenizer, preference_rows, save_policy, tiny_model, vowel_reward

FULL = torch.ones(1, 3, dtype=torch.bool)
RATED = [
    RatedPrompt(Prompt(0, "", [7, 8, 9]), [0, 2], [Response("", [11, 12, 13]), Response("", [14], False)], [1.0, -2.0]),
    RatedPrompt(Prompt(1, "", [10]), [0, 1], [Response("", [15, 16]), Response("", [17, 18, 19, 20])], [0.5, 3.0]),
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"), num_hidden_layers=1)


@pytest.fixture(autouse=True)
def quiet() -> None:
    quiet_libraries()


def test_kl_is_paid_at_every_token_and_the_score_comes_at_the_last() -> None:
    old, reference = torch.tensor([[-1.0, -2.0, 0.0]]), torch.tensor([[-1.5, -1.0, 0.0]])
    mask = torch.tensor([[True, True, False]])
    rewards = token_rewards(torch.tensor([2.0]), old, reference, mask, kl_coef=0.1)
    # -0.1 * (-1 + 1.5), and -0.1 * (-2 + 1) + 2.
    assert_close(rewards, torch.tensor([[-0.05, 2.1, 0.0]]))


def test_advantages_of_three_steps_by_hand() -> None:
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.4, 0.2]])
    found = generalized_advantages(rewards, values, FULL, gamma=0.9, gae_lambda=0.5)
    # delta: 0.9 * 0.4 - 0.5 = -0.14, 0.9 * 0.2 - 0.4 = -0.22, 1 - 0.2 = 0.8; each takes 0.45 of the next advantage.
    assert_close(found, torch.tensor([[-0.14 + 0.45 * 0.14, -0.22 + 0.45 * 0.8, 0.8]]))


def test_advantages_with_lambda_1_are_returns_less_values_and_padding_does_not_matter() -> None:
    torch.manual_seed(0)
    rewards, values = torch.randn(1, 3), torch.randn(1, 3)
    found = generalized_advantages(rewards, values, FULL, gamma=1.0, gae_lambda=1.0)
    assert_close(found, rewards.flip(1).cumsum(1).flip(1) - values)
    wide = [torch.nn.functional.pad(tensor, (0, 2)) for tensor in (rewards, values, FULL)]
    padded = generalized_advantages(*wide, gamma=1.0, gae_lambda=1.0)
    assert_close(padded, torch.nn.functional.pad(found, (0, 2)))


def test_whitening_sees_real_tokens_alone() -> None:
    mask = torch.tensor([[True, False], [True, False]])
    assert_close(whiten(torch.tensor([[1.0, 100.0], [3.0, -5.0]]), mask), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    assert torch.equal(whiten(torch.full((2, 2), 4.0), mask), torch.zeros(2, 2))


def test_clipped_policy_loss_by_hand() -> None:
    ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.1]])
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0, 2.0]])
    found = policy_losses(ratio.log(), torch.zeros(1, 5), advantages, clip=0.2)
    assert_close(found, torch.tensor([[-1.2, 1.5, -0.5, 0.8, -2.2]]))


def test_clipped_value_loss_by_hand() -> None:
    values, old, returns = torch.tensor([[1.0, 0.1, 3.0]]), torch.zeros(1, 3), torch.full((1, 3), 2.0)
    # 0.5 * max(error^2, error of the value within 0.2 of the old one ^2).
    assert_close(value_losses(values, old, returns, clip=0.2), torch.tensor([[1.62, 1.805, 1.62]]))


def one_step(values: list[float], returns: list[float], log_ratio: float, settings: PPO) -> float:
    """The loss of tokens with advantage 1 and old value 0."""
    tokens = torch.zeros(1, len(values))
    held = PPOTokens(tokens, tokens + 1, tokens, torch.tensor([returns]), tokens == 0)
    return ppo_loss(tokens + log_ratio, torch.tensor([values]), held, settings)[0].item()


def test_each_setting_of_the_loss_has_its_place() -> None:
    assert one_step([1.0, 1.0], [0.0, 0.0], 0.0, PPO(value_coef=0.1)) == pytest.approx(-2 + 0.1 * 2 * 0.5)
    # The ratio 1.4 is clipped to 1.1; the value 1 to 0.5, which is further from the return.
    clipped = PPO(clip=0.1, value_clip=0.5, value_coef=1.0)
    assert one_step([1.0], [2.0], math.log(1.4), clipped) == pytest.approx(-1.1 + 0.5 * 1.5**2)


def test_a_step_is_divided_by_its_tokens() -> None:
    batch = prepared(tiny_model(byte_tokenizer(), seed=2), PPO())
    assert PPOTrainer.count(None, batch) == 3 + 1 + 2 + 4  # type: ignore[arg-type]


def test_rewards_stay_with_their_responses_where_one_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, responses = Prompt(0, "", [1]), [Response("a", [1]), Response("b", [2])]
    rated = SimpleNamespace(responses=responses, rewards=[None, 1.0])
    monkeypatch.setattr(phase, "selected_ids", lambda *_: [0])
    monkeypatch.setattr(phase, "read_candidates", lambda *_: [rated])
    context = SimpleNamespace(prompts_of=lambda ids: [prompt for _ in ids])
    assert phase.rated_prompts(context, 0) == [RatedPrompt(prompt, [1], [responses[1]], [1.0])]  # type: ignore[arg-type]


def test_penalty_for_cut_responses() -> None:
    assert_close(scores(RATED, cut_penalty=0.0), torch.tensor([1.0, -2.0, 0.5, 3.0]))
    assert_close(scores(RATED, cut_penalty=5.0), torch.tensor([1.0, -7.0, 0.5, 3.0]))


def prepared(model: Any, settings: PPO, rows: RowPacking = PADDED) -> dict[str, Any]:
    """The batch of all rollouts of `RATED`, whose reference is another model."""
    tokenizer = byte_tokenizer()
    critic = Critic(tiny_model(tokenizer, seed=3))
    other = tiny_model(tokenizer, seed=5)
    arguments = TrainingArguments(use_cpu=True)
    found = [
        [line for lines in evaluate_tokens(RATED, compute, 0, arguments, PADDED) for line in lines]
        for compute in (lambda b: token_logps(model, b), lambda b: token_logps(other, b), critic)
    ]
    return RolloutCollator(0, rows)(rollout_groups(RATED, ppo_tokens(RATED, *found, settings)))


def test_first_gradient_is_the_policy_gradient() -> None:
    """At ratio 1 no clip holds: the gradient is that of `-mean(A * log pi)`, whatever the epsilon."""
    model = tiny_model(byte_tokenizer(), seed=2)
    settings = PPO(value_coef=0.0, clip=0.01)
    batch = prepared(model, settings)
    tokens = batch_tokens(batch)
    loss, metrics = ppo_loss(token_logps(model, batch), tokens.values, tokens, settings)
    loss.backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    (-(tokens.advantages * token_logps(model, batch)).sum()).backward()
    assert metrics["policy/clipped"] == 0 and any(gradient.abs().max() > 1e-2 for gradient in found)
    for one, other in zip(found, model.parameters(), strict=True):
        assert_close(one, other.grad, atol=1e-6, rtol=1e-4)


def test_returns_are_advantages_before_whitening_plus_values() -> None:
    lines = [[0.0] * len(response.ids) for rated in RATED for response in rated.responses]
    tokens = ppo_tokens(RATED, lines, lines, lines, PPO(gamma=1.0, gae_lambda=1.0))
    rewards = torch.tensor([1.0, -2.0, 0.5, 3.0])
    assert_close(tokens.returns, rewards[:, None] * tokens.mask)
    assert_close(tokens.advantages[tokens.mask].mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert_close(tokens.advantages[tokens.mask].std(correction=0), torch.tensor(1.0))


def returns(ended: bool = True, value: float = 0.0, **settings: float) -> list[float]:
    """Those of a response of two tokens and reward 1, whose policy and reference differ by 0.5 and -1 nats. `value`:
    the critic's before the second token."""
    rated = [RatedPrompt(Prompt(0, "", [1]), [0], [Response("", [1, 2], ended)], [1.0])]
    plain = {"kl_coef": 0.0, "gamma": 1.0, "gae_lambda": 1.0} | settings
    tokens = ppo_tokens(rated, [[-1.0, -2.0]], [[-1.5, -1.0]], [[0.0, value]], PPO(**plain))
    return [round(value, 5) for value in tokens.returns[0].tolist()]


def test_returns_of_an_iteration_by_hand() -> None:
    """KL is paid where the policy is above its reference, gamma discounts, lambda mixes in the critic, a cut costs."""
    assert returns() == [1.0, 1.0]
    assert returns(kl_coef=0.1) == [1.0 + 0.1 - 0.05, 1.0 + 0.1]
    assert returns(gamma=0.5) == [0.5, 1.0]
    assert returns(value=2.0, gae_lambda=0.5) == [2.0 - 0.5, 1.0]
    assert returns(value=2.0, gamma=0.5) == [0.5 * (2.0 - 1.0), 1.0]
    assert returns(ended=False, cut_penalty=3.0) == [-2.0, -2.0] and returns(cut_penalty=3.0) == [1.0, 1.0]


def test_the_critic_alone_has_the_critics_learning_rate(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    policy = tiny_model(tokenizer)
    for own, expected in ((None, 0.01), (0.5, 0.5)):
        model = ActorCritic(policy, Critic(tiny_model(tokenizer, seed=3)))
        args = TrainingArguments(output_dir=str(tmp_path), learning_rate=1e-3, use_cpu=True, report_to="none")
        trainer = PPOTrainer(
            model=model,
            args=args,
            groups=[],
            tokenizer=tokenizer,
            method=methods.ppo(),
            settings=PPO(critic_learning_rate=own),
            log=print,
        )
        groups = trainer.create_optimizer().param_groups
        rates = {id(weight): group["lr"] for group in groups for weight in group["params"]}
        critic = {rates[id(weight)] for weight in model.critic.parameters() if id(weight) in rates}
        actor = {rates[id(weight)] for weight in model.policy.parameters() if id(weight) in rates}
        assert (actor, critic) == ({1e-3}, {expected})


def critic_with_a_head() -> Critic:
    critic = Critic(tiny_model(byte_tokenizer(), seed=3))
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    return critic.eval()


@pytest.mark.parametrize("shared", [False, True])
def test_values_are_those_of_the_state_before_each_token(shared: bool) -> None:
    critic = critic_with_a_head()
    if shared:
        assert share_prompts(critic.model)
    rows = RowPacking(shared_prompts=shared)
    values = critic(answer_batch(RATED, 0, rows))
    alone = critic_with_a_head()
    expected = []
    for rated in RATED:
        for response in rated.responses:
            ids = torch.tensor([[*rated.prompt.ids, *response.ids]])
            hidden = alone.model(ids, output_hidden_states=True).hidden_states[-1][0]
            expected.append(alone.head(hidden)[len(rated.prompt.ids) - 1 : -1, 0])
    assert_close(values, torch.nn.utils.rnn.pad_sequence(expected, batch_first=True), atol=1e-4, rtol=1e-4)


def test_value_loss_leaves_the_policy_alone() -> None:
    model, critic = tiny_model(byte_tokenizer(), seed=2), critic_with_a_head()
    batch = prepared(model, PPO())
    tokens = batch_tokens(batch)
    logps, values = ActorCritic(model, critic)(batch)
    still = PPOTokens(tokens.old, torch.zeros_like(tokens.advantages), tokens.values, tokens.returns, tokens.mask)
    ppo_loss(logps, values, still, PPO())[0].backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
    assert critic.head.weight.grad is not None and critic.head.weight.grad.any()


def even_share(prompts: list, completions: list, completion_ids: list, **columns: Any) -> list[float]:
    """The share of tokens with an even id."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def align(policy: str, out: Path, method: Any, rows: int, reward: Any = vowel_reward, **settings: Any) -> Path:
    arguments = SETTINGS | settings
    return AlignmentTrainer(
        policy, AlignmentConfig(output_dir=str(out), **arguments), method, preference_rows(rows), reward
    ).train()


def rewards_of(out: Path, iteration: int) -> list[float]:
    folder = out / "iterations" / str(iteration) / "annotations"
    return [row["reward"] for path in sorted(folder.glob("*.parquet")) for row in read_rows(path)]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ppo", {"kl_coef": 0.0, "epochs": 2, "critic_learning_rate": 1e-2}),
        ("grpo", {"beta": 0.0}),
        ("rloo", {"beta": 0.0}),
    ],
)
def test_reward_rises(name: str, settings: dict[str, Any], policy: str, tmp_path: Path) -> None:
    training = {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "lr_scheduler_type": "constant"}
    method = methods.METHODS[name](**settings, num_generations=8)
    align(policy, tmp_path / "run", method, 36, even_share, num_iterations=3, training=training)
    first, last = (fmean(rewards_of(tmp_path / "run", iteration)) for iteration in (0, 2))
    assert last > first + 0.07


@pytest.fixture(scope="module")
def straight(policy: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run of a method that nobody killed, made once."""

    @cache
    def run(name: str) -> Path:
        out = tmp_path_factory.mktemp("straight") / name
        assert run_in_process(model=policy, method=name, rows=24, reward=vowel_reward, out=out) == 0
        return out

    return run


@pytest.mark.engines
@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("ppo", ["file:1/rollouts/reference/00001.parquet", "saved:iterations/1:2"]),
        ("grpo", ["saved:iterations/1:2"]),
    ],
)
def test_killed_in_the_middle_ends_the_same(
    name: str, points: list[str], policy: str, straight: Callable[[str], Path], tmp_path: Path
) -> None:
    killed: dict[str, Any] = {"model": policy, "method": name, "rows": 24, "reward": vowel_reward}
    killed["out"] = tmp_path / "run"
    for point in points:
        assert run_in_process(point, **killed) == -9, point
    assert run_in_process(**killed) == 0
    assert_same_run(straight(name), tmp_path / "run")


def test_critic_goes_on_and_is_no_part_of_the_aligned_model(policy: str, tmp_path: Path) -> None:
    final = align(policy, tmp_path / "run", methods.ppo(num_generations=2), 8)
    heads = [
        torch.load(tmp_path / "run" / "iterations" / str(i) / "checkpoint" / CRITIC / "value_head.pt")["weight"]
        for i in (0, 1)
    ]
    assert heads[0].any() and not torch.equal(*heads)
    assert not (final / CRITIC).exists() and weights(final).keys() == weights(Path(policy)).keys()


def test_epochs_of_ppo_are_passes_over_its_rollouts(policy: str, tmp_path: Path) -> None:
    steps = []
    for epochs in (1, 3):
        out = tmp_path / f"{epochs}"
        align(policy, out, methods.ppo(num_generations=2, epochs=epochs), 8, num_iterations=1)
        steps.append(RunData.open(out).phases["iterations/0/train"]["steps"])
    assert steps[0] > 0 and steps[1] == 3 * steps[0]


def test_one_response_a_prompt_and_rewards_that_are_missing(policy: str, tmp_path: Path) -> None:
    def every_other(prompts: list, completions: list, **columns: Any) -> list[float | None]:
        return [None if i % 2 else 1.0 * i for i in range(len(prompts))]

    align(policy, tmp_path / "run", methods.ppo(num_generations=1), 8, every_other, num_iterations=1)
    run = RunData.open(tmp_path / "run")
    assert run.phases["iterations/0/train"]["rollouts"] == 4
    assert (iteration_counts(run, 0).responses, iteration_counts(run, 0).invalid) == (8, 4)


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_trl_responses_are_counted_and_prompts_left_out_recorded(name: str, policy: str, tmp_path: Path) -> None:
    align(policy, tmp_path / "run", methods.METHODS[name](num_generations=2), 10, num_iterations=1)
    run = RunData.open(tmp_path / "run")
    counts = iteration_counts(run, 0)
    assert (counts.prompts, counts.generated_for, counts.responses, counts.annotated) == (10, 8, 16, 16)
    assert [line["prompt_id"] for line in run.dropped] == [8, 9]
    assert {line["step"] for line in run.metrics if line["phase"] == "iterations/0/train"} == {1, 2}


def test_sampling_that_ppo_cannot_account_for_is_refused(policy: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="temperature to 1"):
        align(policy, tmp_path / "run", methods.ppo(), 4, generation={"temperature": 0.7})


@pytest.mark.parametrize(
    ("values", "problem"),
    [({"gae_lambda": 1.5}, "ppo.gae_lambda"), ({"epochs": 0}, "ppo.epochs"), ({"kl_coef": -1.0}, "ppo.kl_coef")],
)
def test_settings_that_cannot_be(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        methods.ppo(**values)


def test_a_group_of_one_has_no_baseline() -> None:
    with pytest.raises(ConfigError, match="num_generations is 1"):
        methods.grpo(num_generations=1)
