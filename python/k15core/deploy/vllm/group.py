"""The processes of one vLLM server: a process group, ended as a whole."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

POLL_SECONDS = 0.02

CLEANING_SECONDS = 5.0
"""How long Python's resource tracker may take to remove the shared memory of dead processes."""


def members(group: int) -> list[int]:
    """Living processes of a group, parents first where numbers do not wrap."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = stat(int(entry.name))
            if fields and int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return sorted(found)


def stat(pid: int) -> list[str]:
    """State, parent, group and so on of a process, from behind its name in /proc/PID/stat."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def end_own_group() -> None:
    """Kill every process of this one's group, and this one last.

    The tracker ends by itself when the others are gone, and removes what they left in /dev/shm.
    """
    mine = os.getpid()
    while others := [pid for pid in members(os.getpgrp()) if pid != mine and not _is_tracker(pid)]:
        _kill(others)
        time.sleep(POLL_SECONDS)
    os.kill(mine, signal.SIGKILL)


def end_group(group: int) -> None:
    """Kill every process of a group, and wait until they are gone; trackers get their time."""
    cleaning = time.monotonic() + CLEANING_SECONDS
    while pids := members(group):
        late = time.monotonic() > cleaning
        _kill([pid for pid in pids if late or not _is_tracker(pid)])
        time.sleep(POLL_SECONDS)


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _is_tracker(pid: int) -> bool:
    try:
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
