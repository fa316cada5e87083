"""A store over the actors of a Ray cluster answers as one store does, and outlives them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="needs ray, which `make test-peers` installs")

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray

from k15core import Prompt, Store
from k15core.errors import (
    ConflictError,
    DisconnectedError,
    InvalidInputError,
    LeaseExpiredError,
)
from k15core.integrations.ray import ShardedStore, connect, start
from k15core.types import Lease, PackedBatch

# On a busy machine it takes a while to start a process.
pytestmark = pytest.mark.timeout(900)
PAGE = Path(__file__).parents[2] / "docs" / "ray.md"
OPTIONS: dict[str, Any] = {"capacity_bytes": 8 << 20, "columns": {"values": "float32"}}
PATIENCE = 300.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, object_store_memory=256 << 20, include_dashboard=False)
    yield
    ray.shutdown()


def directories(tmp_path: Path, shards: int = 3) -> list[str]:
    return [str(tmp_path / f"shard{i}") for i in range(shards)]


@pytest.fixture
def store(cluster: None, tmp_path: Path) -> Iterator[ShardedStore]:  # noqa: ARG001
    store = start(directories(tmp_path), patience=PATIENCE, **OPTIONS)
    yield store
    store.shutdown()


def kill(store: ShardedStore, shard: int) -> None:
    """Kill the process of a shard."""
    handle = store._handles[shard]
    os.kill(ray.get(handle.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)


def prompt(i: int, length: int = 5) -> Prompt:
    return Prompt(i, np.arange(length, dtype=np.int32) + i, str(i))


def tokens_of(group: int, member: int, start: int, stop: int) -> Any:
    return (np.arange(start, stop) * 7 + group * 1009 + member).astype(np.int32)


def members(store: Any, group: int) -> list[int]:
    return list(store.group(group)["trajectory_ids"])


def same(ours: PackedBatch, theirs: PackedBatch) -> None:
    for name in vars(theirs):
        if name not in ("trajectory_ids", "max_seqlen", "columns"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
    assert ours.max_seqlen == theirs.max_seqlen
    assert ours.columns.keys() == theirs.columns.keys()
    for name, values in theirs.columns.items():
        assert np.array_equal(ours.columns[name], values)
    assert len(set(ours.trajectory_ids.tolist())) == len(ours)


class Both:
    """The same calls to shards and to one store; trajectories go by group and place."""

    def __init__(self, sharded: ShardedStore, one: Store, seed: int) -> None:
        self.stores: list[Any] = [sharded, one]
        self.rng = random.Random(seed)
        self.now = 0.0

    def add(self, i: int) -> None:
        k, length = self.rng.randint(1, 3), self.rng.randint(1, 30)
        for store in self.stores:
            assert len(store.add_group(prompt(i, length), k, version=i // 4)) == k
            assert store.group(i)["prompt"].prompt_id == i

    def roll(self, group: int, version: int) -> None:
        plan = [self.rng.randint(1, 40) for _ in members(self.stores[1], group)]
        for store in self.stores:
            ids = members(store, group)
            leases = {each.trajectory_id: each for each in self.lease(store, ids)}
            for member, (who, n) in enumerate(zip(ids, plan, strict=True)):
                epoch, tokens = leases[who].epoch, tokens_of(group, member, 0, n)
                chunk = (np.array([who]), np.array([epoch]), np.array([0]))
                ends = np.array([0, n], np.int32)
                store.append_many(*chunk, ends, tokens, -tokens.astype(np.float32), version)
                store.set_column(who, "values", tokens.astype(np.float32))
                store.finish(who, epoch, "stop")
                store.set_reward(who, member / 4)

    def lease(self, store: Any, ids: list[int]) -> Any:
        return store.lease(len(ids), now=self.now, duration=10, trajectory_ids=ids)

    def sample(self, **wanted: Any) -> PackedBatch | None:
        answers: list[Any] = []
        for store in self.stores:
            try:
                answers.append(store.sample(**wanted).copy())
            except InvalidInputError as error:
                answers.append(str(error))
        ours, theirs = answers
        if isinstance(theirs, str):
            assert ours == theirs
            return None
        same(ours, theirs)
        return theirs  # type: ignore[no-any-return]


def test_it_answers_as_one_store(store: ShardedStore) -> None:
    with Store(None, **OPTIONS) as one:
        both = Both(store, one, 1)
        for i in range(40):
            both.add(i)
        for i in range(0, 40, 2):
            both.roll(i, 11)
        for i in range(1, 40, 4):
            both.roll(i, 12)
        assert store.complete_groups() == one.complete_groups()
        assert store.unfinished() == one.unfinished() > 0
        assert store.pending_groups(5) == one.pending_groups(5)
        assert store.groups_of_version(3) == one.groups_of_version(3)
        assert both.sample(groups=3, version=12, max_staleness=1) is not None
        assert both.sample(tokens=400, version=12, max_staleness=0) is not None
        _, sizes, _ = one.candidates(version=12, max_staleness=1)
        for budget, groups in ((int(sizes[:2].sum()), 2), (int(sizes[2:4].sum()) - 1, 1)):
            batch = both.sample(tokens=budget, version=12, max_staleness=1)
            assert batch is not None
            assert len(set(batch.group_ids.tolist())) == groups
        assert both.sample(tokens=1, version=12, max_staleness=9) is None
        assert both.sample(version=12, max_staleness=9) is None
        for seed in (1, 2):
            wanted = {"groups": 4, "tokens": 200, "strategy": "uniform", "seed": seed}
            assert both.sample(version=12, max_staleness=5, **wanted) is not None
        both.sample(groups=1, version=12, max_staleness=1, columns=["values"])
        weights: dict[int, float] = {i: i % 4 / 2 for i in range(40)}
        prompts = np.array([*weights], np.int64)
        for seed, given in ((4, weights), (5, (prompts, 1 + prompts.astype(np.float32)))):
            wanted = {"strategy": "priority", "seed": seed, "weights": given}
            batch = both.sample(groups=3, version=12, max_staleness=5, **wanted)
            assert batch is not None
            assert len(set(batch.group_ids.tolist())) == 3
        stale = {"strategy": "uniform", "seed": 3, "max_segment_staleness": 0}
        batch = both.sample(groups=8, version=12, max_staleness=1, **stale)
        assert batch is not None
        assert 0 < batch.loss_mask.sum() < batch.response_lengths().sum()
        for each in both.stores:
            each.drop_groups(each.complete_groups()[:5])
        both.sample(groups=99, version=12, max_staleness=1)
        batch = both.sample(groups=1, version=12, max_staleness=0)
        assert batch is not None
        assert len(batch) == 0
        stats, alone = store.stats(), one.stats()
        for name in ("unfinished", "finished", "scored", "gone", "groups", "tokens"):
            assert stats[name] == alone[name], name


@pytest.mark.parametrize("order", ["oldest", "stalest", "longest"])
def test_leases(store: ShardedStore, order: Any) -> None:
    for i in range(7):
        store.add_group(prompt(i), 2)
    first = store.lease(5, now=0, duration=10, order=order)
    assert len(first) == 5
    assert len(store.leases()) == 5
    others = store.lease(99, now=0, duration=10, order=order)
    assert len(others) == 9
    assert not {x.trajectory_id for x in first} & {x.trajectory_id for x in others}
    for n, lease in enumerate(first):
        tokens = np.arange(n, dtype=np.int32)
        store.append(lease.trajectory_id, lease.epoch, 0, tokens, -tokens.astype(np.float32), n)
        store.release(lease.trajectory_id, lease.epoch)
    again = [each.trajectory_id for each in store.lease(14, now=0, duration=10, order=order)]
    begun = [each.trajectory_id for each in first]
    wanted = {
        "oldest": sorted(begun),
        "stalest": [*begun[1:], begun[0]],
        "longest": begun[::-1],
    }[order]
    assert again == wanted


def append(store: ShardedStore, lease: Lease, n: int) -> bool:
    """Append n tokens; whether the lease was still good."""
    who, length = lease.trajectory_id, lease.response_length
    tokens = tokens_of(who, 0, length, length + n)
    try:
        store.append(who, lease.epoch, length, tokens, -tokens.astype(np.float32), 0)
    except LeaseExpiredError:
        return False
    return True


def test_a_killed_process_loses_nothing(store: ShardedStore) -> None:
    known = {who: 0 for i in range(6) for who in store.add_group(prompt(i), 2)}
    for shard in range(3):
        leases = store.lease(99, now=shard * 100, duration=10)
        assert len(leases) == len(known)
        for n, lease in enumerate(leases):
            who, length = lease.trajectory_id, lease.response_length
            # What was not answered may be there.
            assert length in (known[who], known[who] + 10)
            there = lease.input_ids[lease.prompt_length :]
            assert np.array_equal(there, tokens_of(who, 0, 0, length))
            if n == len(leases) // 2:
                kill(store, shard)
            is_good = append(store, lease, 10)
            assert is_good or who % 3 == shard, "only leases of the killed shard are void"
            known[who] = length + (10 if is_good else 0)
    for who, length in known.items():
        tokens = store.trajectory(who)["tokens"]
        assert len(tokens) in (length, length + 10)
        assert np.array_equal(tokens, tokens_of(who, 0, 0, len(tokens)))


def test_a_call_that_may_not_be_made_twice_says_so(store: ShardedStore) -> None:
    said = ""
    while not said:  # the actor may be back before the call is made
        kill(store, 1)
        for _ in range(3):
            try:
                store.add_group(prompt(1), 1)
            except DisconnectedError as error:
                said = str(error)
    assert said.startswith("shard 1: its actor's process ended during the call")
    store.add_group(prompt(9), 1)


def scored(store: ShardedStore, groups: int, version: int) -> None:
    for i in range(groups):
        store.add_group(prompt(i), 1, version=version)
    for lease in store.lease(99, now=0, duration=10):
        tokens = np.arange(9, dtype=np.int32)
        who = (lease.trajectory_id, lease.epoch)
        store.append(*who, 0, tokens, -tokens.astype(np.float32), version)
        store.finish(*who, "stop")
        store.set_reward(lease.trajectory_id, 1.0)


def test_a_mark_is_one_when_all_shards_have_it(store: ShardedStore) -> None:
    scored(store, 6, version=1)
    assert store.mark(1) == 1
    kill(store, 2)
    assert store.mark(1) == 2, "a shard that comes back takes it too"
    taken = store.sample(groups=4, version=1, max_staleness=0)
    assert len(taken) == 4
    # The client dies after the first of three shards.
    ray.get(store._handles[0].mark.remote(3, 2))
    assert list(store.marks()) == [2]
    with pytest.raises(ConflictError, match="mark 3 was not taken on all shards"):
        store.mark(2)
    with pytest.raises(InvalidInputError, match=r"mark = 3: expected one of those kept: \[2\]"):
        store.rewind(3)
    store.rewind(2)
    store.rewind(2)
    again = store.sample(groups=4, version=1, max_staleness=0)
    assert np.array_equal(again.input_ids, taken.input_ids)
    assert store.mark(2) == 3
    assert store.marks() == {2: 1, 3: 2}


def test_others_use_it_and_another_driver_finds_it(cluster: None, tmp_path: Path) -> None:  # noqa: ARG001
    @ray.remote
    def work(store: ShardedStore, i: int) -> list[int]:
        # Nothing of this module: workers cannot import it.
        store.add_group(Prompt(i, np.arange(5, dtype=np.int32), ""), 2)
        (lease,) = store.lease(1, now=0, duration=10)
        tokens = np.arange(26_000, dtype=np.int32)
        log_probs = -np.ones(len(tokens), np.float32)
        store.append(lease.trajectory_id, lease.epoch, 0, tokens, log_probs, 0)
        store.finish(lease.trajectory_id, lease.epoch, "length")
        return [lease.trajectory_id]

    store = start(directories(tmp_path), name="here", patience=PATIENCE, **OPTIONS)
    done = ray.get([work.remote(store, i) for i in range(4)])
    assert len({each for ids in done for each in ids}) == 4
    found = connect("here")
    assert found.shards == 3
    assert found.stats()["tokens"] == 104_000
    assert found.stats()["finished"] == 4
    with pytest.raises(InvalidInputError, match="name = 'here'"):
        start(directories(tmp_path), name="here")
    store.shutdown()
    with pytest.raises(InvalidInputError, match="name = 'here': expected that of shards"):
        connect("here")
    # The same directories again, and in another order.
    store = start(directories(tmp_path), patience=PATIENCE, **OPTIONS)
    assert store.stats()["tokens"] == 104_000
    assert [each["torn"] for each in store.recovery_reports()] == [None] * 3
    store.shutdown()
    with pytest.raises(InvalidInputError, match="is shard 2 of 3: expected shard 0 of 3"):
        start(directories(tmp_path)[::-1], **OPTIONS)


def test_chunks_for_several_shards_at_once(store: ShardedStore) -> None:
    for i in range(4):
        store.add_group(prompt(i), 2)
    leases = store.lease(8, now=0, duration=10)[::-1]
    ids = np.array([lease.trajectory_id for lease in leases])
    epochs = np.array([lease.epoch for lease in leases])
    zeros = np.zeros(8, np.int64)
    ends = np.concatenate(([0], np.cumsum(np.arange(3, 11)))).astype(np.int32)
    tokens = np.arange(ends[-1], dtype=np.int32)
    log_probs = -tokens.astype(np.float32)
    chunks = (ids, epochs, zeros)
    for wrong in (ends[:-1], ends[::-1], ends + 1):
        with pytest.raises(InvalidInputError, match="cu_seqlens"):
            store.append_many(*chunks, wrong, tokens, log_probs, 0)
    store.append_many(*chunks, ends, tokens, log_probs, 0)
    store.set_column_many(ids, zeros, ends, "values", log_probs)
    for who, first, end in zip(ids.tolist(), ends[:-1], ends[1:], strict=True):
        view = store.trajectory(who)
        assert np.array_equal(view["tokens"], tokens[first:end])
        assert np.array_equal(view["log_probs"], log_probs[first:end])
        assert np.array_equal(view["columns"]["values"], log_probs[first:end])


def test_bad_input(store: ShardedStore) -> None:
    with pytest.raises(InvalidInputError, match="directories"):
        start([])
    with pytest.raises(InvalidInputError, match="nodes has 1 entries: expected 2"):
        start(["a", "b"], nodes=["x"])
    with pytest.raises(InvalidInputError, match="strategy = 'luck'"):
        store.sample(groups=1, version=0, max_staleness=0, strategy="luck")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="group_id"):
        store.group(7)


def test_the_pages_program(tmp_path: Path) -> None:
    _, rest = PAGE.read_text().split("```python\n", 1)
    (tmp_path / "program.py").write_text(rest.split("```", 1)[0])
    ran = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PAGE.parents[1] / "python")},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert "4 groups, 16 responses" in ran.stdout
