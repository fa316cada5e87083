"""The trajectory store in memory against NumPy and memcpy on the same arrays, one thread."""

from __future__ import annotations

import time
from collections import deque

import numpy as np
from numpy.typing import NDArray

from bench.harness import Entry, compare
from k15core import Prompt, Store

TRAJECTORIES = 1024
PASSES_KEPT = 11
"""Passes of 29 MB that stay in the ring: about ten times a last-level cache of 32 MB."""

Columns = tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.uint8]]
PROMPT = Prompt(0, np.arange(64, dtype=np.int32), "")


def responses(n: int, median: float, longest: int) -> list[Columns]:
    """n responses, log-normal lengths: 9 bytes a token."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(np.log(median), 0.5, n).astype(int), longest)
    return [
        (
            rng.integers(0, 150_000, length, dtype=np.int32),
            -rng.random(length, dtype=np.float32),
            np.ones(length, np.uint8),
        )
        for length in lengths
    ]


def open_groups(store: Store, n: int, k: int) -> list[tuple[int, int]]:
    """n trajectories in groups of k: ids and lease epochs."""
    for _ in range(n // k):
        store.add_group(PROMPT, k)
    return [(x.trajectory_id, x.epoch) for x in store.lease(n, now=0, duration=1)]


def insert() -> list[Entry]:
    work = responses(TRAJECTORIES, 2700, 131_072)
    total = sum(len(tokens) for tokens, _, _ in work)
    store = Store(capacity_bytes=1 << 30, file_bytes=16 << 20)
    kept: deque[list[int]] = deque()

    def ours() -> float:
        if len(kept) == PASSES_KEPT:
            store.drop_groups(kept.popleft())
        places = open_groups(store, TRAJECTORIES, 8)
        first = len(kept[0]) if kept else 0
        start = time.perf_counter()
        for (trajectory_id, epoch), (tokens, log_probs, mask) in zip(places, work, strict=True):
            store.append(trajectory_id, epoch, 0, tokens, log_probs, 0, loss_mask=mask)
        seconds = time.perf_counter() - start
        kept.append(store.pending_groups(1)[-(first or TRAJECTORIES // 8) :])
        return seconds

    size = PASSES_KEPT * total
    ring = np.zeros(size, np.int32), np.zeros(size, np.float32), np.zeros(size, np.uint8)
    for array in ring:
        array.fill(1)
    place = 0

    def slices() -> float:
        nonlocal place
        start = time.perf_counter()
        for columns in work:
            n = len(columns[0])
            place = 0 if place + n > size else place
            ring[0][place : place + n] = columns[0]
            ring[1][place : place + n] = columns[1]
            ring[2][place : place + n] = columns[2]
            place += n
        return time.perf_counter() - start

    peer = "numpy slice-assignment into a warm ring"
    return compare(
        "store.insert",
        ours,
        {peer: slices},
        bars={peer: 0.8},
        unit="Mtok/s",
        figure=lambda seconds: total / seconds / 1e6,
        warmup=2 * PASSES_KEPT,
    )


def sample_pack() -> list[Entry]:
    work = responses(256, 1800, 131_072)
    store = Store(capacity_bytes=1 << 28, max_uses=1 << 20)
    for (trajectory_id, epoch), (tokens, log_probs, mask) in zip(
        open_groups(store, 256, 8), work, strict=True
    ):
        store.append(trajectory_id, epoch, 0, tokens, log_probs, 0, loss_mask=mask)
        store.finish(trajectory_id, epoch, "stop")
        store.set_reward(trajectory_id, 1.0)

    def sample() -> float:
        start = time.perf_counter()
        store.sample(groups=32, version=0, max_staleness=0)
        return time.perf_counter() - start

    batch = store.sample(groups=32, version=0, max_staleness=0).copy()
    arrays = [array for array in vars(batch).values() if isinstance(array, np.ndarray)]
    size = sum(array.nbytes for array in arrays)
    source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)

    def memcpy() -> float:
        start = time.perf_counter()
        np.copyto(target, source)
        return time.perf_counter() - start

    per_token = ("input_ids", "rollout_log_probs", "loss_mask", "versions", "position_ids")
    bounds = list(zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True))
    rows = [[getattr(batch, name)[a:b].copy() for a, b in bounds] for name in per_token]

    def concatenate() -> float:
        start = time.perf_counter()
        for row in rows:
            np.concatenate(row)
        return time.perf_counter() - start

    total = len(batch.input_ids)
    peers = {"memcpy of the batch's bytes": memcpy, "numpy concatenate": concatenate}
    return compare(
        "store.sample_pack",
        sample,
        peers,
        bars={"memcpy of the batch's bytes": 0.55, "numpy concatenate": 1.3},
        unit="Mtok/s",
        figure=lambda seconds: total / seconds / 1e6,
        warmup=3,
    )


def run() -> list[Entry]:
    return insert() + sample_pack()
