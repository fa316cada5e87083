"""What tests of the sandbox share: where it can run, and what it must leave alone on the host."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from slowness import SLOW

from k15core.errors import SandboxError
from k15core.sandbox import Sandbox
from k15core.sandbox.local import SPAWNER

RUNNERS = ("direct", "crun", "crun-plain", "warm")
"""Every runner of the sandbox. Each attack runs against each."""


@cache
def why_not(runner: str) -> str:
    """Why sandboxes of this runner cannot be opened here; empty if they can."""
    if not SPAWNER.is_file():
        return f"{SPAWNER} is missing: bash scripts/build_spawner.sh"
    try:
        Sandbox(slots=1, runner=runner).close()
    except SandboxError as error:
        return str(error)
    return ""


def need(runner: str = "auto") -> None:
    """Skip the test, saying why, where this runner cannot run."""
    reason = why_not(runner)
    if reason:
        pytest.skip(reason)


def wait_until(condition: Callable[[], object], *, seconds: float) -> bool:
    """Look every 10 ms whether `condition` holds, for so long; whether it does in the end."""
    deadline = time.monotonic() + seconds * SLOW
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(holds)


def spawners() -> set[int]:
    """The spawners that this process has started and that are alive."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
            words = (path.parent / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        state, parent = rest.split()[:2]
        if name == "k15-spawner" and state != "Z" and int(parent) == _own_pid():
            found |= {int(path.parent.name)} if b"serve" in words else set()
    return found


def run_processes(owner: int | None = None) -> list[str]:
    """Processes, with what they are, that run as users of the sandboxes of process `owner` (this).

    Each process has a range of users, see `Users` in runner/direct.rs. The runs of an ordinary user
    are its own processes, in pid namespaces below.
    """
    first = 0x7000_0000 + ((owner or _own_pid()) % (1 << 13) << 14)
    found = []
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            status = dict(
                line.split(":\t", 1) for line in path.read_text().splitlines() if ":\t" in line
            )
        except OSError:
            continue
        user = int(status["Uid"].split()[0])
        is_run = first <= user < first + (1 << 14)
        if 0 != user == os.getuid():
            is_run = len(status["NSpid"].split()) > 1
        if is_run and not status["State"].startswith(("Z", "X")):
            found.append(f"{path.parent.name} {status['Name']} uid {user}")
    return found


def registry() -> Path:
    """Where pools of this user are entered, as long as they live."""
    user, base = os.getuid(), Path(os.environ.get("XDG_RUNTIME_DIR", "/nowhere"))
    if user == 0:
        return Path("/run/k15core")
    return base / "k15core" if base.is_dir() else Path(f"/tmp/k15core-{user}")


def children(pid: int) -> list[int]:
    """The processes whose parent is `pid`."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, task.read_text().split())
        except OSError:
            continue
    return found


def alive(pid: int) -> bool:
    """Whether there is a process `pid` that has not ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def groups(owner: int | None = None) -> list[Path]:
    """Directories of pools of process `owner` (this) in the host's cgroups."""
    start = f"k15core-{owner or _own_pid()}-"
    # Not by rglob, which fails when a directory of somebody else's goes while it looks.
    walk = os.walk("/sys/fs/cgroup")
    found = (Path(at, name) for at, names, _ in walk for name in names if name.startswith(start))
    return sorted(found)


def _own_pid() -> int:
    return int(Path("/proc/self").resolve().name)
