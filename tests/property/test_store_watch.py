"""A watcher says of a store that another has open what the opener says itself."""

from __future__ import annotations

import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from log_reader import crc32c, flip, log_files, records
from store_writer import OPTIONS

from k15core import Prompt, Store
from k15core._core import StoreReader, StoreWatcher
from k15core.errors import CapacityError, ConflictError, CorruptionError, InvalidInputError

HERE = Path(__file__).parents[1]
DEADLINE = 200.0


def facts(found: dict[str, Any]) -> dict[str, int]:
    """What a watcher found, by the names of `Store.stats`."""
    groups = found["groups"]
    same = ("tokens", "bytes_live", "bytes_written", "bytes_allocated", "files", "spare_files")
    return {
        **found["trajectories"],
        "groups": groups["all"],
        "groups_ready": groups["ready"],
        "groups_gone": groups["gone"],
        **{name: found[name] for name in same},
    }


def stats(store: Store) -> dict[str, int]:
    said = store.stats()
    del said["capacity_bytes"]
    return said


class Work:
    """Random work on a store of small files, and what it has moved."""

    def __init__(self, store: Store, rng: random.Random) -> None:
        self.store, self.rng = store, rng
        self.version = self.now = 0
        self.marks = [store.mark(0)]
        self.moved = dict.fromkeys(
            ("tokens_in", "tokens_out", "groups_in", "groups_out", "leases"), 0
        )

    def step(self) -> None:
        rng, store = self.rng, self.store
        what = rng.choice(["group", "append", "append", "append", "sample", "drop", "mark", "back"])
        try:
            if what == "group":
                prompt = Prompt(1, np.arange(rng.randint(1, 900), dtype=np.int32), "answer")
                store.add_group(prompt, rng.randint(1, 3), version=self.version)
                self.moved["groups_in"] += 1
            elif what == "append":
                self.append()
            elif what == "sample":
                batch = store.sample(groups=2, version=self.version, max_staleness=9)
                self.moved["tokens_out"] += int(batch.loss_mask.sum())
                self.moved["groups_out"] += len(set(batch.group_ids.tolist()))
            elif what == "drop" and rng.random() < 0.3:
                store.drop_groups(store.pending_groups(99)[:1])
            elif what == "mark":
                self.version += rng.random() < 0.5
                self.marks = [*self.marks, store.mark(self.version)][-2:]
            elif what == "back" and rng.random() < 0.2:
                store.rewind(self.marks[-1])
        except CapacityError:
            store.drop_groups(store.pending_groups(99)[:2])

    def append(self) -> None:
        rng, store = self.rng, self.store
        self.now += 2
        leases = store.lease(2, now=self.now, duration=1)
        self.moved["leases"] += len(leases)
        for lease in leases:
            who = (lease.trajectory_id, lease.epoch)
            tokens = np.arange(rng.randint(0, 400), dtype=np.int32)
            log_probs = -np.ones(len(tokens), np.float32)
            try:
                store.append(*who, lease.response_length, tokens, log_probs, self.version)
                self.moved["tokens_in"] += len(tokens)
                if rng.random() < 0.3:
                    length = lease.response_length + len(tokens)
                    store.set_column(who[0], "values", np.ones(length, np.float32))
            except CapacityError:
                store.release(*who)
                raise
            end = rng.choice(["stop", "length", "abort", None])
            if end is None:
                store.release(*who)
            else:
                store.finish(*who, end)
                if end != "abort" and rng.random() < 0.8:
                    store.set_reward(who[0], 1.0)


