"""The training history of all pairs of a data set: one record per pair, by its number and its prompt's id."""

from __future__ import annotations

from tempfile import TemporaryFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptpo.choices.learners.temporal.features import States

Ids = NDArray[np.integer]

MEMORY = 2**24
"""Bytes of one number's records above which they are in a scratch file in TMPDIR, mapped into memory."""
SPARE = 1.25


class History:
    """Records of `dtype` for pairs, by a number that tells the pairs of one prompt apart, and by prompt id.

    The arrays grow as new ids appear, by at least a quarter. A run that resumes after a crash reads them from its
    checkpoint; a scratch file disappears with its process.
    """

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype
        self.records: dict[int, States] = {}

    def read(self, number: int, ids: Ids) -> States:
        """Copies of the records, [n]; zeros for pairs that were never written."""
        known = self.records.get(number, np.zeros(0, self.dtype))
        found = np.zeros(len(ids), self.dtype)
        inside = ids < len(known)
        found[inside] = known[ids[inside]]
        return found

    def write(self, number: int, ids: Ids, states: States) -> None:
        if len(ids):
            self._reserve(number, int(ids.max()) + 1)
            self.records[number][ids] = states

    def _reserve(self, number: int, count: int) -> None:
        known = self.records.get(number, np.zeros(0, self.dtype))
        if count > len(known):
            self.records[number] = zeros(max(count, int(SPARE * len(known))), self.dtype)
            self.records[number][: len(known)] = known

    def state_dict(self) -> dict[int, Tensor]:
        """The records' bytes by number, [records, bytes per record]. Those in a scratch file are not copied and must be
        saved before the next write."""
        return {number: as_bytes(records) for number, records in self.records.items()}

    def load_state_dict(self, state: dict[int, Tensor]) -> None:
        self.records = {}
        for number, saved in state.items():
            self.records[number] = zeros(len(saved), self.dtype)
            self.records[number][:] = saved.numpy().reshape(-1).view(self.dtype)


def zeros(count: int, dtype: np.dtype) -> States:
    if count * dtype.itemsize <= MEMORY:
        return np.zeros(count, dtype)
    with TemporaryFile() as file:  # The mapping keeps the file alive.
        return np.memmap(file, dtype=dtype, mode="w+", shape=(count,))


def as_bytes(records: States) -> Tensor:
    held = records if isinstance(records, np.memmap) else records.copy()
    return torch.from_numpy(held.view("u1").reshape(len(records), -1))
