"""What an attack is: a program that tries something, and what must hold when it is over.

To add one, write it into the list of a `cases_*` module of this folder. The program prints a line
that starts with BREACH if it got what it wanted; it may also be ended by a limit. The test that
runs all cases then looks whether the sandbox still works, whether its spawner is the same process
as before, and whether anything is left on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from k15core.sandbox import Limits
from k15core.types import RunResult

SMALL = Limits(
    cpu_seconds=2, wall_seconds=4, memory_bytes=64 << 20, processes=32, output_bytes=1 << 16
)
"""What an attack is given unless it needs other limits: enough to try, too little to disturb."""


@dataclass(frozen=True, kw_only=True)
class Attack:
    name: str
    tries: str
    """What the program attempts, in words."""
    source: str
    language: str = "python"
    verdicts: tuple[str, ...] = ("ok",)
    """How it may end."""
    says: bytes = b""
    """What its output must contain: that it got as far as trying."""
    limits: Limits = SMALL
    files: dict[str, bytes] = field(default_factory=dict)
    fetch: tuple[str, ...] = ()
    holds: Callable[[RunResult], bool] | None = None
    """What else must hold of the result."""
    not_with: dict[str, str] = field(default_factory=dict)
    """Runners against which it makes no sense, with the reason."""


def python(body: str) -> str:
    """A program with what attacks need: `attempt(what, action)` says BREACH if the action works.

    Raw system calls are made through ctypes: `call(number, *arguments)` raises OSError on failure.
    """
    return PRELUDE + body


PRELUDE = """\
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    words = [a if isinstance(a, bytes) or a is None else ctypes.c_long(a) for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

def attempt(what, action):
    try:
        got = action()
    except (OSError, ValueError, MemoryError) as error:
        print("held:", what, "->", error)
    else:
        print("BREACH:", what, "->", repr(got)[:200])
    sys.stdout.flush()

"""
