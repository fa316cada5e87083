"""The streams that run: plain arrays, one entry a slot, so that a step has no loop over streams."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from k15core._core import uniforms
from k15core.rollout.base import Stream


class Slots:
    """State of up to `count` running streams. Slot i is row i of the KV cache.

    `position` is the response position of the next token, `length` how many tokens are in the KV
    cache, `left` how many may still be sampled, `pending` how many wait in `tokens` and `log_probs`
    to be handed out, `replay` how many known tokens are still to be fed instead of sampled ones.
    """

    def __init__(self, count: int, chunk_tokens: int) -> None:
        self.count = count
        self.streams: list[Stream | None] = [None] * count
        self.active = np.zeros(count, bool)
        self.trajectory_id = np.zeros(count, np.int64)
        self.position = np.zeros(count, np.int64)
        self.length = np.zeros(count, np.int64)
        self.left = np.zeros(count, np.int64)
        self.pending = np.zeros(count, np.int64)
        self.replay = np.zeros(count, np.int64)
        self.temperature = np.ones(count, np.float64)
        self.seed = np.zeros(count, np.uint64)
        self.watch = np.arange(count, dtype=np.int64)  # the detector's stream of each slot
        self.tokens = np.zeros((count, chunk_tokens), np.int32)
        self.log_probs = np.zeros((count, chunk_tokens), np.float32)

    @property
    def running(self) -> int:
        """How many streams run."""
        return int(np.count_nonzero(self.active))

    @property
    def used(self) -> int:
        """One more than the highest slot in use."""
        rows = np.nonzero(self.active)[0]
        return int(rows[-1]) + 1 if len(rows) else 0

    def put(self, row: int, stream: Stream) -> None:
        """Begin a stream whose prompt and tail are in the cache."""
        self.streams[row] = stream
        self.active[row] = True
        self.trajectory_id[row] = stream.trajectory_id
        self.position[row] = len(stream.tail)
        self.length[row] = len(stream.prompt) + len(stream.tail)
        self.left[row] = stream.max_new_tokens
        self.pending[row] = 0
        self.replay[row] = len(stream.replay)
        self.temperature[row] = stream.temperature
        self.seed[row] = stream.seed

    def free(self, row: int) -> None:
        """End a stream."""
        self.streams[row] = None
        self.active[row] = False

    def move(self, sources: NDArray[np.int64], targets: NDArray[np.int64]) -> None:
        """Bring streams from slots to slots, all at once; sources that are no target are free then.

        A detector's stream goes with its stream; the slots left behind take the ones that are over.
        """
        left, entered = np.setdiff1d(sources, targets), np.setdiff1d(targets, sources)
        spare = self.watch[entered]
        for state in (
            self.active, self.trajectory_id, self.position, self.length, self.left, self.pending,
            self.replay, self.temperature, self.seed, self.tokens, self.log_probs, self.watch,
        ):  # fmt: skip
            state[targets] = state[sources]
        self.watch[left] = spare
        moved = [self.streams[row] for row in sources]
        for row in left:
            self.free(row)
        for row, stream in zip(targets, moved, strict=True):
            self.streams[row] = stream

    def noise(self, n: int) -> NDArray[np.float64]:
        """The uniform numbers of the first n slots' next tokens: by seed, trajectory, position."""
        seeds = self.seed[:n]
        drawn = uniforms(int(seeds[0]), self.trajectory_id[:n], self.position[:n])
        for seed in np.unique(seeds[seeds != seeds[0]]):
            rows = seeds == seed
            drawn[rows] = uniforms(int(seed), self.trajectory_id[:n][rows], self.position[:n][rows])
        return drawn

    def known(self, n: int, sampled: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Put the known tokens of replaying streams over the sampled ones; which rows those are."""
        replaying = self.replay[:n] > 0
        for row in np.nonzero(replaying & self.active[:n])[0]:
            stream = self.streams[row]
            assert stream is not None
            sampled[row] = stream.replay[len(stream.replay) - self.replay[row]]
        return replaying

    def record(
        self, rows: NDArray[np.int64], tokens: NDArray[np.int64], log_probs: NDArray[np.float32]
    ) -> None:
        """Take in one new token for each of the rows."""
        at = self.pending[rows]
        self.tokens[rows, at] = tokens
        self.log_probs[rows, at] = log_probs
        self.pending[rows] += 1
        self.left[rows] -= 1
