"""Which stream stands in which row: long ones first, so that short ones are not padded to them.

Attention reads a row's keys up to the longest row of its segment. Rows are therefore kept in
classes of length that double, each class together; holes go last, where they cost nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SHORT = 128
"""Streams of up to so many tokens are one class; 256, 512, … bound the next."""


def length_classes(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """0 up to SHORT tokens, 1 up to twice that, 2 up to four times that, …"""
    return np.ceil(np.log2(np.maximum(lengths, SHORT) / SHORT)).astype(np.int64)


def arrangement(
    active: NDArray[np.bool_], lengths: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[int]]:
    """Moves (sources [m], targets [m], all at once) that sort rows by class, and the class bounds.

    Rows whose class may stand where they are stay. The bounds are where one class ends and the next
    begins, the first (0) and the last (the count of active rows) included.
    """
    classes = np.where(active, length_classes(lengths), -1)
    wanted = -np.sort(-classes)
    misplaced = np.nonzero(classes != wanted)[0]
    sources = misplaced[np.argsort(-classes[misplaced], kind="stable")]
    targets = misplaced[np.argsort(-wanted[misplaced], kind="stable")]
    real = classes[sources] >= 0
    running = int(np.count_nonzero(active))
    changes = np.nonzero(np.diff(wanted[:running]))[0] + 1
    return sources[real], targets[real], [0, *changes.tolist(), running]
