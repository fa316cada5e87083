"""Pickled messages over a socket, between an `EmbeddedProcess` and its program."""

from __future__ import annotations

import pickle
import select
import socket
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

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
