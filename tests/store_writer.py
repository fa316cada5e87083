"""Threads that write to a store until their process is killed, and say on standard output what was
acknowledged. Tokens are a function of (trajectory, position): whoever reads can check them.
"""

from __future__ import annotations

import os
import random
import threading
import traceback
from typing import Any

import numpy as np
from numpy.typing import NDArray

from k15core import Lease, Prompt, Store
from k15core.errors import CapacityError

OPTIONS: dict[str, Any] = {"capacity_bytes": 32 << 20, "file_bytes": 256 << 10}
"""Small, so that files are recycled and moved all the time, and an opening is quick."""
PIECES = [1, 10, 300, 6000]
THREADS = 4


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
        stop = length + rng.choice(PIECES)
        tokens = tokens_of(who, length, stop)
        try:
            store.append(who, lease.epoch, length, tokens, log_probs_of(tokens), 0)
        except CapacityError:
            store.release(who, lease.epoch)
            raise
        say("append", who, stop)
        length = stop
    if rng.random() < 0.3:
        store.finish(who, lease.epoch, "stop")
        say("finish", who)
        store.set_reward(who, who % 5)
        say("reward", who, who % 5)
    else:
        store.release(who, lease.epoch)


def write(directory: str, seed: str, sync: str) -> None:
    """Have a store open and write to it from several threads, for ever."""
    store = Store(directory, sync=sync, **OPTIONS)  # type: ignore[arg-type]
    threading.excepthook = end  # type: ignore[assignment]
    say("open")
    threads = [
        threading.Thread(target=write_on, args=(store, f"{seed} {number}", number == 0))
        for number in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def end(what: threading.ExceptHookArgs) -> None:
    """A thread that fails must not leave the others to be killed as if all were well."""
    traceback.print_exception(what.exc_value)
    os._exit(1)


def write_on(store: Store, seed: str, is_first: bool) -> None:
    rng = random.Random(seed)
    while True:
        try:
            write_once(store, rng)
            # One thread marks: of two marks one is kept whatever is in flight.
            if is_first and rng.random() < 0.1:
                say("mark", store.mark(0))
        except CapacityError:
            take(store, 8)
            if is_first:
                say("mark", store.mark(0))


def write_once(store: Store, rng: random.Random) -> None:
    if store.unfinished() < 3 * THREADS:
        length = rng.randint(1, 300)
        members = store.add_group(Prompt(0, np.arange(length, dtype=np.int32), ""), 2)
        say("group", members[0], length)
    for lease in store.lease(2, now=0, duration=1e9):
        who, length = lease.trajectory_id, lease.response_length
        response = lease.input_ids[lease.prompt_length :]
        np.testing.assert_array_equal(response, tokens_of(who, 0, length))
        advance(store, lease, rng)
    if rng.random() < 0.3:
        take(store, 2)


def take(store: Store, groups: int) -> None:
    """Use groups up, after a look at what is in them."""
    batch = store.sample(groups=groups, version=0, max_staleness=0)
    starts: Any = batch.cu_seqlens
    for row, who in enumerate(batch.trajectory_ids.tolist()):
        response = batch.input_ids[starts[row] + batch.prompt_lengths[row] : starts[row + 1]]
        np.testing.assert_array_equal(response, tokens_of(who, 0, len(response)))
    say("use", *sorted(set(batch.trajectory_ids.tolist())))
