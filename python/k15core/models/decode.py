"""Generation with a KV cache: prefill (`extend`) and one token a row (`step`).

A row of the cache is one stream. The result of a row must not depend on its neighbours, or a
resumed run would part from the one that was never killed. What this rests on:

- Matrix products give a row the same bits whatever the other rows are and however many there are,
  provided that there are enough of them: the linear layers always see at least `min_rows`, in
  multiples of 8. Attention has one small product a row, so it needs no such padding.
- `step` attends over a padded length L. Masked entries weigh exactly 0, so a longer L changes
  nothing, as long as the library sums in the same order: only lengths are used where it does.
- `extend` pads a sequence to sizes that are a function of its own lengths, so its kernel has the
  same shape in any company.

The first two are properties of the machine's BLAS; `calibrate` checks them at start instead of
trusting them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from k15core.models.lean import (
    LayerWeights,
    LeanModel,
    feed_forward,
    queries_keys_values,
    rms_norm,
)

ROW_MULTIPLE = 8
EXTEND_TOKENS = 4096
"""Tokens of a prefill pass, all sequences together."""
EXTEND_CHUNK = 512
"""Tokens that one sequence gives to a prefill pass: bounds the attention mask."""


def rounded(length: int) -> int:
    """The padded size of a length: multiples of 16 up to 128, then steps of an eighth at most."""
    step = 16
    while length > 8 * step:
        step *= 2
    return -(-length // step) * step


@dataclass(frozen=True)
class Segment:
    """Rows [start, stop) of the cache, none of which holds more than `length` tokens."""

    start: int
    stop: int
    length: int


class Decoder:
    """A model's weights, fused for inference, and a KV cache of `rows` streams of `length` tokens.

    The weights are copies: training the model afterwards does not change them.
    """

    def __init__(self, model: LeanModel, *, rows: int, length: int, min_rows: int) -> None:
        self.config = model.config
        self.rows, self.length = rows, rounded(length)
        self.min_rows = -(-max(min_rows, 1) // ROW_MULTIPLE) * ROW_MULTIPLE
        self.lengths = _ladder(self.length)
        self.load(model)
        K, D = self.config.num_key_value_heads, self.config.head_dim
        shape = (self.config.num_hidden_layers, 2, rows * K, self.length, D)
        self._cache = torch.zeros(shape, device=self.device, dtype=self.embedding.dtype)
        self._heads = torch.arange(rows * K, device=self.device).view(rows, K) * self.length

    @torch.inference_mode()
    def load(self, model: LeanModel) -> None:
        """Take the model's weights. What the cache holds belongs to the old ones: see `clear`."""
        self.layers = [
            LayerWeights._make(None if w is None else w.clone() for w in layer)
            for layer in model.layer_weights()
        ]
        self.embedding = model.embedding.detach().clone()
        self.head = self.embedding
        if not self.config.tie_word_embeddings:
            self.head = model.head.detach().clone()
        self.norm = model.get_parameter("model.norm.weight").detach().clone()
        self.device = self.embedding.device
        self._cos, self._sin = (table.clone() for table in model.rope(self.length))

    def clear(self) -> None:
        """Zero the cache: nothing of it is used again, not even a NaN under a mask."""
        self._cache.zero_()

    def width(self, rows: int) -> int:
        """How many rows the linear layers see for so many streams."""
        return max(self.min_rows, -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE)

    def padded_length(self, length: int) -> int:
        """The length over which `step` attends when no row holds more than `length` tokens."""
        return next(size for size in self.lengths if size >= length)

    @torch.inference_mode()
    def step(self, tokens: Tensor, positions: Tensor, segments: Sequence[Segment]) -> Tensor:
        """Feed one token to each row and return the logits [W, V] of the next.

        tokens, positions: int64 [W], W = width(n): row i's token and the place where it goes, which
        must be the row's count of tokens. `segments` cover the rows whose logits matter, and end at
        row n; the other entries are any valid ones.
        """
        n, K, eps = segments[-1].stop, self.config.num_key_value_heads, self.config.rms_norm_eps
        places = (self._heads[:n] + positions[:n, None]).flatten()
        biases = [
            length_bias(positions[seg.start : seg.stop], seg.length, K, self.embedding.dtype)
            for seg in segments
        ]
        cos, sin = self._cos[positions], self._sin[positions]
        x = F.embedding(tokens, self.embedding)
        mixed = x.new_zeros(len(x), self.config.num_attention_heads * self.config.head_dim)
        for w, (keys, values) in zip(self.layers, self._cache, strict=True):
            q, k, v = queries_keys_values(x, w, cos, sin, self.config)
            _put(keys, places, k[:n])
            _put(values, places, v[:n])
            for seg, bias in zip(segments, biases, strict=True):
                rows, heads = slice(seg.start, seg.stop), slice(seg.start * K, seg.stop * K)
                attend_rows(q[rows], keys[heads], values[heads], bias, out=mixed[rows])
            x = feed_forward(x + F.linear(mixed, w.o, w.o_bias), w, eps)
        return F.linear(rms_norm(x, self.norm, eps), self.head)

    @torch.inference_mode()
    def extend(
        self, rows: Sequence[int], starts: Sequence[int], tokens: Sequence[NDArray[np.int32]]
    ) -> Tensor:
        """Append tokens[i] (at least one) to row rows[i], which holds starts[i] tokens.

        Returns the normed hidden states [len(rows), d] of the last ones. Rows must differ.
        """
        last = self.embedding.new_empty(len(rows), self.config.hidden_size)
        for work in _passes(rows, starts, tokens):
            self._extend(work, last)
        return last

    def _extend(self, work: list[_Piece], last: Tensor) -> None:
        counts = [len(piece.tokens) for piece in work]
        total = sum(counts)
        spare = self.width(total) - total
        ids = np.concatenate([piece.tokens for piece in work] + [np.zeros(spare, np.int32)])
        spans = [np.arange(p.start, p.start + len(p.tokens)) for p in work]
        at = np.concatenate([*spans, np.zeros(spare, np.int64)])
        positions = torch.from_numpy(at).to(self.device)
        row_of = torch.from_numpy(np.repeat([piece.row for piece in work], counts)).to(self.device)
        places = (self._heads[row_of] + positions[:total, None]).flatten()
        buckets = [_Bucket(self, group) for group in _by_shape(work)]
        cos, sin = self._cos[positions], self._sin[positions]
        eps = self.config.rms_norm_eps
        x = F.embedding(torch.from_numpy(ids).to(self.device), self.embedding)
        for w, (keys, values) in zip(self.layers, self._cache, strict=True):
            q, k, v = queries_keys_values(x, w, cos, sin, self.config)
            _put(keys, places, k[:total])
            _put(values, places, v[:total])
            mixed = torch.zeros_like(q)
            for bucket in buckets:
                bucket.attend(q, keys, values, mixed)
            x = feed_forward(x + F.linear(mixed.flatten(1), w.o, w.o_bias), w, eps)
        ends = np.cumsum(counts) - 1
        final = [i for i, piece in enumerate(work) if piece.final]
        states = x[torch.from_numpy(ends[final]).to(self.device)]
        target = torch.tensor([work[i].index for i in final], device=self.device, dtype=torch.int64)
        last[target] = rms_norm(states, self.norm, eps)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, V] of hidden states [n, d] from `extend`, in any company the same."""
        n = len(hidden)
        padded = hidden.new_zeros(self.width(n), hidden.shape[1])
        padded[:n] = hidden
        return F.linear(padded, self.head)[:n]

    @torch.inference_mode()
    def copy(
        self,
        sources: Sequence[int] | NDArray[np.int64],
        targets: Sequence[int] | NDArray[np.int64],
        length: int,
    ) -> None:
        """Copy the first `length` tokens of rows; sources are read before targets are written."""
        cache = self._cache.view(*self._cache.shape[:2], self.rows, -1, *self._cache.shape[3:])
        source, target = (torch.as_tensor(rows, device=self.device) for rows in (sources, targets))
        for layer in cache.unbind(0):
            for kept in layer.unbind(0):
                kept[target, :, :length] = kept[source, :, :length]


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


@dataclass(frozen=True)
class _Piece:
    """What one sequence gives to a prefill pass."""

    index: int
    row: int
    start: int
    tokens: NDArray[np.int32]
    final: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Padded queries and keys: a function of this sequence alone."""
        return rounded(len(self.tokens)), rounded(self.start + len(self.tokens))


