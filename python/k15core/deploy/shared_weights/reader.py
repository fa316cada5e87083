"""Reading a published version in place."""

from __future__ import annotations

import mmap
import os
import time
import weakref
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch

from k15core.deploy.shared_weights.locks import POLL_SECONDS, try_lock
from k15core.deploy.shared_weights.manifest import FILE, read_manifest
from k15core.errors import CorruptionError, InvalidInputError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from torch import Tensor

    from k15core.deploy.shared_weights.manifest import Manifest, TensorEntry

OPEN_SECONDS = 60.0
_MAP_NORESERVE = 0x4000  # Linux on every architecture that torch has; a name from Python 3.13 on


class SharedWeights:
    """A published version, read in place: a WeightSource.

    Made by `open`. Its tensors are views of the shared memory. They are for reading: what is
    written to one stays in this process (the mapping is private), and is seen by nobody else. The
    buffer is kept from being overwritten until `close` was called and the last view is gone; a
    process that dies lets go at once.
    """

    def __init__(self, directory: Path, manifest: Manifest, mapping: mmap.mmap | None) -> None:
        self.directory = directory
        self.manifest = manifest
        self.version = manifest.version
        self._mapping = mapping

    @classmethod
    def open(
        cls, directory: str | Path, *, version: int | None = None, verify: bool = True
    ) -> SharedWeights:
        """Take hold of the version that is published now.

        With `version`, it must be that one. With `verify`, every tensor is held against its
        checksum. Raises InvalidInputError where nothing, or another version, is published,
        CorruptionError that names the tensor or field that is not what was published.
        """
        folder = Path(directory)
        deadline = time.monotonic() + OPEN_SECONDS
        while True:
            manifest = read_manifest(folder)
            if manifest is None:
                raise InvalidInputError(f"weights directory {folder}: no version is published")
            if version is not None and manifest.version != version:
                raise InvalidInputError(
                    f"weights directory {folder}: version {manifest.version} is published, "
                    f"expected {version}"
                )
            file = _open_held(folder, manifest)
            if file is not None:
                break
            # A newer version has come in between: the next look at the manifest finds it.
            if time.monotonic() > deadline:
                raise StorageError(
                    f"weights directory {folder}: {manifest.buffer}, which {FILE} names, stayed "
                    f"locked by a writer for {OPEN_SECONDS:.0f} s"
                )
            time.sleep(POLL_SECONDS)
        weights = cls(folder, manifest, _map(file, folder, manifest))
        if verify:
            try:
                weights.verify()
            except BaseException:
                weights.close()
                raise
        return weights

    def verify(self) -> None:
        """Hold every tensor against its checksum. Raises CorruptionError naming the first bad."""
        for entry in self.manifest.tensors:
            view = memoryview(self._memory())[entry.offset : entry.offset + entry.bytes]
            found = zlib.crc32(view)
            view.release()
            if found != entry.checksum:
                raise CorruptionError(
                    f"weights directory {self.directory}: {entry.name} of version {self.version} "
                    f"in {self.manifest.buffer} has checksum {found:#010x}, "
                    f"published was {entry.checksum:#010x}"
                )

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names and views in the order of their publication. Raises InvalidInputError for shards:
        those are handed out by `entries`."""
        for entry, tensor in self.entries():
            if entry.shard is not None:
                raise InvalidInputError(
                    f"weights directory {self.directory}: {entry.name} is a shard, expected "
                    "whole tensors"
                )
            yield entry.name, tensor

    def entries(self) -> Iterator[tuple[TensorEntry, Tensor]]:
        """Each tensor's entry of the manifest with its view."""
        for entry in self.manifest.tensors:
            yield entry, self._view(entry)

    def close(self) -> None:
        """Let the buffer go, once no view of it is left. A second call does nothing."""
        self._mapping = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _memory(self) -> mmap.mmap:
        if self._mapping is None:
            raise InvalidInputError(f"weights directory {self.directory}: closed already")
        return self._mapping

    def _view(self, entry: TensorEntry) -> Tensor:
        memory, dtype = self._memory(), getattr(torch, entry.dtype)
        if entry.bytes == 0:
            return torch.empty(entry.shape, dtype=dtype)
        flat = torch.frombuffer(memory, dtype=torch.uint8, count=entry.bytes, offset=entry.offset)
        return flat.view(dtype).view(entry.shape)


def _open_held(folder: Path, manifest: Manifest) -> int | None:
    """The manifest's buffer, open and held; None where the manifest is not the present one."""
    path = folder / manifest.buffer
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        if read_manifest(folder) == manifest:
            raise CorruptionError(f"{path}: not there, though {FILE} names it") from None
        return None
    try:
        # The writer locks the buffer that the manifest does not name. So once ours is held, what
        # the manifest says about it stays true.
        if try_lock(file, shared=True) and read_manifest(folder) == manifest:
            held, file = file, -1
            return held
        return None
    finally:
        if file >= 0:
            os.close(file)


def _map(file: int, folder: Path, manifest: Manifest) -> mmap.mmap:
    """The buffer's bytes. The lock is let go with the mapping: when the last view of it is gone."""
    size = os.fstat(file).st_size
    if size < manifest.bytes:
        os.close(file)
        raise CorruptionError(
            f"{folder / manifest.buffer}: {size} bytes, though {FILE} says {manifest.bytes}"
        )
    if manifest.bytes == 0:  # what cannot be mapped: an anonymous page stands for it
        mapping = mmap.mmap(-1, 1)
    else:
        mapping = mmap.mmap(
            file,
            manifest.bytes,
            flags=mmap.MAP_PRIVATE | _MAP_NORESERVE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
        )
    weakref.finalize(mapping, os.close, file)
    return mapping
