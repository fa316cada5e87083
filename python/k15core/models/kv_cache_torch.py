"""The KV cache in torch, for any device and dtype: rows attend together, padded to one length.

Masked entries weigh exactly 0, so padding changes nothing as long as the library sums in the same
order: `step` uses only lengths where it does (`calibrate`). `extend` pads a sequence to
sizes that are a function of its own lengths, so its kernel has the same shape in any company.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from k15core.models.config import ModelConfig
from k15core.models.kv_cache import Attend, Piece


def rounded(length: int) -> int:
    """The padded size of a length: multiples of 16 up to 128, then steps of an eighth at most."""
    step = 16
    while length > 8 * step:
        step *= 2
    return -(-length // step) * step


@dataclass(frozen=True)
class _Segment:
    """Rows [start, stop), none of which holds more than bias.shape[-1] tokens."""

    start: int
    stop: int
    bias: Tensor


class TorchCache:
    """See the module. `lengths` are the padded lengths of a step, ascending up to the cache's."""

    padded = True

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        length: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        layers, K, D = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        self._cache = torch.zeros((layers, 2, rows * K, length, D), device=device, dtype=dtype)
        self._heads = torch.arange(rows * K, device=device).view(rows, K) * length
        self._config = config
        self.lengths = _ladder(length)

    def step(
        self,
        positions: Tensor,
        rows: NDArray[np.int64],
        bounds: Sequence[int],
        threads: int,  # noqa: ARG002 - torch's own kernels
    ) -> Attend:
        """See KVCache. Rows between two `bounds` share a padded length. Rows that are not in `rows`
        but below its last are computed too."""
        n, K, cache = int(rows[-1]) + 1, self._config.num_key_value_heads, self._cache
        places = (self._heads[:n] + positions[:n, None]).flatten()
        held = positions.cpu().numpy()
        segments = []
        for start, stop in pairwise([*(bound for bound in bounds if bound < n), n]):
            inside = rows[(rows >= start) & (rows < stop)]
            if len(inside):
                longest = int(held[inside].max()) + 1
                length = next(size for size in self.lengths if size >= longest)
                bias = length_bias(positions[start:stop], length, K, cache.dtype)
                segments.append(_Segment(start, stop, bias))

        def attend(
            layer: int,
            q: Tensor,
            k: Tensor,
            v: Tensor,
            out: Tensor,
            asked: NDArray[np.bool_] | None = None,  # noqa: ARG001 - all are computed
        ) -> None:
            keys, values = cache[layer]
            _put(keys, places, k[:n])
            _put(values, places, v[:n])
            for seg in segments:
                span, heads = slice(seg.start, seg.stop), slice(seg.start * K, seg.stop * K)
                attend_rows(q[span], keys[heads], values[heads], seg.bias, out=out[span])

        return attend

    def extend(
        self,
        pieces: Sequence[Piece],
        positions: Tensor,
        threads: int,  # noqa: ARG002 - torch's own kernels
    ) -> Attend:
        """See KVCache."""
        counts = [len(piece.tokens) for piece in pieces]
        total = sum(counts)
        rows = torch.from_numpy(np.repeat([piece.row for piece in pieces], counts))
        places = (self._heads[rows.to(positions.device)] + positions[:total, None]).flatten()
        buckets = [_Bucket(self._cache, self._config, group) for group in _by_shape(pieces)]

        def attend(
            layer: int,
            q: Tensor,
            k: Tensor,
            v: Tensor,
            out: Tensor,
            asked: NDArray[np.bool_] | None = None,  # noqa: ARG001 - all are computed
        ) -> None:
            keys, values = self._cache[layer]
            _put(keys, places, k[:total])
            _put(values, places, v[:total])
            for bucket in buckets:
                bucket.attend(q, keys, values, out)

        return attend

    def calibrate(self, generator: torch.Generator) -> None:
        """See KVCache: only the lengths stay at which a step gives the bits of the longest."""
        config, rows, longest = self._config, 4, self.lengths[-1]
        heads, D = config.num_key_value_heads, config.head_dim

        def random(*shape: int) -> Tensor:
            device, dtype = self._cache.device, self._cache.dtype
            return torch.randn(shape, device=device, dtype=dtype, generator=generator)

        q = random(rows, config.num_attention_heads, D)
        keys, values = random(rows * heads, longest, D), random(rows * heads, longest, D)

        def attention(n: int, positions: Tensor, length: int) -> Tensor:
            bias = length_bias(positions[:n], length, heads, q.dtype)
            out = q.new_empty(n, config.num_attention_heads * D)
            attend_rows(q[:n], keys[: n * heads], values[: n * heads], bias, out=out)
            return out

        kept = []
        for length in self.lengths:
            steps = torch.linspace(0, length - 1, rows, device=q.device).long()
            wanted = attention(rows, steps, longest)
            same = torch.equal(attention(rows, steps, length), wanted)
            if same and torch.equal(attention(1, steps, length), wanted[:1]):
                kept.append(length)
        self.lengths = kept or [longest]

    def copy(self, sources: NDArray[np.int64], targets: NDArray[np.int64], length: int) -> None:
        """See KVCache."""
        source, target = (
            torch.from_numpy(rows).to(self._cache.device) for rows in (sources, targets)
        )
        for layer in self._cache.unbind(0):
            for kept in layer.unbind(0):
                rows = kept.view(len(self._heads), -1, *kept.shape[1:])
                rows[target, :, :length] = rows[source, :, :length]

    def clear(self) -> None:
        """See KVCache."""
        self._cache.zero_()


