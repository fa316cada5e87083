"""The peers of sampler.priority; arguments: torchrl or cpprb, sample or update.

Answers each input line with the seconds that the calls of one kind took.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from bench.sampler_batches import BATCH, CALLS, ENTRIES, Batches


def torchrl() -> tuple[Any, Any, Any]:
    """Update, sample and the conversion of a batch, for TorchRL."""
    import torch
    from torchrl.data import LazyTensorStorage
    from torchrl.data.replay_buffers.samplers import PrioritizedSampler

    storage = LazyTensorStorage(ENTRIES)
    storage.set(range(ENTRIES), torch.arange(ENTRIES))
    sampler = PrioritizedSampler(ENTRIES, alpha=1.0, beta=1.0, eps=0.0)
    return (
        sampler.update_priority,
        lambda: sampler.sample(storage, BATCH),
        lambda batch: tuple(torch.from_numpy(array) for array in batch),
    )


def cpprb() -> tuple[Any, Any, Any]:
    """Update, sample and the conversion of a batch, for cpprb."""
    from cpprb import PrioritizedReplayBuffer

    buffer = PrioritizedReplayBuffer(ENTRIES, {"entry": {"dtype": np.int32}}, alpha=1.0, eps=0.0)
    buffer.add(entry=np.arange(ENTRIES, dtype=np.int32))
    return (
        buffer.update_priorities,
        lambda: buffer.sample(BATCH, beta=1.0),
        lambda batch: batch,
    )


def main(peer: str, what: str) -> None:
    # TorchRL logs to stdout, which is for answers here.
    answers, sys.stdout = sys.stdout, sys.stderr
    update, sample, convert = {"torchrl": torchrl, "cpprb": cpprb}[peer]()
    fresh = Batches()
    for batch in fresh.all():
        update(*convert(batch))
    for _ in sys.stdin:
        spent = {"sample": 0.0, "update": 0.0}
        for _ in range(CALLS):
            batch = convert(fresh.next())
            start = time.perf_counter()
            update(*batch)
            middle = time.perf_counter()
            sample()
            spent["update"] += middle - start
            spent["sample"] += time.perf_counter() - middle
        print(spent[what], file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
