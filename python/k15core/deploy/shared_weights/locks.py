"""Locks that the kernel lets go when their holder dies, and who holds one."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

POLL_SECONDS = 0.005


def try_lock(file: int, *, shared: bool) -> bool:
    """Lock an open file unless somebody else's lock is in the way."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(file: int, *, seconds: float) -> bool:
    """Wait at most `seconds` for the file's exclusive lock. Whether it was obtained."""
    deadline = time.monotonic() + seconds
    while not try_lock(file, shared=False):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def unlock(file: int) -> None:
    """Let the lock go; the file stays open."""
    fcntl.flock(file, fcntl.LOCK_UN)


def holders(file: int) -> str:
    """Who holds locks on the file, for a message: `process 12 (python)`, …"""
    status = os.fstat(file)
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    found = []
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        # "1: FLOCK ADVISORY READ pid major:minor:inode 0 EOF"; one that waits has "->" second.
        if len(words) >= 6 and words[1] == "FLOCK" and words[5] == place:
            found.append(_process(int(words[4])))
    return ", ".join(sorted(set(found))) or "a process that is not visible from here"


def _process(pid: int) -> str:
    if pid <= 0:  # of another pid namespace: another container
        return "a process of another pid namespace"
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return f"process {pid}"
    return f"process {pid} ({name}{', this one' if pid == os.getpid() else ''})"
