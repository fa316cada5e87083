"""TransferQueue's put and get of 512 x 8192 token ids: its SimpleStorage, in memory, and K15Store.

Each backend runs in a Ray cluster of its own, its client in the driver. K15Store's values are in a
log on disk when a put returns, SimpleStorage's in the memory of its actors: there is no bar.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench.harness import (
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
MEGABYTES = 512 * 8192 * 8 / 1e6


def run() -> list[Entry]:
    entries: list[Entry] = []
    for what in ("put", "get"):
        with ExitStack() as stack:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            peers: dict[str, Contender | PeerUnavailableError] = {}
            try:
                python = peer_environment("transfer_queue", REQUIREMENTS, borrow=True)
                ours, theirs = (
                    stack.enter_context(peer_process(python, SCRIPT, name, what, directory))
                    for name in ("K15Store", "SimpleStorage")
                )
                theirs()  # a peer that cannot be imported ends here
                peers[PEER] = theirs
            except PeerUnavailableError as error:
                ours = float  # not measured: the row says why
                peers[PEER] = error
            entries += compare(
                f"transfer_queue.{what}",
                ours,
                peers,
                bars={PEER: None},
                unit="MB/s",
                figure=lambda seconds: MEGABYTES / seconds,
                warmup=2,
            )
    return entries
