"""The interface, and keeping a lease alive.

It is the part of etcd's model that the loop needs: every change has a revision, larger than the one
before it; what a lease holds is gone when its owner stops keeping it alive.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from k15core.deploy.closing import Closing
from k15core.errors import DisconnectedError, InvalidInputError, LeaseExpiredError, StorageError

if TYPE_CHECKING:
    pass

MAX_KEY_BYTES = 1024
MAX_VALUE_BYTES = 1 << 20
"""What an etcd takes that nobody has configured, with room to spare (its limit is 1.5 MiB)."""


@dataclass(frozen=True)
class Item:
    """A key as it is now; `revision` is that of its last put."""

    key: str
    value: bytes
    revision: int


@dataclass(frozen=True)
class Event:
    """A change: a put of `value`, or a deletion, where it is None."""

    key: str
    value: bytes | None
    revision: int


class MetadataLease(Protocol):
    """A time to live that keys can be bound to. Its owner calls `keep_alive` in time."""

    seconds: int

    def keep_alive(self) -> None:
        """Begin the time anew. Raises LeaseExpiredError where it is over: the keys are gone."""
        ...

    def revoke(self) -> None:
        """End it now, and delete its keys. Nothing if it is over."""
        ...


class Metadata(Protocol):
    """Keys (text, not empty) with values (bytes), shared by processes.

    Every call is atomic, and on its return it has happened for everybody. Any may raise
    StorageError or DisconnectedError; what is refused by its arguments raises InvalidInputError.
    """

    def get(self, key: str) -> Item | None:
        """The key as it is now, None where it is not there."""
        ...

    def items(self, prefix: str) -> tuple[list[Item], int]:
        """What begins with `prefix`, by key, and the revision at which that is so.

        A watch from that revision on misses nothing.
        """
        ...

    def put(self, key: str, value: bytes, *, lease: MetadataLease | None = None) -> int:
        """Set a key, and bind it to the lease, or to none. The revision of the change."""
        ...

    def compare_and_put(
        self, key: str, value: bytes, *, revision: int, lease: MetadataLease | None = None
    ) -> int | None:
        """As `put`, but only if the key's revision is `revision` (0: it is not there).

        None where it is another: nothing has changed.
        """
        ...

    def delete(self, key: str) -> bool:
        """Remove a key. Whether it was there."""
        ...

    def lease(self, seconds: int) -> MetadataLease:
        """A new lease, of at least `seconds` from now."""
        ...

    def watch(self, prefix: str, *, after: int, seconds: float) -> list[Event]:
        """The changes of what begins with `prefix` that came after a revision, in their order.

        Waits for the first at most `seconds`; an empty list if none came. All of one revision come
        together, so the next call goes on from the last one's. Raises InvalidInputError where the
        changes after that revision are not kept any more: ask for the items, and watch from there.
        """
        ...

    def close(self) -> None:
        """Let go of files and connections. Leases run on until their time is over."""
        ...


class KeptLease(Closing):
    """Keeps a lease alive from a thread until `close`, which revokes it.

    `lost` becomes true when it has expired all the same: the process was stopped for longer than
    its time, or the store could not be reached.
    """

    def __init__(self, lease: MetadataLease) -> None:
        self.lease = lease
        self.lost = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="k15core-lease")
        self._thread.start()

    def close(self) -> None:
        """Revoke the lease, which deletes its keys. A second call does nothing."""
        if not self._end.is_set():
            self._end.set()
            self._thread.join()
            self.lease.revoke()

    def _run(self) -> None:
        while not self._end.wait(self.lease.seconds / 4):
            try:
                self.lease.keep_alive()
            except LeaseExpiredError:
                self.lost = True
                return
            except (DisconnectedError, StorageError):  # tried again, while the lease lasts
                continue


def check_key(key: object, field: str = "key") -> str:
    """A key, or InvalidInputError."""
    if not isinstance(key, str) or not key or len(key.encode(errors="replace")) > MAX_KEY_BYTES:
        raise InvalidInputError(f"{field} {key!r}: expected text of 1 to {MAX_KEY_BYTES} bytes")
    if "\0" in key or any("\ud800" <= sign <= "\udfff" for sign in key):
        raise InvalidInputError(f"{field} {key!r}: expected text without NUL and lone surrogates")
    return key


def check_prefix(prefix: object) -> str:
    """A prefix, which may be empty, or InvalidInputError."""
    return "" if prefix == "" else check_key(prefix, "prefix")


def check_value(value: object) -> bytes:
    """A value, or InvalidInputError."""
    if not isinstance(value, bytes):
        raise InvalidInputError(f"value of type {type(value).__name__}: expected bytes")
    if len(value) > MAX_VALUE_BYTES:
        raise InvalidInputError(f"value of {len(value)} bytes: expected at most {MAX_VALUE_BYTES}")
    return value


def check_seconds(seconds: object) -> int:
    """A lease's time to live, or InvalidInputError."""
    if type(seconds) is not int or not 1 <= seconds <= 10**6:
        raise InvalidInputError(f"seconds {seconds!r}: expected a whole number from 1 to 1000000")
    return seconds


def check_revision(revision: object, field: str) -> int:
    """A revision, or 0, or InvalidInputError."""
    if type(revision) is not int or not 0 <= revision < 2**63:
        raise InvalidInputError(f"{field} {revision!r}: expected a revision, or 0")
    return revision
