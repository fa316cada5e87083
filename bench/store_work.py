"""The responses that the store's claims are measured with: the same in every process."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Columns = tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.uint8]]
"""Tokens, log-probs and loss mask of one response."""

PROMPT = np.arange(64, dtype=np.int32)
SAMPLED, SAMPLED_MEDIAN = 256, 1800
"""Of store.sample_pack: trajectories, and their median length."""


def responses(n: int, median: float, longest: int = 131_072) -> list[Columns]:
    """n responses, log-normal lengths: 9 bytes a token."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(np.log(median), 0.5, n).astype(int), longest)
    return [
        (
            rng.integers(0, 150_000, length, dtype=np.int32),
            -rng.random(length, dtype=np.float32),
            np.ones(length, np.uint8),
        )
        for length in lengths
    ]
