"""MetaAPO's meta-learner for several objectives: a degree for each pair of a prompt (section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from adaptpo.choices.learners.base import PairBatch
from adaptpo.choices.learners.meta_learner import MetaLearner


class DegreeLearner(MetaLearner):
    """`d_i = h(l_i)` for the M + 1 pairs of a prompt, the offline one and one for each of M objectives.

    The paper gives the degrees and that they are normalized. Here h learns by Eq. 6 over all pairs of a prompt,
    `-mean sum_i d_i / (sum_j d_j) * l_i`, from the scores that the training forward passes of the interval saw.
    """

    def __init__(self, objectives: int = 2, learning_rate: float = 5e-3, update_interval: int = 8) -> None:
        self.objectives = objectives
        super().__init__(learning_rate, update_interval)

    def __repr__(self) -> str:
        return (
            f"DegreeLearner(objectives={self.objectives}, learning_rate={self.learning_rate}, "
            f"update_interval={self.update_interval})"
        )

    def empty_buffer(self) -> Tensor:
        """[0, M + 1]: the scores of a prompt's pairs."""
        return torch.zeros(0, self.objectives + 1)

    def paired_rows(self, batch: PairBatch) -> Tensor:
        """Rows of the buffer, one for each prompt that has all its pairs."""
        scores, groups = self.scores(batch.margin), batch.group.cpu()
        rows = [scores[groups == group] for group in groups.unique()]
        whole = [row[None] for row in rows if len(row) == self.objectives + 1]
        return torch.cat([self.empty_buffer(), *whole])

    def loss(self, buffer: Tensor) -> Tensor:
        degrees = self.network(buffer.reshape(-1, 1)).view_as(buffer)
        shares = degrees / degrees.sum(dim=1, keepdim=True)
        return -(shares * buffer).sum(dim=1).mean()
