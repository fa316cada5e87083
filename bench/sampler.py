"""Priority sampling at 10^6 entries: each call updates 4096 fresh entries, then draws 4096.

Ours is timed with what importance weights need, the weights of the drawn entries, because the peers
look them up too.
"""

from __future__ import annotations

import time
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
from bench.sampler_batches import BATCH, CALLS, ENTRIES, Batches
from k15core import PriorityIndex

PEERS = {
    "torchrl": ("TorchRL PrioritizedSampler", ["torchrl==0.14.1", "torch==2.15.0", "numpy"]),
    "cpprb": ("cpprb PrioritizedReplayBuffer", ["cpprb==11.0.0", "numpy"]),
}
BARS = {"sample": 4.0, "update": 3.0}
SCRIPT = Path(__file__).parent / "peers" / "priority.py"


def contender(what: str) -> Contender:
    """Ours: the seconds that the calls of one kind took, of a round of both kinds."""
    index = PriorityIndex(ENTRIES)
    fresh = Batches()
    for indices, weights in fresh.all():
        index.update(indices, weights)

    def once() -> float:
        spent = {"sample": 0.0, "update": 0.0}
        for call in range(CALLS):
            indices, weights = fresh.next()
            start = time.perf_counter()
            index.update(indices, weights)
            middle = time.perf_counter()
            index.weights(index.sample(BATCH, seed=call))
            spent["update"] += middle - start
            spent["sample"] += time.perf_counter() - middle
        return spent[what]

    return once


def run() -> list[Entry]:
    entries: list[Entry] = []
    for what, bar in BARS.items():
        with ExitStack() as stack:
            peers: dict[str, Contender | PeerUnavailableError] = {}
            for name, (title, requirements) in PEERS.items():
                try:
                    python = peer_environment(name, requirements)
                    peer = stack.enter_context(peer_process(python, SCRIPT, name, what))
                    peer()  # a peer that cannot be imported ends here
                    peers[title] = peer
                except PeerUnavailableError as error:
                    peers[title] = error
            entries += compare(
                f"sampler.priority.{what}",
                contender(what),
                peers,
                bars=dict.fromkeys(peers, bar),
                unit="M/s",
                figure=lambda seconds: CALLS * BATCH / seconds / 1e6,
            )
    return entries
