"""What an attack is: a program that tries something, and what must hold when it is over.

To add one, write it into the list of a `cases_*` module of this folder. The program prints a line
that starts with BREACH if it got what it wanted; it may also be ended by a limit. `then` is a
second program, run next in the same slot, for attacks on the run that comes after. The test that
runs all cases (test_attacks.py) then looks whether the sandbox still works, whether its spawner is
the same process as before, and whether anything is left on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from k15core.sandbox import Limits
from k15core.types import RunResult

MIB = 1 << 20

MEMORY = 64 * MIB
"""What nearly every attack is given, so that it is soon at the limit."""

SMALL = Limits(
    cpu_seconds=1.5, wall_seconds=3, memory_bytes=MEMORY, processes=32, output_bytes=1 << 16
)
"""What an attack is given unless it needs other limits: enough to try, too little to disturb."""

SHORT = Limits(
    cpu_seconds=0.5, wall_seconds=1, memory_bytes=MEMORY, processes=32, output_bytes=1 << 16
)
"""For attacks that only a limit of time ends."""

ROOMY = Limits(wall_seconds=3, memory_bytes=MEMORY, disk_bytes=50 * MIB)
"""Memory or files may have nearly all of it, but not both."""

STOPPED = ("wall_limit", "cpu_limit")
"""How what never ends by itself may end: whichever clock is first."""

INIT_IS_OURS = "init is of the run's user: what is sent to it is let through and does nothing"
"""Without root, init and runs are one user, the caller: some attacks say nothing then."""

REFUSED = "every attempt is refused"


@dataclass(frozen=True, kw_only=True)
class Attack:
    name: str
    tries: str
    """What the program attempts, in words."""
    must_hold: str = REFUSED
    """What must hold, in words; `verdicts`, `says` and `holds` are what is looked at."""
    source: str
    language: str = "python"
    verdicts: tuple[str, ...] = ("ok",)
    """How it may end."""
    says: bytes = b""
    """What its output must contain: that it got as far as trying."""
    limits: Limits = SMALL
    stdin: bytes = b""
    files: dict[str, bytes] = field(default_factory=dict)
    fetch: tuple[str, ...] = ()
    holds: Callable[[RunResult], bool] | None = None
    """What else must hold of the result."""
    then: str = ""
    """A program of the same language that is run next, and must end well."""
    then_says: bytes = b""
    then_limits: Limits = SMALL
    times: int = 1
    """How often the two are run: more often where a race decides."""
    only_as_root: str = ""
    """Why it makes no sense in an ordinary user's sandbox; empty if it does."""


def python(body: str) -> str:
    """A program with what attacks need.

    `attempt(what, action)` says BREACH if the action works. `refused(what, number, *arguments)`
    makes a system call that has to be refused: it says BREACH too if the call fails for another
    reason, which means that the kernel looked at it. `call(number, *arguments)` raises OSError on
    failure; `ignore_signals()` ignores every signal that can be. `PORT` and `NAME` are a TCP port
    of the host's loopback and an abstract socket, both listening.
    """
    return _PROGRAMS.joinpath("prelude.py").read_text() + body


def c(body: str) -> str:
    """The same in C: `attempt(what, call)`, `refused(what, call)` take a call that returns -1."""
    return _PROGRAMS.joinpath("prelude.h").read_text() + body


BUSY_THREADS = """
#include <pthread.h>
static void *spin(void *x) { for (;;) ; return x; }
int main(void) {
  pthread_t thread;
  for (int i = 0; i < 15; i++) pthread_create(&thread, 0, spin, 0);
  spin(0);
}
"""
"""A C program of 16 threads that never rest."""

_PROGRAMS = Path(__file__).parent / "programs"
