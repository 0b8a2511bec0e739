"""How a run reads its rows: the same rules for training data, held-out data, and the rows that a plan counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from adaptpo.choices.method import Method
from adaptpo.config.recipe import AlignmentConfig
from adaptpo.data.examples import Numbered, PromptExample, read_pairs, read_pairs_and_prompts, read_pairs_or_prompts
from adaptpo.data.limits import PROMPT_TOO_LONG
from adaptpo.data.mixture import Sample, alternated
from adaptpo.data.pair_numbers import number_problem
from adaptpo.data.pairs import TextFormat
from adaptpo.data.problems import RowProblem
from adaptpo.data.rendered import with_words_rendered
from adaptpo.data.templates import options_of
from adaptpo.data.tokenization import TokenizedPair, prompt_tokens, tokenize_pair
from adaptpo.data.unpaired import how_to_pair
from adaptpo.errors import DataError
from adaptpo.models.loading import read_config, stop_ids_of, text_mode_of
from adaptpo.models.positions import positions_of
from adaptpo.types import Dropped, PreferenceExample, PreferencePair, Prompt, Response

Example = PreferenceExample | PromptExample
Read = Callable[[Iterator[Numbered], TextFormat], Iterator[Example | Dropped]]
Item = tuple[Prompt, PreferencePair | None]
"""A prompt, and its offline pair if the row has one."""


@dataclass(frozen=True)
class Reader:
    """Reads and tokenizes rows within a run's limits. `max_length` lies within the model's positions. Rows whose
    `needed_numbers`, the columns `weight` and `margin`, are invalid are left out; with `takes_prompts`, a row may have
    no pair."""

    tokenizer: PreTrainedTokenizerBase
    stop_ids: frozenset[int]
    max_prompt_length: int
    max_completion_length: int | None = None
    max_length: int | None = None
    template_options: dict[str, Any] = field(default_factory=dict)
    needed_numbers: tuple[str, ...] = ()
    takes_prompts: bool = False
    takes_unpaired: bool = False
    all_turns: bool = False
    method: str = ""

    @classmethod
    def of(
        cls,
        config: AlignmentConfig,
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        method: Method,
        trains_reward: bool = False,
    ) -> Reader:
        """The reader of a run with these settings and this method, which starts from this model."""
        needed = {"weight": method.weighting.needs_data_weight, "margin": trains_reward}
        return cls(
            tokenizer=tokenizer,
            stop_ids=stop_ids_of(model, tokenizer, config.options_of(model)),
            max_prompt_length=config.max_prompt_length,
            max_completion_length=config.max_completion_length,
            max_length=max_length_of(config, model),
            template_options=config.chat_template_kwargs,
            needed_numbers=tuple(name for name, is_needed in needed.items() if is_needed),
            takes_prompts=method.takes_prompts,
            takes_unpaired=method.takes_unpaired,
            all_turns=config.trained_turns == "all",
            method=method.name,
        )

    def examples(
        self, samples: Sequence[Sample], held_out: bool = False
    ) -> Iterator[tuple[str | None, Example | Dropped]]:
        """The rows of a mixture in its order, each with the name of its data set (None if there is one).

        A data set without responses is refused unless the rows are `held_out`, or the method takes prompts.
        """
        names = [sample.source.name for sample in samples]
        lengths = [len(sample) for sample in samples] if len(samples) > 1 else [0]
        read = read_pairs_or_prompts if held_out else read_pairs_and_prompts if self.takes_prompts else read_pairs
        streams = [self._of_sample(sample, read) for sample in samples]
        return ((names[number], example) for number, example in alternated(streams, lengths))

    def _of_sample(self, sample: Sample, read: Read) -> Iterator[Example | Dropped]:
        found = read(sample.numbered(), text_mode_of(self.tokenizer, sample.source.text_format))
        try:
            yield from with_words_rendered(found, self.tokenizer, self.template_options)
        except DataError as error:
            if sample.source.name is None:
                raise
            raise DataError(f"data set '{sample.source.name}': {error}") from error

    def tokenized(self, number: int, example: Example, held_out: bool = False) -> Item | Dropped:
        """The example as prompt `number` with its tokens, or the reason for leaving it out.

        Raises:
            DataError: an unpaired row that is not held out, and a method that compares two responses.
        """
        if isinstance(example, PromptExample):
            return self._prompt(number, example)
        comparable = example.absent is None or self.takes_unpaired
        if not comparable and not held_out:
            way = how_to_pair(example.columns, example.prompt)
            raise DataError(f"method '{self.method}' cannot train on row {example.row}: {way}")
        if problem := number_problem(example.columns, self.needed_numbers):
            return Dropped(example.row, problem)
        limits, options = (self.max_prompt_length, self.max_completion_length), self.template_options
        lengths = (*limits, self.stop_ids, options, self.max_length, self.all_turns)
        found = tokenize_pair(example, self.tokenizer, *lengths)
        if isinstance(found, str):
            return Dropped(example.row, found)
        prompt = Prompt(number, example.prompt, found.prompt_ids, example.columns)
        return prompt, offline_pair(number, example, found) if comparable else None

    def _prompt(self, number: int, example: PromptExample) -> Item | Dropped:
        try:
            options = options_of(example.columns, self.template_options)
            ids = prompt_tokens(self.tokenizer, example.prompt, options, self.max_prompt_length)
        except RowProblem as problem:
            return Dropped(example.row, str(problem))
        if len(ids) > self.max_prompt_length:
            return Dropped(example.row, f"{PROMPT_TOO_LONG} ({self.max_prompt_length})")
        return Prompt(number, example.prompt, ids, example.columns), None


def offline_pair(number: int, example: PreferenceExample, found: TokenizedPair) -> PreferencePair:
    """The pair of an example, without the response that an unpaired row lacks."""
    nothing = Response("", [])
    chosen = nothing if example.absent == "chosen" else found.chosen
    return PreferencePair(number, "offline", chosen, nothing if example.absent == "rejected" else found.rejected)


def max_length_of(config: AlignmentConfig, model: str) -> int | None:
    """Maximum number of tokens of prompt and response together: the run's setting, within the model's positions."""
    positions = positions_of(read_config(model, config.options_of(model)))
    return min((limit for limit in (config.max_length, positions) if limit is not None), default=None)
