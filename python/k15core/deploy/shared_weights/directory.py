"""Directories of runs, and removing those that dead runs have left.

Whoever uses a run's directory holds a shared lock on it, which the kernel lets go when the process
dies. The name carries the pid and the start time of the process that made it. A directory is left
over when that process is gone and nobody holds a lock on the directory or on a buffer: a run in
another container, whose pids mean nothing here, is told by its locks alone.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from k15core.deploy.closing import Closing
from k15core.deploy.shared_weights.locks import try_lock
from k15core.errors import ConflictError, InvalidInputError

if TYPE_CHECKING:
    pass

ROOT = Path("/dev/shm")
_NAME = re.compile(r"k15core-(?P<name>[A-Za-z0-9._-]+)-(?P<pid>\d+)-(?P<start>\d+)")


class WeightDirectory(Closing):
    """A directory for the weights of one run, `path`: made now, gone at `close`.

    It is `ROOT/k15core-NAME-PID-START`, PID and START those of this process. What dead runs have
    left beside it is removed first. Raises InvalidInputError for a name with other signs than
    letters, digits, ".", "_" and "-", ConflictError where this process has made it already.
    """

    def __init__(self, name: str, *, root: str | Path = ROOT) -> None:
        pid = os.getpid()
        final = f"k15core-{name}-{pid}-{start_time(pid)}"
        if _NAME.fullmatch(final) is None:
            raise InvalidInputError(f"name {name!r}: expected letters, digits, '.', '_' and '-'")
        remove_leftovers(root)
        self.path = Path(root) / final
        # Locked before it has the name by which others judge it.
        fresh = Path(root) / f".{final}"
        fresh.mkdir(mode=0o700, exist_ok=True)
        self._file = os.open(fresh, os.O_RDONLY | os.O_DIRECTORY)
        try_lock(self._file, shared=True)
        try:
            if self.path.exists():
                raise ConflictError(f"weights directory {self.path}: made by this process already")
            fresh.rename(self.path)
        except BaseException:
            os.close(self._file)
            fresh.rmdir()
            raise

    def close(self) -> None:
        """Remove the directory with what is in it. A second call does nothing."""
        if self._file >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._file)
            self._file = -1


def start_time(pid: int) -> int | None:
    """When a process started, in the kernel's ticks since boot; None where it is not there."""
    try:
        content = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is a name in parentheses, which may hold anything: count from its end.
    return int(content.rpartition(")")[2].split()[19])


def remove_leftovers(root: str | Path = ROOT) -> list[Path]:
    """Remove the directories of dead runs of this user; which they were."""
    removed = []
    for path in sorted(Path(root).glob("*k15core-*")):
        found = _NAME.fullmatch(path.name.removeprefix("."))
        if found is None or start_time(int(found["pid"])) == int(found["start"]):
            continue
        if _remove_unless_held(path):
            removed.append(path)
    return removed


def _remove_unless_held(path: Path) -> bool:
    files: list[int] = []
    try:
        files.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW))
        if os.fstat(files[0]).st_uid != os.geteuid() or not try_lock(files[0], shared=False):
            return False
        # A run keeps the directories of its writers in its own.
        for place, folders, names in os.walk(path):
            for name in (*folders, *names):
                inner = os.open(Path(place, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                files.append(inner)
                if not try_lock(inner, shared=False):
                    return False
        shutil.rmtree(path)
    except OSError:  # not a directory, not ours to read, or gone in the meantime
        return False
    finally:
        for file in files:
            os.close(file)
    return True
