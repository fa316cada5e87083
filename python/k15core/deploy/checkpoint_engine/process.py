"""The engine's processes: started under a lock, known by more than a number, ended all together.

A number alone may come to mean another process. One is known here by its number, its start time,
the pid namespace and the boot. What belongs to an engine is told by a mark in the environment,
which children inherit: vLLM's workers are found, and ended, even where the process that started
them is dead. The lock that an engine holds for as long as it lives goes with its last descriptor,
so that the kernel itself sees to it that there are never two.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MARK = "K15CORE_ENGINE"
"""The environment variable whose value tells one checkpoint engine's processes from all others."""
URL = "K15CORE_ENGINE_URL"
"""The environment variable with the address at which the process will answer."""


CLEANING_SECONDS = 5.0
"""How long what removes the shared memory of dead processes may take before it is killed too."""


@dataclass(frozen=True)
class Identity:
    """A process: its number, its start in ticks since boot, and where these mean something."""

    pid: int
    start: int
    place: str

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """That of a process that is alive."""
        start = _start_time(pid)
        return None if start is None else cls(pid, start, _place())

    def is_alive(self) -> bool:
        """Whether this very process lives. One that ended and was not waited for does not."""
        return self.place == _place() and _start_time(self.pid) == self.start

    def watch(self) -> int | None:
        """A pidfd, readable once it has ended; None if it has."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except OSError:
            return None
        if self.is_alive():
            return pidfd
        os.close(pidfd)
        return None


def launch(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    mark: str,
    url: str,
    lock: Path,
    log: Path,
) -> int:
    """Start `command` in a session of its own, once it has `lock`; output is appended to `log`.

    Returns the process's number; it becomes `command` by exec, with all inheritable descriptors of
    ours. It does not die with us.
    """
    wrapper = [sys.executable, "-S", "-E", str(Path(__file__).with_name("launch.py")), str(lock)]
    output = (os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    return os.posix_spawn(
        sys.executable,
        [*wrapper, *command],
        # setproctitle, which vLLM uses, else writes over what /proc shows of the environment.
        {**os.environ, **environment, MARK: mark, URL: url, "SPT_NOENV": "1"},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), *output),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )


def exit_code(pid: int) -> int | None:
    """How a child of ours ended, a signal as its negative; None while it runs, or if it is none."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status) if ended else None


def marked(mark: str) -> list[int]:
    """The processes with this mark that are alive, in order of their numbers."""
    wanted = f"{MARK}={mark}".encode()
    pids = (int(entry) for entry in os.listdir("/proc") if entry.isdigit())  # noqa: PTH208
    return sorted(pid for pid in pids if wanted in _environment(pid))


def leaders(mark: str) -> list[Identity]:
    """Of the processes with this mark those that lead a session: what `launch` has started."""
    led = [pid for pid in marked(mark) if _session(pid) == pid]
    return [identity for pid in led if (identity := Identity.of(pid)) is not None]


def url_of(identity: Identity) -> str | None:
    """Where the process said, when it was started, that it would answer."""
    for word in _environment(identity.pid):
        name, _, value = word.partition(b"=")
        if name == URL.encode():
            return value.decode()
    return None


def end(mark: str, *, grace_seconds: float, leader: Identity | None = None) -> None:
    """End all processes with this mark: the leaders are asked to first, for `grace_seconds`.

    When this returns none of them is left, and what they held is free. One that is on its way out
    shows no mark any more, while its files are still open: those of the session of `leader`, a
    process known from before, are waited for. Raises TimeoutError where one cannot be killed, as
    the kernel holds it in a call.
    """
    asked = [pidfd for identity in leaders(mark) if (pidfd := identity.watch()) is not None]
    try:
        for pidfd in asked:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        for pidfd in asked:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
    finally:
        for pidfd in asked:
            os.close(pidfd)
    deadline = time.monotonic() + 60
    sessions = {identity.pid for identity in leaders(mark)} | ({leader.pid} if leader else set())
    cleaning = time.monotonic() + CLEANING_SECONDS
    while pids := [*marked(mark), *_leaving(sessions)]:
        trackers = {pid for pid in pids if _is_tracker(pid)}
        for pid in pids:
            if pid not in trackers or time.monotonic() > cleaning:
                _kill(pid, mark, deadline)
        if trackers.issuperset(pids):
            time.sleep(0.005)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {pids} of the engine were killed and do not end")


def _is_tracker(pid: int) -> bool:
    """Whether it is Python's own process that removes shared memory whose users have died."""
    try:
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _kill(pid: int, mark: str, deadline: float) -> None:
    """Kill a process with this mark, or wait for one that is on its way out."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        # The number may have come to mean another process before it was held.
        words = _environment(pid)
        if f"{MARK}={mark}".encode() in words:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        elif words:
            return
        gone = select.poll()
        gone.register(pidfd, select.POLLIN)
        gone.poll(max(0.0, deadline - time.monotonic()) * 1000)
    finally:
        os.close(pidfd)


def _leaving(sessions: set[int]) -> list[int]:
    """Processes of these sessions whose memory is gone, and which are not."""
    pids = (int(entry) for entry in os.listdir("/proc") if entry.isdigit())  # noqa: PTH208
    return [
        pid
        for pid in pids
        if _session(pid) in sessions and not _environment(pid) and _start_time(pid) is not None
    ]


def _environment(pid: int) -> list[bytes]:
    """The environment that a process was started with; empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _start_time(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in parentheses, may hold anything; the rest may not.
    rest = stat.rpartition(") ")[2].split()
    return None if rest[0] in "ZX" else int(rest[19])


def _place() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{os.readlink('/proc/self/ns/pid')} {boot}"  # noqa: PTH115
