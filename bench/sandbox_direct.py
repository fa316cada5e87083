"""The `direct` runner: a static C `true` against the floor, what is measured under load, and the
report's table with our column.

The floor (bench/sandbox/floor.c) is what the kernel asks for the same isolation in a bare loop.
Both run on one processor, so the ratio is that of runs a second a core.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.harness import OUT, Contender, Entry, PeerUnavailableError, compare
from bench.sandbox_setup import RATE, build, executing, one_processor, per_second
from k15core.errors import SandboxError
from k15core.sandbox import Limits, Sandbox

NAME = "sandbox.direct"
BAR = 0.8
RUNS = 400
AT_ONCE = (1, 2, 8, 32, 128)
SECONDS_UNDER_LOAD = 2.0
LIMITS = Limits(wall_seconds=10)

REPORT = [("Docker", 0.12, 27.0), ("theirs", 0.04, 120.0)]
"""Seconds to start and containers a second on 16 cores, of the Kimi k1.5 report's table."""
REPORT_CORES = 16


@contextmanager
def own_groups() -> Iterator[list[str]]:
    """Directories of our own in the hierarchies that a slot uses."""
    made = []
    try:
        for controller in ("memory", "pids", "cpu", "cpuacct"):
            above = Path("/sys/fs/cgroup") / controller
            directory = above / f"k15bench-{os.getpid()}"
            if (above / "cgroup.procs").exists() and not directory.exists():
                directory.mkdir()
                made.append(directory)
        yield [str(directory) for directory in made]
    finally:
        for directory in made:
            directory.rmdir()


def floor(folder: Path, program: str, groups: list[str]) -> Contender:
    command = [str(folder / "floor"), str(folder / "bin" / program), str(RUNS), *groups]

    def once() -> float:
        try:
            output = subprocess.run(command, check=True, capture_output=True).stdout
        except subprocess.CalledProcessError as error:
            raise PeerUnavailableError(error.stderr.decode()) from error
        return float(output)

    return once


def against_the_floor(folder: Path) -> list[Entry]:
    entries = []
    with one_processor(), own_groups() as groups:
        sandbox = Sandbox(runner="direct", slots=1, binds={"/bench": folder / "bin"})
        with sandbox:
            for program, name, bar in [("tiny", NAME, BAR), ("static", f"{NAME}.libc", None)]:
                peer = "the floor: the same in a bare loop in C" + ", glibc" * (bar is None)
                entries += compare(
                    name,
                    executing(sandbox, f"/bench/{program}", RUNS, LIMITS),
                    {peer: floor(folder, program, groups)},
                    bars={peer: bar},
                    unit=RATE,
                    figure=per_second,
                    rounds=41,  # short ones: a neighbour disturbs few
                )
    return entries


def under_load(sandbox: Sandbox, at_once: int) -> tuple[float, list[float]]:
    """Runs a second, and the seconds that each took its caller, sorted."""
    taken: list[list[float]] = [[] for _ in range(at_once)]
    ready, end = threading.Barrier(at_once + 1), [0.0]

    def work(mine: list[float]) -> None:
        ready.wait()
        now = time.perf_counter()
        while now < end[0]:
            result = sandbox.execute(["/bench/tiny"], limits=LIMITS)
            assert result.verdict == "ok", result
            then, now = now, time.perf_counter()
            mine.append(now - then)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in taken]
    for thread in threads:
        thread.start()
    start = time.perf_counter()
    end[0] = start + SECONDS_UNDER_LOAD
    ready.wait()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    every = sorted(value for mine in taken for value in mine)
    return len(every) / seconds, every


def load_rows(folder: Path) -> list[Entry]:
    rows = []
    for at_once in AT_ONCE:
        with Sandbox(
            runner="direct", slots=at_once, least_slots=at_once, binds={"/bench": folder / "bin"}
        ) as sandbox:
            rate, taken = under_load(sandbox, at_once)
        marks = statistics.quantiles(taken, n=1000)
        p50, p95, p99, p999 = (
            marks[int(share * 1000) - 1] * 1e3 for share in (0.5, 0.95, 0.99, 0.999)
        )
        said = (
            f"{at_once} at once: p50 {p50:.2f}, p95 {p95:.2f}, p99 {p99:.2f}, p99.9 {p999:.2f} ms"
        )
        rows.append(
            Entry(
                f"{NAME}.load",
                rate,
                None,
                said,
                "runs/s",
                None,
                None,
                ok=True,
                pairs=[(at_once, p50)],
            )
        )
    return rows


def report_rows(direct: Entry) -> list[Entry]:
    """The report's table with our column, the rate scaled by cores; bench/out/sandbox.md has it."""
    assert direct.ours is not None
    start, rate = 1 / direct.ours, direct.ours * REPORT_CORES
    entries = []
    for peer, seconds, containers in REPORT:
        for unit, mine, published, ratio in [
            ("s to start", start, seconds, seconds / start),
            (f"runs/s, {REPORT_CORES} cores", rate, containers, rate / containers),
        ]:
            entries.append(
                Entry(
                    f"{NAME}.report",
                    mine,
                    published,
                    f"{peer}, as published",
                    unit,
                    ratio,
                    None,
                    ok=True,
                )
            )
    OUT.mkdir(exist_ok=True)
    OUT.joinpath("sandbox.md").write_text(
        "| | Docker (report) | theirs (report) | ours, `direct` |\n|---|---|---|---|\n"
        f"| start-up, s | {REPORT[0][1]} | {REPORT[1][1]} | {start:.5f} |\n"
        f"| containers a second, {REPORT_CORES} cores | {REPORT[0][2]:.0f} | {REPORT[1][2]:.0f} |"
        f" {rate:,.0f} = {REPORT_CORES} × {direct.ours:,.0f} a core |\n"
    )
    return entries


def run() -> list[Entry]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            build(folder)
            compared = against_the_floor(folder)
            rows = load_rows(folder)
        except (
            SandboxError,
            OSError,
            subprocess.CalledProcessError,
            PeerUnavailableError,
        ) as error:
            return [
                Entry(
                    NAME, None, None, "the floor", "runs/s", None, BAR, ok=False, reason=str(error)
                )
            ]
    return [*compared, *rows, *report_rows(compared[0])]
