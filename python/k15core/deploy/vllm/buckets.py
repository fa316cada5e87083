"""Tensors from host memory to a device, bucket by bucket, copy and use overlapped.

On a CPU the tensors are handed through as they are. For CUDA this is written after the documented
behaviour of torch (pinned memory, streams, events) and was not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

BUCKET_BYTES = 256 << 20
"""Of pinned memory and of device memory: two of each are in use during an update."""

ALIGNMENT = 256


def buckets(
    tensors: Iterable[tuple[str, Tensor]], size: int
) -> Iterator[list[tuple[str, Tensor, int]]]:
    """Names, tensors and their offsets in a bucket of `size` bytes, in the order given.

    A tensor larger than a bucket is alone in one.
    """
    held: list[tuple[str, Tensor, int]] = []
    end = 0
    for name, tensor in tensors:
        start = -(-end // ALIGNMENT) * ALIGNMENT
        if held and start + tensor.nbytes > size:
            yield held
            held, start = [], 0
        held.append((name, tensor, start))
        end = start + tensor.nbytes
    if held:
        yield held


def on_device(
    tensors: Iterable[tuple[str, Tensor]],
    device: torch.device,
    *,
    bucket_bytes: int = BUCKET_BYTES,
) -> Iterator[tuple[str, Tensor]]:
    """The same tensors on `device`, in the same order.

    While the caller uses one bucket, the next is copied on a stream of its own. A tensor may be
    kept until the end of the iteration: each bucket has device memory of its own, which goes back
    to torch's allocator with the last tensor of it.
    """
    if device.type == "cpu":
        yield from tensors
        return
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    pinned: list[Tensor | None] = [None, None]
    read: list[torch.cuda.Event | None] = [None, None]
    ahead: tuple[list[tuple[str, Tensor]], torch.cuda.Event] | None = None
    for turn, bucket in enumerate(buckets(tensors, bucket_bytes)):
        slot = turn % 2
        length = bucket[-1][2] + bucket[-1][1].nbytes
        host = pinned[slot]
        if (event := read[slot]) is not None:
            event.synchronize()  # the copy out of this host buffer has ended
        if host is None or host.nbytes < length:
            host = pinned[slot] = torch.empty(
                max(length, bucket_bytes), dtype=torch.uint8, pin_memory=True
            )
        for _, tensor, start in bucket:
            host[start : start + tensor.nbytes].copy_(_bytes(tensor))
        with torch.cuda.stream(copying):
            there = host[:length].to(device, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(copying)
        there.record_stream(torch.cuda.current_stream(device))
        read[slot] = done
        placed = [
            (name, there[at : at + t.nbytes].view(t.dtype).view(t.shape)) for name, t, at in bucket
        ]
        if ahead is not None:
            yield from _when_copied(ahead, device)
        ahead = (placed, done)
    if ahead is not None:
        yield from _when_copied(ahead, device)


def _when_copied(
    bucket: tuple[list[tuple[str, Tensor]], torch.cuda.Event], device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    torch.cuda.current_stream(device).wait_event(bucket[1])
    yield from bucket[0]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
