"""Published weights from one node to another, by Mooncake's transfer engine.

The receiver reads the sender's shared memory straight into a buffer of its own, holds it against
the checksums, and publishes it: its readers find an ordinary version. Memory that is registered is
open to whoever reaches the engine's ports: use it in a network that you trust.

TCP is tested. RDMA is the same calls with another `protocol` and `device`, which go to the engine
untouched; that was reasoned, not run.
"""

from __future__ import annotations

import json
import mmap
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from mooncake.engine import TransferEngine

from k15core.deploy.closing import Closing
from k15core.deploy.shared_weights import Manifest, SharedWeights, WeightReader, WeightWriter
from k15core.deploy.shared_weights.manifest import MAX_FILE_BYTES, decode, encode
from k15core.errors import DisconnectedError, InvalidInputError, StorageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["WeightReceiver", "WeightSender"]

PIECE_BYTES = 64 << 20
"""What one request of the engine asks for."""

_ADDRESS = re.compile(
    r"(?P<peer>[^/]+:\d+)/(?P<place>[0-9a-f]+)-(?P<bytes>\d+)/(?P<buffer>[0-9a-f]+)"
)


@dataclass(frozen=True)
class _Address:
    """Where a version can be fetched: the engine, its manifest and its buffer in memory."""

    peer: str
    manifest: int
    manifest_bytes: int
    buffer: int

    def __str__(self) -> str:
        return f"{self.peer}/{self.manifest:x}-{self.manifest_bytes}/{self.buffer:x}"

    @classmethod
    def parse(cls, text: str) -> _Address:
        found = _ADDRESS.fullmatch(text)
        if found is None or int(found["bytes"]) > MAX_FILE_BYTES:
            raise InvalidInputError(f"address {text!r}: expected what WeightSender.serve returned")
        place, buffer = int(found["place"], 16), int(found["buffer"], 16)
        return cls(found["peer"], place, int(found["bytes"]), buffer)


class WeightSender(Closing):
    """Lets other nodes fetch what is published in a directory of this one.

    `host` is the name or address by which they reach it; the engine picks its ports. `protocol` and
    `device` are the engine's (tcp, rdma; a device's name, or none for all).
    """

    def __init__(
        self, directory: str | Path, *, host: str, protocol: str = "tcp", device: str = ""
    ) -> None:
        self.directory = Path(directory)
        self._host = host
        self._memory = _Registered(host, protocol, device)
        self._reader = WeightReader(self.directory)
        self._served: SharedWeights | None = None

    def serve(self, version: int | None = None) -> str:
        """Hold the published version (with `version`, it must be that one) and let it be fetched.

        Returns the address for WeightReceiver.fetch. The version served before is let go: who is
        fetching it meanwhile may find that a checksum does not hold. Raises as SharedWeights.open.
        """
        weights = self._reader.open(version=version, verify=False)
        mapping = self._memory.mapped(self.directory / weights.manifest.buffer)
        content = encode(weights.manifest)
        manifest = self._memory.copied(content)
        if self._served is not None:
            self._served.close()
        self._served = weights
        peer = f"{self._host}:{self._memory.engine.get_rpc_port()}"
        return str(_Address(peer, manifest, len(content), mapping))

    def close(self) -> None:
        """Let the version and the memory go. A second call does nothing."""
        if self._served is not None:
            self._served.close()
            self._served = None
        self._reader.close()
        self._memory.close()


