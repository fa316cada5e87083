"""The trajectory store in memory, one thread, against NumPy, memcpy and buffers that others write.

store.sample_pack is bound by the memory: it reads the 9 bytes that are stored of a token and writes
the 17 of a batch. The row against `peers/stream.c` says how near that it is: a loop over two blocks
of memory that does nothing else.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from bench.harness import (
    Contender,
    Entry,
    PeerUnavailableError,
    compare,
    compiled,
    peer_environment,
    peer_process,
)
from bench.sampler import PEERS
from bench.store_work import PROMPT as PROMPT_TOKENS
from bench.store_work import SAMPLED, SAMPLED_MEDIAN, responses
from k15core import Prompt, Store

TRAJECTORIES = 1024
PASSES_KEPT = 11
"""Passes of 29 MB that stay in the ring: about ten times a last-level cache of 32 MB."""

PROMPT = Prompt(0, PROMPT_TOKENS, "")
HERE = Path(__file__).parent
MEMCPY, CONCAT = "memcpy of the batch's bytes", "numpy concatenate"
LIMIT = "limit: reading 9 and writing 17 bytes a token past the caches"
TORCHRL = "TorchRL ListStorage + PrioritizedSampler + cat"
LISTS = "a list of Python lists"


def open_groups(store: Store, n: int, k: int) -> list[tuple[int, int]]:
    """n trajectories in groups of k: ids and lease epochs."""
    for _ in range(n // k):
        store.add_group(PROMPT, k)
    return [(x.trajectory_id, x.epoch) for x in store.lease(n, now=0, duration=1)]


def insert() -> list[Entry]:
    work = responses(TRAJECTORIES, 2700)
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


def rate(tokens: int) -> Callable[[float], float]:
    """Seconds for so many tokens as millions of tokens a second."""
    return lambda seconds: tokens / seconds / 1e6


def insert_fresh() -> list[Entry]:
    """The same into memory that was never written to: what the kernel takes to zero it counts."""
    work = responses(TRAJECTORIES, 2700)
    total = sum(len(tokens) for tokens, _, _ in work)

    def ours() -> float:
        store = Store(capacity_bytes=1 << 30, file_bytes=16 << 20)
        places = open_groups(store, TRAJECTORIES, 8)
        start = time.perf_counter()
        for (trajectory_id, epoch), (tokens, log_probs, mask) in zip(places, work, strict=True):
            store.append(trajectory_id, epoch, 0, tokens, log_probs, 0, loss_mask=mask)
        return time.perf_counter() - start

    def slices() -> float:
        start = time.perf_counter()
        maps = [mmap.mmap(-1, total * width) for width in (4, 4, 1)]
        types = (np.int32, np.float32, np.uint8)
        fresh = [np.frombuffer(m, dtype) for m, dtype in zip(maps, types, strict=True)]
        place = 0
        for columns in work:
            n = len(columns[0])
            for array, values in zip(fresh, columns, strict=True):
                array[place : place + n] = values
            place += n
        return time.perf_counter() - start

    peer = "numpy slice-assignment into fresh memory"
    return compare(
        "store.insert_fresh",
        ours,
        {peer: slices},
        bars={peer: None},
        unit="Mtok/s",
        figure=rate(total),
    )


def stream_limit(tokens: int, directory: Path) -> Contender:
    """Reads 9 bytes a token and writes 17, as store.sample_pack does, past the caches."""
    stream = compiled(HERE / "peers" / "stream.c", directory).stream
    stream.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    copied, filled = tokens * 9 // 64 * 64, tokens * 8 // 64 * 64
    source, target = np.ones(copied, np.uint8), np.ones(copied + filled + 64, np.uint8)
    skipped = -target.ctypes.data % 64

    def once() -> float:
        start = time.perf_counter()
        stream(target.ctypes.data + skipped, source.ctypes.data, copied, filled)
        return time.perf_counter() - start

    return once


def sample_pack() -> list[Entry]:
    work = responses(SAMPLED, SAMPLED_MEDIAN)
    store = Store(capacity_bytes=1 << 28, max_uses=1 << 20)
    for (trajectory_id, epoch), (tokens, log_probs, mask) in zip(
        open_groups(store, SAMPLED, 8), work, strict=True
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
    entries: list[Entry] = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        peers: dict[str, Contender | PeerUnavailableError] = {MEMCPY: memcpy, CONCAT: concatenate}
        try:
            peers[LIMIT] = stream_limit(total, directory)
        except PeerUnavailableError as error:
            peers[LIMIT] = error
        entries += compare(
            "store.sample_pack",
            sample,
            peers,
            bars={MEMCPY: 0.55, CONCAT: 1.3, LIMIT: None},
            unit="Mtok/s",
            figure=rate(total),
            warmup=3,
        )
        buffers: dict[str, Contender | PeerUnavailableError] = {}
        for peer, title in (("torchrl", TORCHRL), ("lists", LISTS)):
            try:
                python = Path(sys.executable)
                if peer == "torchrl":
                    python = peer_environment(peer, PEERS[peer][1])
                script = HERE / "peers" / "list_buffers.py"
                run = stack.enter_context(peer_process(python, script, peer))
                run()  # a peer that cannot be imported ends here
                buffers[title] = run
            except PeerUnavailableError as error:
                buffers[title] = error
        # Theirs is by the token: TorchRL draws with replacement, so that batches differ.
        entries += compare(
            "store.sample_pack",
            lambda: sample() / total,
            buffers,
            bars={TORCHRL: 3.0, LISTS: 50.0},
            unit="Mtok/s",
            figure=rate(1),
            warmup=2,
        )
    return entries


def run() -> list[Entry]:
    return insert() + insert_fresh() + sample_pack()