@pytest.mark.parametrize("seed", range(6))
def test_it_says_what_the_opener_says(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    options: dict[str, Any] = {"capacity_bytes": 40 << 12, "file_bytes": 4096, "max_uses": 2}
    options["when_full"] = ["refuse", "evict_oldest", "evict_stalest"][seed % 3]
    columns = {"values": "float32"}
    with Store(tmp_path, sync="never", columns=columns, **options) as store:
        watcher = StoreWatcher(tmp_path, max_uses=2)
        work = Work(store, rng)
        for _ in range(400):
            work.step()
            watcher.read()
            if rng.random() < 0.3:
                found = watcher.look()
                assert facts(found) == stats(store)
        assert watcher.look()["restarts"] == 0
        assert watcher.look()["flow"] == work.moved
        late = StoreWatcher(tmp_path, max_uses=2).look()
        assert facts(late) == stats(store)
        work.step()
    with Store(tmp_path, sync="never", **options) as store:
        store.drop_groups(store.pending_groups(999)[:3])
        assert facts(watcher.look()) == stats(store)
    with StoreReader(tmp_path, max_uses=2) as reader:
        inspected = reader.inspect()
        found = watcher.look()
    same = ("staleness", "version", "marks", "trajectories", "groups", "tokens", "bytes_live")
    assert {name: found[name] for name in same} == {name: inspected[name] for name in same}


def test_one_that_was_left_behind_starts_over(tmp_path: Path) -> None:
    """The files that it has read are used again, three times over, before it looks."""
    options: dict[str, Any] = {"capacity_bytes": 16 << 12, "file_bytes": 4096, "sync": "never"}
    with Store(tmp_path, **options) as store:
        watcher = StoreWatcher(tmp_path)
        watcher.look()
        for turn in (1, 2):
            newest = log_files(tmp_path)[-1]
            while newest.exists():
                store.add_group(Prompt(1, np.arange(800, dtype=np.int32), ""), 1)
                store.drop_groups(store.pending_groups(9))
            assert facts(watcher.look()) == stats(store)
            assert watcher.look()["restarts"] == turn


def test_while_a_process_writes_and_after_it_was_killed(tmp_path: Path) -> None:
    directory = tmp_path / "store"
    program = f"from store_writer import write; write({str(directory)!r}, '3', 'never')"
    writer = subprocess.Popen([sys.executable, "-c", program], cwd=HERE, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + DEADLINE
        while not list(directory.glob("*.log")):
            assert writer.poll() is None
            assert time.monotonic() < end
        watcher = StoreWatcher(directory)
        looks, news, last = 0, 0, None
        while looks < 30 or news < 10:
            assert writer.poll() is None
            assert time.monotonic() < end, (looks, news)
            try:
                found = watcher.look()
            except ConflictError:
                continue  # it was left behind again and again
            looks, news = looks + 1, news + (found != last)
            last = found
            assert found["bytes_live"] <= found["bytes_written"] <= found["bytes_allocated"]
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    found = watcher.look()
    assert found == watcher.look()
    # What the opener finds, and goes on with.
    with Store(directory, sync="never", **OPTIONS) as store:
        assert facts(watcher.look()) == stats(store)
        store.drop_groups(store.pending_groups(1)[:1])
        assert facts(watcher.look()) == stats(store)


def write(directory: Path) -> None:
    with Store(directory, capacity_bytes=4 << 20, file_bytes=1 << 16) as store:
        store.add_group(Prompt(1, np.arange(9, dtype=np.int32), ""), 2)
        for lease in store.lease(2, now=0, duration=1):
            tokens = np.arange(100, dtype=np.int32)
            who = (lease.trajectory_id, lease.epoch)
            store.append(*who, 0, tokens, -np.ones(100, np.float32), 0)


def test_a_torn_tail_is_passed_over(tmp_path: Path) -> None:
    """The header of a record, as a killed writer leaves it, and none of its payload."""
    write(tmp_path)
    (path,) = log_files(tmp_path)
    last = records(path)[-1]
    content = bytearray(path.read_bytes())
    header = bytearray(content[last.offset : last.offset + 32])
    struct.pack_into("<Q", header, 16, last.number + 1)
    struct.pack_into("<I", header, 0, crc32c(bytes(header[8:])))
    content[last.end : last.end + 32] = header
    path.write_bytes(content)
    with StoreReader(tmp_path) as reader:
        inspected = reader.inspect()
    assert inspected["torn"] is not None
    found = StoreWatcher(tmp_path).look()
    assert found["tokens"] == inspected["tokens"] == 200
    assert found["bytes_written"] == inspected["bytes_written"]


def test_a_damaged_record_is_named_and_nothing_is_changed(tmp_path: Path) -> None:
    write(tmp_path / "whole")
    for kind in ("Group", "Append", "Claim"):
        copy = Path(shutil.copytree(tmp_path / "whole", tmp_path / kind))
        (path,) = log_files(copy)
        record = next(each for each in records(path) if each.kind == kind)
        flip(path, record.offset + 20, 1)
        before = path.read_bytes()
        with pytest.raises(CorruptionError, match=f"offset {record.offset}: record"):
            StoreWatcher(copy).look()
        flip(path, record.offset + 20, 1)
        watcher = StoreWatcher(copy)
        assert watcher.look()["tokens"] == 200
        assert before != path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
        assert sorted(p.name for p in copy.iterdir()) == sorted(
            p.name for p in (tmp_path / "whole").iterdir()
        )


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="the directory of a store"):
        StoreWatcher(tmp_path)
    with Store(tmp_path / "store"):
        pass
    with pytest.raises(InvalidInputError, match="max_uses = 0: expected at least 1"):
        StoreWatcher(tmp_path / "store", max_uses=0)


def test_another_store_in_the_same_place_is_noticed(tmp_path: Path) -> None:
    directory = tmp_path / "store"
    write(directory)
    watcher = StoreWatcher(directory)
    assert watcher.look()["tokens"] == 200
    shutil.rmtree(directory)
    with Store(directory, capacity_bytes=4 << 20, file_bytes=1 << 16) as store:
        assert facts(watcher.look()) == stats(store)
    assert watcher.look()["tokens"] == 0
