"""The data that flows through a run: prompts, responses, pairs, and prompt groups, which are never split.

`Text` is either a plain string (TRL's standard format) or a list of chat messages (conversational format).
Token lists never contain padding.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from adaptpo.errors import TrainingError

if TYPE_CHECKING:  # Code that only reads data or reports needs no torch.
    from torch import Tensor


Row = dict[str, Any]
"""A row of a data set or of a run's file: values by column."""

Message = dict[str, Any]
Text = str | list[Message]
Side = Literal["chosen", "rejected"]
Source = Literal["offline", "online", "mixed"]
SOURCES = ("offline", "online", "mixed")
OFFLINE, ONLINE, MIXED = range(3)
"""The numbers of `SOURCES` in `PairBatch.source`."""


@dataclass(frozen=True)
class PreferenceExample:
    """One row of a preference data set, before tokenization.

    `chosen` and `rejected` hold the response alone (text, or the messages that follow the shared prompt);
    `columns` holds the row's other columns, which are passed to reward functions. `absent` is the side that an unpaired
    row lacks, where a placeholder stands.
    """

    row: int
    prompt: Text
    chosen: Text
    rejected: Text
    columns: dict[str, Any] = field(default_factory=dict)
    absent: Side | None = None


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
    """A response with its tokens. `ended`: whether the last token ends the turn; False if the response was cut.

    A response without tokens is absent: an unpaired row has one response, and a verdict in place of the other.
    `mask`: which tokens are trained on, if the response has several turns; None for all.
    """

    text: Text
    ids: list[int]
    ended: bool = True
    mask: list[bool] | None = None


@dataclass(frozen=True)
class PreferencePair:
    """Two responses to one prompt with their provenance.

    `reference_logps` are log pi_ref of (chosen, rejected) in nats, summed over response tokens; None until computed.
    `reference_shared` are the same, summed over as many tokens as the shorter response has. `reference_tokens` are the
    same per token, float32, for methods that need them. `reward_gap` is the annotator's
    reward of chosen minus rejected, None if the pair was not annotated. `sample` is a fresh response to the prompt as
    it was drawn, ranked or not, if the pairing keeps one. `objective` is the index of the reward that ranked the pair,
    if the annotator returns several.
    """

    prompt_id: int
    source: Source
    chosen: Response
    rejected: Response
    iteration: int = 0
    reward_gap: float | None = None
    reference_logps: tuple[float, float] | None = None
    reference_shared: tuple[float, float] | None = None
    reference_tokens: tuple[array[float], array[float]] | None = None
    sample: Response | None = None
    objective: int | None = None


@dataclass(frozen=True)
class PromptGroup:
    """One prompt with all its pairs: the unit of batching. `features` are those that learners requested of the prompt's
    offline pair, by name."""

    prompt: Prompt
    pairs: tuple[PreferencePair, ...]
    features: dict[str, list[float]] = field(default_factory=dict)

    @property
    def responses(self) -> list[Response]:
        """All responses of its pairs that are there, each one row of the forward pass."""
        sides = [response for pair in self.pairs for response in (pair.chosen, pair.rejected, pair.sample)]
        return [response for response in sides if response is not None and response.ids]


@dataclass(frozen=True)
class PairBatch:
    """Detached values of the n pairs of a micro-batch of whole prompt groups; every tensor has shape [n] unless noted.
    In a training step, all of them are on the host.

    `group` numbers the prompt groups of the micro-batch from 0; `group_size` is the total number of pairs of the pair's
    prompt; `reward_gap` is NaN if the pair was not annotated; `data_weight` is the row's column `weight`, or 1;
    `ratios` [n, 2] are log pi / pi_ref of chosen and rejected in nats (log pi without a reference), NaN for an absent
    response; `features` hold, by name, the [n, width] that learners requested of the offline pair of each pair's
    prompt. `divergence` is that of `PairLogps`, None if the run stores no per-token reference log-probs, or the exact
    one for a weighting that measures it; `head_gradient_norm` is `log(1 + norm)` of the gradient of the pair's loss
    with respect to the weight of the language-model head, and `on_policy` the product over both responses of how likely
    the policy is to write them, per token and relative to its own samples (`adaptpo.choices.weighting.OnPolicy`); each
    is None if the weighting does not measure it.

    Raises TrainingError if a group is split: its weights would no longer be shares of one prompt.
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
    on_policy: Tensor | None = None

    def __post_init__(self) -> None:
        present = self.group.bincount()[self.group]
        if not present.equal(self.group_size):
            torn = self.prompt_id[present != self.group_size].unique().tolist()
            raise TrainingError(
                f"prompts {torn[:5]} have only some of their pairs in this micro-batch; "
                "batch whole prompt groups, or the weights within a prompt no longer sum to 1"
            )


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of n pairs: sums over response tokens in nats, float32, every field of shape [n] unless noted.

    The reference fields are None for objectives that do not need a reference. The token counts are for objectives that
    normalize by length; an absent response has none. `shared` and `reference_shared` [n, 2] are those of chosen and
    rejected, summed over as many tokens as the shorter of the two has. `sample` holds the sums of each pair's fresh
    sample: 0 if a pair has none, None if no pair has one. `divergence` estimates KL(policy | reference) in nats per
    token, as a mean over the tokens of both responses, without gradient; None if per-token reference log-probs are not
    stored.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    reference_chosen: Tensor | None = None
    reference_rejected: Tensor | None = None
    sample: Tensor | None = None
    divergence: Tensor | None = None
    shared: Tensor | None = None
    reference_shared: Tensor | None = None

    def take(self, indices: Tensor) -> PairLogps:
        """The pairs with these indices."""
        kept = {name: value[indices] for name, value in vars(self).items() if value is not None}
        return PairLogps(**kept)

    def ratios(self) -> Tensor:
        """log pi / pi_ref of chosen and rejected, [n, 2]; log pi if there is no reference."""
        import torch

        sides = torch.stack([self.chosen, self.rejected], dim=1)
        if self.reference_chosen is None or self.reference_rejected is None:
            return sides
        return sides - torch.stack([self.reference_chosen, self.reference_rejected], dim=1)
