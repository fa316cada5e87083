"""Which rows of the KV cache hold which prompt: a group's prompt is computed once and copied."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class PromptRows:
    """The prompt at the start of each cache row, whether its stream still runs or not.

    A row keeps its prompt until another is put there, so the members of a group find it as long as
    they come one after another. `hidden` [rows, d] is the state after each prompt's last token.
    """

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden
        self._of_row: list[bytes | None] = [None] * len(hidden)
        self._rows: dict[bytes, set[int]] = {}

    def clear(self) -> None:
        """Forget every prompt."""
        self._of_row = [None] * len(self._of_row)
        self._rows.clear()

    def find(self, prompt: bytes, *, near: int) -> int | None:
        """A row that holds the prompt: `near` itself if it does."""
        held = self._rows.get(prompt, set())
        return near if near in held else next(iter(held), None)

    def among(self, prompt: bytes, rows: Iterable[int]) -> int | None:
        """One of the given rows that holds the prompt."""
        held = self._rows.get(prompt, set())
        return next((row for row in rows if row in held), None)

    def put(self, row: int, prompt: bytes) -> None:
        """The row holds this prompt from now on."""
        old = self._of_row[row]
        if old is not None:
            holders = self._rows[old]
            holders.discard(row)
            if not holders:
                del self._rows[old]
        self._of_row[row] = prompt
        self._rows.setdefault(prompt, set()).add(row)

    def move(self, sources: NDArray[np.int64], targets: NDArray[np.int64]) -> None:
        """The target rows hold what the source rows hold; sources that are no target keep it."""
        moved = [self._of_row[row] for row in sources]
        self.hidden[targets] = self.hidden[sources]
        for row, prompt in zip(targets.tolist(), moved, strict=True):
            assert prompt is not None
            self.put(row, prompt)