class _Bucket:
    """Pieces of one padded shape, attending together; `members` are (piece, offset in the pass)."""

    def __init__(self, decoder: Decoder, members: list[tuple[_Piece, int]]) -> None:
        device, self._config = decoder.device, decoder.config
        self._queries, self._keys = members[0][0].shape
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
        hidden = decoder.embedding.new_zeros(seen.shape).masked_fill_(~seen, float("-inf"))
        self._mask = hidden[:, None]

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, mixed: Tensor) -> None:
        """Attention of the pieces' queries over their cache rows, into `mixed` [T, H, D]."""
        K, D = self._config.num_key_value_heads, self._config.head_dim
        k, v = (
            kept.view(-1, K, *kept.shape[1:])[self._rows, :, : self._keys]
            for kept in (keys, values)
        )
        padded = q[self._take].view(len(self._rows), self._queries, -1, D).transpose(1, 2)
        out = F.scaled_dot_product_attention(
            padded, k, v, attn_mask=self._mask, enable_gqa=q.shape[1] != K
        )
        mixed[self._place] = out.transpose(1, 2).reshape(-1, *q.shape[1:])[self._keep]


def _passes(
    rows: Sequence[int], starts: Sequence[int], tokens: Sequence[NDArray[np.int32]]
) -> Iterator[list[_Piece]]:
    """Cut sequences into pieces and pieces into passes, each sequence's in order."""
    rest = [(i, 0) for i in range(len(rows))]
    while rest:
        work, left, total = [], [], 0
        for i, done in rest:
            piece = tokens[i][done : done + EXTEND_CHUNK]
            if total + len(piece) > EXTEND_TOKENS:
                left.append((i, done))
                continue
            total += len(piece)
            end = done + len(piece)
            work.append(_Piece(i, rows[i], starts[i] + done, piece, end == len(tokens[i])))
            if end < len(tokens[i]):
                left.append((i, end))
        yield work
        rest = left


def _by_shape(work: list[_Piece]) -> list[list[tuple[_Piece, int]]]:
    groups: defaultdict[tuple[int, int], list[tuple[_Piece, int]]] = defaultdict(list)
    offset = 0
    for piece in work:
        groups[piece.shape].append((piece, offset))
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
