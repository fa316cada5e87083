"""Processes around one served store, to be killed.

python store_served.py serve DIRECTORY SOCKET     has the store open and serves it
python store_served.py work SOCKET SEED           appends, finishes, says what was acknowledged
python store_served.py read SOCKET SEED           reads whole trajectories and checks them

Tokens are a function of (trajectory, position): whoever reads can check them.
"""

from __future__ import annotations

import random
import sys
import time

import numpy as np
from store_writer import OPTIONS, advance, say, tokens_of

from k15core import Prompt, SharedStore, Store
from k15core.errors import ConflictError, DisconnectedError, InvalidInputError, LeaseExpiredError


def serve(directory: str, path: str) -> None:
    with Store(directory, sync="batch", **OPTIONS) as store, store.serve(path):
        say("open")
        sys.stdin.read()


def work(path: str, seed: int) -> None:
    rng = random.Random(seed)
    store = SharedStore(path)
    say("open")
    while True:
        try:
            work_once(store, rng)
        except (LeaseExpiredError, ConflictError):
            say("fenced")  # the server was started again: its leases are void
        except DisconnectedError:
            time.sleep(0.02)


def work_once(store: Store, rng: random.Random) -> None:
    if store.unfinished() < 12:
        length = rng.randint(1, 300)
        members = store.add_group(Prompt(0, np.arange(length, dtype=np.int32), ""), 2)
        say("group", members[0], length)
    for lease in store.lease(3, now=0, duration=1e9):
        who, length = lease.trajectory_id, lease.response_length
        assert lease.input_ids[lease.prompt_length :].tolist() == tokens_of(who, 0, length).tolist()
        advance(store, lease, rng)
    if rng.random() < 0.2:
        batch = store.sample(groups=2, version=0, max_staleness=0)
        for who, start, end, prompt in zip(
            batch.trajectory_ids.tolist(),
            batch.cu_seqlens[:-1],
            batch.cu_seqlens[1:],
            batch.prompt_lengths,
            strict=True,
        ):
            response = batch.input_ids[start + prompt : end]
            assert response.tolist() == tokens_of(who, 0, len(response)).tolist()
        say("use", *sorted(set(batch.trajectory_ids.tolist())))


def read(path: str, seed: int) -> None:
    rng = random.Random(seed)
    store = SharedStore(path)
    say("open")
    while True:
        try:
            groups = store.pending_groups(1)
            if groups:
                members = store.group(rng.choice(groups))["trajectory_ids"]
                view = store.trajectory(rng.choice(members))
                wanted = tokens_of(view["trajectory_id"], 0, len(view["tokens"]))
                assert view["tokens"].tolist() == wanted.tolist()
        except InvalidInputError:
            pass  # used up in between
        except DisconnectedError:
            time.sleep(0.02)


if __name__ == "__main__":
    role, first, second = sys.argv[1:]
    if role == "serve":
        serve(first, second)
    else:
        {"work": work, "read": read}[role](first, int(second))
