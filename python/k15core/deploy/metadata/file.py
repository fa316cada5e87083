"""Metadata for the processes of one machine, in one SQLite file.

SQLite gives what is needed of a file that several processes change: transactions that a kill -9
does not halve. Revisions, leases and the history of changes are ours. The machine's clock since its
boot tells when a lease is over; with a new boot all are.
"""

from __future__ import annotations

import fcntl
import sqlite3
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from k15core.deploy.closing import Closing
from k15core.deploy.metadata.base import (
    Event,
    Item,
    MetadataLease,
    check_key,
    check_prefix,
    check_revision,
    check_seconds,
    check_value,
)
from k15core.errors import CorruptionError, InvalidInputError, LeaseExpiredError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

BUSY_SECONDS = 600.0
POLL_SECONDS = 0.02
EVENTS_KEPT = 10_000

_FORMAT = 1
_TABLES = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS about (format INTEGER, revision INTEGER, boot TEXT);
INSERT INTO about SELECT 1, 0, '' WHERE NOT EXISTS (SELECT * FROM about);
CREATE TABLE IF NOT EXISTS leases (id INTEGER PRIMARY KEY AUTOINCREMENT, ends REAL NOT NULL);
CREATE TABLE IF NOT EXISTS items (
    key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL, lease INTEGER
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS items_of_lease ON items (lease);
CREATE TABLE IF NOT EXISTS events (revision INTEGER NOT NULL, key TEXT NOT NULL, value BLOB);
CREATE INDEX IF NOT EXISTS events_by_revision ON events (revision);
COMMIT;
"""


class FileMetadata(Closing):
    """`Metadata` in a file, which is made if it is not there, for the processes of one machine.

    Threads may share it; a fork may not: open another. A history of EVENTS_KEPT changes is kept for
    watches. Raises CorruptionError where the file is another thing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # One at a time: changing the journal's mode does not wait for others as the rest does.
        with self._path_lock(), self._named():
            self._database = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = NORMAL")
                self._database.executescript(_TABLES)
                found, known_boot = self._database.execute(
                    "SELECT format, boot FROM about"
                ).fetchone()
                if found != _FORMAT:
                    raise CorruptionError(f"metadata {self.path}: format {found}, not {_FORMAT}")
                if known_boot != boot:  # clocks began anew, and no owner of a lease is left
                    self._database.execute("UPDATE leases SET ends = -1")
                    self._database.execute("UPDATE about SET boot = ?", (boot,))
            except BaseException:
                self._database.close()
                raise

    def get(self, key: str) -> Item | None:
        """See `Metadata.get`."""
        check_key(key)
        with self._snapshot() as database:
            found = "SELECT key, value, revision FROM items WHERE key = ?"
            row = database.execute(found, (key,)).fetchone()
        return None if row is None else Item(*row)

    def items(self, prefix: str) -> tuple[list[Item], int]:
        """See `Metadata.items`."""
        prefix = check_prefix(prefix)
        with self._snapshot() as database:
            rows = database.execute(
                "SELECT key, value, revision FROM items WHERE substr(key, 1, ?) = ? ORDER BY key",
                (len(prefix), prefix),
            ).fetchall()
            return [Item(*row) for row in rows], self._revision()

    def put(self, key: str, value: bytes, *, lease: MetadataLease | None = None) -> int:
        """See `Metadata.put`."""
        with self._transaction():
            return self._put(check_key(key), check_value(value), lease)

    def compare_and_put(
        self, key: str, value: bytes, *, revision: int, lease: MetadataLease | None = None
    ) -> int | None:
        """See `Metadata.compare_and_put`."""
        check_key(key)
        check_value(value)
        check_revision(revision, "revision")
        with self._transaction() as database:
            row = database.execute("SELECT revision FROM items WHERE key = ?", (key,)).fetchone()
            if (0 if row is None else row[0]) != revision:
                return None
            return self._put(key, value, lease)

    def delete(self, key: str) -> bool:
        """See `Metadata.delete`."""
        check_key(key)
        with self._transaction() as database:
            if not database.execute("DELETE FROM items WHERE key = ?", (key,)).rowcount:
                return False
            self._record([(key, None)])
            return True

    def lease(self, seconds: int) -> MetadataLease:
        """See `Metadata.lease`."""
        check_seconds(seconds)
        with self._transaction() as database:
            made = database.execute("INSERT INTO leases (ends) VALUES (?)", (_now() + seconds,))
            return FileLease(self, int(made.lastrowid or 0), seconds)

    def watch(self, prefix: str, *, after: int, seconds: float) -> list[Event]:
        """See `Metadata.watch`."""
        prefix = check_prefix(prefix)
        check_revision(after, "after")
        deadline = time.monotonic() + seconds
        while True:
            with self._snapshot() as database:
                (kept,) = self._row("SELECT min(revision) FROM events")
                if kept is not None and after + 1 < kept:
                    raise InvalidInputError(
                        f"after {after}: changes are kept from revision {kept} on; "
                        "ask for the items anew"
                    )
                rows = database.execute(
                    "SELECT key, value, revision FROM events WHERE revision > ? "
                    "AND substr(key, 1, ?) = ? ORDER BY rowid",
                    (after, len(prefix), prefix),
                ).fetchall()
            if rows or time.monotonic() >= deadline:
                return [Event(*row) for row in rows]
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """See `Metadata.close`."""
        with self._lock:
            self._database.close()

    def _renew(self, lease: int, ends: float) -> bool:
        """Set when a lease ends; whether it lives."""
        with self._transaction() as database:
            changed = database.execute("UPDATE leases SET ends = ? WHERE id = ?", (ends, lease))
            return changed.rowcount > 0

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Alone with the file, leases that are over removed; all of what is done, or nothing."""
        with self._lock, self._named():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._expire()
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        """The file as it is at one moment, leases that are over removed. For reading."""
        with self._lock, self._named():
            over = self._database.execute("SELECT 1 FROM leases WHERE ends <= ?", (_now(),))
            expired = over.fetchone() is not None
        if expired:
            with self._transaction():
                pass
        with self._lock, self._named():
            self._database.execute("BEGIN")
            try:
                yield self._database
            finally:
                self._database.execute("COMMIT")

    def _expire(self) -> None:
        over = "SELECT id FROM leases WHERE ends <= ?"
        keys = self._database.execute(
            f"DELETE FROM items WHERE lease IN ({over}) RETURNING key", (_now(),)
        ).fetchall()
        self._database.execute(f"DELETE FROM leases WHERE id IN ({over})", (_now(),))
        if keys:
            self._record([(key, None) for (key,) in sorted(keys)])

    def _put(self, key: str, value: bytes, lease: MetadataLease | None) -> int:
        bound = None
        if lease is not None:
            if not isinstance(lease, FileLease):
                raise InvalidInputError(f"lease {lease!r}: expected one of this metadata")
            bound = lease.number
            if not self._database.execute("SELECT 1 FROM leases WHERE id = ?", (bound,)).fetchone():
                raise LeaseExpiredError(f"metadata {self.path}: lease {bound} has expired")
        revision = self._record([(key, value)])
        self._database.execute(
            "INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?)", (key, value, revision, bound)
        )
        return revision

    def _record(self, changes: list[tuple[str, bytes | None]]) -> int:
        """Note changes that happen together; their revision."""
        self._database.execute("UPDATE about SET revision = revision + 1")
        revision = self._revision()
        self._database.executemany(
            "INSERT INTO events VALUES (?, ?, ?)", [(revision, *change) for change in changes]
        )
        self._database.execute("DELETE FROM events WHERE revision <= ?", (revision - EVENTS_KEPT,))
        return revision

    def _revision(self) -> int:
        return int(self._row("SELECT revision FROM about")[0])

    def _row(self, query: str) -> tuple[Any, ...]:
        return tuple(self._database.execute(query).fetchone())

    @contextmanager
    def _path_lock(self) -> Iterator[None]:
        with self.path.with_name(f"{self.path.name}.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _named(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except (sqlite3.OperationalError, sqlite3.ProgrammingError) as error:
            raise StorageError(f"metadata {self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise CorruptionError(f"metadata {self.path}: {error}") from error


class FileLease:
    """A lease of a FileMetadata."""

    def __init__(self, metadata: FileMetadata, number: int, seconds: int) -> None:
        self.metadata = metadata
        self.number = number
        self.seconds = seconds

    def keep_alive(self) -> None:
        """See `MetadataLease.keep_alive`."""
        if not self.metadata._renew(self.number, _now() + self.seconds):
            raise LeaseExpiredError(
                f"metadata {self.metadata.path}: lease {self.number} has expired"
            )

    def revoke(self) -> None:
        """See `MetadataLease.revoke`."""
        self.metadata._renew(self.number, -1.0)
        with self.metadata._transaction():
            pass


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
