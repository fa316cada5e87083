"""What the benches of the sandbox share: programs to run, one processor, and how runs are timed."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.harness import Contender, PeerUnavailableError
from k15core.errors import SandboxError
from k15core.sandbox import Limits, Sandbox

SOURCES = Path(__file__).parent / "sandbox"
RATE = "runs/s a core"
"""The unit of what is timed on one processor."""
PACKAGES = {
    "bwrap": "bubblewrap",
    "docker": "docker.io",
    "dockerd": "docker.io",
    "setpriv": "util-linux",
}
"""The packages whose names are not those of their programs."""


def build(folder: Path) -> Path:
    """The floor, and `tiny` and `static`: a `true` without and with a C library."""
    flags: dict[str, list[str | Path]] = {
        "floor": [SOURCES / "floor.c"],
        "bin/tiny": ["-static", "-nostdlib", SOURCES / "true.c"],
        "bin/static": ["-static", "-x", "c", "-"],
    }
    (folder / "bin").mkdir()
    for name, arguments in flags.items():
        command = ["gcc", "-O2", "-o", folder / name, *arguments]
        subprocess.run(command, input=b"int main(void) { return 0; }", check=True)
    return folder


def need(program: str) -> str:
    """The path of a peer, installed from the distribution's packages if root may do that."""
    package = PACKAGES.get(program, program)
    if not shutil.which(program) and os.geteuid() == 0:
        subprocess.run(
            ["apt-get", "install", "--yes", "--quiet", package], check=False, capture_output=True
        )
    path = shutil.which(program)
    if path is None:
        raise PeerUnavailableError(f"{program} is missing: apt-get install {package}")
    return path


@contextmanager
def one_processor() -> Iterator[None]:
    """Everything that is started here runs on one processor."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def executing(sandbox: Sandbox, program: str, runs: int, limits: Limits) -> Contender:
    """Seconds a run of a program by its path in the sandbox, `runs` in a row."""

    def once() -> float:
        start = time.perf_counter()
        result = sandbox.execute([program], times=runs, limits=limits)
        if result.verdict != "ok":
            raise SandboxError(str(result))
        return (time.perf_counter() - start) / runs

    return once


def per_second(seconds: float) -> float:
    """How many runs a second that is."""
    return 1 / seconds
