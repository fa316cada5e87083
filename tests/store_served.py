"""Processes around one served store, to be killed: one serves it, some work, some read.

python store_served.py DIRECTORY SOCKET    serves until its standard input ends

Tokens are a function of (trajectory, position): whoever reads can check them.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Callable

from store_writer import OPTIONS, say, take, tokens_of, write_once

from k15core import SharedStore, Store
from k15core.errors import (
    CapacityError,
    ConflictError,
    DisconnectedError,
    InvalidInputError,
    LeaseExpiredError,
)


def serve(directory: str, path: str, wait: Callable[[], object] = signal.pause) -> None:
    """Have the store open and serve it."""
    with Store(directory, sync="batch", **OPTIONS) as store, store.serve(path):
        say("open")
        wait()


def work(path: str, seed: str) -> None:
    """Append, finish, sample; say what was acknowledged."""
    rng = random.Random(seed)
    store = connect(path)
    say("open")
    while True:
        try:
            write_once(store, rng)
        except (LeaseExpiredError, ConflictError):
            say("fenced")  # the server was started again: its leases are void
        except CapacityError:
            take(store, 8)
        except DisconnectedError:
            time.sleep(0.005)


def connect(path: str) -> SharedStore:
    while True:
        try:
            return SharedStore(path)
        except DisconnectedError:
            time.sleep(0.005)  # the server is being started again


def read(path: str, seed: str) -> None:
    """Read whole trajectories and check them."""
    rng = random.Random(seed)
    store = connect(path)
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
            time.sleep(0.005)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], sys.stdin.read)
