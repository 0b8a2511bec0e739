"""What the run's reward models make of its prompts, known from their tokenizers before anything is spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from adaptpo.annotation.reward_model import scored_text
from adaptpo.config.reward import ModelReward, RewardPart, reward_parts
from adaptpo.data.conversation import joined
from adaptpo.data.problems import RowProblem
from adaptpo.data.rendered import TemplateProbes, left_out
from adaptpo.data.templates import TemplateOptions, options_of
from adaptpo.models.loading import stored_tokenizer
from adaptpo.pipeline.context import Context
from adaptpo.run.progress import say
from adaptpo.types import Prompt, Text

ANSWER = "an answer"
Reader = tuple[PreTrainedTokenizerBase, TemplateOptions]


@dataclass
class RewardReading:
    """The tokenizers of the run's reward models, with their template arguments. `lost`: numbers of prompts of which a
    template leaves something out, by what that is."""

    readers: Sequence[Reader]

    def __post_init__(self) -> None:
        self.probes = [TemplateProbes(*reader) for reader in self.readers]
        self.lost: Counter[str] = Counter()

    @classmethod
    def of(cls, context: Context) -> RewardReading:
        """Has no readers if the run needs no reward model, or trains one, which has the policy's template."""
        if context.reward in (None, "train") or not context.annotates:
            return cls([])
        return cls.of_parts(reward_parts(context.reward), context.config.trusts_code)

    @classmethod
    def of_parts(cls, parts: Sequence[RewardPart], trust_remote_code: bool) -> RewardReading:
        options = {"trust_remote_code": trust_remote_code}
        models = [part for part in parts if isinstance(part, ModelReward)]
        return cls([(stored_tokenizer(part.reward_model, options), part.chat_template_kwargs) for part in models])

    def problem(self, prompt: Prompt) -> str | None:
        """Why a reward model cannot read responses to this prompt. Raises ModelError if it cannot read any."""
        if isinstance(prompt.text, str):
            return None
        conversation = joined(prompt.text, [{"role": "assistant", "content": ANSWER}])
        try:
            for (tokenizer, options), probes in zip(self.readers, self.probes, strict=True):
                scored_text(tokenizer, conversation, options_of(prompt.columns, options))
                self.lost.update(probes.lost(prompt.text, [], prompt.columns))
        except RowProblem as problem:
            return f"the reward model cannot read it: {problem}"
        return None

    def lost_of(self, prompt: Prompt, response: Text) -> set[str]:
        """What the templates leave out of a prompt with a response to it."""
        turns = [] if isinstance(response, str) else response
        return {what for probes in self.probes for what in probes.lost(prompt.text, turns, prompt.columns)}

    def announce(self, shows: bool) -> None:
        """Says what the reward models do not see."""
        for what, count in self.lost.items():
            say(f"warning: the reward model judges {count} prompts in part: {left_out(what)}", shows)
