"""A full store and a full disk: what is refused, what waits, what is evicted, what is freed."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from k15core import Prompt, Store
from k15core.errors import CapacityError, InvalidInputError, StorageError

PROMPT = Prompt(1, np.arange(8, dtype=np.int32), "")
SMALL = {"capacity_bytes": 32 << 12, "file_bytes": 4096}


def complete(store: Store, n: int = 100, version: int = 0) -> int:
    """A complete group of one response of n tokens; its group id."""
    (member,) = store.add_group(PROMPT, 1, version=version)
    group_id = store.trajectory(member)["group_id"]
    (lease,) = (x for x in store.lease(99, now=0, duration=1) if x.trajectory_id == member)
    tokens = np.arange(n, dtype=np.int32)
    try:
        store.append(member, lease.epoch, 0, tokens, -np.ones(n, np.float32), version)
    except CapacityError:
        store.drop_groups([group_id])
        raise
    store.finish(member, lease.epoch, "stop")
    store.set_reward(member, 1.0)
    return group_id


def fill(store: Store) -> int:
    for done in range(1000):
        try:
            complete(store)
        except CapacityError:
            return done
    raise AssertionError("a bounded store took everything")


def take(store: Store, groups: int) -> list[int]:
    return store.sample(groups=groups, version=9, max_staleness=9).group_ids.tolist()


def test_a_full_store_refuses_and_loses_nothing(tmp_path: Path) -> None:
    with Store(tmp_path, **SMALL) as store:
        done = fill(store)
        with pytest.raises(CapacityError, match=r"the store is full, .* sample or drop groups"):
            complete(store)
        stats = store.stats()
        assert stats["bytes_allocated"] <= stats["capacity_bytes"]
        assert stats["bytes_live"] > 0.6 * stats["capacity_bytes"]
    with Store(tmp_path, **SMALL) as store:
        assert store.complete_groups()[:done] == list(range(done))
        assert take(store, done // 2) == list(range(done // 2))
        for _ in range(done // 2 - 4):
            complete(store)


def test_space_is_used_again_for_ever(tmp_path: Path) -> None:
    with Store(tmp_path, **SMALL) as store:
        (kept,) = store.add_group(PROMPT, 1)
        (lease,) = store.lease(1, now=0, duration=1e9)
        store.append(kept, lease.epoch, 0, PROMPT.input_ids, np.zeros(8, np.float32), 0)
        for _ in range(500):
            complete(store)
            assert len(take(store, 1)) == 1
        store.append(kept, lease.epoch, 8, PROMPT.input_ids, np.zeros(8, np.float32), 0)
        assert store.stats()["bytes_allocated"] <= SMALL["capacity_bytes"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= SMALL["capacity_bytes"]
    with Store(tmp_path, **SMALL) as store:
        assert store.trajectory(kept)["tokens"].tolist() == [*range(8), *range(8)]


@pytest.mark.parametrize("seed", range(8))
def test_a_full_store_can_always_be_made_less_full(seed: int) -> None:
    """Whatever holds up its oldest files: samples, drops and marks are taken, and then data is."""
    draws = random.Random(seed)
    store = Store(capacity_bytes=64 << 14, file_bytes=1 << 14)
    if seed % 2:
        store.mark(0)
    held: dict[int, tuple[int, int]] = {}
    for _ in range(2500):
        try:
            if store.unfinished() < 24:
                store.add_group(PROMPT, draws.randint(1, 3))
            for lease in store.lease(4, now=0, duration=1e9):
                held[lease.trajectory_id] = (lease.epoch, lease.response_length)
            who = draws.choice(sorted(held)[:: draws.choice([1, 1, 5])])
            epoch, length = held[who]
            n = draws.choice([1, 10, 100, 600])
            store.append(who, epoch, length, np.zeros(n, np.int32), np.zeros(n, np.float32), 0)
            held[who] = (epoch, length + n)
            if draws.random() < 0.1:
                del held[who]
                store.finish(who, epoch, "stop")
                store.set_reward(who, 1)
        except CapacityError:
            if not len(store.sample(groups=draws.randint(1, 8), version=0, max_staleness=0)):
                pending = store.pending_groups(1)
                store.drop_groups(draws.sample(pending, min(4, len(pending))))
                alive = {
                    i for g in store.pending_groups(1) for i in store.group(g)["trajectory_ids"]
                }
                held = {who: it for who, it in held.items() if who in alive}
            if seed % 2:
                store.mark(0)
    stats = store.stats()
    assert stats["bytes_allocated"] <= stats["capacity_bytes"]


def test_data_does_not_fill_the_files_that_are_kept_for_what_frees_space() -> None:
    """A full store that takes a sample has room for many more of them, and for none of data."""
    store = Store(capacity_bytes=40 << 12, file_bytes=1 << 12)
    members = [store.add_group(PROMPT, 1)[0] for _ in range(100)]
    held = {one.trajectory_id: one.epoch for one in store.lease(100, now=0, duration=1e9)}
    refused = taken = 0
    lengths = dict.fromkeys(members, 0)
    # Records about data open the files of the reserve, and small appends would fit into them.

    def append(who: int) -> bool:
        try:
            tokens, log_probs = np.zeros(9, np.int32), np.zeros(9, np.float32)
            store.append(who, held[who], lengths[who], tokens, log_probs, 0)
        except CapacityError:
            return False
        lengths[who] += 9
        return True

    for turn in range(3000):
        refused += not append(members[turn % 50])
        other = members[50 + turn % 50]
        if other in held:
            store.release(other, held.pop(other))
        with contextlib.suppress(CapacityError):
            for lease in store.lease(1, now=0, duration=1e9, trajectory_ids=[other]):
                held[other] = lease.epoch
                taken += 1
    assert refused > 1000
    assert taken > 1000
    for group in range(100):
        store.drop_groups([group])
        for who in members[max(group + 1, 40) : 50] * 5:
            append(who)
    assert store.stats()["bytes_allocated"] <= 40 << 12
    store.add_group(PROMPT, 1)


def test_marks_keep_what_they_may_bring_back() -> None:
    store = Store(**SMALL)
    store.mark(0)
    done = fill(store)
    assert take(store, done) == list(range(done))
    assert fill(store) < done / 8
    with pytest.raises(CapacityError, match="kept for a rewind to mark 1; the next marks free"):
        complete(store)
    second = store.mark(0)
    assert fill(store) < done / 8
    store.rewind(second)
    store.mark(0)
    assert fill(store) > done / 2
    with pytest.raises(InvalidInputError, match="one of those kept: 2, 3"):
        store.rewind(1)


@pytest.mark.parametrize("policy", ["evict_oldest", "evict_stalest"])
def test_eviction_makes_room(policy: str) -> None:
    store = Store(when_full=policy, **SMALL)  # type: ignore[arg-type]
    (member,) = store.add_group(PROMPT, 1)
    (lease,) = store.lease(1, now=0, duration=1)
    groups = [complete(store, version=6) for _ in range(30)]
    stale = complete(store, version=4)
    while len(store.pending_groups(9)) == len(groups) + 2:
        groups.append(complete(store, version=6))
    evicted = sorted({*groups, stale} - {*store.pending_groups(9)})
    if policy == "evict_oldest":
        assert evicted == groups[: len(evicted)]
    else:
        assert evicted == [*groups[: len(evicted) - 1], stale]
    for _ in range(200):
        complete(store, version=7)
    assert store.trajectory(member)["epoch"] == lease.epoch, "what is leased is never evicted"
    stats = store.stats()
    assert stats["bytes_allocated"] <= stats["capacity_bytes"]


def test_a_marked_store_evicts_ahead_and_a_rewind_brings_it_back() -> None:
    store = Store(when_full="evict_oldest", **SMALL)
    for _ in range(100):
        mark = store.mark(0)
        before = store.pending_groups(1)
        for _ in range(3):
            complete(store)
    assert before[0] > 0, "older groups were evicted"
    store.mark(0)
    assert before[0] not in store.pending_groups(1)
    store.rewind(mark)
    assert store.pending_groups(1) == [*before, *(before[-1] + i for i in (1, 2, 3))]


def test_block_waits_until_another_thread_makes_room() -> None:
    store = Store(when_full="block", **SMALL)
    added: list[int] = []

    def produce() -> None:
        while len(added) < 200:
            added.append(complete(store))

    producer = threading.Thread(target=produce)
    producer.start()
    while producer.is_alive():
        producer.join(0.01)
        take(store, 5)
    assert added == list(range(200))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_an_error_and_loses_nothing(small_disk: Path) -> None:
    store = Store(small_disk, capacity_bytes=1 << 20, file_bytes=8192)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 40960)
    done: list[int] = []

    def fill_disk() -> None:
        while len(done) < 1000:
            done.append(complete(store))

    with pytest.raises(StorageError, match="allocate the next log file: No space left"):
        fill_disk()
    assert 0 < len(done) < 100
    assert store.complete_groups() == done
    (unfinished,) = store.lease(9, now=9, duration=1)
    ballast.unlink()
    tokens = np.arange(100, dtype=np.int32)
    log_probs = -np.ones(100, np.float32)
    store.append(unfinished.trajectory_id, unfinished.epoch, 0, tokens, log_probs, 0)
    store.close()
    with Store(small_disk, capacity_bytes=1 << 20, file_bytes=8192) as store:
        assert store.recovery_report()["torn"] is None
        for group_id in done:
            member = store.group(group_id)["trajectory_ids"][0]
            assert store.trajectory(member)["tokens"].tolist() == tokens.tolist()


def test_a_limit_on_file_size_is_an_error_too(tmp_path: Path) -> None:
    code = """
import resource, sys
import numpy as np
from k15core import Prompt, Store
from k15core.errors import StorageError
store = Store(sys.argv[1], capacity_bytes=1 << 20, file_bytes=8192)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
added = 0
try:
    while True:
        added = store.add_group(Prompt(1, np.arange(500, dtype=np.int32), ""), 1)[0] + 1
except StorageError as error:
    assert "File too large" in str(error), error
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
assert store.add_group(Prompt(1, np.arange(500, dtype=np.int32), ""), 1) == [added]
print(added)
"""
    run = [sys.executable, "-c", code, str(tmp_path)]
    added = int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    with Store(tmp_path, capacity_bytes=1 << 20, file_bytes=8192) as store:
        assert store.unfinished() == added + 1 > 1
