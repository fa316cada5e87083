"""The work of sampler.priority, the same for every contender."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

ENTRIES, BATCH, CALLS = 1_000_000, 4096, 50
Batch = tuple[NDArray[np.int64], NDArray[np.float32]]


class Batches:
    """Indices and weights of every call, drawn anew each time, the same for all contenders."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)

    def all(self) -> Iterator[Batch]:
        """Every entry once, in pieces."""
        for start in range(0, ENTRIES, BATCH):
            indices = np.arange(start, min(start + BATCH, ENTRIES))
            yield indices, self.random.random(len(indices), np.float32) + np.float32(1e-3)

    def next(self) -> Batch:
        """One call's worth."""
        indices = self.random.integers(0, ENTRIES, BATCH)
        return indices, self.random.random(BATCH, np.float32) + np.float32(1e-3)
