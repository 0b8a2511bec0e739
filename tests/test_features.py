"""What learners are told about offline pairs: by hand, from disk to selection and training, and as a run's input."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, BertConfig, BertModel, PreTrainedModel, TrainingArguments

from adaptpo import AlignmentConfig, AlignmentTrainer, Method
from adaptpo.choices.learners.meta_learner import MetaLearner
from adaptpo.choices.learners.pair_features import GradientNorm, HiddenState, PairFeature, Similarity, standardize
from adaptpo.choices.objectives import DPO, ORPO, Objective, SimPO
from adaptpo.choices.selection import ScoredPrompts
from adaptpo.distributed.quiet import quiet_libraries
from adaptpo.errors import ConfigError, ModelError, RunError
from adaptpo.methods import METHODS
from adaptpo.models.collate import GroupCollator
from adaptpo.models.hidden_states import encode, encoder_states, policy_states
from adaptpo.models.inference import PromptedPair
from adaptpo.models.loading import load_encoder
from adaptpo.models.logps import pair_logps
from adaptpo.models.packing import PADDED, RowPacking
from adaptpo.models.shared_prompt.attention import share_prompts
from adaptpo.run.files import read_rows
from adaptpo.training.prompt_group_trainer import save_method
from adaptpo.types import PromptGroup
from tests.groups import random_groups, with_reference
from tests.runs import SETTINGS, assert_same_run, run_in_process
from tests.test_meta_learner import pair_batch
from tests.tiny import byte_tokenizer, preference_rows, save_policy, tiny_model, vowel_reward

SHARED = RowPacking(shared_prompts=True)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    quiet_libraries()
    return save_policy(tmp_path_factory.mktemp("policy"), num_hidden_layers=1)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    model = tiny_model(byte_tokenizer())
    share_prompts(model)
    return model.eval()


@pytest.fixture(scope="module")
def groups() -> list[PromptGroup]:
    offline = random_groups(5, sources=("offline",))
    return with_reference(offline, tiny_model(byte_tokenizer(), seed=1))


def items_of(groups: list[PromptGroup]) -> list[PromptedPair]:
    return [(group.prompt, group.pairs[0]) for group in groups]


def values(
    feature: PairFeature,
    model: PreTrainedModel,
    groups: list[PromptGroup],
    rows: RowPacking,
    objective: Objective,
    out: Path,
) -> torch.Tensor:
    args = TrainingArguments(output_dir=str(out), use_cpu=True)
    found = policy_states(model, 0, items_of(groups), args, rows, objective)
    return torch.stack([value for _, value in sorted((i, feature.values(pair)) for i, pair in found)])


@pytest.mark.parametrize("rows", [PADDED, SHARED], ids=["padded", "shared"])
@pytest.mark.parametrize("objective", [DPO(0.5), SimPO(), ORPO()], ids=lambda x: type(x).__name__)
def test_gradient_norm_is_that_of_a_backward_pass(
    objective: Objective, rows: RowPacking, model: PreTrainedModel, groups: list[PromptGroup], tmp_path: Path
) -> None:
    expected = []
    for group in groups:
        loss = objective.loss(pair_logps(model, GroupCollator(0)([group]))).sum()
        (gradient,) = torch.autograd.grad(loss, [model.get_output_embeddings().weight])
        expected.append([gradient.norm().log1p()])
    found = values(GradientNorm(), model, groups, rows, objective, tmp_path)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def pooled_by_hand(model: PreTrainedModel, group: PromptGroup) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of the last hidden states before each token of the chosen and of the rejected response."""
    prompt, pair = group.prompt.ids, group.pairs[0]
    pooled = []
    for response in (pair.chosen.ids, pair.rejected.ids):
        with torch.no_grad():
            states = model.model(torch.tensor([prompt + response])).last_hidden_state[0]
        pooled.append(states[len(prompt) - 1 : -1].mean(dim=0))
    return pooled[0], pooled[1]


@pytest.mark.parametrize("rows", [PADDED, SHARED], ids=["padded", "shared"])
def test_similarity_and_hidden_state_by_hand(
    rows: RowPacking, model: PreTrainedModel, groups: list[PromptGroup], tmp_path: Path
) -> None:
    pooled = [pooled_by_hand(model, group) for group in groups]
    cosines = [[(c @ r / (c.norm() * r.norm())).item()] for c, r in pooled]
    found = values(Similarity(), model, groups, rows, DPO(), tmp_path)
    torch.testing.assert_close(found, torch.tensor(cosines), rtol=1e-4, atol=1e-5)
    directions = HiddenState(3).directions(32)
    projected = torch.stack([(c - r) @ directions for c, r in pooled])
    found = values(HiddenState(3), model, groups, rows, DPO(), tmp_path)
    torch.testing.assert_close(found, projected, rtol=1e-4, atol=1e-5)


