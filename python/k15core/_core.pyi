"""The Rust core. Held to the compiled module by mypy's stubtest (`make lint`)."""

from typing import final

import numpy as np
from numpy.typing import NDArray

from k15core.types import Loop

__all__ = ["RepetitionDetector", "__version__", "uniforms"]

__version__: str

def uniforms(
    seed: int, trajectory_ids: NDArray[np.int64], positions: NDArray[np.int64]
) -> NDArray[np.float64]:
    """One uniform number in (0, 1) for each stream: a pure function of its three keys [B]."""

@final
class RepetitionDetector:
    """Watches streams of tokens and says when one has begun to loop.

    A tail has period p if each of its tokens equals the one p places before it, the first p
    excepted. It is an exact loop when p is at most `max_period` (1 to 16384) and the tail is at
    least max(`min_repeats` · p, `min_covered`) tokens long: reported never earlier, and at the
    latest when it is 1.5 times that long. Cost: O(log `max_period`) a token, four bytes a token
    kept, of which there are O(`max_period`).

    It is a near-repeat when, of the last w n-grams (`near_ngram` tokens each), the share that are
    different falls below `near_novelty`, where w is `near_window`, twice that, four times that, …
    up to `near_max_window`. `near=False` switches this off. The defaults are meant for tokens; on
    bytes or characters n-grams recur more often in sane text, so make `near_ngram` longer.

    A detector has `streams` slots, numbered from 0. A stream reports once: after its loop was
    reported, further tokens of it are ignored until `reset` begins a new stream in its slot. A
    response that goes on in a later iteration is replayed with `extend` first, so that a loop which
    began before the break is seen.

    Calls from several threads wait for each other. Calls with 4096 tokens or more release the GIL.

    Raises InvalidInputError for a setting out of range, a slot that does not exist, arrays of
    different lengths; nothing is added then.

    >>> from k15core import RepetitionDetector
    >>> detector = RepetitionDetector(min_covered=16)
    >>> [loop for token in [5, 6] + [1, 2, 3] * 6 if (loop := detector.push(token))]
    [Loop(start=2, period=3, covered=18, kind='exact')]
    """

    def __new__(
        cls,
        streams: int = 1,
        *,
        max_period: int = 16384,
        min_repeats: int = 4,
        min_covered: int = 256,
        near: bool = True,
        near_ngram: int = 4,
        near_window: int = 1024,
        near_max_window: int = 16384,
        near_novelty: float = 0.1,
    ) -> RepetitionDetector: ...
    def push(self, token: int) -> Loop | None:
        """Add one token to stream 0; the loop, if this token made one."""

    def push_many(
        self, streams: NDArray[np.int64], tokens: NDArray[np.int32]
    ) -> list[tuple[int, Loop]]:
        """Add token i to stream streams[i], in this order [n]; the streams that loop now.

        A stream may be named several times.
        """

    def extend(self, stream: int, tokens: NDArray[np.int32]) -> Loop | None:
        """Add tokens [n] to one stream: what was generated before a break, or a whole response.

        Tokens after the one that made the loop are ignored.
        """

    def reset(self, stream: int) -> None:
        """Empty a slot for a new stream."""
