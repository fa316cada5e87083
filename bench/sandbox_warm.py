"""The `warm` runner: `print(1)` as a copy of a started interpreter, against a start of its own.

The peer is a cold `python3 -I` of the same interpreter with the same imports, run by our own direct
runner. Everything is on one processor, so what starting the next zygote costs is in our time: a
round is as many runs as one of them serves.
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bench.harness import Contender, Entry, compare
from bench.sandbox_setup import one_processor
from k15core.errors import Error
from k15core.sandbox import Limits, Sandbox

NAME = "sandbox.warm_python"
BAR = 4.0
WARM_RUNS = 128
COLD_RUNS = 20
FRESH_RUNS = 12
LIMITS = Limits(wall_seconds=30)

DEBIAN = Path("/usr/bin/python3")


def contender(sandbox: Sandbox, source: str, runs: int) -> Contender:
    def once() -> float:
        start = time.perf_counter()
        for _ in range(runs):
            result = sandbox.run(source, language="python", limits=LIMITS)
            assert (result.verdict, result.stdout) == ("ok", b"1\n"), result
        return (time.perf_counter() - start) / runs

    return once


def rows(
    folder: Path,
    name: str,
    interpreter: Path,
    binds: dict[str, str],
    module: str | None,
) -> list[Entry]:
    """Ours against a cold start, and with a zygote for every run."""
    table = folder / f"{name}.toml"
    command = f'["{interpreter}", "-I", "main.py"]'
    table.write_text(
        f'[python]\nfile = "main.py"\nrun = {command}\n'
        'environment = ["OPENBLAS_NUM_THREADS=1", "OMP_NUM_THREADS=1"]\n'
    )
    source = f"import {module}\nprint(1)" if module else "print(1)"
    modules = [module] if module else []
    peer = f"cold {interpreter.name} -I, direct runner" + (f", import {module}" if module else "")
    entries = []
    for which, warm_runs, runs, bar in [
        (name, WARM_RUNS, WARM_RUNS, BAR),
        (f"{name}.fresh_hash_seed", 1, FRESH_RUNS, None),
    ]:
        with ExitStack() as stack:
            warm, cold = (
                stack.enter_context(
                    Sandbox(
                        slots=1,
                        runner=runner,
                        binds=binds,
                        languages=[table],
                        warm_modules=modules if runner == "warm" else [],
                        warm_runs=warm_runs,
                    )
                )
                for runner in ("warm", "direct")
            )
            entries += compare(
                which,
                contender(warm, source, runs),
                {peer: contender(cold, source, COLD_RUNS)},
                bars={peer: bar},
                unit="ms",
                figure=lambda seconds: seconds * 1e3,
                rounds=9,
            )
    return entries


def with_numpy() -> tuple[Path, dict[str, str]]:
    """This environment's interpreter, and what the sandbox must see of it."""
    own, base = Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()
    return own / "bin" / "python", {str(own): str(own), str(base): str(base)}


def run() -> list[Entry]:
    interpreter, binds = with_numpy()
    plain = (DEBIAN, {}) if DEBIAN.exists() else (interpreter, binds)
    entries = []
    with one_processor(), tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, (python, seen), module in [
            (NAME, plain, None),
            (f"{NAME}.numpy", (interpreter, binds), "numpy"),
        ]:
            try:
                entries += rows(folder, name, python, seen, module)
            except Error as error:
                entries.append(
                    Entry(name, None, None, "cold", "ms", None, BAR, ok=False, reason=str(error))
                )
    return entries
