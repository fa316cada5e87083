"""The store of another process: appending and sampling through `SharedStore`.

Beside it the store of this process, and what is usually taken instead: a `multiprocessing` manager,
which pickles arrays through a socket, around a buffer of NumPy arrays that packs with concatenate.
Each server is a process of its own; all have the same responses, 9 bytes a token.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.harness import Entry, compare
from bench.store import open_groups
from bench.store_work import Columns, responses
from k15core import SharedStore, Store

ROWS = 256
OPTIONS: dict[str, Any] = {"capacity_bytes": 1 << 28, "max_uses": 1 << 20}
MANAGER = "multiprocessing manager, pickled arrays"
HERE = "the store in this process"


class Buffer:
    """What a team writes first: lists of arrays by trajectory."""

    def __init__(self) -> None:
        self.rows: dict[int, list[Columns]] = {}

    def append(self, trajectory_id: int, *columns: Any) -> None:
        """Keep a piece of a row."""
        self.rows.setdefault(trajectory_id, []).append(columns)

    def clear(self) -> None:
        """Forget all rows."""
        self.rows.clear()

    def sample(self) -> dict[str, NDArray[Any]]:
        """All rows, packed."""
        names = ("input_ids", "rollout_log_probs", "loss_mask")
        pieces = [piece for row in self.rows.values() for piece in row]
        packed: dict[str, NDArray[Any]] = {
            name: np.concatenate([piece[i] for piece in pieces]) for i, name in enumerate(names)
        }
        lengths = [sum(len(piece[0]) for piece in row) for row in self.rows.values()]
        packed["cu_seqlens"] = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        packed["position_ids"] = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
        packed["versions"] = np.zeros(len(packed["input_ids"]), np.uint32)
        return packed


class Manager(BaseManager):
    """Serves a `Buffer`."""

    Buffer: Callable[[], Any]


Manager.register("Buffer", Buffer)


def serve(path: str, ready: Connection) -> None:
    with Store(**OPTIONS) as store, store.serve(path):
        ready.send(None)
        ready.recv()


@contextmanager
def served() -> Iterator[SharedStore]:
    """A client of a store in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory, "store.sock"))
        process = spawn.Process(target=serve, args=(path, theirs))
        process.start()
        ours.recv()
        with SharedStore(path) as client:
            yield client
        ours.send(None)
        process.join()


def timed(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def cut(work: list[Columns], tokens: int) -> list[tuple[int, int, Columns]]:
    """Pieces of at most so many tokens: row, offset, columns."""
    return [
        (row, start, (columns[0][start:end], columns[1][start:end], columns[2][start:end]))
        for row, columns in enumerate(work)
        for start in range(0, len(columns[0]), tokens)
        for end in [start + tokens]
    ]


def append(store: Store, pieces: list[tuple[int, int, Columns]]) -> float:
    places = open_groups(store, ROWS, 8)
    start = time.perf_counter()
    for row, offset, (tokens, log_probs, mask) in pieces:
        who, epoch = places[row]
        store.append(who, epoch, offset, tokens, log_probs, 0, loss_mask=mask)
    seconds = time.perf_counter() - start
    store.drop_groups(store.pending_groups(1))
    return seconds


def fill(store: Store, work: list[Columns]) -> None:
    for (who, epoch), (tokens, log_probs, mask) in zip(
        open_groups(store, ROWS, 8), work, strict=True
    ):
        store.append(who, epoch, 0, tokens, log_probs, 0, loss_mask=mask)
        store.finish(who, epoch, "stop")
        store.set_reward(who, 1.0)


def run() -> list[Entry]:
    work = responses(ROWS, 1800, 131_072)
    total = sum(len(tokens) for tokens, _, _ in work)
    entries: list[Entry] = []
    with ExitStack() as stack:
        client = stack.enter_context(served())
        manager = stack.enter_context(Manager(ctx=multiprocessing.get_context("spawn")))
        buffer = manager.Buffer()
        here = stack.enter_context(Store(**OPTIONS))

        def managed(pieces: list[tuple[int, int, Columns]]) -> float:
            buffer.clear()
            return timed(lambda: [buffer.append(row, *columns) for row, _, columns in pieces])

        for name, length, least in (("append", 1 << 20, 2.0), ("append_64", 64, 2.0)):
            pieces = cut(work, length)
            entries += compare(
                f"store.shared_{name}",
                partial(append, client, pieces),
                {HERE: partial(append, here, pieces), MANAGER: partial(managed, pieces)},
                bars={MANAGER: least},
                unit="Mtok/s",
                figure=lambda seconds: total / seconds / 1e6,
                warmup=2,
            )
        for store in (client, here):
            fill(store, work)
        managed(cut(work, 1 << 20))

        def sample(store: Store) -> float:
            return timed(lambda: store.sample(groups=ROWS // 8, version=0, max_staleness=0))

        entries += compare(
            "store.shared_sample_pack",
            lambda: sample(client),
            {HERE: lambda: sample(here), MANAGER: lambda: timed(buffer.sample)},
            bars={MANAGER: 3.0},
            unit="Mtok/s",
            figure=lambda seconds: total / seconds / 1e6,
            warmup=3,
        )
    return entries
