"""Responses that were cut earn nothing, less a penalty."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from k15core.algorithms.groups import checked_rows
from k15core.errors import InvalidInputError
from k15core.types import FINISH_REASONS

if TYPE_CHECKING:
    from numpy.typing import NDArray

STOP, LENGTH, REPETITION, ABORT = range(len(FINISH_REASONS))


def was_cut(finish_reasons: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which responses [B] ended by `length` or `repetition`. Refuses `abort` and unknown codes."""
    if (finish_reasons >= ABORT).any():
        row = int(np.flatnonzero(finish_reasons >= ABORT)[0])
        raise InvalidInputError(
            f"finish_reasons[{row}] is {finish_reasons[row]}: expected a code of stop, length or "
            "repetition; an aborted response never enters a group"
        )
    cut: NDArray[np.bool_] = finish_reasons != STOP
    return cut


@dataclass(frozen=True)
class CutPenalty:
    """Sets the reward of a response that was cut (finish reason length or repetition).

    It becomes 0 - `repetition_penalty`, whatever a reward function made of the text.
    """

    repetition_penalty: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty >= 0):
            raise InvalidInputError(
                f"repetition_penalty is {self.repetition_penalty}: expected a number >= 0"
            )

    def __call__(
        self, rewards: NDArray[np.float32], finish_reasons: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        """Rewards [B] with the cut responses' replaced."""
        values = checked_rows("rewards", rewards, len(finish_reasons))
        cut = was_cut(finish_reasons)
        return np.where(cut, -self.repetition_penalty, values).astype(np.float32)
