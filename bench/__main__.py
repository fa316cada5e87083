"""Runs the claims named on the command line, or all: each is a module of bench/ with `run()`."""

from __future__ import annotations

import importlib
import os
import sys

from bench.harness import Entry, table, write_summary

CLAIMS = [
    "import_cost",
    "repetition",
    "sampler",
    "rollout_partial",
    "store",
    "store_segments",
    "store_growth",
    "store_durable",
    "store_shared",
    "transfer_queue",
    "sandbox_direct",
    "sandbox_crun",
    "sandbox_warm",
    "sandboxd_http",
    "loop_train",
    "weights_handover",
    "engine_switch",
]
"""Modules of bench/, in the order in which they run. A claim's rows may have other names."""


def main(names: list[str]) -> int:
    unknown = sorted(set(names) - set(CLAIMS))
    if unknown:
        print(f"unknown: {', '.join(unknown)}. Known: {', '.join(CLAIMS)}", file=sys.stderr)
        return 2
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line has it, before torch
    entries: list[Entry] = []
    for name in names or CLAIMS:
        print(f"measuring {name}", flush=True)
        entries += importlib.import_module(f"bench.{name}").run()
    path = write_summary(entries)
    print(table(entries))
    print(f"written: {path}")
    return 0 if all(entry.ok for entry in entries) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
