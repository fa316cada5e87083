"""Causal attention inside a pack: many sequences, one after another, none sees another.

On CUDA this is torch's variable-length kernel. On the CPU sequences of like length are laid out as
padded batches for `scaled_dot_product_attention`; only attention sees the padding, never the linear
layers. Padding stands to the right of causal sequences, so no token attends to it and no mask is
needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

WASTE = 1.3
"""A bucket grows while its padded tokens stay below this share of its real ones."""

BUCKET_TOKENS = 512
"""Padded tokens that may always share a bucket: a kernel call costs about as much as these."""


class Shared(NamedTuple):
    """A pack in which tokens stand more than once (a prompt before each of its responses).

    T tokens of the pack, U of them different: those are computed, once.
    """

    places: Tensor  # [T] int64, which of the U rows each token of the pack is
    first: Tensor  # [U] int64, ascending: where in the pack each row stands first


@dataclass(frozen=True)
class Layout:
    """How a pack is laid out for attention; built once and used by every layer.

    `shapes` are the buckets (rows, length), whose entries follow one another: P in all. On CUDA
    there are none, and `take` and `keep` are empty.
    """

    shapes: tuple[tuple[int, int], ...]
    take: Tensor  # [P] place in the pack of each padded entry; some real one for padding
    keep: Tensor  # [T] place among the padded entries of each entry of the pack
    cu_seqlens: Tensor  # [B + 1] int32
    max_seqlen: int
    shared: Shared | None


def plan(cu_seqlens: Tensor, max_seqlen: int, shared: Shared | None = None) -> Layout:
    """Lay out a pack with boundaries `cu_seqlens` [B + 1] (int32, on the model's device).

    With `shared`, what `attend` is given and gives has the U rows that are computed, not the T of
    the pack.
    """
    nothing = cu_seqlens.new_empty(0, dtype=torch.int64)
    lengths = torch.diff(cu_seqlens.long())
    if cu_seqlens.is_cuda:
        return Layout((), nothing, nothing, cu_seqlens, max_seqlen, shared)
    ranked = torch.argsort(lengths, stable=True)
    ranked = ranked[int((lengths == 0).sum()) :]
    shapes, takes, places = [], [], []
    for members in torch.tensor_split(ranked, _cuts(lengths[ranked].tolist())):
        if len(members):
            start, size = cu_seqlens[members].long()[:, None], lengths[members][:, None]
            at = torch.arange(int(size[-1]))
            takes.append((start + torch.minimum(at, size - 1)).flatten())
            places.append((at < size).flatten())
            shapes.append((len(members), len(at)))
    if not shapes:
        return Layout((), nothing, nothing, cu_seqlens, max_seqlen, shared)
    take = torch.cat(takes)
    real = torch.cat(places).nonzero()[:, 0]
    keep = torch.empty_like(real)
    keep[take[real]] = real
    if shared is not None:
        take, keep = shared.places[take], keep[shared.first]
    return Layout(tuple(shapes), take, keep, cu_seqlens, max_seqlen, shared)


def _cuts(ascending: list[int]) -> list[int]:
    """Where to cut sorted lengths into buckets: from the longest down, while padding is small."""
    cuts: list[int] = []
    longest, real, rows = 0, 0, 0
    for i in range(len(ascending) - 1, -1, -1):
        if rows and longest * (rows + 1) > max(WASTE * (real + ascending[i]), BUCKET_TOKENS):
            cuts.append(i + 1)
            rows, real = 0, 0
        if rows == 0:
            longest = ascending[i]
        rows, real = rows + 1, real + ascending[i]
    return cuts[::-1]


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Causal attention of q [T, H, D] over k, v [T, K, D] inside each sequence: [T, H, D].

    H may be a multiple of K (grouped queries). Differentiable.
    """
    grouped = q.shape[1] != k.shape[1]
    if q.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        cu_seqlens, longest = layout.cu_seqlens, layout.max_seqlen
        if layout.shared is not None:
            q, k, v = (repeat(x, layout.shared.places) for x in (q, k, v))
        out = varlen_attn(
            q, k, v, cu_seqlens, cu_seqlens, longest, longest,
            window_size=(-1, 0), enable_gqa=grouped,
        )  # fmt: skip
        assert isinstance(out, Tensor)
        return out if layout.shared is None else out.index_select(0, layout.shared.first)
    if not layout.shapes:
        return q
    if layout.shared is None:
        padded = [_Pad.apply(x, layout.take, layout.keep) for x in (q, k, v)]  # type: ignore[no-untyped-call]
    else:
        padded = [repeat(x, layout.take) for x in (q, k, v)]
    sizes = [rows * length for rows, length in layout.shapes]
    parts = []
    # One split, for its backward is one concatenation: a slice's fills the whole array each time.
    buckets = zip(*(torch.split(x, sizes) for x in padded), strict=True)
    for (rows, length), bucket in zip(layout.shapes, buckets, strict=True):
        q_BHLD, k_BKLD, v_BKLD = (
            x.view(rows, length, *x.shape[1:]).transpose(1, 2) for x in bucket
        )
        out_BHLD = scaled_dot_product_attention(
            q_BHLD, k_BKLD, v_BKLD, is_causal=True, enable_gqa=grouped
        )
        parts.append(out_BHLD.transpose(1, 2).flatten(0, 1))
    flat = parts[0] if len(parts) == 1 else torch.cat(parts)
    result: Tensor = _Unpad.apply(flat, layout.keep)  # type: ignore[no-untyped-call]
    return result


def repeat(x: Tensor, places: Tensor) -> Tensor:
    """Rows x[places], where a row may be wanted many times: its gradients are added up in order."""
    repeated: Tensor = _Repeat.apply(x, places)  # type: ignore[no-untyped-call]
    return repeated


class _Repeat(torch.autograd.Function):
    """index_select, with the backward of an embedding: autograd's own adds row by row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.places, ctx.shape = places, x.shape
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        flat = torch.ops.aten.embedding_dense_backward(
            grad.flatten(1), ctx.places, ctx.shape[0], -1, False
        )
        return flat.view(ctx.shape), None


class _Pad(torch.autograd.Function):
    """Gather into the padded layout. The gradient is a gather too: each entry of the pack stands in
    one place, and what padding repeats attracts no gradient, for no real query attends to it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, take: Tensor, keep: Tensor) -> Tensor:
        ctx.keep = keep
        return x.index_select(0, take)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(0, ctx.keep), None, None


class _Unpad(torch.autograd.Function):
    """Take the entries of the pack; the padding's gradient is zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor) -> Tensor:
        ctx.keep, ctx.padded = keep, len(x)
        return x.index_select(0, keep)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        out = grad.new_zeros((ctx.padded, *grad.shape[1:]))
        out[ctx.keep] = grad
        return out, None
