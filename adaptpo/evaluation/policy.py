"""A model that answers questions, without a run: on any generation engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from adaptpo.config.recipe import GenerationSettings
from adaptpo.data.templates import TemplateOptions, options_of
from adaptpo.data.tokenization import tokenize_prompt
from adaptpo.distributed.device import fastest_device
from adaptpo.errors import ConfigError
from adaptpo.generation.agreement import Expected, expected_answers
from adaptpo.generation.base import Generator, Sampling
from adaptpo.generation.build import access, check_server, started_server
from adaptpo.generation.dialects import DIALECTS
from adaptpo.generation.process import RunningServer, Server
from adaptpo.generation.server import ServerGenerator
from adaptpo.generation.transformers_engine import TransformersGenerator
from adaptpo.models.loading import is_adapter, load_causal_lm, load_tokenizer, read_config, stop_ids_of
from adaptpo.models.positions import positions_of
from adaptpo.remote.usage import Usage
from adaptpo.types import Message, Prompt

LONGEST_PROMPT = 8192
"""Tokens that a started server takes beside a response, if the model has positions for so many."""


@dataclass
class Policy:
    """`path`: folder or hub id; `log`: where a started server writes; `template_options`: arguments of the chat
    template; `too_long`: how many prompts had no room. Weights and server are there once they are needed, and until
    `close`."""

    path: str
    settings: GenerationSettings
    log: Path
    template_options: TemplateOptions = field(default_factory=dict)
    usage: Usage = field(default_factory=Counter)
    server: Server | None = None
    too_long: int = 0

    def check(self) -> None:
        """Raises ConfigError for what no engine or template could do, before anything is loaded."""
        options_of({}, self.template_options)
        if self.positions is not None and self.settings.max_new_tokens >= self.positions:
            raise ConfigError(
                f"max_new_tokens is {self.settings.max_new_tokens}, and '{self.path}' has {self.positions} positions "
                "for prompt and response together; lower it with --generation '{max_new_tokens: ...}'"
            )
        if self.settings.engine == "transformers":
            return
        if is_adapter(self.path):
            raise ConfigError(f"'{self.path}' is an adapter, and servers take whole models; merge it into its model")
        check_server(self.settings, self.settings.top_k)

    @cached_property
    def positions(self) -> int | None:
        """How many tokens of prompt and response the model can read; None if its configuration does not say."""
        return positions_of(read_config(self.path))

    def has_room(self, prompt: Prompt) -> bool:
        """Whether the model has positions for the prompt and the longest response."""
        return self.positions is None or len(prompt.ids) + self.settings.max_new_tokens <= self.positions

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.path)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        return stop_ids_of(self.path, self.tokenizer)

    @cached_property
    def model(self) -> nn.Module:
        return load_causal_lm(self.path, {"dtype": "auto"}).to(fastest_device()).eval()

    def prompt(self, number: int, messages: list[Message]) -> Prompt:
        """Raises ModelError for a model without a chat template."""
        return Prompt(number, messages, tokenize_prompt(self.tokenizer, messages, self.template_options))

    def sampling(self, temperature: float | None) -> Sampling:
        """That of the settings; `temperature` replaces theirs where the suite fixes it."""
        settings = self.settings
        chosen = Sampling(settings.temperature, settings.top_p, settings.top_k, settings.max_new_tokens, self.stop_ids)
        return chosen if temperature is None else replace(chosen, temperature=temperature)

    def generator(self, sampling: Sampling) -> Generator:
        if self.settings.engine == "transformers":
            batch, memory = self.settings.batch_size, self.settings.memory
            return TransformersGenerator(self.model, self.tokenizer, sampling, batch_size=batch, memory=memory)
        made = ServerGenerator(
            opening=self._opened,
            expect=partial(self._expected, sampling),
            reach=partial(access, self.settings),
            dialect=DIALECTS[self.settings.spoken],
            tokenizer=self.tokenizer,
            sampling=sampling,
            folder=self.path,
            usage=self.usage,
        )
        made.server = self.server  # One that runs has shown by its first generator that it serves this model.
        return made

    def _expected(self, sampling: Sampling, prompts: Sequence[Prompt]) -> list[Expected]:
        dtype = next(self.model.parameters()).dtype
        return expected_answers(self.model, self.tokenizer, prompts, sampling, torch.inference_mode, dtype)

    def _opened(self) -> Server:
        """One server for all samplings."""
        if self.server is None:
            self.server = self._start()
        return self.server

    def _start(self) -> Server:
        settings = self.settings
        if settings.base_url is not None:
            return RunningServer(settings.base_url, settings.served_model or self.path)
        dtype = next(self.model.parameters()).dtype
        self._free_memory()
        length = LONGEST_PROMPT + settings.max_new_tokens
        return started_server(settings, self.path, self.log, dtype, min(length, self.positions or length))

    def _free_memory(self) -> None:
        """The server needs the accelerator for itself."""
        self.__dict__.pop("model", None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def close(self) -> None:
        if self.server is not None:
            self.server.stop()
            self.server = None
