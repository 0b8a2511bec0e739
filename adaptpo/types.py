"""What flows through a run: prompts, responses, pairs, and the prompt groups that are never torn.

`Text` is either a plain string (TRL's standard format) or a list of chat messages (conversational format).
Token lists never contain padding.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any, Literal

Message = dict[str, Any]
Text = str | list[Message]
Source = Literal["offline", "online", "mixed"]


@dataclass(frozen=True)
class PreferenceExample:
    """One row of a preference data set, before tokenization.

    `chosen` and `rejected` hold the response alone (text, or the messages that follow the shared prompt);
    `columns` holds every further column of the row and is handed to reward functions.
    """

    row: int
    prompt: Text
    chosen: Text
    rejected: Text
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Dropped:
    """An input row that was left out: its 0-based row number and the reason."""

    row: int
    reason: str


@dataclass(frozen=True)
class Prompt:
    """A prompt with its tokens, ready for generation (the chat template's generation prompt included)."""

    id: int
    text: Text
    ids: list[int]
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Response:
    """A response with its tokens. `ended`: the last token is the end of the turn, not a cut."""

    text: Text
    ids: list[int]
    ended: bool = True


@dataclass(frozen=True)
class PreferencePair:
    """Two responses to one prompt with their provenance.

    `reference_logps` are log pi_ref of (chosen, rejected) in nats, summed over response tokens; None until computed.
    `reference_tokens` are the same by token, float32, kept for methods that need them.
    `reward_gap` is the annotator's reward of chosen minus rejected, where one annotated the pair. `sample` is a fresh
    response to the prompt as it was drawn, ranked or not, where the pairing keeps one. `objective` numbers the reward
    that ranked the pair, where the annotator gives several.
    """

    prompt_id: int
    source: Source
    chosen: Response
    rejected: Response
    iteration: int = 0
    reward_gap: float | None = None
    reference_logps: tuple[float, float] | None = None
    reference_tokens: tuple[array[float], array[float]] | None = None
    sample: Response | None = None
    objective: int | None = None


@dataclass(frozen=True)
class PromptGroup:
    """One prompt with all its pairs: the unit of batching. `features` are what the learners asked for about the offline
    pair of the prompt, by name."""

    prompt: Prompt
    pairs: tuple[PreferencePair, ...]
    features: dict[str, list[float]] = field(default_factory=dict)

    @property
    def responses(self) -> list[Response]:
        """All responses of its pairs: a row of the forward pass each."""
        sides = [response for pair in self.pairs for response in (pair.chosen, pair.rejected, pair.sample)]
        return [response for response in sides if response is not None]
