"""The endings of the soak's runs, each with the verdict that it must have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from k15core.sandbox import Limits
from k15core.types import RunResult

MIB = 1 << 20
LONG = Limits(wall_seconds=30, cpu_seconds=20, memory_bytes=64 * MIB, disk_bytes=MIB)


@dataclass(frozen=True)
class Ending:
    name: str
    verdict: str
    weight: int
    limits: Limits = LONG
    reads: bool = False
    """Whether the run gets its word on stdin too, and repeats it."""
    makes: bool = False
    """Whether its word is wanted back in the file `made`."""
    signal: int | None = None
    code: Callable[[int], int] | None = lambda _: 0

    def fits(self, result: RunResult, number: int, word: str) -> bool:
        """Whether `result` is what this ending's run `number`, which said `word`, has to give."""
        code = self.code(number) if self.code else None
        said = word.encode() * (2 if self.reads else 1)
        return (
            result.verdict == self.verdict
            and result.signal == self.signal
            and result.exit_code == code
            and self.has_said(result.stdout, said)
            and result.files == ({"made": word.encode()} if self.makes else {})
        )

    def has_said(self, output: bytes, said: bytes) -> bool:
        """Whether `output` is `said`; one that time ends may not have come to say it."""
        if self.verdict in ("wall_limit", "cpu_limit") and not output:
            return True
        return output.startswith(said) if self.name == "flood" else output == said


def killed(name: str, verdict: str, weight: int, limits: Limits) -> Ending:
    return Ending(name, verdict, weight, limits, signal=9, code=None)


ENDINGS = [
    Ending("plain", "ok", 50),
    Ending("echo", "ok", 10, reads=True),
    Ending("file", "ok", 8, makes=True),
    Ending("leave", "ok", 6),
    Ending("look", "ok", 8),
    Ending("exit", "nonzero_exit", 8, code=lambda number: number % 100 + 1),
    Ending("segv", "signalled", 3, signal=11, code=None),
    Ending("abort", "signalled", 3, signal=6, code=None),
    killed("flood", "output_limit", 1, Limits(wall_seconds=30, output_bytes=4096)),
    killed(
        "memory", "memory_limit", 1, Limits(wall_seconds=30, memory_bytes=24 * MIB, disk_bytes=MIB)
    ),
    killed("spin", "cpu_limit", 1, Limits(wall_seconds=30, cpu_seconds=0.02)),
    killed("sleep", "wall_limit", 1, Limits(wall_seconds=0.05)),
]
