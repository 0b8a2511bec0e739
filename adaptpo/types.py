"""What flows through a run: prompts, responses, pairs, and the prompt groups that are never torn.

`Text` is either a plain string (TRL's standard format) or a list of chat messages (conversational format).
Token lists never contain padding.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from adaptpo.errors import TrainingError

if TYPE_CHECKING:  # Readers of data and reports need no torch.
    from torch import Tensor


Row = dict[str, Any]
"""A row of a data set or of a file of the run: values by column."""

Message = dict[str, Any]
Text = str | list[Message]
Source = Literal["offline", "online", "mixed"]
SOURCES = ("offline", "online", "mixed")
OFFLINE, ONLINE, MIXED = range(3)
"""Their numbers in `PairBatch.source`."""


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


@dataclass(frozen=True)
class PairBatch:
    """Detached facts about the n pairs of a micro-batch of whole prompt groups; every tensor has shape [n].

    `group` numbers the prompt groups of the micro-batch from 0; `group_size` is how many pairs the pair's prompt has
    in all; `reward_gap` is NaN where nobody annotated the pair; `data_weight` is the row's column `weight`, or 1;
    `ratios` [n, 2] are log pi / pi_ref of chosen and rejected in nats (log pi without a reference); `features` hold, by
    name, the [n, width] that learners asked for about the offline pair of each pair's prompt; `divergence` is that of
    `PairLogps`, None where the run keeps no reference log-probs of tokens, or the exact one for a weighting that
    measures it; `head_gradient_norm` is `log(1 + norm)` of the gradient of the pair's loss by the weight of the
    language-model head, None where the weighting does not measure it.

    Raises TrainingError if a group is torn: its weights would no longer be shares of one prompt.
    """

    prompt_id: Tensor
    group: Tensor
    group_size: Tensor
    source: Tensor
    reward_gap: Tensor
    data_weight: Tensor
    margin: Tensor
    ratios: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)
    divergence: Tensor | None = None
    head_gradient_norm: Tensor | None = None

    def __post_init__(self) -> None:
        present = self.group.bincount()[self.group]
        if not present.equal(self.group_size):
            torn = self.prompt_id[present != self.group_size].unique().tolist()
            raise TrainingError(
                f"prompts {torn[:5]} came with only some of their pairs in one micro-batch; "
                "batch whole prompt groups, or the weights within a prompt no longer sum to 1"
            )


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of n pairs: sums over response tokens in nats, float32, every field of shape [n].

    The reference fields are None for objectives that do not need a reference. Length normalization is the
    objective's own business, hence the token counts. `sample` are those of each pair's fresh sample, 0 where it has
    none, and None where no pair has one. `divergence` estimates KL(policy | reference) in nats a token, as a mean over
    the tokens of both responses, without gradient; None where the reference of tokens is not kept.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    reference_chosen: Tensor | None = None
    reference_rejected: Tensor | None = None
    sample: Tensor | None = None
    divergence: Tensor | None = None

    def ratios(self) -> Tensor:
        """[n, 2]: log pi / pi_ref of chosen and rejected; log pi where there is no reference."""
        import torch

        sides = torch.stack([self.chosen, self.rejected], dim=1)
        if self.reference_chosen is None or self.reference_rejected is None:
            return sides
        return sides - torch.stack([self.reference_chosen, self.reference_rejected], dim=1)
