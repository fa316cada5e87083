"""TransferQueue's put and get of 512 x 8192 token ids: its SimpleStorage, in memory, and K15Store.

Each backend runs in a Ray cluster of its own, its client in the driver. K15Store's values are in a
log on disk when a put returns, SimpleStorage's in the memory of its actors: there is no bar.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench.harness import (
    ROUNDS,
    Contender,
    Entry,
    PeerUnavailableError,
    compare,
    peer_environment,
    peer_process,
)

SCRIPT = Path(__file__).parent / "peers" / "transfer_queue_backend.py"
REQUIREMENTS = ["TransferQueue==0.1.11", "ray[default]==2.60.0", "tensordict==0.14.3"]
PEER = "TransferQueue SimpleStorage, in memory"
WARMUP = 2
MEGABYTES = 512 * 8192 * 8 / 1e6


def run() -> list[Entry]:
    unknown: dict[str, Contender | PeerUnavailableError] = {}
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        costs: dict[str, list[list[float]]] = {"put": [], "get": []}
        try:
            python = peer_environment("transfer_queue", REQUIREMENTS, borrow=True)
            both = [
                stack.enter_context(peer_process(python, SCRIPT, name, directory))
                for name in ("K15Store", "SimpleStorage")
            ]
            for _ in range(WARMUP + ROUNDS):
                for rounds in costs.values():  # a process puts and gets in turn
                    rounds.append([contender() for contender in both])
        except PeerUnavailableError as error:
            unknown[PEER] = error  # nothing is measured: the rows say why
    entries: list[Entry] = []
    for what, rounds in costs.items():
        ours, theirs = (iter([costs[place] for costs in rounds]) for place in range(2))
        entries += compare(
            f"transfer_queue.{what}",
            float if unknown else ours.__next__,
            unknown or {PEER: theirs.__next__},
            bars={PEER: None},
            unit="MB/s",
            figure=lambda seconds: MEGABYTES / seconds,
            warmup=WARMUP,
        )
    return entries
