"""Publishing versions: into the two buffers in turn, the manifest renamed into place last."""

from __future__ import annotations

import errno
import mmap
import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from k15core._core import checksum, copy_with_checksum
from k15core.deploy.closing import Closing
from k15core.deploy.shared_weights.locks import holders, lock, try_lock, unlock
from k15core.deploy.shared_weights.manifest import (
    BUFFERS,
    FILE,
    MAX_VERSION,
    Manifest,
    Shard,
    TensorEntry,
    aligned,
    check,
    encode,
    expected_bytes,
    fits,
    read_manifest,
)
from k15core.errors import ConflictError, InvalidInputError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

WRITER_LOCK = "writer.lock"
GROWTH = 2 << 20


class WeightWriter(Closing):
    """The one writer of a directory, which is made if it is not there.

    A directory that holds a version, of a writer that died, is continued: its version stays
    readable until the next is complete. `wait_seconds` is how long `publish` waits for readers of
    the buffer that it wants to use again. Raises ConflictError where another writer lives.
    """

    def __init__(self, directory: str | Path, *, wait_seconds: float = 600.0) -> None:
        self.directory = Path(directory)
        self.wait_seconds = wait_seconds
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        self._lock = os.open(self.directory / WRITER_LOCK, flags, 0o600)
        self._files: dict[str, int] = {}
        self._mappings: dict[str, mmap.mmap] = {}
        try:
            if not try_lock(self._lock, shared=False):
                raise ConflictError(
                    f"weights directory {self.directory}: {holders(self._lock)} writes to it"
                )
            self.manifest = read_manifest(self.directory)
            for buffer in BUFFERS:
                self._files[buffer] = os.open(self.directory / buffer, flags, 0o600)
        except BaseException:
            self._let_go()
            raise

    def publish(
        self,
        tensors: Iterable[tuple[str, Tensor] | tuple[str, Tensor, Shard]],
        version: int,
        *,
        total_bytes: int | None = None,
    ) -> Manifest:
        """Copy tensors, one at a time, and make them the version that readers find.

        Tensors may lie on any device and need not be contiguous. `total_bytes` is about how many
        are to come: what was published last where it is not given; room for them is made before the
        first is copied. Whatever goes wrong, the last version stays. Raises InvalidInputError for a
        tensor that is not kept or comes twice, StorageError where memory is short (saying how much)
        or where a reader does not let go of the buffer in time (naming it).
        """
        if type(version) is not int or not 0 <= version <= MAX_VERSION:
            raise InvalidInputError(f"version {version!r}: expected 0 to {MAX_VERSION}")
        last = self.manifest
        if total_bytes is None:
            total_bytes = last.bytes if last is not None else 0
        with self._next_buffer(version, total_bytes) as buffer:
            return self._finish(self._copy_all(tensors, buffer, version))

    def receive(
        self, manifest: Manifest, fill: Callable[[str, NDArray[np.uint8]], None]
    ) -> Manifest:
        """Publish here what was published elsewhere, under the manifest that it has there.

        `fill` is handed a buffer's name and as many bytes of its memory as the manifest says, and
        writes what the other directory's buffer holds. Each tensor is then held against its
        checksum. Raises CorruptionError that names one that has not come whole, and as `publish`.
        """
        with self._next_buffer(manifest.version, manifest.bytes) as buffer:
            memory = np.frombuffer(self._mappings[buffer], np.uint8, manifest.bytes)
            fill(buffer, memory)
            check(memory, manifest, where=f"weights for {self.directory}")
            return self._finish(replace(manifest, buffer=buffer))

    def close(self, *, unlink: bool = True) -> None:
        """Stop writing. With `unlink`, the files are removed, and the directory if it is empty
        then; who reads a version keeps it."""
        if self._lock < 0:
            return
        if unlink:
            for name in (FILE, f"{FILE}.new", *BUFFERS, WRITER_LOCK):
                (self.directory / name).unlink(missing_ok=True)
            try:
                self.directory.rmdir()
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                    raise
        self._let_go()

    def _let_go(self) -> None:
        self._mappings.clear()
        for file in (*self._files.values(), self._lock):
            os.close(file)
        self._files.clear()
        self._lock = -1

    @contextmanager
    def _next_buffer(self, version: int, total_bytes: int) -> Iterator[str]:
        """The buffer that holds no version that readers find, with room, and without readers."""
        if self._lock < 0:
            raise InvalidInputError(f"weights directory {self.directory}: the writer is closed")
        last = self.manifest
        buffer = BUFFERS[1] if last is not None and last.buffer == BUFFERS[0] else BUFFERS[0]
        file = self._files[buffer]
        if not lock(file, seconds=self.wait_seconds):
            raise StorageError(
                f"weights directory {self.directory}: {holders(file)} still reads {buffer}, which "
                f"version {version} is to be written to, after {self.wait_seconds:g} s"
            )
        try:
            self._reserve(buffer, max(total_bytes, 1), version)  # what is empty cannot be mapped
            yield buffer
        finally:
            unlock(file)

    def _copy_all(
        self,
        tensors: Iterable[tuple[str, Tensor] | tuple[str, Tensor, Shard]],
        buffer: str,
        version: int,
    ) -> Manifest:
        entries: dict[tuple[str, Shard | None], TensorEntry] = {}
        end = 0
        for name, tensor, *rest in tensors:
            shard = rest[0] if rest else None
            if (name, shard) in entries:
                raise InvalidInputError(f"tensor {name}: came twice")
            entry = self._copy(name, tensor, shard, aligned(end), buffer, version)
            entries[name, shard] = entry
            end = entry.offset + entry.bytes
        return Manifest(version, buffer, end, tuple(entries.values()))

    def _copy(
        self,
        name: str,
        tensor: Tensor,
        shard: Shard | None,
        offset: int,
        buffer: str,
        version: int,
    ) -> TensorEntry:
        if not isinstance(name, str) or not name:
            raise InvalidInputError(f"tensor name {name!r}: expected some text")
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_meta:
            raise InvalidInputError(f"tensor {name}: expected a dense torch tensor with values")
        shape = tuple(tensor.shape)
        if shard is not None and not fits(shard, shape):
            raise InvalidInputError(f"tensor {name}: {shard} has no piece of shape {shape}")
        dtype = str(tensor.dtype).removeprefix("torch.")
        try:
            size = expected_bytes(dtype, shape)
        except InvalidInputError as error:
            raise InvalidInputError(f"tensor {name}: {error}") from None
        crc = 0
        if size:
            self._reserve(buffer, offset + size, version)
            target = np.frombuffer(self._mappings[buffer], np.uint8, size, offset)
            crc = _copy_into(target, tensor.detach())
        return TensorEntry(name, dtype, shape, offset, size, crc, shard)

    def _reserve(self, buffer: str, size: int, version: int) -> None:
        """Make room for `size` bytes, for good: memory that is only promised ends in SIGBUS."""
        file = self._files[buffer]
        have = os.fstat(file).st_size
        if size > have:
            wanted = -(-size // GROWTH) * GROWTH
            try:
                os.posix_fallocate(file, have, wanted - have)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                room = os.statvfs(self.directory)
                free = room.f_bavail * room.f_frsize
                held = os.fstat(file).st_blocks * 512
                raise StorageError(
                    errno.ENOSPC,
                    f"weights directory {self.directory}: {buffer} needs {wanted} bytes for "
                    f"version {version}, has {held}, and {free} are free: "
                    f"{max(1, wanted - held - free)} bytes are missing; give a larger tmpfs "
                    "(in Docker: --shm-size) or another directory",
                ) from error
            have = wanted
        if buffer not in self._mappings or len(self._mappings[buffer]) < have:
            self._mappings[buffer] = mmap.mmap(file, have)

    def _finish(self, manifest: Manifest) -> Manifest:
        """Let readers find it."""
        fresh = self.directory / f"{FILE}.new"
        fresh.write_bytes(encode(manifest))
        fresh.replace(self.directory / FILE)
        self.manifest = manifest
        return manifest


def _copy_into(target: NDArray[np.uint8], tensor: Tensor) -> int:
    """Copy a tensor's elements, row-major, to as many bytes; their checksum."""
    if tensor.device.type == "cpu" and tensor.is_contiguous():
        # Not by numpy(): torch never again resizes the storage of a tensor that was lent so, and
        # Megatron gives its buffers back by resizing them to nothing.
        lent = np.from_dlpack(tensor.detach().reshape(-1).view(torch.uint8))
        return copy_with_checksum(np.asarray(lent, np.uint8), target)
    # From a device, or with strides: torch copies, and the checksum is of what has arrived.
    torch.from_numpy(target).view(tensor.dtype).view(tensor.shape).copy_(tensor)
    return checksum(target)
