"""verl's own DataProto and TensorDicts, into a store and out of one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trajectories import random_groups

NEEDS = "needs verl, which `make test-peers` installs into an environment of its own"
pytest.importorskip("verl", reason=NEEDS)

import torch
from verl import DataProto
from verl.utils.model import compute_position_id_with_mask

import k15core
from k15core.errors import InvalidInputError
from k15core.integrations.packed import write_packed
from k15core.integrations.verl import (
    from_dataproto,
    from_tensordict,
    to_dataproto,
    to_tensordict,
)
from k15core.types import PackedBatch

PAGE = Path(__file__).parents[2] / "docs" / "verl.md"
# verl says neither why a response ended nor which of its tokens is of which version.
NOT_TOLD = ("trajectory_ids", "finish_reasons", "group_ids")


def with_answers(groups: int, k: int, **options: Any) -> PackedBatch:
    """Random groups without the rows whose response is empty: verl has no reward for those."""
    batch = random_groups(groups, k, **options)
    return batch.select(np.flatnonzero(batch.response_lengths()))


def same(a: PackedBatch, b: PackedBatch, *, but: tuple[str, ...] = NOT_TOLD) -> None:
    for name, value in vars(a).items():
        if name not in but:
            np.testing.assert_array_equal(value, getattr(b, name), err_msg=name)


def test_a_dataproto_is_laid_out_as_verls_own() -> None:
    batch = with_answers(3, 4, version=5, spans=3)
    data = to_dataproto(batch, prompt_width=8, response_width=20, pad_token_id=99)
    assert isinstance(data, DataProto)
    prompts, responses = data.batch["prompts"], data.batch["responses"]
    assert prompts.shape == (len(batch), 8)
    assert responses.shape == (len(batch), 20)
    assert torch.equal(data.batch["input_ids"], torch.cat([prompts, responses], 1))
    mask = data.batch["attention_mask"]
    assert torch.equal(data.batch["position_ids"], compute_position_id_with_mask(mask))
    for row in range(len(batch)):
        first, last = batch.cu_seqlens[row : row + 2]
        tokens = batch.input_ids[first:last].tolist()
        p, r = int(batch.prompt_lengths[row]), last - first - batch.prompt_lengths[row]
        assert prompts[row].tolist() == [99] * (8 - p) + tokens[:p]
        assert responses[row].tolist() == tokens[p:] + [99] * (20 - r)
        scores = data.batch["rm_scores"][row]
        assert scores[r - 1] == pytest.approx(batch.rewards[row])
        assert scores.count_nonzero() <= 1
        versions = batch.versions[first + p : last]
        assert data.non_tensor_batch["min_global_steps"][row] == versions.min()
        assert data.non_tensor_batch["max_global_steps"][row] == versions.max()
    (chunk, *_) = data.chunk(1)
    assert len(chunk.union(data)) == len(batch)


@pytest.mark.parametrize("form", ["dataproto", "tensordict"])
def test_there_and_back(form: str) -> None:
    batch = with_answers(4, 3, version=7)
    there, back = {
        "dataproto": (lambda x: to_dataproto(x, response_width=30), from_dataproto),
        "tensordict": (to_tensordict, from_tensordict),
    }[form]
    found = back(there(batch))
    same(found, batch)
    assert found.finish_reasons.tolist() == [0] * len(batch)


def test_verls_conversion_of_one_form_into_the_other_is_read_too() -> None:
    batch = with_answers(2, 3)
    same(from_tensordict(to_tensordict(batch)), from_dataproto(to_dataproto(batch)))
    again = DataProto.from_tensordict(to_dataproto(batch).to_tensordict())
    same(from_dataproto(again), batch)


def test_shuffled_rows_find_their_group_and_versions_are_the_oldest() -> None:
    batch = with_answers(5, 4, version=2, spans=4)
    data = to_dataproto(batch)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(1))
    data.reorder(order)
    found = from_dataproto(data)
    assert np.count_nonzero(np.diff(found.group_ids)) == len(np.unique(batch.group_ids)) - 1
    rows = order.numpy()[found.trajectory_ids]
    expected = batch.select(rows)
    same(found, expected, but=(*NOT_TOLD, "versions"))
    for row in range(len(found)):
        first, last = found.cu_seqlens[row : row + 2]
        first += found.prompt_lengths[row]
        assert set(found.versions[first:last]) == {expected.versions[first:last].min()}
    full = found.response_lengths() == batch.response_lengths().max()
    assert found.finish_reasons.tolist() == full.astype(int).tolist()


def test_through_a_store() -> None:
    store = k15core.Store()
    batch = random_groups(4, 3, version=1)
    write_packed(store, batch)
    taken = store.sample(groups=4, version=1, max_staleness=9)
    data = to_dataproto(taken)
    assert len(set(data.non_tensor_batch["uid"])) == 4
    other = k15core.Store()
    write_packed(other, from_dataproto(data))
    moved = other.sample(groups=4, version=1, max_staleness=9)
    # A response of length 0 has no token that could carry a reward in verl.
    but = ("rewards", "finish_reasons", "prompt_ids", "trajectory_ids")
    same(moved, taken, but=but)
    np.testing.assert_array_equal(
        moved.rewards, np.where(taken.response_lengths() > 0, taken.rewards, 0)
    )


def test_what_is_missing_is_named() -> None:
    data = to_dataproto(with_answers(2, 2))
    with pytest.raises(InvalidInputError, match="prompt_width = 1: expected at least"):
        to_dataproto(random_groups(9, 1), prompt_width=1)
    for name in ("rollout_log_probs", "attention_mask", "rm_scores"):
        rest = [key for key in data.batch.keys() if key != name]  # noqa: SIM118
        with pytest.raises(InvalidInputError, match=name):
            from_dataproto(data.select(batch_keys=rest))
    with pytest.raises(InvalidInputError, match="expected uid"):
        from_dataproto(data.select(non_tensor_batch_keys=[]))


def test_the_pages_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {"rollouts": to_dataproto(with_answers(8, 4, version=3))}
    exec(compile(code, str(PAGE), "exec"), names)
    assert len(names["update"]) > 0
