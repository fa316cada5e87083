"""Columns that a user declares: what is accepted, what is refused, what an earlier format has."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from log_reader import log_files

from k15core import Prompt, Store
from k15core._core import StoreReader, repair_store, verify_store
from k15core.errors import InvalidInputError

PROMPT = Prompt(7, np.arange(3, dtype=np.int32), "")
COLUMNS = {"values": "float64", "image": "int16"}
FORMAT_1 = Path(__file__).parents[1] / "data" / "store_format_1"


def scored(store: Store, *lengths: int) -> list[int]:
    """A complete group of responses of these lengths."""
    members = store.add_group(PROMPT, len(lengths))
    for lease, n in zip(store.lease(99, now=0, duration=1), lengths, strict=True):
        for at in range(0, n, 300):  # what a small file holds
            tokens = np.arange(at, min(n, at + 300), dtype=np.int32)
            log_probs = -np.ones(len(tokens), np.float32)
            store.append(lease.trajectory_id, lease.epoch, at, tokens, log_probs, 0)
        store.finish(lease.trajectory_id, lease.epoch, "stop")
        store.set_reward(lease.trajectory_id, 1.0)
    return members


def test_columns_come_with_the_batch() -> None:
    store = Store(columns=COLUMNS, max_uses=9)
    first, second = scored(store, 4, 2)
    store.set_column(first, "values", np.array([0.5, 1.5, 2.5, 3.5]))
    store.set_column(first, "image", np.array([7, 8], np.int16), offset=1)
    bounds = {"groups": 1, "version": 0, "max_staleness": 0}
    batch = store.sample(**bounds)
    assert batch.columns["values"].tolist() == [0, 0, 0, 0.5, 1.5, 2.5, 3.5, 0, 0, 0, 0, 0]
    assert batch.columns["image"].tolist() == [0, 0, 0, 0, 7, 8, 0, 0, 0, 0, 0, 0]
    assert {k: v.dtype for k, v in batch.columns.items()} == COLUMNS
    whole = batch.copy()
    assert whole.columns["values"] is not batch.columns["values"]
    assert whole.select([1, 0]).columns["image"].tolist() == [0] * 5 + [0, 0, 0, 0, 7, 8, 0]
    assert len(store.sample(**bounds, columns=["values"])) == 0
    store.set_column(second, "values", np.array([9.0, 8.0]))
    batch = store.sample(**bounds, columns=["values"])
    assert set(batch.columns) == {"values"}
    assert batch.columns["values"][-2:].tolist() == [9, 8]
    assert store.sample(**bounds, columns=[]).columns == {}
    assert store.trajectory(first)["columns"]["image"].tolist() == [0, 7, 8, 0]


def test_a_batch_keeps_its_columns_when_buffers_are_used_again() -> None:
    store = Store(columns=COLUMNS, max_uses=9)
    (member,) = scored(store, 5)
    batches = []
    for step in range(4):
        store.set_column(member, "values", np.full(5, step, np.float64))
        batches.append(store.sample(groups=1, version=0, max_staleness=0))
    assert [b.columns["values"].tolist() for b in batches] == [[0] * 3 + [i] * 5 for i in range(4)]
    batches.clear()
    (other,) = scored(store, 2)
    store.set_column(other, "values", np.array([6.0, 7.0]))
    batch = store.sample(groups=2, version=0, max_staleness=0)
    assert batch.columns["values"].tolist() == [0] * 3 + [3] * 5 + [0] * 3 + [6, 7]
    assert not batch.columns["image"].any()


def test_many_ranges_at_once() -> None:
    store = Store(columns=COLUMNS)
    first, second = scored(store, 4, 2)
    ids, offsets = np.array([second, first, first]), np.array([0, 2, 0])
    ends, values = np.array([0, 2, 4, 4], np.int32), np.arange(1, 5, dtype=np.float64)
    store.set_column_many(ids, offsets, ends, "values", values)
    assert store.trajectory(first)["columns"]["values"].tolist() == [0, 0, 3, 4]
    assert store.trajectory(second)["columns"]["values"].tolist() == [1, 2]
    with pytest.raises(InvalidInputError, match="growing from 0 to 4, the length of values"):
        store.set_column_many(ids, offsets, ends + 1, "values", values)
    with pytest.raises(InvalidInputError, match="2 entries from 1: expected values of the 2"):
        store.set_column_many(ids, offsets + 1, ends, "values", values + 9)
    assert store.trajectory(first)["columns"]["values"].tolist() == [0, 0, 3, 4]


def test_values_replaced_are_garbage_at_once(tmp_path: Path) -> None:
    options = {"capacity_bytes": 32 << 12, "file_bytes": 4096, "sync": "never"}
    with Store(tmp_path, columns=COLUMNS, **options) as store:
        (member,) = scored(store, 1000)
        for step in range(200):  # fifty times what the store holds, and pieces larger than a file
            store.set_column(member, "values", np.arange(1000.0) * step)
            store.set_column(member, "values", np.arange(1000.0) * step)  # does nothing
        assert store.stats()["bytes_live"] < 9 * 1000 + 8 * 1000 + 2000
    with Store(tmp_path, **options) as store:
        found = store.trajectory(member)["columns"]["values"]
        np.testing.assert_array_equal(found, np.arange(1000.0) * 199)
    with StoreReader(tmp_path) as reader:
        assert reader.inspect()["columns"] == {
            "values": {"dtype": "float64", "tokens": 1000},
            "image": {"dtype": "int16", "tokens": 0},
        }


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": "float16"}, "'float16'|\"float16\": expected one of uint8"),
        ({"a b": "int8"}, "a name of at most 48"),
        ({"1a": "int8"}, "begins with a letter"),
        ({"": "int8"}, "a name of at most"),
        ({"x" * 49: "int8"}, "a name of at most"),
        ({"rewards": "int8"}, "no array of a batch has already"),
        ({f"c{i}": "int8" for i in range(33)}, "33 columns: expected at most 32"),
    ],
)
def test_bad_declarations(columns: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Store(tmp_path / "store", columns=columns)
    assert list(tmp_path.iterdir()) == []


def test_a_store_remembers_its_columns(tmp_path: Path) -> None:
    with Store(tmp_path, columns={"b": "int8"}) as store:
        assert store.columns() == {"b": "int8"}
    with pytest.raises(InvalidInputError, match="b: int16: expected int8, as the store has"):
        Store(tmp_path, columns={"b": "int16"})
    with Store(tmp_path, columns={"a": "int16"}) as store:
        assert store.columns() == {"b": "int8", "a": "int16"}
    with Store(tmp_path) as store:
        assert list(store.columns()) == ["b", "a"]
        with pytest.raises(InvalidInputError, match=r'name = "c".*: b, a'):
            store.sample(groups=1, version=0, max_staleness=0, columns=["c"])


def test_format_1_is_read_and_goes_on_in_format_2(tmp_path: Path) -> None:
    shutil.copytree(FORMAT_1, tmp_path, dirs_exist_ok=True)
    assert verify_store(tmp_path)["damages"] == []
    old = log_files(tmp_path)[0].read_bytes()
    with Store(tmp_path, capacity_bytes=32 << 12, file_bytes=4096, columns=COLUMNS) as store:
        assert store.trajectory(0)["tokens"].tolist() == [5, 6, 7]
        store.set_column(0, "values", np.array([0.5, 0.25, 0.125]))
        assert store.group(0)["prompt"].answer == "four"
    files = log_files(tmp_path)
    assert [path.read_bytes()[8] for path in files] == [1, 2]
    assert files[0].read_bytes()[80:] == old[80:]  # but for the word `synced`
    with Store(tmp_path, capacity_bytes=32 << 12, file_bytes=4096) as store:
        assert store.trajectory(0)["columns"]["values"].tolist() == [0.5, 0.25, 0.125]
        assert store.unfinished() == 1
        store.rewind(1)
        assert store.trajectory(1)["tokens"].tolist() == [8]
    assert verify_store(tmp_path)["opening"] == "clean"
    assert repair_store(tmp_path)["set_aside"] == []


def test_values_go_with_their_tokens() -> None:
    store = Store(columns=COLUMNS)
    (member,) = store.add_group(PROMPT, 1)
    (lease,) = store.lease(1, now=0, duration=1)
    for at, version in [(0, 0), (2, 5)]:
        tokens = np.arange(2, dtype=np.int32)
        store.append(member, lease.epoch, at, tokens, -np.ones(2, np.float32), version)
    mark = store.mark(3)  # an older policy goes on from here
    store.set_column(member, "values", np.arange(1.0, 5.0))
    store.rewind(mark)
    assert store.trajectory(member)["columns"]["values"].tolist() == [1, 2]


def test_what_an_abort_discarded_comes_back_with_its_values(tmp_path: Path) -> None:
    options = {"capacity_bytes": 32 << 12, "file_bytes": 4096, "sync": "never"}
    with Store(tmp_path, columns=COLUMNS, **options) as store:
        store.mark(0)
        (member,) = store.add_group(PROMPT, 1)
        (lease,) = store.lease(1, now=0, duration=1)
        tokens = np.arange(2, dtype=np.int32)
        store.append(member, lease.epoch, 0, tokens, -np.ones(2, np.float32), 0)
        store.set_column(member, "values", np.array([3.0, 4.0]))
        store.add_group(PROMPT, 1, version=1)
        store.finish(member, lease.epoch, "abort")
        (lease, _) = store.lease(9, now=0, duration=1e9)
        for _ in range(60):  # what was aborted is in the way, and is moved
            (other,) = scored(store, 250)
            store.drop_groups([store.trajectory(other)["group_id"]])
            mark = store.mark(0)
        store.append(member, lease.epoch, 0, tokens[:1], -np.ones(1, np.float32), 1)
        store.set_column(member, "values", np.array([5.0]))
    with Store(tmp_path, **options) as store:
        assert verify_kinds(tmp_path / "copy", tmp_path)["MovedColumn"]["records"] > 0
        assert store.trajectory(member)["columns"]["values"].tolist() == [5]
        store.rewind(mark)
        assert store.trajectory(member)["tokens"].tolist() == [0, 1]
        assert store.trajectory(member)["columns"]["values"].tolist() == [3, 4]


def verify_kinds(copy: Path, directory: Path) -> dict[str, dict[str, int]]:
    shutil.copytree(directory, copy, ignore=shutil.ignore_patterns("lock"))
    kinds: dict[str, dict[str, int]] = verify_store(copy)["kinds"]
    return kinds
