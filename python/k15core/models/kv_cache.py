"""The KV cache of a decoder, with the attention that reads it.

`NativeCache` is the Rust kernel's, for fp32 on the CPU. A token attends by itself over exactly what
its row holds, so nothing is padded, its bits depend on nobody, and it makes no difference whether
it is fed alone or with others. `kv_cache_torch.TorchCache` is for every other device and dtype.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from k15core._core import attend_cached
from k15core.models.config import ModelConfig

TILE = 16
"""Tokens of a tile of the native cache's keys; every cache's length is a multiple of it."""


class Attend(Protocol):
    """One pass's attention, a layer at a time."""

    def __call__(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        asked: NDArray[np.bool_] | None = None,
    ) -> None:
        """Put k, v [W, K, D] into a layer's cache and attend with q [W, H, D] into out [W, H * D],
        which was zeros. Where `asked` [W] is False nobody reads the result."""


@dataclass(frozen=True)
class Piece:
    """What one sequence gives to a prefill pass: `tokens` go to its row from place `start` on.

    `index` is the sequence's number, `final` whether this is its last piece.
    """

    index: int
    row: int
    start: int
    tokens: NDArray[np.int32]
    final: bool


class KVCache(Protocol):
    """Keys and values of `rows` streams of `length` tokens, for all layers."""

    @property
    def padded(self) -> bool:
        """Whether rows of like length should be neighbours, for the sake of padding."""

    def step(
        self, positions: Tensor, rows: NDArray[np.int64], bounds: Sequence[int], threads: int
    ) -> Attend:
        """Attention of one token a row: of `rows` (ascending), to places `positions` [W].

        `bounds` are the rows at which a class of like lengths begins. `threads` are for kernels of
        our own.
        """

    def extend(self, pieces: Sequence[Piece], positions: Tensor, threads: int) -> Attend:
        """Attention of pieces, one after another, and what is behind them; `positions` [W]."""

    def calibrate(self, generator: torch.Generator) -> None:
        """Keep to sizes at which attention gives the same bits on this machine: random numbers of
        the generator, which is on the cache's device, show where it does not."""

    def copy(self, sources: NDArray[np.int64], targets: NDArray[np.int64], length: int) -> None:
        """Copy the first `length` tokens of rows; sources are read before targets are written."""

    def clear(self) -> None:
        """Forget all rows: nothing of old weights is used again, not even a NaN under a mask."""


class NativeCache:
    """fp32 on the CPU: see the module and rust/core/src/attention."""

    padded = False

    def __init__(self, config: ModelConfig, rows: int, length: int) -> None:
        layers, K, D = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        self._cache = _pages((layers, 2, rows * K, length, D))
        self._heads = K

    def step(
        self,
        positions: Tensor,
        rows: NDArray[np.int64],
        bounds: Sequence[int],  # noqa: ARG002 - nothing is padded
        threads: int,
    ) -> Attend:
        """See KVCache."""
        row_of = np.full(len(positions), -1, np.int64)
        row_of[rows] = rows
        return self._attend(row_of, positions, threads)

    def extend(self, pieces: Sequence[Piece], positions: Tensor, threads: int) -> Attend:
        """See KVCache."""
        row_of = np.full(len(positions), -1, np.int64)
        counts = [len(piece.tokens) for piece in pieces]
        row_of[: sum(counts)] = np.repeat([piece.row for piece in pieces], counts)
        return self._attend(row_of, positions, threads)

    def _attend(self, row_of: NDArray[np.int64], positions: Tensor, threads: int) -> Attend:
        places = positions.numpy()

        def attend(
            layer: int,
            q: Tensor,
            k: Tensor,
            v: Tensor,
            out: Tensor,
            asked: NDArray[np.bool_] | None = None,
        ) -> None:
            keys, values = self._cache[layer]
            new = q.numpy(), k.numpy(), v.numpy()
            attend_cached(row_of, places, *new, keys, values, out.numpy(), threads, asked)

        return attend

    def calibrate(self, generator: torch.Generator) -> None:
        """See KVCache. Nothing to do: a token's attention has no size but its own."""

    def copy(self, sources: NDArray[np.int64], targets: NDArray[np.int64], length: int) -> None:
        """See KVCache."""
        tiles = -(-length // TILE) * TILE
        for layer in self._cache:
            for kept in layer:
                rows = kept.reshape(-1, self._heads, *kept.shape[1:])
                rows[targets, :, :tiles] = rows[sources, :, :tiles]

    def clear(self) -> None:
        """See KVCache. Nothing to do: the kernel reads no place behind a row's tokens."""


def _pages(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Zeros at the start of a page, in huge pages where the system has them.

    What malloc gives is neither: of each two vectors one would lie across two cache lines, and a
    step would translate thousands of addresses anew.
    """
    memory = mmap.mmap(-1, 4 * math.prod(shape), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.float32).reshape(shape)