class WeightReceiver(Closing):
    """Fetches versions from other nodes into a directory of this one, whose one writer it is.

    `host`, `protocol` and `device` as in WeightSender.
    """

    def __init__(
        self, directory: str | Path, *, host: str, protocol: str = "tcp", device: str = ""
    ) -> None:
        self._memory = _Registered(host, protocol, device)
        self.writer = WeightWriter(directory)

    def fetch(self, address: str, *, version: int | None = None) -> Manifest:
        """Publish here what a sender serves at `address`; with `version`, only that one.

        Raises DisconnectedError where the sender cannot be reached, CorruptionError where what came
        is not what was published (it has gone on to another version, say), InvalidInputError where
        it is another version, and as WeightWriter.publish. The last version stays.
        """
        place = _Address.parse(address)
        content = self._memory.room(place.manifest_bytes)
        self._read(place.peer, place.manifest, content)
        manifest = decode(content.tobytes(), where=f"manifest at {address}")
        if version is not None and manifest.version != version:
            raise InvalidInputError(
                f"address {address}: version {manifest.version} is served, expected {version}"
            )

        def fill(buffer: str, target: NDArray[np.uint8]) -> None:
            self._memory.register(buffer, target)
            self._read(place.peer, place.buffer, target)

        return self.writer.receive(manifest, fill)

    def close(self, *, unlink: bool = True) -> None:
        """Stop fetching, and close the writer."""
        self._memory.close()
        self.writer.close(unlink=unlink)

    def _read(self, peer: str, place: int, target: NDArray[np.uint8]) -> None:
        for start in range(0, len(target), PIECE_BYTES):
            piece = target[start : start + PIECE_BYTES]
            status = self._memory.engine.transfer_sync_read(
                peer, piece.ctypes.data, place + start, len(piece)
            )
            if status != 0:
                raise DisconnectedError(f"{peer}: the transfer engine said {status}")


class _Registered:
    """An engine and the memory that it knows. Registering takes long with RDMA, so it is kept."""

    def __init__(self, host: str, protocol: str, device: str) -> None:
        self.engine = TransferEngine()
        if status := self.engine.initialize(host, "P2PHANDSHAKE", protocol, device):
            raise StorageError(
                f"transfer engine: {protocol} on host {host!r}, device {device!r}: said {status}"
            )
        if protocol == "rdma":  # where there is none, the engine says nothing and uses TCP
            found = self._devices()
            if not found or not found.issuperset(name for name in device.split(",") if name):
                raise StorageError(
                    f"transfer engine: RDMA devices here are {sorted(found)}, expected "
                    f"{device or 'any'}"
                )
        self._known: dict[str, tuple[int, int]] = {}
        self._mapped: dict[str, tuple[int, mmap.mmap]] = {}
        self._room = np.empty(0, np.uint8)

    def _devices(self) -> set[str]:
        """The names of RDMA devices: lists of them, near and far, for each place of memory."""
        topology = json.loads(self.engine.get_local_topology())
        return {name for lists in topology.values() for names in lists for name in names}

    def register(self, name: str, memory: NDArray[np.uint8]) -> int:
        """Make memory known, in the stead of what had this name before; its address."""
        place = (int(memory.ctypes.data), len(memory))
        if self._known.get(name) != place:
            if (before := self._known.pop(name, None)) is not None:
                self.engine.unregister_memory(before[0])
            if len(memory) and (status := self.engine.register_memory(*place)):
                raise StorageError(f"transfer engine: {len(memory)} bytes of {name}: said {status}")
            self._known[name] = place
        return place[0]

    def mapped(self, path: Path) -> int:
        """The address of a buffer's file. It is mapped for writing as well, as an RDMA device
        asks of memory that it registers, and shared, so that pinning it copies nothing."""
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            status = os.fstat(file)
            inode, mapping = self._mapped.get(path.name, (-1, None))
            if mapping is None or inode != status.st_ino or len(mapping) < status.st_size:
                mapping = mmap.mmap(file, status.st_size)
                place = self.register(path.name, np.frombuffer(mapping, np.uint8))
                self._mapped[path.name] = (status.st_ino, mapping)
                return place
        finally:
            os.close(file)
        return self._known[path.name][0]

    def room(self, size: int) -> NDArray[np.uint8]:
        """Known memory of our own, the same for every call."""
        if len(self._room) < size:
            self._room = np.zeros(max(2 * size, 1 << 20), np.uint8)
            self.register("room", self._room)
        return self._room[:size]

    def copied(self, content: bytes) -> int:
        """The address of known memory that holds `content`, until the next call."""
        memory = self.room(len(content))
        memory[:] = np.frombuffer(content, np.uint8)
        return int(memory.ctypes.data)

    def close(self) -> None:
        for place, size in self._known.values():
            if size:
                self.engine.unregister_memory(place)
        self._known.clear()
        self._mapped.clear()
