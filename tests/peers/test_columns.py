"""Columns of a user's own through the drop-ins: `make test-peers` runs this."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trajectories import COLUMNS, random_groups, with_columns

from k15core import SharedStore, Store
from k15core.errors import InvalidInputError
from k15core.integrations.packed import read_packed, write_packed
from k15core.types import PackedBatch

K = 4
NEEDS = "needs {}, which `make test-peers` installs into an environment of its own"


def same(found: PackedBatch, wanted: PackedBatch) -> None:
    assert found.columns.keys() == wanted.columns.keys()
    for name, values in wanted.columns.items():
        assert found.columns[name].dtype == values.dtype
        np.testing.assert_array_equal(found.columns[name], values, err_msg=name)
    np.testing.assert_array_equal(found.input_ids, wanted.input_ids)


@pytest.fixture
def batch() -> PackedBatch:
    return with_columns(random_groups(3, K, spans=3))


def test_in_and_out_of_a_store(batch: PackedBatch, tmp_path: Path) -> None:
    with Store(columns=COLUMNS) as store, store.serve(tmp_path / "socket") as server:
        with SharedStore(server.path) as client:
            for one in (store, client):
                ids = write_packed(one, batch)
                for reader in (store, client):
                    same(read_packed(reader, ids), batch)
        sampled = store.sample(groups=3, version=9, max_staleness=9, columns=list(COLUMNS))
        same(sampled, batch)


def test_what_a_store_does_not_declare_is_refused_before_anything_is_written(
    batch: PackedBatch,
) -> None:
    store = Store(columns={"own_int8": "uint8"})
    with pytest.raises(InvalidInputError, match="columns of the batch have own_uint8: expected"):
        write_packed(store, batch)
    only = PackedBatch(**{**vars(batch), "columns": {"own_int8": batch.columns["own_int8"]}})
    with pytest.raises(InvalidInputError, match=r"column own_int8 is int8 .*: expected uint8"):
        write_packed(store, only)
    assert store.stats()["groups"] == 0


def test_what_others_may_lease_is_left_alone(batch: PackedBatch) -> None:
    store = Store(columns=COLUMNS)
    write_packed(store, batch)
    first = store.trajectory(0)
    (again,) = store.add_group(store.group(first["group_id"])["prompt"], 1)
    (lease,) = store.lease(1, now=0, duration=1, trajectory_ids=[again])
    store.release(again, lease.epoch)
    write_packed(store, batch)
    (next_lease,) = store.lease(1, now=0, duration=1)
    # Epochs count leases: one for each row of the batch, none for what was not of it.
    assert next_lease.epoch == lease.epoch + len(batch) + 1


def test_torchrl(batch: PackedBatch, tmp_path: Path) -> None:
    pytest.importorskip("torchrl", reason=NEEDS.format("torchrl"))
    from torchrl.data import ReplayBuffer

    from k15core.integrations.tensordict import from_tensordict, to_tensordict
    from k15core.integrations.torchrl import PrioritySampler, TrajectoryStorage, TrajectoryWriter

    def buffer(store: Store) -> Any:
        return ReplayBuffer(
            storage=TrajectoryStorage(store, 32, group_size=K),
            sampler=PrioritySampler(32, alpha=0.7, beta=0.5),
            writer=TrajectoryWriter(),
            batch_size=8,
        )

    with Store(tmp_path / "store", columns=COLUMNS) as store:
        rb = buffer(store)
        rb.extend(to_tensordict(batch))
        rb.extend(list(to_tensordict(batch).unbind(0)))
        drawn = from_tensordict(rb.sample().exclude("index", "priority_weight"), columns=COLUMNS)
        assert drawn.columns.keys() == COLUMNS.keys()
    with Store(tmp_path / "store") as store:
        rb = buffer(store)
        found = from_tensordict(rb[:], columns=store.columns())
        same(found.select(range(12)), batch)
        same(found.select(range(12, 24)), batch)
    rb = buffer(Store())
    with pytest.raises(InvalidInputError, match="no place for them"):
        rb.extend(to_tensordict(batch))


@pytest.mark.parametrize("form", ["dataproto", "tensordict"])
def test_verl(batch: PackedBatch, form: str) -> None:
    pytest.importorskip("verl", reason=NEEDS.format("verl"))
    from k15core.integrations import verl

    batch = batch.select(np.flatnonzero(batch.response_lengths()))
    there = {"dataproto": verl.to_dataproto, "tensordict": verl.to_tensordict}[form]
    back: Any = {"dataproto": verl.from_dataproto, "tensordict": verl.from_tensordict}[form]
    data: Any = there(batch)
    same(back(data, columns={**COLUMNS, "never_there": "int8"}), batch)
    assert not back(data).columns
    tensors = data.batch if form == "dataproto" else data
    row = int(np.argmax(batch.response_lengths()))
    first = batch.cu_seqlens[row] + batch.prompt_lengths[row]
    wanted = batch.columns["own_float32"][first : batch.cu_seqlens[row + 1]]
    np.testing.assert_array_equal(tensors["own_float32"][row][: len(wanted)], wanted)
    other = PackedBatch(**{**vars(batch), "columns": {"responses": batch.input_ids}})
    with pytest.raises(InvalidInputError, match="column responses: expected a name"):
        there(other)


def test_transfer_queue(batch: PackedBatch) -> None:
    pytest.importorskip("tensordict", reason=NEEDS.format("tensordict"))
    pytest.importorskip("transfer_queue", reason=NEEDS.format("TransferQueue"))
    from k15core.integrations.tensordict import from_tensordict, to_tensordict
    from k15core.integrations.transfer_queue.codec import decode, encode
    from k15core.integrations.transfer_queue.values import ValueStore

    # A field of TransferQueue is a value a row: a column is a field like any other.
    rows = to_tensordict(batch).unbind(0)
    names = [str(name) for name in rows[0].keys()]  # noqa: SIM118 (not a dict)
    with ValueStore() as store:
        for name in names:
            keys = [f"{row}@{name}" for row in range(len(rows))]
            store.put(keys, encode([row.get(name) for row in rows]))
        back = []
        for place, row in enumerate(rows):
            values = decode(store.get([f"{place}@{name}" for name in names]))
            back.append(row.clone().update(dict(zip(names, values, strict=True))))
    import tensordict

    same(from_tensordict(tensordict.lazy_stack(back), columns=COLUMNS), batch)
