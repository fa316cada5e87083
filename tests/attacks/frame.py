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

SMALL = Limits(
    cpu_seconds=1.5, wall_seconds=3, memory_bytes=64 * MIB, processes=32, output_bytes=1 << 16
)
"""What an attack is given unless it needs other limits: enough to try, too little to disturb."""

SHORT = Limits(
    cpu_seconds=0.5, wall_seconds=1, memory_bytes=64 * MIB, processes=32, output_bytes=1 << 16
)
"""For attacks that only a limit of time ends."""

STOPPED = ("wall_limit", "cpu_limit")
"""How what never ends by itself may end: whichever clock is first."""

ORDINARY_USER = "ordinary user"
"""Not a runner, but who runs it: without root, init and runs are one user, the caller."""
INIT_IS_OURS = "init is of the run's user: what is sent to it is let through and does nothing"

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
    not_with: dict[str, str] = field(default_factory=dict)
    """Runners against which it makes no sense (or ORDINARY_USER), with the reason."""


def python(body: str) -> str:
    """A program with what attacks need.

    `attempt(what, action)` says BREACH if the action works. `refused(what, number, *arguments)`
    makes a system call that has to be refused: it says BREACH too if the call fails for another
    reason, which means that the kernel looked at it. `call(number, *arguments)` raises OSError on
    failure. `PORT` and `NAME` are a TCP port of the host's loopback and an abstract socket, both
    listening.
    """
    return _PROGRAMS.joinpath("prelude.py").read_text() + body


def c(body: str) -> str:
    """The same in C: `attempt(what, call)`, `refused(what, call)` take a call that returns -1."""
    return _PROGRAMS.joinpath("prelude.h").read_text() + body


_PROGRAMS = Path(__file__).parent / "programs"
