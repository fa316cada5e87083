"""What a soak counts on the host, and how it kills what slots are made of."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

from sandboxes import children, groups, registry, run_processes

COUNTED = ("processes", "runs' processes", "threads", "descriptors", "mounts", "cgroups", "pools")


def count() -> dict[str, int]:
    """How much of each kind this process has on the host, and `resident`, its memory in KiB."""
    status = Path("/proc/self/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0])
    made = [
        len(below(os.getpid())),
        len(run_processes()),
        len(list(Path("/proc/self/task").iterdir())),
        len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - iterdir would count its own
        Path("/proc/self/mountinfo").read_text().count("\n"),
        sum(1 + sum(each.is_dir() for each in group.iterdir()) for group in groups()),
        len(list(registry().glob(f"k15core-{os.getpid()}-*"))),
    ]
    return dict(zip(COUNTED, made, strict=True)) | {"resident": resident}


def below(pid: int) -> list[int]:
    """Every process that descends from `pid`."""
    found = children(pid)
    for child in found[:]:
        found += below(child)
    return found


def kill_one(draws: random.Random) -> str:
    """Kill a process that some slot is made of, chosen at random: its name for the table, or "".

    Slots are trees: a guard, the spawner below it, what runs below that. The janitor is no slot.
    """
    guards = [pid for pid in children(os.getpid()) if b"serve" in command(pid)]
    if not guards:
        return ""
    guard = draws.choice(guards)
    spawners = children(guard)
    if draws.random() < 0.5 and spawners:
        return "spawner" if kill(spawners[0], guard) else ""
    return "guard" if kill(guard, os.getpid()) else ""


def kill(pid: int, parent: int) -> bool:
    try:
        held = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        # The number may have come to mean another process before it was held.
        if pid not in children(parent):
            return False
        signal.pidfd_send_signal(held, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(held)
    return True


def command(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
