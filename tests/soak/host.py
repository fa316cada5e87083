"""What a soak counts on the host, and how it kills what slots are made of."""

from __future__ import annotations

import contextlib
import os
import random
import select
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
    When this returns the slot's spawner has ended, so that no run is given to it any more.
    """
    guards = [pid for pid in children(os.getpid()) if b"serve" in command(pid)]
    if not guards:
        return ""
    guard = draws.choice(guards)
    wants_spawner = draws.random() < 0.5
    with contextlib.ExitStack() as held:
        spawner = None
        for pid in children(guard)[:1]:
            spawner = hold(pid, guard, held)
        chosen = spawner if wants_spawner else None
        name = "guard" if chosen is None else "spawner"
        if chosen is None:
            chosen = hold(guard, os.getpid(), held)
        if chosen is None:
            return ""
        try:
            signal.pidfd_send_signal(chosen, signal.SIGKILL)
        except ProcessLookupError:
            return ""
        ends = select.poll()
        ends.register(chosen if spawner is None else spawner, select.POLLIN)
        ends.poll()
    return name


def hold(pid: int, parent: int, until: contextlib.ExitStack) -> int | None:
    """A descriptor of the process `pid` if it is `parent`'s child."""
    try:
        held = os.pidfd_open(pid)
    except OSError:
        return None
    until.callback(os.close, held)
    # The number may have come to mean another process before it was held.
    return held if pid in children(parent) else None


def command(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
