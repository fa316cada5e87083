"""The durable store: inserting into recycled files, and opening a log.

The floor of each is a few lines of C: CRC-32C and write() of the same bytes over old files, and a
scan of the same warm files that does nothing but checksums. Syncing, once a pass for either, is not
timed. BENCH_STORE_LOG_BYTES sets the size of the log that is opened: 4 GB, or an eighth of what is
free on the disk if that is less.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Contender, Entry, PeerUnavailableError, compare, compiled
from bench.store import TRAJECTORIES, open_groups
from bench.store_work import Columns, responses
from k15core import Store

SOURCE = Path(__file__).parent / "peers" / "crc32c.c"
FILE_BYTES = 16 << 20
PASSES_KEPT = 4


def available(make: Callable[[], Contender]) -> Contender | PeerUnavailableError:
    """A contender, or why there is none."""
    try:
        return make()
    except PeerUnavailableError as error:
        return error


def plain_writer(directory: Path, work: list[Columns]) -> Contender:
    """Checksums and write() of the same rows into files that are used again."""
    append = compiled(SOURCE, directory).append
    append.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_long]
    rows = [b"".join(column.tobytes() for column in columns) for columns in work]
    files = [os.open(directory / f"{i}.plain", os.O_RDWR | os.O_CREAT) for i in range(12)]
    for file in files:
        os.pwrite(file, b"\1" * FILE_BYTES, 0)
    turn = 0

    def plain() -> float:
        nonlocal turn
        place = 0
        start = time.perf_counter()
        for row in rows:
            if place + len(row) + 4 > FILE_BYTES:
                turn, place = turn + 1, 0
            if append(files[turn % len(files)], row, len(row), place):
                raise PeerUnavailableError("write() failed")
            place += len(row) + 4
        seconds = time.perf_counter() - start
        turn += 1
        for file in files:
            os.fdatasync(file)
        return seconds

    return plain


def insert(directory: Path) -> list[Entry]:
    work = responses(TRAJECTORIES, 2700, 131_072)
    total = sum(len(tokens) for tokens, _, _ in work)
    store = Store(directory / "store", capacity_bytes=1 << 30, file_bytes=FILE_BYTES, sync="batch")
    kept: deque[list[int]] = deque()

    def ours() -> float:
        if len(kept) == PASSES_KEPT:
            store.drop_groups(kept.popleft())
        places = open_groups(store, TRAJECTORIES, 8)
        start = time.perf_counter()
        for (trajectory_id, epoch), (tokens, log_probs, mask) in zip(places, work, strict=True):
            store.append(trajectory_id, epoch, 0, tokens, log_probs, 0, loss_mask=mask)
        seconds = time.perf_counter() - start
        kept.append(store.pending_groups(1)[-TRAJECTORIES // 8 :])
        store.flush()
        return seconds

    title = "write() + CRC-32C into recycled files"
    peers = {title: available(lambda: plain_writer(directory, work))}
    entries = compare(
        "store.insert_durable",
        ours,
        peers,
        bars={title: 0.7},
        unit="Mtok/s",
        figure=lambda seconds: total / seconds / 1e6,
        warmup=2 * PASSES_KEPT,
    )
    store.close()
    return entries


def recover(directory: Path) -> list[Entry]:
    room = shutil.disk_usage(directory).free // 8
    size = int(os.environ.get("BENCH_STORE_LOG_BYTES", min(4 << 30, room)))
    home = directory / "log"
    options: dict[str, Any] = {"capacity_bytes": 2 * size + (1 << 30), "sync": "never"}
    work = responses(TRAJECTORIES, 2700, 131_072)
    written = 0
    with Store(home, **options) as store:
        while written < size:
            for who, columns in zip(open_groups(store, TRAJECTORIES, 8), work, strict=True):
                store.append(*who, 0, columns[0], columns[1], 0, loss_mask=columns[2])
                written += sum(column.nbytes for column in columns)

    def ours() -> float:
        start = time.perf_counter()
        store = Store(home, **options)
        seconds = time.perf_counter() - start
        store.close()
        return seconds

    def peer() -> Contender:
        scan = compiled(SOURCE, directory).scan
        paths = [bytes(path) for path in sorted(home.glob("*.log"))]

        def checksums() -> float:
            start = time.perf_counter()
            for path in paths:
                if scan(path) == 0:
                    raise PeerUnavailableError("a file could not be mapped")
            return time.perf_counter() - start

        return checksums

    title = f"checksum-only scan of the same {size / 1e9:.2g} GB"
    peers = {title: available(peer)}
    return compare(
        "store.recover",
        ours,
        peers,
        bars={title: 0.5},
        unit="GB/s",
        figure=lambda seconds: np.float64(size / seconds / 1e9).item(),
    )


def run() -> list[Entry]:
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-store-") as directory:
        return insert(Path(directory)) + recover(Path(directory))