def length_bias(positions: Tensor, length: int, heads: int, dtype: torch.dtype) -> Tensor:
    """0 up to each row's position [n], -inf behind it, for each head: [n * heads, 1, length]."""
    hidden = torch.arange(length, device=positions.device) > positions[:, None]
    bias = torch.zeros(hidden.shape, device=positions.device, dtype=dtype)
    return bias.masked_fill_(hidden, float("-inf")).repeat_interleave(heads, 0)[:, None]


def attend_rows(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor, *, out: Tensor) -> None:
    """Attention of one query a row: q [n, H, D] over the first bias.shape[-1] tokens of the rows'
    keys and values [n * K, T, D], into out [n, H * D]. Grouped queries share a product."""
    grouped = q.reshape(len(keys), -1, q.shape[-1])
    length = bias.shape[-1]
    k, v = keys[:, :length], values[:, :length]
    scores = torch.baddbmm(bias, grouped, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
    torch.bmm(scores.softmax(-1), v, out=out.view(grouped.shape))


class _Bucket:
    """Pieces of one padded shape, attending together; `members` are (piece, offset in the pass)."""

    def __init__(
        self, cache: Tensor, config: ModelConfig, members: list[tuple[Piece, int]]
    ) -> None:
        device, self._config = cache.device, config
        self._queries, self._keys = _shape(members[0][0])
        counts = torch.tensor([len(piece.tokens) for piece, _ in members], device=device)
        offsets = torch.tensor([offset for _, offset in members], device=device)
        starts = torch.tensor([piece.start for piece, _ in members], device=device)
        self._rows = torch.tensor([piece.row for piece, _ in members], device=device)
        at = torch.arange(self._queries, device=device)
        real = at < counts[:, None]
        self._take = (offsets[:, None] + torch.minimum(at, counts[:, None] - 1)).flatten()
        self._keep = real.flatten().nonzero()[:, 0]
        self._place = self._take[self._keep]
        seen = torch.arange(self._keys, device=device) <= (starts[:, None] + at)[..., None]
        hidden = cache.new_zeros(seen.shape).masked_fill_(~seen, float("-inf"))
        self._mask = hidden[:, None]

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
        """Attention of the pieces' queries over their cache rows, into `out` [W, H * D]."""
        K, D = self._config.num_key_value_heads, self._config.head_dim
        k, v = (
            kept.view(-1, K, *kept.shape[1:])[self._rows, :, : self._keys]
            for kept in (keys, values)
        )
        padded = q[self._take].view(len(self._rows), self._queries, -1, D).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(
            padded, k, v, attn_mask=self._mask, enable_gqa=q.shape[1] != K
        )
        out[self._place] = mixed.transpose(1, 2).reshape(-1, out.shape[-1])[self._keep]


def _shape(piece: Piece) -> tuple[int, int]:
    """Padded queries and keys: a function of this sequence alone."""
    return rounded(len(piece.tokens)), rounded(piece.start + len(piece.tokens))


def _by_shape(pieces: Sequence[Piece]) -> list[list[tuple[Piece, int]]]:
    groups: defaultdict[tuple[int, int], list[tuple[Piece, int]]] = defaultdict(list)
    offset = 0
    for piece in pieces:
        groups[_shape(piece)].append((piece, offset))
        offset += len(piece.tokens)
    return list(groups.values())


def _put(cache: Tensor, places: Tensor, x: Tensor) -> None:
    cache.view(-1, x.shape[-1]).index_copy_(0, places, x.reshape(-1, x.shape[-1]))


def _ladder(length: int) -> list[int]:
    """Every padded size up to the longest."""
    sizes, size = [], 1
    while size <= length:
        sizes.append(rounded(size))
        size = sizes[-1] + 1
    return sizes
