"""`import k15core` costs at most 40 ms over bare Python."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from bench.harness import ROUNDS, Entry

LIMIT_MS = 40.0


def milliseconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return (time.perf_counter() - start) * 1e3


def run() -> list[Entry]:
    pairs = [(milliseconds("import k15core"), milliseconds("pass")) for _ in range(2 * ROUNDS)]
    extra = statistics.median(ours - bare for ours, bare in pairs)
    return [
        Entry(
            name="import.cost",
            ours=extra,
            peer=LIMIT_MS,
            peer_name="limit over bare Python",
            unit="ms",
            ratio=LIMIT_MS / max(extra, 1e-3),
            bar=1.0,
            ok=extra <= LIMIT_MS,
            pairs=pairs,
        )
    ]
