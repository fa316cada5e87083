"""Inserting in pieces of 32 tokens, as an engine brings them, one thread, in memory.

A call for each piece, and a call for those of all trajectories at one step. NumPy assigns the same
pieces to slices of arrays that were written to before. No bar: what counts is the cost of a call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from bench.harness import Entry, compare
from bench.store import open_groups, rate
from bench.store_work import responses
from k15core import Store

TRAJECTORIES = 256
PIECE = 32
PEER = "numpy slice-assignment of the same pieces"
WORK = responses(TRAJECTORIES, 2700)
TOTAL = sum(len(tokens) for tokens, _, _ in WORK)
STEPS = [
    [(row, at) for row, (tokens, _, _) in enumerate(WORK) if at < len(tokens)]
    for at in range(0, max(len(tokens) for tokens, _, _ in WORK), PIECE)
]
"""At each step the rows that still go on, and where they are."""

Places = list[tuple[int, int]]


def each(store: Store, places: Places) -> None:
    for step in STEPS:
        for row, at in step:
            (who, epoch), (tokens, log_probs, mask) = places[row], WORK[row]
            piece = slice(at, at + PIECE)
            store.append(who, epoch, at, tokens[piece], log_probs[piece], 0, loss_mask=mask[piece])


def together() -> Callable[[Store, Places], None]:
    joined = []
    for step in STEPS:
        tokens = [WORK[row][0][at : at + PIECE] for row, at in step]
        log_probs = [WORK[row][1][at : at + PIECE] for row, at in step]
        joined.append(
            (
                np.array([row for row, _ in step]),
                np.array([at for _, at in step], np.int64),
                np.cumsum([0, *map(len, tokens)], dtype=np.int32),
                np.concatenate(tokens),
                np.concatenate(log_probs),
            )
        )

    def append_all(store: Store, places: Places) -> None:
        who = np.array(places, np.int64)
        for rows, offsets, cu_seqlens, tokens, log_probs in joined:
            ids, epochs = who[rows].T.copy()
            store.append_many(ids, epochs, offsets, cu_seqlens, tokens, log_probs, 0)

    return append_all


def run() -> list[Entry]:
    store = Store(capacity_bytes=256 << 20)
    ring = np.ones(TOTAL, np.int32), np.ones(TOTAL, np.float32), np.ones(TOTAL, np.uint8)

    def ours(work: Callable[[Store, Places], None]) -> float:
        places = open_groups(store, TRAJECTORIES, 8)
        start = time.perf_counter()
        work(store, places)
        seconds = time.perf_counter() - start
        store.drop_groups(store.pending_groups(1))
        return seconds

    def slices() -> float:
        place = 0
        start = time.perf_counter()
        for step in STEPS:
            for row, at in step:
                tokens, log_probs, mask = WORK[row]
                n = len(tokens[at : at + PIECE])
                ring[0][place : place + n] = tokens[at : at + PIECE]
                ring[1][place : place + n] = log_probs[at : at + PIECE]
                ring[2][place : place + n] = mask[at : at + PIECE]
                place += n
        return time.perf_counter() - start

    entries: list[Entry] = []
    for name, work in (("store.insert_32", each), ("store.insert_32_many", together())):
        entries += compare(
            name,
            partial(ours, work),
            {PEER: slices},
            bars={PEER: None},
            unit="Mtok/s",
            figure=rate(TOTAL),
        )
    return entries
