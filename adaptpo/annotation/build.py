"""Builds the annotator from the settings of `reward`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any

import torch

from adaptpo.annotation.base import Annotator
from adaptpo.annotation.combined import CombinedAnnotator
from adaptpo.annotation.function import FunctionAnnotator, import_function
from adaptpo.annotation.judge import ComparingJudge, Judge, ScoringJudge
from adaptpo.annotation.pairwise_model import PairwiseModel, load_pairwise_model
from adaptpo.annotation.reward_model import RewardModelAnnotator, load_reward_model
from adaptpo.annotation.server import RewardServer, VllmRewardServer
from adaptpo.annotation.tournament import Tournament
from adaptpo.config.reward import (
    FunctionReward,
    JudgeReward,
    ModelReward,
    PairwiseReward,
    RemoteReward,
    RewardPart,
    ServerReward,
)
from adaptpo.models.loading import onto, reading_dtype
from adaptpo.remote.endpoint import Access, key_from_environment
from adaptpo.remote.store import AnswerStore

OPENAI = "https://api.openai.com/v1"


class Workplace:
    """Resources that annotators share: the device of models, the maximum number of tokens in a forward pass, the store
    of answers, the number of rewards that a method asks a single annotator for (0: one), and whether the Python code of
    a model may run."""

    def __init__(
        self,
        device: torch.device,
        max_tokens: int,
        cache: Path | None,
        num_rewards: int = 0,
        trust_remote_code: bool = False,
    ) -> None:
        self.device, self.max_tokens, self.num_rewards = device, max_tokens, num_rewards
        self.trust_remote_code = trust_remote_code
        self.store = AnswerStore(cache)


def build_annotator(parts: Sequence[RewardPart], place: Workplace) -> Annotator:
    """Builds the annotator and loads its models. Raises ModelError or ConfigError."""
    if len(parts) > 1:
        place.num_rewards = 0
    built = [(build(part, place), part.weight) for part in parts]
    alone = len(built) == 1 and built[0][1] == 1
    return built[0][0] if alone else CombinedAnnotator(built)


@singledispatch
def build(part: Any, place: Workplace) -> Annotator:
    raise TypeError(type(part).__name__)


@build.register
def _(part: ModelReward, place: Workplace) -> Annotator:
    usual = {"trust_remote_code": place.trust_remote_code, "dtype": reading_dtype(place.device)}
    model, tokenizer = load_reward_model(part.reward_model, onto(place.device, usual | part.model_init_kwargs))
    return RewardModelAnnotator(model.to(place.device), tokenizer, place.max_tokens, part.chat_template_kwargs)


@build.register
def _(part: FunctionReward, place: Workplace) -> Annotator:
    function = import_function(part.function) if isinstance(part.function, str) else part.function
    return FunctionAnnotator(function, place.num_rewards)


@build.register
def _(part: PairwiseReward, place: Workplace) -> Annotator:
    model, tokenizer = load_pairwise_model(part.pairwise)
    limits = (part.source_tokens, part.candidate_tokens)
    return Tournament(PairwiseModel(model.to(place.device), tokenizer, place.max_tokens, *limits))


@build.register
def _(part: JudgeReward, place: Workplace) -> Annotator:
    key = part.api_key_env or (None if part.base_url else "OPENAI_API_KEY")
    limits = {"temperature": part.temperature, "max_tokens": part.max_tokens}
    options = {name: value for name, value in limits.items() if value is not None} | part.options
    judge = Judge(part.judge, access(part, part.base_url or OPENAI, key), place.store, options)
    if part.mode == "score":
        return ScoringJudge(judge, part.criteria)
    return Tournament(ComparingJudge(judge, part.criteria), part.mode)


@build.register
def _(part: ServerReward, place: Workplace) -> Annotator:
    reached = access(part, part.server, part.api_key_env)
    if part.api == "vllm":
        return VllmRewardServer(reached, place.store, part.options)
    return RewardServer(reached, place.store, part.options, part.batch_size)


def access(part: RemoteReward, url: str, key_variable: str | None) -> Access:
    key = key_from_environment(key_variable)
    return Access(url, key, part.concurrency, part.retries, part.timeout)
