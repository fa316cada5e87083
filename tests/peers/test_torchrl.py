"""TorchRL's own ReplayBuffer over a k15core store: `make test-peers` runs this."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trajectories import random_groups

import k15core
from k15core.errors import InvalidInputError
from k15core.types import PackedBatch

NEEDS = "needs torchrl, which `make test-peers` installs into an environment of its own"
pytest.importorskip("torchrl", reason=NEEDS)

import torch
from tensordict import TensorDict, lazy_stack
from torchrl.data import RandomSampler, ReplayBuffer, TensorDictReplayBuffer

from k15core.integrations.tensordict import PER_ROW, PER_TOKEN, from_tensordict, to_tensordict
from k15core.integrations.torchrl import PrioritySampler, TrajectoryStorage, TrajectoryWriter

K = 4
GIVEN_ANEW = ("group_ids", "trajectory_ids")
PAGE = Path(__file__).parents[2] / "docs" / "torchrl.md"


def buffer(
    store: k15core.Store, *, size: int = 32, kind: type = ReplayBuffer, **options: Any
) -> Any:
    return kind(
        storage=TrajectoryStorage(store, size, group_size=K),
        sampler=PrioritySampler(size, alpha=0.7, beta=0.5),
        writer=TrajectoryWriter(),
        batch_size=8,
        **options,
    )


def same(a: PackedBatch, b: PackedBatch, *, but: tuple[str, ...] = GIVEN_ANEW) -> None:
    for name, value in vars(a).items():
        if name not in but:
            np.testing.assert_array_equal(value, getattr(b, name), err_msg=name)


def test_a_batch_comes_back_as_it_went_in() -> None:
    rb = buffer(k15core.Store())
    batch = random_groups(3, K, spans=3)
    index = rb.extend(to_tensordict(batch))
    assert index.tolist() == list(range(12))
    assert len(rb) == 12
    same(from_tensordict(rb[:]), batch)
    rows = torch.tensor([7, 0, 7])
    same(from_tensordict(rb[rows]), batch.select(rows.numpy()))
    one = rb[5]
    assert one.batch_size == torch.Size([])
    first, last = batch.cu_seqlens[5:7]
    assert one["input_ids"].tolist() == batch.input_ids[first:last].tolist()
    assert rb.write_count == 12
    assert 11 in rb.storage
    assert 12 not in rb.storage


def test_rows_and_lazy_stacks_are_taken_too() -> None:
    batch = random_groups(2, K)
    rows = list(to_tensordict(batch).unbind(0))
    for data in (rows, lazy_stack(rows)):
        rb = buffer(k15core.Store())
        rb.extend(data)
        same(from_tensordict(rb[:]), batch)


def test_only_four_keys_are_needed() -> None:
    rb = ReplayBuffer(
        storage=TrajectoryStorage(k15core.Store(), 4), writer=TrajectoryWriter(), batch_size=1
    )
    row = TensorDict(
        {
            "input_ids": torch.tensor([4, 5, 6]),
            "rollout_log_probs": torch.tensor([0.0, -1.0, -2.0]),
            "prompt_lengths": torch.tensor(1),
            "rewards": torch.tensor(0.5),
        }
    )
    assert rb.add(row) == 0
    found = rb.sample()
    assert found["loss_mask"][0].tolist() == [0, 1, 1]
    assert found["rewards"].tolist() == [0.5]


def test_sampling_follows_priorities() -> None:
    torch.manual_seed(0)
    rb = buffer(k15core.Store())
    rb.extend(to_tensordict(random_groups(8, K)))
    priority = torch.linspace(0, 3, 32)
    rb.update_priority(torch.arange(32), priority)
    drawn = torch.zeros(32)
    for _ in range(800):
        data, info = rb.sample(return_info=True)
        assert info["index"].shape == (8,)
        weight = (priority[info["index"]] + 1e-8) ** 0.7
        expected = (weight / weight.min()) ** -0.5
        torch.testing.assert_close(info["priority_weight"], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(
            data["trajectory_ids"], rb.storage.trajectory_ids[info["index"]]
        )
        drawn += torch.bincount(info["index"], minlength=32)
    wanted = (priority + 1e-8) ** 0.7
    wanted *= drawn.sum() / wanted.sum()
    assert ((drawn - wanted) ** 2 / wanted.clamp(min=1)).sum() < 70  # chi-square, 31 degrees


def test_sampling_without_replacement_and_by_a_generator() -> None:
    draws = []
    for _ in range(2):
        store = k15core.Store()
        rb = ReplayBuffer(
            storage=TrajectoryStorage(store, 32, group_size=K),
            sampler=PrioritySampler(32, alpha=1.0, beta=0.0, replace=False),
            writer=TrajectoryWriter(),
            batch_size=32,
            generator=torch.Generator().manual_seed(5),
        )
        rb.extend(to_tensordict(random_groups(8, K)))
        draws.append(rb.sample(return_info=True)[1]["index"])
    assert sorted(draws[0].tolist()) == list(range(32))
    assert draws[0].tolist() == draws[1].tolist()


def test_the_oldest_groups_are_overwritten() -> None:
    store = k15core.Store()
    rb = buffer(store, size=12)
    batches = [random_groups(2, K, seed=seed) for seed in range(4)]
    for batch in batches[:2]:
        index = rb.extend(to_tensordict(batch))
    assert index.tolist() == [8, 9, 10, 11, 0, 1, 2, 3]
    assert len(rb) == 12
    assert len(store.complete_groups()) == 3
    same(from_tensordict(rb[index]), batches[1])
    same(from_tensordict(rb[torch.arange(4, 8)]), batches[0].select(range(4, 8)))
    rb[torch.arange(4, 8)] = to_tensordict(batches[2].select(range(4)))
    same(from_tensordict(rb[4:8]), batches[2].select(range(4)))
    rb.empty()
    assert len(rb) == 0
    assert store.complete_groups() == []
    assert rb.extend(to_tensordict(batches[3])).tolist() == list(range(8))


def test_a_buffer_goes_on_in_the_next_process(tmp_path: Path) -> None:
    batches = [random_groups(2, K, seed=seed) for seed in range(2)]
    with k15core.Store(tmp_path / "buffer") as store:
        rb = buffer(store, size=12)
        rb.extend(to_tensordict(batches[0]))
    with k15core.Store(tmp_path / "buffer") as store:
        rb = buffer(store, size=12)
        same(from_tensordict(rb[:]), batches[0])
        data, info = rb.sample(return_info=True)
        assert len(data) == len(info["index"]) == 8
        assert rb.extend(to_tensordict(batches[1])).tolist() == [8, 9, 10, 11, 0, 1, 2, 3]
    with k15core.Store(tmp_path / "buffer") as store:
        rb = buffer(store, size=8)
        same(from_tensordict(rb[:]), batches[1])


def test_a_checkpoint_undoes_what_came_after(tmp_path: Path) -> None:
    batches = [random_groups(3, K, seed=seed, version=seed) for seed in range(3)]
    with k15core.Store(tmp_path / "buffer") as store:
        rb = buffer(store, size=12)
        rb.extend(to_tensordict(batches[0]))
        rb.update_priority(torch.tensor([3]), torch.tensor([7.0]))
        rb.dumps(tmp_path / "checkpoint")
        weights = rb.sampler.state_dict()["weights"]
        rb.extend(to_tensordict(batches[1].select(range(8))))
        rb.extend(to_tensordict(random_groups(1, K, seed=9)))
    with k15core.Store(tmp_path / "buffer") as store:
        rb = buffer(store, size=12)
        rb.loads(tmp_path / "checkpoint")
        same(from_tensordict(rb[:]), batches[0], but=())
        assert len(store.complete_groups()) == 3
        torch.testing.assert_close(rb.sampler.state_dict()["weights"], weights)
        rb.extend(to_tensordict(batches[2]))
        same(from_tensordict(rb[:]), batches[2])


def test_what_is_refused_changes_nothing() -> None:
    store = k15core.Store()
    rb = buffer(store, size=8)
    rb.extend(to_tensordict(random_groups(2, K)))
    before = from_tensordict(rb[:])
    good = to_tensordict(random_groups(1, K, seed=1))
    cases = [
        (to_tensordict(random_groups(1, 3)), "multiple of group_size = 4"),
        (to_tensordict(random_groups(3, K)), "no more than max_size = 8"),
        (good.clone().set("advantages", torch.zeros(K)), "'advantages'"),
        (good.exclude("rewards"), "expected rewards among them"),
        (good.clone().set("rewards", torch.full((K,), float("nan"))), "rewards"),
        (good.clone().set("finish_reasons", torch.full((K,), 3)), "finish_reasons"),
        (good.clone().set("prompt_lengths", torch.zeros(K)), "prompt_lengths"),
        (to_tensordict(random_groups(K, 1)), "expected the prompt of row"),
    ]
    for data, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            rb.extend(data)
        same(from_tensordict(rb[:]), before, but=())
        assert len(store.complete_groups()) == 2
        assert store.unfinished() == 0
    with pytest.raises(InvalidInputError, match="whole groups"):
        rb[torch.arange(2, 6)] = good
    with pytest.raises(InvalidInputError, match="expected group_size = 2"):
        TrajectoryStorage(store, 8, group_size=2)
    with pytest.raises(InvalidInputError, match="multiple of group_size"):
        TrajectoryStorage(store, 9, group_size=4)
    with pytest.raises(InvalidInputError, match="priority"):
        rb.update_priority(torch.tensor([0]), torch.tensor([-1.0]))


def test_unfinished_work_of_others_in_the_store_is_left_alone() -> None:
    store = k15core.Store()
    prompt = k15core.Prompt(1, np.arange(3, dtype=np.int32), "")
    ids = store.add_group(prompt, 3)
    held = store.lease(1, now=5.0, duration=10.0)[0]
    rb = buffer(store)
    rb.extend(to_tensordict(random_groups(1, K)))
    store.append(
        held.trajectory_id, held.epoch, 0, np.arange(2, dtype=np.int32), np.zeros(2, np.float32), 0
    )
    free = store.lease(9, now=6.0, duration=10.0)
    assert [lease.trajectory_id for lease in free] == [i for i in ids if i != held.trajectory_id]


def test_with_a_tensordict_buffer_a_transform_and_another_sampler() -> None:
    rb = buffer(k15core.Store(), kind=TensorDictReplayBuffer)
    rb.extend(to_tensordict(random_groups(4, K)))
    rb.append_transform(lambda data: data.set("double", data["rewards"] * 2))
    found = rb.sample()
    torch.testing.assert_close(found["double"], found["rewards"] * 2)
    assert found["index"].shape == found["priority_weight"].shape == (8,)
    again = rb[:K]
    assert "index" not in again
    assert rb.extend(again.exclude("double")).tolist() == list(range(16, 20))
    plain = ReplayBuffer(storage=rb.storage, sampler=RandomSampler(), batch_size=4)
    assert len(plain.sample()) == 4


def test_every_array_of_a_batch_has_a_key() -> None:
    beside = ("cu_seqlens", "max_seqlen", "columns")
    names = {name for name in vars(random_groups(1, 1)) if name not in beside}
    assert names == PER_TOKEN.keys() | PER_ROW.keys()


def test_the_pages_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    assert len(names["buffer"]) == 8