def test_directions_are_the_same_in_every_run_and_keep_lengths_on_average() -> None:
    directions = HiddenState(8).directions(512)
    assert torch.equal(directions, HiddenState(8).directions(512))
    assert directions.norm(dim=0).mean().item() == pytest.approx(1.0, abs=0.1)
    with pytest.raises(ConfigError, match=r"HiddenState\.width"):
        HiddenState(0)


def test_encoder_reads_texts_alone_however_they_are_batched(policy: str, groups: list[PromptGroup]) -> None:
    encoder, tokenizer = AutoModel.from_pretrained(policy).eval(), byte_tokenizer()
    texts = ["a", "a longer text", "x" * 600]
    found = encode(encoder, tokenizer, texts, torch.device("cpu"))
    assert [cut for _, cut in found] == [False, False, True] and len(found[2][0]) == 512
    ids = tokenizer(texts[1], return_tensors="pt")["input_ids"]
    torch.testing.assert_close(found[1][0], encoder(ids).last_hidden_state[0], rtol=1e-4, atol=1e-5)
    pair = replace(groups[0].pairs[0], chosen=replace(groups[0].pairs[0].chosen, text="the same"))
    pair = replace(pair, rejected=replace(pair.rejected, text=[{"role": "assistant", "content": "the same"}]))
    ((_, states),) = encoder_states(encoder, tokenizer, [(groups[0].prompt, pair)], torch.device("cpu"))
    assert Similarity().values(states).item() == pytest.approx(1.0, abs=1e-5)


