"""The store through its Python binding: the contract of each call."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from k15core import Lease, PackedBatch, Prompt, Store
from k15core.errors import (
    ConflictError,
    InvalidInputError,
    LeaseExpiredError,
    StorageError,
)

PROMPT = Prompt(7, np.arange(3, dtype=np.int32), "π", ("a", "b"), 0.5)


def ids(*values: int) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def probs(n: int) -> NDArray[np.float32]:
    return -np.arange(1, n + 1, dtype=np.float32)


def append(store: Store, lease: Lease, offset: int, *tokens: int, version: int = 0) -> None:
    store.append(
        lease.trajectory_id, lease.epoch, offset, ids(*tokens), probs(len(tokens)), version
    )


def fill(store: Store, k: int = 2, version: int = 0, length: int = 3) -> list[int]:
    """A complete group of k responses with `length` tokens."""
    members = store.add_group(PROMPT, k, version=version)
    for lease in store.lease(k, now=0, duration=1):
        append(
            store,
            lease,
            0,
            *range(lease.trajectory_id, lease.trajectory_id + length),
            version=version,
        )
        store.finish(lease.trajectory_id, lease.epoch, "stop")
        store.set_reward(lease.trajectory_id, 0.25)
    return members


def take(store: Store, groups: int = 100, version: int = 0, max_staleness: int = 0) -> PackedBatch:
    return store.sample(groups=groups, version=version, max_staleness=max_staleness)


@pytest.fixture(params=["memory", "directory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    directory = tmp_path / "store" if request.param == "directory" else None
    return Store(directory, capacity_bytes=1 << 20)


def test_a_batch_has_the_arrays_of_the_contract(store: Store) -> None:
    store.add_group(PROMPT, 2, version=1)
    first, second = store.lease(2, now=0, duration=1)
    append(store, first, 0, 10, 11, version=1)
    append(store, first, 2, 12, version=3)
    store.append(1, second.epoch, 0, ids(20), probs(1), 1, loss_mask=np.zeros(1, np.uint8))
    store.finish(0, first.epoch, "repetition")
    store.finish(1, second.epoch, "length")
    store.set_reward(0, 1.0)
    assert len(take(store, version=3, max_staleness=2)) == 0
    store.set_reward(1, 0.5)
    assert len(take(store, version=4, max_staleness=2)) == 0
    batch = take(store, version=3, max_staleness=2)
    assert batch.input_ids.tolist() == [0, 1, 2, 10, 11, 12, 0, 1, 2, 20]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    assert batch.cu_seqlens.tolist() == [0, 6, 10]
    assert batch.max_seqlen == 6
    assert batch.loss_mask.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 0]
    assert batch.rollout_log_probs.tolist() == [0, 0, 0, -1, -2, -1, 0, 0, 0, -1]
    assert batch.versions.tolist() == [0, 0, 0, 1, 1, 3, 0, 0, 0, 1]
    assert batch.rewards.tolist() == [1.0, 0.5]
    assert batch.group_ids.tolist() == [0, 0]
    assert batch.trajectory_ids.tolist() == [0, 1]
    assert batch.prompt_ids.tolist() == [7, 7]
    assert batch.prompt_lengths.tolist() == [3, 3]
    assert batch.finish_reasons.tolist() == [2, 1]
    assert batch.columns == {}
    arrays = {k: v for k, v in vars(batch).items() if k not in ("max_seqlen", "columns")}
    dtypes = {name: str(a.dtype) for name, a in arrays.items()}
    assert dtypes == {
        "input_ids": "int32",
        "position_ids": "int32",
        "cu_seqlens": "int32",
        "loss_mask": "uint8",
        "rollout_log_probs": "float32",
        "versions": "uint32",
        "rewards": "float32",
        "group_ids": "int64",
        "trajectory_ids": "int64",
        "prompt_ids": "int64",
        "prompt_lengths": "int32",
        "finish_reasons": "uint8",
    }
    assert len(take(store, version=3, max_staleness=2)) == 0


def test_an_append_is_accepted_once(store: Store) -> None:
    store.add_group(PROMPT, 1)
    (lease,) = store.lease(1, now=0, duration=1)
    append(store, lease, 0, 5, 6)
    append(store, lease, 0, 5, 6)
    store.append(0, lease.epoch, 1, ids(6), np.array([-2], np.float32), 0)
    with pytest.raises(ConflictError, match="offset 1 is not its length 2"):
        append(store, lease, 1, 7)
    with pytest.raises(ConflictError, match="offset 0 is not its length 2"):
        append(store, lease, 0, 5, 6, 7)
    with pytest.raises(ConflictError, match="offset 3 leaves a gap after its 2 tokens"):
        append(store, lease, 3, 7)
    with pytest.raises(ConflictError, match="not these"):
        append(store, lease, 0, 5, 6, version=1)
    store.finish(0, lease.epoch, "stop")
    store.finish(0, lease.epoch, "stop")
    append(store, lease, 0, 5, 6)
    with pytest.raises(ConflictError, match="finished already, with reason stop"):
        store.finish(0, lease.epoch, "length")
    with pytest.raises(ConflictError, match="takes no more tokens"):
        append(store, lease, 2, 7)
    assert store.trajectory(0)["tokens"].tolist() == [5, 6]


def test_a_late_worker_is_fenced_whatever_became_of_the_trajectory(store: Store) -> None:
    """To one whose lease is over, that it is over is all that matters: one error for it."""
    store.add_group(PROMPT, 1)
    (late,) = store.lease(1, now=0, duration=5)
    append(store, late, 0, 1)
    (other,) = store.lease(1, now=6, duration=5)
    append(store, other, 1, 2)

    def is_fenced(match: str) -> None:
        with pytest.raises(LeaseExpiredError, match=match):
            append(store, late, 1, 2)
        with pytest.raises(LeaseExpiredError, match=match):
            store.release(0, late.epoch)
        with pytest.raises(LeaseExpiredError, match=match):
            store.finish(0, late.epoch, "stop")

    is_fenced("another worker holds it")
    store.finish(0, other.epoch, "stop")
    is_fenced("finished already|nobody holds it")
    store.set_reward(0, 1.0)
    store.sample(groups=1, version=0, max_staleness=0)
    is_fenced("used up, dropped or evicted")
    with pytest.raises(InvalidInputError, match="an id below 1"):
        store.release(1, late.epoch)


def test_a_late_worker_is_fenced(store: Store) -> None:
    store.add_group(PROMPT, 2)
    late, other = store.lease(2, now=0, duration=5)
    append(store, late, 0, 1)
    assert store.lease(2, now=4.9, duration=1) == []
    append(store, late, 1, 2)
    again = store.lease(2, now=5, duration=5, order="longest")
    assert [lease.trajectory_id for lease in again] == [0, 1]
    assert again[0].input_ids.tolist() == [0, 1, 2, 1, 2]
    assert again[0].versions.tolist() == [0] * 5
    assert again[0].response_length == 2
    assert again[0].epoch > other.epoch
    with pytest.raises(LeaseExpiredError, match="another worker holds it"):
        append(store, late, 2, 3)
    with pytest.raises(LeaseExpiredError, match="another worker"):
        store.finish(0, late.epoch, "stop")
    store.release(0, again[0].epoch)
    with pytest.raises(LeaseExpiredError, match="nobody holds it"):
        append(store, again[0], 2, 3)
    (third,) = store.lease(9, now=5, duration=5)
    append(store, third, 2, 3)


def test_leases_come_in_the_order_asked_for(store: Store) -> None:
    store.add_group(PROMPT, 3)
    first, second, third = store.lease(3, now=0, duration=1)
    append(store, first, 0, 1, 2, version=5)
    append(store, second, 0, 1, 2, 3, version=4)
    del third

    def order(name: str, now: float) -> list[int]:
        leases = store.lease(3, now=now, duration=1, order=name)  # type: ignore[arg-type]
        return [lease.trajectory_id for lease in leases]

    assert order("oldest", 1) == [0, 1, 2]
    assert order("stalest", 2) == [1, 0, 2]
    assert order("longest", 3) == [1, 0, 2]
    assert [lease.trajectory_id for lease in store.lease(1, now=4, duration=1)] == [0]
    assert [lease.trajectory_id for lease in store.lease(1, now=4, duration=1)] == [1]
    assert store.lease(0, now=9, duration=1) == []


def test_a_lease_can_be_of_some_trajectories(store: Store) -> None:
    store.add_group(PROMPT, 4)

    def claim(n: int, ids: list[int], now: float = 0) -> list[int]:
        leases = store.lease(n, now=now, duration=1, trajectory_ids=ids)
        return [lease.trajectory_id for lease in leases]

    assert claim(9, [3, 1, 3]) == [1, 3]
    assert claim(9, [3, 2, 1]) == [2], "others are held"
    assert claim(1, [2, 1], now=1) == [1]
    assert claim(9, []) == []
    with pytest.raises(InvalidInputError, match="trajectory_id = 4: expected an id below 4"):
        claim(9, [0, 4], now=9)
    with pytest.raises(InvalidInputError, match="trajectory_ids = -1"):
        claim(9, [-1])
    assert [lease.trajectory_id for lease in store.lease(9, now=0, duration=1)] == [0]


def test_an_abort_starts_the_response_again(store: Store) -> None:
    store.add_group(PROMPT, 1)
    (lease,) = store.lease(1, now=0, duration=1)
    append(store, lease, 0, 5, 6)
    store.finish(0, lease.epoch, "abort")
    assert store.trajectory(0)["state"] == "unfinished"
    with pytest.raises(LeaseExpiredError):
        append(store, lease, 0, 5)
    (lease,) = store.lease(1, now=0, duration=1)
    assert lease.input_ids.tolist() == [0, 1, 2]
    append(store, lease, 0, 9)
    store.finish(0, lease.epoch, "stop")
    store.set_reward(0, 1)
    assert take(store).input_ids.tolist() == [0, 1, 2, 9]


def test_rewards_are_set_once_and_after_the_finish(store: Store) -> None:
    store.add_group(PROMPT, 1)
    (lease,) = store.lease(1, now=0, duration=1)
    with pytest.raises(ConflictError, match="is not finished"):
        store.set_reward(0, 1.0)
    store.finish(0, lease.epoch, "stop")
    store.set_reward(0, 0.1)
    store.set_reward(0, 0.1)
    with pytest.raises(ConflictError, match=r"has the reward 0\.1 already, not 0\.2"):
        store.set_reward(0, 0.2)
    with pytest.raises(InvalidInputError, match="reward = NaN"):
        store.set_reward(0, float("nan"))


def test_sampling_takes_whole_groups_within_its_bounds(store: Store) -> None:
    for version in (1, 2, 3):
        fill(store, k=2, version=version)
    assert store.complete_groups() == [0, 1, 2]
    with pytest.raises(InvalidInputError, match="tokens = 11: expected at least 12"):
        store.sample(tokens=11, version=3, max_staleness=9)
    assert store.sample(tokens=35, version=3, max_staleness=1).group_ids.tolist() == [1, 1, 2, 2]
    assert store.complete_groups() == [0]
    with pytest.raises(InvalidInputError, match="at least one of the two"):
        store.sample(version=3, max_staleness=9)


def test_uniform_sampling_is_a_function_of_its_seed() -> None:
    def drawn(seed: int) -> list[int]:
        store = Store()
        for _ in range(10):
            fill(store, k=1)
        batch = store.sample(groups=4, version=0, max_staleness=0, strategy="uniform", seed=seed)
        return batch.group_ids.tolist()

    draws = [tuple(drawn(seed)) for seed in range(20)]
    assert drawn(3) == list(draws[3])
    assert len(set(draws)) > 15
    assert {group for draw in draws for group in draw} == set(range(10))


def test_a_group_is_used_max_uses_times() -> None:
    store = Store(max_uses=2)
    fill(store)
    assert [len(take(store)) for _ in range(3)] == [2, 2, 0]


def test_views_keep_their_contents_while_they_are_held() -> None:
    store = Store()
    batches = []
    for _ in range(6):
        fill(store, k=1)
        batches.append(take(store))
    assert [b.trajectory_ids.tolist() for b in batches] == [[i] for i in range(6)]
    last = batches.pop().input_ids
    batches.clear()
    store.close()
    del store
    gc.collect()
    assert last.tolist() == [0, 1, 2, 5, 6, 7]


def test_buffers_are_reused_once_nobody_holds_them() -> None:
    store = Store()
    places = set()
    for _ in range(6):
        fill(store, k=1)
        places.add(take(store).input_ids.ctypes.data)
    assert len(places) == 1


def test_a_rewind_keeps_valid_work_and_undoes_what_was_consumed(store: Store) -> None:
    fill(store, k=1, version=1)
    mark = store.mark(2)
    fill(store, k=1, version=2)
    store.add_group(PROMPT, 1, version=2)
    (lease,) = store.lease(1, now=0, duration=1)
    append(store, lease, 0, 1, 2, version=2)
    batch = take(store, version=2, max_staleness=1)
    assert batch.group_ids.tolist() == [0, 1]
    store.mark(3)
    append(store, lease, 2, 3, version=3)
    store.finish(2, lease.epoch, "stop")
    store.set_reward(2, 1.0)
    assert store.add_group(PROMPT, 2, version=3) == [3, 4]
    assert store.groups_of_version(3) == [3]

    store.rewind(mark)
    assert store.complete_groups() == [0, 1]
    assert store.pending_groups(before_version=3) == [0, 1, 2]
    assert store.pending_groups(before_version=2) == [0]
    kept = store.trajectory(2)
    assert (kept["tokens"].tolist(), kept["state"]) == ([1, 2], "unfinished")
    assert (kept["reward"], kept["finish_reason"]) == (None, None)
    assert store.groups_of_version(3) == []
    assert store.add_group(PROMPT, 1, version=2) == [3]
    with pytest.raises(LeaseExpiredError):
        append(store, lease, 2, 3, version=2)
    assert store.mark(3) == mark + 1


def test_what_was_stored_is_there_after_reopening(tmp_path: Path) -> None:
    with Store(tmp_path, capacity_bytes=1 << 20) as store:
        fill(store, version=4)
        store.add_group(PROMPT, 1, version=5)
        (lease,) = store.lease(1, now=0, duration=1e9)
        append(store, lease, 0, 9, version=5)
        mark = store.mark(5)
    with Store(tmp_path, capacity_bytes=1 << 20) as store:
        with pytest.raises(LeaseExpiredError, match="restart of the store"):
            append(store, lease, 1, 9, version=5)
        (again,) = store.lease(1, now=0, duration=1)
        assert again.epoch > lease.epoch
        assert again.versions.tolist() == [0, 0, 0, 5]
        group = store.group(1)
        assert group["trajectory_ids"] == [2]
        assert group["created_version"] == 5
        prompt = group["prompt"]
        assert prompt.input_ids.tolist() == [0, 1, 2]
        assert (prompt.prompt_id, prompt.answer) == (7, "π")
        assert (prompt.tags, prompt.difficulty) == (("a", "b"), 0.5)
        assert take(store, version=5, max_staleness=1).rewards.tolist() == [0.25, 0.25]
        assert len(take(store, version=5, max_staleness=1)) == 0
        store.rewind(mark)
        assert store.complete_groups() == [0]
        assert store.recovery_report()["torn"] is None


def test_a_second_opener_is_refused(tmp_path: Path) -> None:
    first = Store(tmp_path, capacity_bytes=1 << 20)
    with pytest.raises(StorageError, match="another opener holds it"):
        Store(tmp_path, capacity_bytes=1 << 20)
    first.close()
    Store(tmp_path, capacity_bytes=1 << 20).close()


def test_a_closed_store_says_so() -> None:
    store = Store()
    store.close()
    store.close()
    with pytest.raises(InvalidInputError, match="store = closed: expected an open store"):
        store.unfinished()


def test_dropped_groups_are_gone(store: Store) -> None:
    fill(store, k=1)
    fill(store, k=1)
    mark = store.mark(0)
    store.drop_groups([0])
    assert store.complete_groups() == [1]
    store.rewind(mark)
    assert store.complete_groups() == [0, 1]
    with pytest.raises(InvalidInputError, match="group_id = 9: expected a group below 2"):
        store.drop_groups([9])


def test_append_many_is_append_for_each(store: Store) -> None:
    store.add_group(PROMPT, 3)
    leases = store.lease(3, now=0, duration=1)
    who = np.array([lease.trajectory_id for lease in leases])
    epochs = np.array([lease.epoch for lease in leases])
    cu = ids(0, 2, 2, 3)
    zeros = np.zeros(3, np.int64)
    for _ in range(2):
        store.append_many(who, epochs, zeros, cu, ids(5, 6, 7), probs(3), 0)
    assert [store.trajectory(i)["tokens"].tolist() for i in range(3)] == [[5, 6], [], [7]]
    with pytest.raises(InvalidInputError, match="epochs = 2 entries: expected 3"):
        store.append_many(who, epochs[:2], zeros, cu, ids(5, 6, 7), probs(3), 0)
    with pytest.raises(InvalidInputError, match="cu_seqlens"):
        store.append_many(who, epochs, zeros, ids(0, 2, 1, 3), ids(5, 6, 7), probs(3), 0)
    lengths = np.array([2, 0, 1])
    with pytest.raises(LeaseExpiredError):
        store.append_many(who, epochs + np.array([0, 0, 9]), lengths, cu, ids(5, 6, 7), probs(3), 0)
    assert store.trajectory(0)["tokens"].tolist() == [5, 6]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": np.array([1])}, "tokens = an array of int64 with 1 axes: expected a one-dim"),
        ({"tokens": [1]}, "tokens = list: expected a one-dimensional array of int32"),
        ({"tokens": np.ones((1, 1), np.int32)}, "tokens = an array of int32 with 2 axes"),
        ({"tokens": ids(-1)}, "tokens = -1 at 0: expected token ids of at least 0"),
        ({"log_probs": probs(2)}, "log_probs = 2 entries: expected 1, one for each of tokens"),
        ({"log_probs": np.array([np.nan], np.float32)}, "log_probs = NaN at 0: expected finite"),
        ({"offset": -1}, "offset = -1: expected an integer from 0 to 4294967295"),
        ({"trajectory_id": 1}, "trajectory_id = 1: expected an id below 1"),
        ({"epoch": 1.5}, r"epoch = 1\.5: expected an integer"),
        ({"version": 2**32}, r"version = 4294967296: expected an integer"),
        ({"version": 0}, "version = 0: expected at least 1"),
        ({"loss_mask": np.array([2], np.uint8)}, "loss_mask = 2 at 0: expected 0 or 1"),
    ],
)
def test_a_wrong_append_is_named(changes: dict[str, object], message: str) -> None:
    store = Store()
    store.add_group(PROMPT, 1, version=1)
    (lease,) = store.lease(1, now=0, duration=1)
    arguments = {
        "trajectory_id": 0,
        "epoch": lease.epoch,
        "offset": 0,
        "tokens": ids(5),
        "log_probs": probs(1),
        "version": 1,
    }
    with pytest.raises(InvalidInputError, match=message):
        store.append(**arguments | changes)  # type: ignore[arg-type]
    assert store.trajectory(0)["tokens"].tolist() == []


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt(1, ids(), ""), "prompt.input_ids = empty: expected at least one token"),
        (Prompt(1, np.zeros(2), ""), "prompt.input_ids = an array of float64"),  # type: ignore[arg-type]
        (Prompt("x", ids(1), ""), "prompt.prompt_id = 'x': expected an int64"),  # type: ignore[arg-type]
        (Prompt(1, ids(1), 4), "prompt.answer = 4: expected a str"),  # type: ignore[arg-type]
        (Prompt(1, ids(1), "", difficulty=float("nan")), "prompt.difficulty = NaN"),
    ],
)
def test_a_wrong_prompt_is_named(prompt: Prompt, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Store().add_group(prompt, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"when_full": "explode"}, 'when_full = "explode": expected refuse, block, evict_oldest'),
        ({"sync": "often"}, 'sync = "often": expected never, batch or always'),
        ({"max_uses": 0}, "max_uses = 0: expected at least 1"),
        ({"capacity_bytes": 1000}, "capacity_bytes = 1000: expected at least 8 log files"),
        ({"file_bytes": 10}, "file_bytes = 10: expected between 4096"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Store(**options)  # type: ignore[arg-type]


def test_orders_and_reasons_are_named() -> None:
    store = Store()
    store.add_group(PROMPT, 1)
    with pytest.raises(InvalidInputError, match='order = "newest": expected oldest, stalest'):
        store.lease(1, now=0, duration=1, order="newest")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="duration = 0: expected a finite number"):
        store.lease(1, now=0, duration=0)
    with pytest.raises(InvalidInputError, match='reason = "done": expected stop, length'):
        store.finish(0, 1, "done")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match='strategy = "best": expected fifo, uniform or'):
        store.sample(groups=1, version=0, max_staleness=0, strategy="best")  # type: ignore[arg-type]
