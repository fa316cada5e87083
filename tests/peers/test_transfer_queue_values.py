"""The values under TransferQueue's backend: coded bit for bit, there after every restart."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

NEEDS = "needs TransferQueue, which `make test-peers` installs into an environment of its own"
pytest.importorskip("transfer_queue", reason=NEEDS)

import numpy as np
import torch

import k15core
from k15core.errors import CapacityError, InvalidInputError
from k15core.integrations.transfer_queue import ValueStore
from k15core.integrations.transfer_queue.codec import decode, encode

VALUES: list[Any] = [
    torch.arange(7),
    torch.tensor(5),
    torch.tensor(-5),
    torch.tensor([2**31 - 1, 2**31, -(2**63)]),
    torch.tensor([2**31 - 1], dtype=torch.int32),
    torch.tensor([[-1, 2], [3, 4]], dtype=torch.int16),
    torch.randn(3, 5).t(),
    torch.tensor([float("nan"), float("inf"), -0.0], dtype=torch.float64),
    torch.randn(3).to(torch.bfloat16),
    torch.randn(2, 2, dtype=torch.complex64),
    torch.tensor([True, False, True]),
    torch.randint(0, 255, (5,), dtype=torch.uint8),
    torch.zeros(0, 4),
    torch.zeros(0, dtype=torch.int64),
    torch.randn(3, requires_grad=True),
    torch.randn(4, 4).to_sparse(),
    "text",
    None,
    {"nested": [1, 2.5, b"bytes"]},
]


def same(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor):
        return bool(a == b) and type(a) is type(b)
    if a.dtype != b.dtype or a.shape != b.shape or a.layout != b.layout:
        return False
    a, b = (x.detach().to_dense().contiguous().reshape(-1) for x in (a, b))
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8)) if a.numel() else True


@pytest.mark.parametrize("value", VALUES, ids=lambda value: str(value).replace("\n", "")[:40])
def test_a_value_comes_back_bit_for_bit(value: Any) -> None:
    (back,) = decode(encode([value]))
    assert same(value, back)


def test_many_values_at_once() -> None:
    encoded = encode(VALUES * 2)
    assert all(map(same, VALUES * 2, decode(encoded)))
    assert encoded.tokens.min() >= 0
    ids = encode([torch.arange(9), torch.tensor([], dtype=torch.int32)])
    assert ids.mask is None
    back = decode(ids)
    back[0][0] = 3  # in memory of its own


def test_it_is_a_dict_through_restarts(tmp_path: Path) -> None:
    rng = random.Random(0)
    store, model = ValueStore(tmp_path / "values", capacity_bytes=64 << 20), {}
    for step in range(300):
        keys = [f"{rng.randrange(12)}@{rng.choice('ab')}" for _ in range(rng.randrange(1, 5))]
        match rng.choice(["put", "put", "get", "clear", "reopen"]):
            case "put":
                values = [rng.choice(VALUES) for _ in keys]
                store.put(keys, encode(values))
                model.update(zip(keys, values, strict=True))
            case "get":
                known = [key for key in keys if key in model]
                found = decode(store.get(known))
                assert all(same(model[k], v) for k, v in zip(known, found, strict=True)), step
            case "clear":
                store.clear(keys)
                for key in keys:
                    model.pop(key, None)
            case "reopen":
                store.close()
                store = ValueStore(tmp_path / "values", capacity_bytes=64 << 20)
        assert len(store) == len(model)
    with pytest.raises(KeyError, match="nowhere"):
        store.get(["nowhere@a"])
    store.clear()
    assert len(store) == 0


def test_space_is_used_again() -> None:
    store = ValueStore(capacity_bytes=16 << 20)
    value = torch.arange(100_000)
    for _ in range(60):  # 54 MB through 16
        store.put(["0@x"], encode([value]))
    assert same(decode(store.get(["0@x"]))[0], value)


def test_a_put_that_does_not_fit_leaves_the_old_value() -> None:
    store = ValueStore(capacity_bytes=16 << 20)
    store.put(["0@x", "1@x"], encode([torch.arange(5), torch.arange(6)]))
    with pytest.raises(CapacityError):
        store.put(["0@x", "1@x"], encode([torch.arange(9), torch.arange(3_000_000)]))
    assert len(store) == 2
    assert all(map(same, decode(store.get(["0@x", "1@x"])), [torch.arange(5), torch.arange(6)]))
    with pytest.raises(InvalidInputError, match="1 keys for 2 values"):
        store.put(["0@x"], encode([1, 2]))


def test_what_was_begun_and_not_written_is_removed(tmp_path: Path) -> None:
    with ValueStore(tmp_path / "values") as store:
        store.put(["0@x"], encode([torch.arange(5)]))
    with k15core.Store(tmp_path / "values") as log:  # as a process that dies in `put` leaves it
        about = log.group(0)["prompt"].answer
        for _ in range(2):
            log.add_group(k15core.Prompt(0, np.zeros(1, np.int32), about), 1)
        lease = log.lease(1, now=0, duration=1)[0]
        log.append(1, lease.epoch, 0, np.arange(3, dtype=np.int32), np.zeros(3, np.float32), 0)
    with ValueStore(tmp_path / "values") as store:
        assert decode(store.get(["0@x"]))[0].tolist() == [0, 1, 2, 3, 4]
        assert len(store) == 1
        store.put(["1@x"], encode([1]))
    with k15core.Store(tmp_path / "values") as log:
        assert log.unfinished() == 0
        assert len(log.complete_groups()) == 2


def test_marks(tmp_path: Path) -> None:
    with ValueStore(tmp_path / "values") as store:
        store.put(["0@x", "1@x"], encode([1, 2]))
        mark = store.mark()
        store.put(["0@x", "2@x"], encode(["written over", "new"]))
        store.clear(["1@x"])
    with ValueStore(tmp_path / "values") as store:
        assert decode(store.get(["0@x", "2@x"])) == ["written over", "new"]
        store.rewind(mark)
        assert len(store) == 2
        assert decode(store.get(["0@x", "1@x"])) == [1, 2]
        store.put(["0@x"], encode([3]))
        assert decode(store.get(["0@x"])) == [3]
    with ValueStore(tmp_path / "values") as store:
        assert decode(store.get(["0@x", "1@x"])) == [3, 2]
        with pytest.raises(InvalidInputError):
            store.rewind({"mark": 99, "newest_group_id": 0})