def test_encoders_need_no_end_of_sequence_token_and_all_their_weights(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(chat=False)
    tokenizer.eos_token = None
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertModel(BertConfig(vocab_size=len(tokenizer), **sizes), add_pooling_layer=False)
    bert.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder, loaded = load_encoder(str(tmp_path))
    found = encode(encoder, loaded, ["short", "a longer text"], torch.device("cpu"))
    alone = encode(encoder, loaded, ["short"], torch.device("cpu"))
    torch.testing.assert_close(found[0][0], alone[0][0], rtol=1e-4, atol=1e-5)
    save_file({"nothing": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="give one with all its weights"):
        load_encoder(str(tmp_path))


def test_standardized_values_have_mean_0_and_deviation_1() -> None:
    found = standardize(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert found.tolist() == [[-1.0, 0.0], [1.0, 0.0]]


# --- in the learner --------------------------------------------------------------------------------------------------


def test_features_are_inputs_of_the_learner_and_rows_of_its_buffer() -> None:
    learner = MetaLearner(update_interval=1, pair_features=(Similarity(), HiddenState(2)))
    assert learner.inputs == 4
    features = {"similarity": torch.tensor([[0.0], [9.0]]), "hidden_state": torch.tensor([[0.0, 0.0], [0.0, 0.0]])}
    one, other = learner.weight(ScoredPrompts(2, torch.tensor([0.5, 0.5]), features=features)).tolist()
    assert one != other
    known = {"similarity": torch.tensor([[0.3], [0.3]]), "hidden_state": torch.tensor([[1.0, 2.0]] * 2)}
    learner.observe(replace(pair_batch([1.0], [0.5]), features=known))
    assert learner.buffer[0, 1:4].tolist() == pytest.approx([0.3, 1.0, 2.0])


def test_two_features_of_one_name_are_refused() -> None:
    method = METHODS["metaapo_hidden_state"]()
    other = METHODS["metaapo_hidden_state"](dimensions=2)
    with pytest.raises(ConfigError, match="let them share one"):
        replace(method, weighting=other.weighting).features()


# --- in a run --------------------------------------------------------------------------------------------------------


def align(policy: str, out: Path, method: Method, **settings: Any) -> Path:
    return AlignmentTrainer(
        model=policy,
        args=AlignmentConfig(output_dir=str(out), **(SETTINGS | {"warmup_epochs": 0} | settings)),
        method=method,
        train_dataset=preference_rows(10),
        reward_funcs=vowel_reward,
    ).train()


def kept(folder: Path) -> dict[int, list[float]]:
    return {row["prompt_id"]: row["values"] for path in sorted(folder.glob("*.parquet")) for row in read_rows(path)}


def test_an_encoder_is_read_once_and_belongs_to_the_run(policy: str, tmp_path: Path) -> None:
    encoder = save_policy(tmp_path / "encoder", seed=7)
    method = METHODS["metaapo_semantic"](num_generations=3, encoder=encoder)
    align(policy, tmp_path / "run", method)
    found = kept(tmp_path / "run" / "features" / "similarity")
    assert sorted(found) == list(range(10)) and all(-1 <= value <= 1 for (value,) in found.values())
    assert len({value for (value,) in found.values()}) > 1
    shutil.move(encoder, tmp_path / "moved")
    moved = METHODS["metaapo_semantic"](num_generations=3, encoder=str(tmp_path / "moved"))
    align(policy, tmp_path / "run", moved)
    other = METHODS["metaapo_semantic"](num_generations=3, encoder=policy)
    with pytest.raises(RunError, match=r"inputs\.similarity"):
        align(policy, tmp_path / "run", other)


def test_features_of_the_policy_are_those_of_each_iteration(policy: str, tmp_path: Path) -> None:
    align(policy, tmp_path / "run", METHODS["metaapo_hidden_state"](num_generations=3, dimensions=2))
    parts = [kept(tmp_path / "run" / "iterations" / str(i) / "features" / "hidden_state") for i in (0, 1)]
    assert [sorted(part) for part in parts] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert all(len(value) == 2 for part in parts for value in part.values())


@pytest.mark.engines
def test_features_resume_between_their_shards(policy: str, tmp_path: Path) -> None:
    arguments = {"model": policy, "method": "metaapo_hidden_state", "rows": 20, "reward": vowel_reward}
    assert run_in_process(out=tmp_path / "straight", **arguments) == 0
    assert run_in_process("file:1/features/hidden_state/00001", out=tmp_path / "killed", **arguments) == -9
    assert run_in_process(out=tmp_path / "killed", **arguments) == 0
    assert_same_run(tmp_path / "straight", tmp_path / "killed")


# --- a learner that an earlier run trained ---------------------------------------------------------------------------


def saved_learner(folder: Path, method: Method, seed: int = 5) -> Path:
    folder.mkdir(parents=True)
    method.reset(seed)
    save_method(method, folder)
    return folder


def network(folder: Path) -> dict[str, torch.Tensor]:
    (state,) = torch.load(folder / "method.pt")["learners"]
    return state["network"]


def test_a_fixed_learner_is_that_of_the_earlier_runs_last_checkpoint(policy: str, tmp_path: Path) -> None:
    for iteration in (0, 2, 10):
        saved_learner(tmp_path / f"earlier/iterations/{iteration}/checkpoint", METHODS["metaapo"](), seed=iteration)
    last = tmp_path / "earlier/iterations/10/checkpoint"
    for number, given in enumerate((tmp_path / "earlier", last)):
        (learner,) = METHODS["metaapo_fixed"](learner=str(given)).learners()
        learner.reset(seed=number)
        assert all(torch.equal(tensor, network(last)[name]) for name, tensor in learner.network.state_dict().items())
    method = METHODS["metaapo_fixed"](num_generations=3, learner=str(tmp_path / "earlier"))
    align(policy, tmp_path / "run", method)
    after = network(tmp_path / "run/iterations/1/checkpoint")
    assert all(torch.equal(tensor, network(last)[name]) for name, tensor in after.items())
    saved_learner(tmp_path / "another", METHODS["metaapo"]())
    other = METHODS["metaapo_fixed"](num_generations=3, learner=str(tmp_path / "another"))
    with pytest.raises(RunError, match=r"inputs\.learner"):
        align(policy, tmp_path / "run", other)


@pytest.mark.parametrize(
    ("trained", "message"),
    [(None, "no trained learner"), ("dpo", "0 meta-learners"), ("metaapo_deep", "other inputs or layers")],
)
def test_folders_without_a_fitting_learner_are_refused(trained: str | None, message: str, tmp_path: Path) -> None:
    if trained is not None:
        saved_learner(tmp_path / "earlier", METHODS[trained]())
    with pytest.raises(ConfigError, match=message):
        METHODS["metaapo_fixed"](learner=str(tmp_path / "earlier"))
