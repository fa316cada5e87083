"""Any value as tokens of the store and back, bit for bit.

A store keeps token ids from 0 to 2^31 - 1 and a mask of 0 and 1 beside each. Tensors of int32 and
int64 that lie in that range are kept as they are ("ids"): token ids are what queues mostly carry.
All else is kept as its bytes, four a token, the highest bit in the mask ("bytes").
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_LOW = np.int32(0x7FFFFFFF)


@dataclass(frozen=True)
class Layout:
    """How a value lies in its tokens. `dtype` is torch's name, "pickle" for what is no tensor."""

    codec: Literal["ids", "bytes"]
    dtype: str
    shape: tuple[int, ...]
    size: int
    """Entries ("ids") or bytes."""

    @property
    def tokens(self) -> int:
        """How many tokens it takes."""
        return self.size if self.codec == "ids" else -(-self.size // 4)


@dataclass(frozen=True)
class Encoded:
    """Values one after another: their layouts, tokens [n], and the mask [n] where one is needed."""

    layouts: list[Layout]
    tokens: NDArray[np.int32]
    mask: NDArray[np.uint8] | None


def encode(values: Sequence[Any]) -> Encoded:
    """Tensors, on whatever device, and anything else that can be pickled."""
    layouts, pieces = [], []
    for value in values:
        layout, content = _content(value)
        layouts.append(layout)
        pieces.append(content)
    tokens = np.empty(sum(layout.tokens for layout in layouts), np.int32)
    mask = None
    if any(layout.codec == "bytes" for layout in layouts):
        mask = np.zeros(len(tokens), np.uint8)
    at = 0
    for layout, content in zip(layouts, pieces, strict=True):
        place = slice(at, at + layout.tokens)
        if layout.codec == "ids":
            tokens[place] = content
        elif mask is not None:
            tokens[place][-1:] = 0  # what the last bytes do not fill
            tokens[place].view(np.uint8)[: layout.size] = content
            np.less(tokens[place], 0, out=mask[place].view(np.bool_))
            np.bitwise_and(tokens[place], _LOW, out=tokens[place])
        at = place.stop
    return Encoded(layouts, tokens, mask)


def decode(encoded: Encoded) -> list[Any]:
    """The values, in memory of their own, on the CPU."""
    values = []
    at = 0
    for layout in encoded.layouts:
        place = slice(at, at + layout.tokens)
        at = place.stop
        if layout.codec == "ids":
            ids = torch.empty(layout.shape, dtype=getattr(torch, layout.dtype))
            ids.view(-1).numpy()[:] = encoded.tokens[place]
            values.append(ids)
            continue
        words = encoded.tokens[place].copy()
        if encoded.mask is not None:
            words |= encoded.mask[place].astype(np.int32) << 31
        content = words.view(np.uint8)[: layout.size]
        if layout.dtype == "pickle":
            values.append(pickle.loads(content.tobytes()))
        elif layout.size == 0:
            values.append(torch.empty(layout.shape, dtype=getattr(torch, layout.dtype)))
        else:
            tensor = torch.from_numpy(content).view(getattr(torch, layout.dtype))
            values.append(tensor.view(layout.shape))
    return values


def _content(value: Any) -> tuple[Layout, NDArray[Any]]:
    plain = (
        type(value) is torch.Tensor
        and value.layout is torch.strided
        and not value.is_nested
        and not value.is_quantized
    )
    if not plain:
        content = np.frombuffer(pickle.dumps(value, protocol=5), np.uint8)
        return Layout("bytes", "pickle", (), len(content)), content
    tensor = value.detach().cpu().contiguous()
    dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    flat = tensor.reshape(-1)
    if tensor.dtype in (torch.int32, torch.int64):
        ids: NDArray[Any] = flat.numpy()
        if not len(ids) or (ids.min() >= 0 and ids.max() <= _LOW):
            return Layout("ids", dtype, shape, len(ids)), ids
    raw = flat.view(torch.uint8).numpy() if flat.numel() else np.zeros(0, np.uint8)
    return Layout("bytes", dtype, shape, len(raw)), raw
