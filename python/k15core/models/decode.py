"""Generation with a KV cache: prefill (`extend`) and one token a row (`step`).

A row of the cache is one stream. The result of a row must not depend on its neighbours, or a
resumed run would part from the one that was never killed. What this rests on:

- Matrix products give a row the same bits whatever the other rows are and however many there are,
  provided that there are enough of them: the linear layers always see at least `min_rows`, in
  multiples of 8. This is a property of the machine's BLAS; `calibrate` checks it at start instead
  of trusting it.
- Attention of a row depends on that row alone (models/kv_cache.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from k15core.models.kv_cache import Attend, KVCache, NativeCache, Piece
from k15core.models.kv_cache_torch import TorchCache, rounded
from k15core.models.lean import (
    LayerWeights,
    LeanModel,
    feed_forward,
    queries_keys_values,
    rms_norm,
)
from k15core.models.runtime import threads_for

ROW_MULTIPLE = 8
EXTEND_TOKENS = 4096
"""Tokens of a prefill pass, all sequences together."""
EXTEND_CHUNK = 512
"""Tokens that one sequence gives to a prefill pass: bounds the attention mask."""


class Decoder:
    """A model's weights, fused for inference, and a KV cache of `rows` streams of `length` tokens.

    The weights are copies: training the model afterwards does not change them.
    """

    def __init__(self, model: LeanModel, *, rows: int, length: int, min_rows: int) -> None:
        self.config = model.config
        self.rows, self.length = rows, rounded(length)
        self.min_rows = -(-max(min_rows, 1) // ROW_MULTIPLE) * ROW_MULTIPLE
        self.load(model)
        dtype = self.embedding.dtype
        self.cache: KVCache
        if is_native(self.device, dtype):
            self.cache = NativeCache(self.config, rows, self.length)
        else:
            self.cache = TorchCache(self.config, rows, self.length, device=self.device, dtype=dtype)

    @torch.inference_mode()
    def load(self, model: LeanModel) -> None:
        """Take the model's weights. What the cache holds belongs to the old ones: clear it."""
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
        self._largest = max(matrix.numel() for matrix in self.matrices())
        self._cos, self._sin = (table.clone() for table in model.rope(self.length))

    def width(self, rows: int) -> int:
        """How many rows the linear layers see for so many streams."""
        return max(self.min_rows, -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE)

    def matrices(self) -> tuple[Tensor, ...]:
        """What the products of a pass are with: a layer's matrices and the head."""
        layer = self.layers[0]
        return layer.qkv, layer.o, layer.gate_up, layer.down, self.head

    def threads(self, rows: int) -> AbstractContextManager[int]:
        """The threads of a pass over so many rows: see `threads_for`."""
        return threads_for(rows * self._largest)

    @torch.inference_mode()
    def step(
        self,
        tokens: Tensor,
        positions: Tensor,
        rows: NDArray[np.int64],
        bounds: Sequence[int] = (0,),
    ) -> Tensor:
        """Feed one token to each of `rows` (ascending); the logits [W, V] of the next.

        tokens, positions: int64 [W], W = width(rows[-1] + 1): row i's token and the place where it
        goes, which must be the row's count of tokens. Other rows' entries are any valid ones whose
        place, and those behind it, hold nothing that is needed. `bounds` are the rows at which a
        class of like lengths begins: see KVCache.padded.
        """
        with self.threads(len(tokens)) as threads:
            attend = self.cache.step(positions, rows, bounds, threads)
            states = self._layers(tokens, positions, attend)
            return F.linear(rms_norm(states, self.norm, self.config.rms_norm_eps), self.head)

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

    def _extend(self, work: list[Piece], last: Tensor) -> None:
        counts = [len(piece.tokens) for piece in work]
        spare = self.width(sum(counts)) - sum(counts)
        ids = np.concatenate([piece.tokens for piece in work] + [np.zeros(spare, np.int32)])
        spans = [np.arange(p.start, p.start + len(p.tokens)) for p in work]
        at = np.concatenate([*spans, np.zeros(spare, np.int64)])
        positions = torch.from_numpy(at).to(self.device)
        final = [i for i, piece in enumerate(work) if piece.final]
        ends = np.cumsum(counts)[final] - 1
        with self.threads(len(ids)) as threads:
            attend = self.cache.extend(work, positions, threads)
            tokens = torch.from_numpy(ids).to(self.device)
            ended = self._layers(tokens, positions, attend, ends)[: len(final)]
        target = torch.tensor([work[i].index for i in final], device=self.device, dtype=torch.int64)
        last[target] = rms_norm(ended, self.norm, self.config.rms_norm_eps)

    def _layers(
        self,
        tokens: Tensor,
        positions: Tensor,
        attend: Attend,
        ends: NDArray[np.int64] | None = None,
    ) -> Tensor:
        """The hidden states behind the last layer, not yet normed: [W, d], or those at `ends`, then
        others. Of all other tokens the last layer's keys and values are needed, and no more."""
        cos, sin = self._cos[positions], self._sin[positions]
        x = F.embedding(tokens, self.embedding)
        for layer, w in enumerate(self.layers):
            q, k, v = queries_keys_values(x, w, cos, sin, self.config)
            mixed = x.new_zeros(len(x), q.shape[1] * q.shape[2])
            if ends is None or layer < len(self.layers) - 1:
                attend(layer, q, k, v, mixed)
            else:
                asked = np.zeros(len(x), bool)
                asked[ends] = True
                attend(layer, q, k, v, mixed, asked)
                kept = np.zeros(self.width(len(ends)), np.int64)
                kept[: len(ends)] = ends
                places = torch.from_numpy(kept).to(self.device)
                x, mixed = x[places], mixed[places]
            x = feed_forward(x + F.linear(mixed, w.o, w.o_bias), w, self.config.rms_norm_eps)
        return x

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, V] of hidden states [n, d] from `extend`, in any company the same."""
        n = len(hidden)
        padded = hidden.new_zeros(self.width(n), hidden.shape[1])
        padded[:n] = hidden
        with self.threads(n):
            return F.linear(padded, self.head)[:n]


def is_native(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the Rust kernel serves models of this kind."""
    return device.type == "cpu" and dtype == torch.float32


def _passes(
    rows: Sequence[int], starts: Sequence[int], tokens: Sequence[NDArray[np.int32]]
) -> Iterator[list[Piece]]:
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
            work.append(Piece(i, rows[i], starts[i] + done, piece, end == len(tokens[i])))
            if end < len(tokens[i]):
                left.append((i, end))
        yield work
        rest = left
