"""Published versions onto a CUDA device: bucket by bucket, copying while the last one is loaded.

The shared buffer itself is registered with CUDA (page-locked in place), so that the device fetches
each bucket by one transfer, straight from the memory that the writer wrote: no staging copy.
Buckets are ranges of the buffer, for tensors lie in it one behind the other. Written after the
documented behaviour of torch's streams and of cudaHostRegister; what is for CUDA was reasoned, not
run. On a CPU the same ranges are copied, which the tests do.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from k15core.deploy.closing import Closing
from k15core.deploy.shared_weights.reader import SharedWeights, WeightReader
from k15core.errors import InvalidInputError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from k15core.deploy.shared_weights.manifest import Manifest, TensorEntry

BUCKET_BYTES = 256 << 20
"""Long enough for a link's full rate; about three of them take device memory at a time."""

_PORTABLE = 1  # cudaHostRegisterPortable: page-locked for every context of the process


@dataclass(frozen=True)
class Bucket:
    """Tensors that lie in one range of the buffer, in bytes."""

    start: int
    end: int
    entries: tuple[TensorEntry, ...]


def buckets(manifest: Manifest, size: int) -> Iterator[Bucket]:
    """Ranges of at most `size` bytes, in the order of publication; a larger tensor has its own."""
    held: list[TensorEntry] = []
    for entry in manifest.tensors:
        if held and entry.offset + entry.bytes - held[0].offset > size:
            yield _bucket(held)
            held = []
        held.append(entry)
    if held:
        yield _bucket(held)


class DeviceWeights(Closing):
    """A published version on its way to a device: a WeightSource. Made by a DeviceReader.

    The version is held until `close`.
    """

    def __init__(
        self, weights: SharedWeights, host: Tensor, device: torch.device, bucket_bytes: int
    ) -> None:
        self.weights = weights
        self.version = weights.version
        self._host = host
        self._device = device
        self._bucket_bytes = bucket_bytes

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors on the device, in the order of publication, ready for the current
        stream. A tensor may be kept; it keeps its bucket's device memory. Raises InvalidInputError
        for shards."""
        for entry in self.weights.manifest.tensors:
            if entry.shard is not None:
                raise InvalidInputError(
                    f"weights directory {self.weights.directory}: {entry.name} is a shard, "
                    "expected whole tensors"
                )
        cut = buckets(self.weights.manifest, self._bucket_bytes)
        if self._device.type == "cuda":
            yield from _overlapped(self._host, cut, self._device)
        else:
            for bucket in cut:
                there = self._host[bucket.start : bucket.end].to(self._device, copy=True)
                yield from _views(there, bucket)

    def close(self) -> None:
        """Let the version go. A second call does nothing."""
        self.weights.close()


class DeviceReader(Closing):
    """Brings one version of a directory after the other to a device.

    It keeps the buffers mapped and registered in between: registering takes about as long as a
    transfer. Raises StorageError where CUDA refuses to.
    """

    def __init__(
        self,
        directory: str | Path,
        device: torch.device | str,
        *,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self.directory = Path(directory)
        self.device = torch.device(device)
        if type(bucket_bytes) is not int or bucket_bytes < 1:
            raise InvalidInputError(f"bucket_bytes {bucket_bytes!r}: expected at least 1")
        self.bucket_bytes = bucket_bytes
        self._reader = WeightReader(self.directory)
        self._pinned: dict[str, _Pinned] = {}

    def open(self, *, version: int | None = None, verify: bool = True) -> DeviceWeights:
        """As SharedWeights.open."""
        weights = self._reader.open(version=version, verify=verify)
        try:
            host = self._host(weights.manifest)
        except BaseException:
            weights.close()
            raise
        return DeviceWeights(weights, host, self.device, self.bucket_bytes)

    def close(self) -> None:
        """Unregister and let go. A second call does nothing."""
        for pinned in self._pinned.values():
            pinned.close()
        self._pinned.clear()
        self._reader.close()

    def _host(self, manifest: Manifest) -> Tensor:
        """The published buffer's bytes."""
        path = self.directory / manifest.buffer
        # Registering locks pages as if for writing: in a private mapping each would be copied.
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            status = os.fstat(file)
            pinned = self._pinned.get(manifest.buffer)
            if (
                pinned is None
                or pinned.inode != status.st_ino
                or len(pinned.mapping) < manifest.bytes
            ):
                if pinned is not None:
                    del self._pinned[manifest.buffer]
                    pinned.close()
                mapping = mmap.mmap(file, status.st_size)
                pinned = _Pinned(mapping, status.st_ino, register=self.device.type == "cuda")
                self._pinned[manifest.buffer] = pinned
        finally:
            os.close(file)
        return pinned.memory


class _Pinned:
    """A mapping that CUDA knows as page-locked."""

    def __init__(self, mapping: mmap.mmap, inode: int, *, register: bool) -> None:
        self.mapping = mapping
        self.inode = inode
        self.memory = torch.frombuffer(mapping, dtype=torch.uint8)
        self._registered = False
        if register:
            _checked("cudaHostRegister", self.memory.data_ptr(), self.memory.nbytes, _PORTABLE)
            self._registered = True

    def close(self) -> None:
        if self._registered:
            self._registered = False
            _checked("cudaHostUnregister", self.memory.data_ptr())


def _overlapped(
    host: Tensor, cut: Iterator[Bucket], device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Reasoned, not run: the next bucket is on its way while the caller uses the last one."""
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: tuple[Tensor, Bucket, torch.cuda.Event] | None = None
    try:
        for bucket in cut:
            with torch.cuda.stream(copying):
                there = host[bucket.start : bucket.end].to(device, non_blocking=True)
                done = torch.cuda.Event()  # type: ignore[no-untyped-call]
                done.record(copying)
            # Allocated on one stream, used on another: not to be reused before that is done.
            there.record_stream(torch.cuda.current_stream(device))
            if ahead is not None:
                yield from _arrived(*ahead, device)
            ahead = (there, bucket, done)
        if ahead is not None:
            yield from _arrived(*ahead, device)
    finally:
        copying.synchronize()  # before the buffer is let go


def _arrived(
    there: Tensor, bucket: Bucket, done: torch.cuda.Event, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    torch.cuda.current_stream(device).wait_event(done)
    yield from _views(there, bucket)


def _views(there: Tensor, bucket: Bucket) -> Iterator[tuple[str, Tensor]]:
    for entry in bucket.entries:
        at = entry.offset - bucket.start
        flat = there[at : at + entry.bytes]
        yield entry.name, flat.view(getattr(torch, entry.dtype)).view(entry.shape)


def _bucket(entries: list[TensorEntry]) -> Bucket:
    last = entries[-1]
    return Bucket(entries[0].offset, last.offset + last.bytes, tuple(entries))


def _checked(call: str, *arguments: Any) -> None:
    """A call of the CUDA runtime, its error as ours."""
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    status = getattr(runtime, call)(*arguments)
    if int(status) != 0:
        raise StorageError(f"{call} of {arguments[1:] or arguments} bytes: CUDA error {status}")
