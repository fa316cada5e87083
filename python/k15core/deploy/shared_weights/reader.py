"""Reading a published version in place."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from k15core.deploy.closing import Closing
from k15core.deploy.shared_weights.locks import POLL_SECONDS, try_lock
from k15core.deploy.shared_weights.manifest import FILE, check, decode, read_file
from k15core.errors import CorruptionError, InvalidInputError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from k15core.deploy.shared_weights.manifest import Manifest, TensorEntry

OPEN_SECONDS = 60.0
_MAP_NORESERVE = 0x4000  # on Linux; Python 3.13 has a name for it


class SharedWeights(Closing):
    """A published version, read in place: a WeightSource.

    Made by `open`, or by a WeightReader. Its tensors are views of the shared memory. They are for
    reading: what is written to one stays in this process (the mapping is private), and nobody else
    sees it. The buffer is kept from being overwritten until `close` was called and the last view is
    gone; a process that dies lets go at once.
    """

    def __init__(self, directory: Path, manifest: Manifest, mapping: mmap.mmap) -> None:
        self.directory = directory
        self.manifest = manifest
        self.version = manifest.version
        self._mapping: mmap.mmap | None = mapping

    @classmethod
    def open(
        cls, directory: str | Path, *, version: int | None = None, verify: bool = True
    ) -> SharedWeights:
        """Take hold of the version that is published now.

        With `version`, it must be that one. With `verify`, every tensor is held against its
        checksum. Raises InvalidInputError where nothing, or another version, is published,
        CorruptionError that names the tensor or field that is not what was published.
        """
        with WeightReader(directory) as reader:
            weights = reader.open(version=version, verify=False)
        if verify:
            try:
                weights.verify()
            except BaseException:
                weights.close()
                raise
        return weights

    def verify(self) -> None:
        """Hold every tensor, as this process sees it, against its checksum.

        Raises CorruptionError that names the first that differs.
        """
        memory = np.frombuffer(self._memory(), np.uint8)
        check(memory, self.manifest, where=f"weights directory {self.directory}")

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


class WeightReader(Closing):
    """Opens one version of a directory after the other, for a process that stays.

    It keeps the buffers mapped in between: to verify a later version then takes about half the
    time. It holds none of them against the writer; what `open` returns does. Not for several
    threads.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        # By device and inode, so that buffers of a directory that was made anew are not mistaken.
        self._kept: dict[tuple[int, int], mmap.mmap] = {}

    def open(self, *, version: int | None = None, verify: bool = True) -> SharedWeights:
        """As `SharedWeights.open`."""
        file, manifest = self._hold(version)
        try:
            size = os.fstat(file).st_size
            if size < max(manifest.bytes, 1):
                raise CorruptionError(
                    f"{self.directory / manifest.buffer}: {size} bytes, though {FILE} says "
                    f"{manifest.bytes}"
                )
            if verify and manifest.bytes:
                memory = np.frombuffer(self._mapped(file, manifest.bytes), np.uint8)
                check(memory, manifest, where=f"weights directory {self.directory}")
            mapping = _map_privately(file, manifest.bytes)
        finally:
            # The mapping has a descriptor of its own for the same open file, and with it the lock:
            # that goes when the last view is gone.
            os.close(file)
        return SharedWeights(self.directory, manifest, mapping)

    def close(self) -> None:
        """Let the mappings go; what is open stays open. A second call does nothing."""
        self._kept.clear()

    def _hold(self, version: int | None) -> tuple[int, Manifest]:
        """The buffer of the published version, open and locked, and its manifest."""
        deadline = time.monotonic() + OPEN_SECONDS
        while True:
            content = read_file(self.directory)
            if content is None:
                raise InvalidInputError(
                    f"weights directory {self.directory}: no version is published"
                )
            manifest = decode(content, where=str(self.directory / FILE))
            if version is not None and manifest.version != version:
                raise InvalidInputError(
                    f"weights directory {self.directory}: version {manifest.version} is "
                    f"published, expected {version}"
                )
            file = self._open_held(manifest.buffer, content)
            if file is not None:
                return file, manifest
            # A newer version has come in between: the next look at the manifest finds it.
            if time.monotonic() > deadline:
                raise StorageError(
                    f"weights directory {self.directory}: {manifest.buffer}, which {FILE} names, "
                    f"stayed locked by a writer for {OPEN_SECONDS:.0f} s"
                )
            time.sleep(POLL_SECONDS)

    def _open_held(self, buffer: str, content: bytes) -> int | None:
        """A manifest's buffer, open and locked; None where the manifest has been replaced."""
        path = self.directory / buffer
        try:
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            if read_file(self.directory) == content:
                raise CorruptionError(f"{path}: not there, though {FILE} names it") from None
            return None
        # A writer locks the buffer that the manifest does not name. So once ours is locked and the
        # manifest still names it, nobody writes to it.
        if try_lock(file, shared=True) and read_file(self.directory) == content:
            return file
        os.close(file)
        return None

    def _mapped(self, file: int, size: int) -> mmap.mmap:
        status = os.fstat(file)
        place = (status.st_dev, status.st_ino)
        mapping = self._kept.get(place)
        if mapping is None or len(mapping) < size:
            self._kept.pop(place, None)
            while len(self._kept) > 1:  # two buffers
                self._kept.pop(next(iter(self._kept)))
            # Opened anew: a duplicate of `file` would share its lock.
            again = os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
            try:
                mapping = self._kept[place] = mmap.mmap(again, size, prot=mmap.PROT_READ)
            finally:
                os.close(again)
        return mapping


def _map_privately(file: int, size: int) -> mmap.mmap:
    flags, prot = mmap.MAP_PRIVATE | _MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
    return mmap.mmap(file, max(size, 1), flags=flags, prot=prot)
