"""A process that writes to a store until it is killed, and says on its standard output what was
acknowledged. Tokens are a function of (trajectory, position): whoever reads can check them.

python store_writer.py DIRECTORY SEED SYNC
"""

from __future__ import annotations

import os
import random
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from k15core import Lease, Prompt, Store

OPTIONS: dict[str, Any] = {"capacity_bytes": 256 << 20, "file_bytes": 1 << 20}


def tokens_of(trajectory_id: int, start: int, stop: int) -> NDArray[np.int32]:
    return np.arange(start, stop, dtype=np.int32) * 7 + trajectory_id * 1000003 % 65536


def log_probs_of(tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    return -(tokens % 97).astype(np.float32)


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def advance(store: Store, lease: Lease, rng: random.Random) -> None:
    """Append some pieces to a response, then finish and score it or give it back."""
    who, length = lease.trajectory_id, lease.response_length
    for _ in range(rng.randint(1, 4)):
        stop = length + rng.choice([1, 10, 1000, 30000])
        tokens = tokens_of(who, length, stop)
        store.append(who, lease.epoch, length, tokens, log_probs_of(tokens), 0)
        say("append", who, stop)
        length = stop
    if rng.random() < 0.3:
        store.finish(who, lease.epoch, "stop")
        say("finish", who)
        store.set_reward(who, who % 5)
        say("reward", who, who % 5)
    else:
        store.release(who, lease.epoch)


def write(directory: str, seed: int, sync: str) -> None:
    rng = random.Random(seed)
    store = Store(directory, sync=sync, **OPTIONS)
    say("open")
    while True:
        prompt = Prompt(seed, np.arange(rng.randint(1, 300), dtype=np.int32), str(seed))
        if store.unfinished() < 6:
            members = store.add_group(prompt, 2)
            say("group", members[0], len(prompt.input_ids))
        for lease in store.lease(4, now=0, duration=1e9):
            advance(store, lease, rng)
        if rng.random() < 0.3:
            batch = store.sample(groups=2, version=0, max_staleness=0)
            say("use", *sorted(set(batch.trajectory_ids.tolist())))
        if rng.random() < 0.1:
            say("mark", store.mark(0))


if __name__ == "__main__":
    write(sys.argv[1], int(sys.argv[2]), sys.argv[3])
