"""How much longer things may take where tests run on a slow machine, such as an emulated one."""

from __future__ import annotations

import os
from dataclasses import replace

from k15core.sandbox import Limits
from k15core.types import RunResult

SLOW = float(os.environ.get("K15_SLOW", "1"))
"""How many times slower than usual this machine is. `scripts/test_v2.sh` sets K15_SLOW."""


def slowed(limits: Limits) -> Limits:
    """`limits` with as much more time as this machine needs."""
    cpu, wall = limits.cpu_seconds, limits.wall_seconds
    return replace(
        limits,
        cpu_seconds=None if cpu is None else cpu * SLOW,
        wall_seconds=None if wall is None else wall * SLOW,
    )


def at_usual_speed(result: RunResult) -> RunResult:
    """`result` as if this machine had taken the usual time for it."""
    cpu, wall = result.cpu_seconds, result.wall_seconds
    return replace(result, cpu_seconds=cpu / SLOW, wall_seconds=wall / SLOW)
