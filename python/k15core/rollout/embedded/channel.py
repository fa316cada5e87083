"""What an `EmbeddedProcess` and its program say to each other: pickled messages over a socket."""

from __future__ import annotations

import pickle
import select
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from k15core.types import Chunk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from k15core.types import FinishReason, Loop

LENGTH = struct.Struct("<Q")
AT_ONCE = 1 << 16
"""Bytes that one read takes."""


class Channel:
    """One end of the socket. Every call raises ConnectionResetError where the other end is gone."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._inbox = bytearray()

    def fileno(self) -> int:
        """The socket's descriptor, for an event loop."""
        return self._socket.fileno()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def send(self, message: Any, *, take_in: bool = False) -> None:
        """Send a message. With `take_in` what comes meanwhile is read, for `taken`: of two that
        send at once one must, or neither gets on."""
        content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        rest = memoryview(LENGTH.pack(len(content)) + content)
        flags = socket.MSG_DONTWAIT if take_in else 0
        while rest:
            try:
                rest = rest[self._socket.send(rest, flags) :]
            except BlockingIOError:
                readable, _, _ = select.select([self._socket], [self._socket], [])
                if readable:
                    self._take_in(wait=False)
            except OSError as error:
                raise ConnectionResetError(*error.args) from error

    def receive(self) -> Any:
        """The next message, once it is there."""
        while True:
            for message in self.taken():
                return message
            self._take_in(wait=True)

    def received(self) -> Iterator[Any]:
        """The messages that are there."""
        while self._take_in(wait=False):
            pass
        yield from self.taken()

    def taken(self) -> Iterator[Any]:
        """The messages that have been read already."""
        while len(self._inbox) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(self._inbox)[0]
            if len(self._inbox) < end:
                return
            content = bytes(memoryview(self._inbox)[LENGTH.size : end])
            del self._inbox[:end]
            yield pickle.loads(content)

    def _take_in(self, *, wait: bool) -> bool:
        """Read what there is; whether there may be more."""
        try:
            content = self._socket.recv(AT_ONCE, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError as error:
            raise ConnectionResetError(*error.args) from error
        if not content:
            raise ConnectionResetError("the other end is gone")
        self._inbox += content
        return len(content) == AT_ONCE


@dataclass(frozen=True)
class Chunks:
    """Some chunks of one version as few arrays: two a chunk would cost more than all the rest."""

    version: int
    trajectory_ids: list[int]
    lengths: list[int]
    tokens: NDArray[np.int32]
    log_probs: NDArray[np.float32]
    reasons: list[FinishReason | None]
    loops: list[Loop | None]

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> Chunks:
        """At least one chunk."""
        return cls(
            version=chunks[0].version,
            trajectory_ids=[chunk.trajectory_id for chunk in chunks],
            lengths=[len(chunk.tokens) for chunk in chunks],
            tokens=np.concatenate([chunk.tokens for chunk in chunks]),
            log_probs=np.concatenate([chunk.log_probs for chunk in chunks]),
            reasons=[chunk.finish_reason for chunk in chunks],
            loops=[chunk.loop for chunk in chunks],
        )

    def each(self) -> Iterable[Chunk]:
        """The chunks again."""
        start = 0
        for trajectory_id, length, reason, loop in zip(
            self.trajectory_ids, self.lengths, self.reasons, self.loops, strict=True
        ):
            part = slice(start, start + length)
            start += length
            yield Chunk(
                trajectory_id, self.tokens[part], self.log_probs[part], self.version, reason, loop
            )
