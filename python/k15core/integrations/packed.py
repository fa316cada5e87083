"""Packed batches into and out of a trajectory store: what the integrations share.

A store takes trajectories in token by token, by leases. Other stacks hand over whole trajectories,
with their rewards; `write_packed` does the leasing for them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from k15core.errors import ConflictError, InvalidInputError
from k15core.types import FINISH_REASONS, PackedBatch, Prompt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from k15core._core import Store, StoreReader

# Leases taken for a write: of what nobody holds at any clock's time, until the write is done.
_NOW, _DURATION = -1e15, 1e18


def groups_of(batch: PackedBatch) -> Iterator[slice]:
    """The rows of each group of a batch, whose members lie next to each other."""
    edges = np.flatnonzero(np.diff(batch.group_ids)) + 1
    bounds = [0, *edges.tolist(), len(batch)]
    for first, last in pairwise(bounds):
        if first < last:
            yield slice(first, last)


def write_packed(store: Store, batch: PackedBatch) -> NDArray[np.int64]:
    """Write scored trajectories [B] into a store; their new trajectory ids [B].

    Rows with the same `group_ids` that follow each other become one group, whose prompt is that of
    its first row. `group_ids`, `trajectory_ids` and `position_ids` of the batch are not kept: the
    store gives out its own. `columns` must be declared in the store, with their dtypes; each sets
    all tokens of the responses, and what it has for prompts is not kept.

    Everything is checked before anything is written (InvalidInputError). A group that cannot be
    written to its end (CapacityError; ConflictError if another worker leased one of its
    trajectories in that moment) is removed again; the groups before it stay.
    """
    groups = list(groups_of(batch))
    _check_columns(store, batch)
    for group in groups:
        _check(batch, group)
    written: list[int] = []
    for group in groups:
        written += _write_group(store, batch, group)
    return np.array(written, np.int64)


def _check_columns(store: Store, batch: PackedBatch) -> None:
    declared = store.columns() if batch.columns else {}
    for name, values in batch.columns.items():
        if name not in declared:
            raise InvalidInputError(
                f"columns of the batch have {name}: expected columns that the store was opened "
                f"with, {', '.join(declared) or 'none'}"
            )
        if values.dtype != declared[name] or values.shape != batch.input_ids.shape:
            raise InvalidInputError(
                f"column {name} is {values.dtype} {list(values.shape)}: expected {declared[name]} "
                f"{list(batch.input_ids.shape)}, as the store has it, one entry a token"
            )


def _check(batch: PackedBatch, group: slice) -> None:
    prompt = _prompt(batch, group.start)
    for row in range(group.start, group.stop):
        tokens = _tokens(batch, row)
        length = tokens.stop - tokens.start
        if not 1 <= batch.prompt_lengths[row] <= length:
            raise InvalidInputError(
                f"prompt_lengths[{row}] = {batch.prompt_lengths[row]}: expected 1 to {length}, "
                "the row's tokens"
            )
        if not np.array_equal(_prompt(batch, row), prompt):
            raise InvalidInputError(
                f"input_ids of row {row}: expected the prompt of row {group.start}, which has the "
                f"same group id {batch.group_ids[row]}"
            )
        if np.any(np.diff(batch.versions[_response(batch, row)].astype(np.int64)) < 0):
            raise InvalidInputError(
                f"versions of row {row}: expected no version after a newer one in a response"
            )
        if not np.isfinite(batch.rewards[row]):
            raise InvalidInputError(
                f"rewards[{row}] = {batch.rewards[row]}: expected a finite number"
            )
        code = int(batch.finish_reasons[row])
        if code >= len(FINISH_REASONS) or FINISH_REASONS[code] == "abort":
            raise InvalidInputError(
                f"finish_reasons[{row}] = {code}: expected the code of stop, length or repetition"
            )


def _write_group(store: Store, batch: PackedBatch, group: slice) -> list[int]:
    rows = range(group.start, group.stop)
    responses = [_response(batch, row) for row in rows]
    oldest = min((int(batch.versions[x.start]) for x in responses if x.start < x.stop), default=0)
    prompt = Prompt(int(batch.prompt_ids[group.start]), _prompt(batch, group.start), "")
    ids = store.add_group(prompt, len(rows), version=oldest)
    leases = store.lease(len(ids), now=_NOW, duration=_DURATION, trajectory_ids=ids)
    epochs = {lease.trajectory_id: lease.epoch for lease in leases}
    try:
        for row, trajectory_id in zip(rows, ids, strict=True):
            if trajectory_id not in epochs:
                raise ConflictError(
                    f"trajectory {trajectory_id} of a new group was leased by another worker "
                    "before it was written"
                )
            _write_row(store, batch, row, trajectory_id, epochs[trajectory_id])
    except BaseException:
        store.drop_groups([store.trajectory(ids[0])["group_id"]])
        raise
    return ids


def _write_row(store: Store, batch: PackedBatch, row: int, trajectory_id: int, epoch: int) -> None:
    response = _response(batch, row)
    versions = batch.versions[response]
    edges = (np.flatnonzero(np.diff(versions)) + 1).tolist()
    for start, stop in zip([0, *edges], [*edges, len(versions)], strict=True):
        if start == stop:  # an empty response
            continue
        piece = slice(response.start + start, response.start + stop)
        store.append(
            trajectory_id,
            epoch,
            start,
            batch.input_ids[piece],
            batch.rollout_log_probs[piece],
            int(versions[start]),
            loss_mask=batch.loss_mask[piece],
        )
    for name, values in batch.columns.items():
        store.set_column(trajectory_id, name, values[response])
    store.finish(trajectory_id, epoch, FINISH_REASONS[int(batch.finish_reasons[row])])
    store.set_reward(trajectory_id, float(batch.rewards[row]))


def read_packed(store: Store | StoreReader, trajectory_ids: Iterable[int]) -> PackedBatch:
    """Scored trajectories [B] of a store in the given order, copied; no use is recorded.

    `columns` has all that the store declares, 0 on prompts and where no value was set.

    Raises InvalidInputError for a trajectory that is gone, or not yet scored.
    """
    views: list[Any] = [store.trajectory(int(each)) for each in trajectory_ids]
    for view in views:
        if view["reward"] is None:
            raise InvalidInputError(
                f"trajectory {view['trajectory_id']} is {view['state']}: expected a scored one"
            )
    prompts = [len(view["prompt_tokens"]) for view in views]
    lengths = [n + len(view["tokens"]) for n, view in zip(prompts, views, strict=True)]

    def join(name: str, dtype: type[np.generic]) -> NDArray[Any]:
        pieces: list[NDArray[Any]] = [np.zeros(0, dtype)]
        for view, n in zip(views, prompts, strict=True):
            pieces.append(view["prompt_tokens"] if name == "tokens" else np.zeros(n, dtype))
            pieces.append(view[name])
        return np.concatenate(pieces).astype(dtype, copy=False)

    def join_column(name: str) -> NDArray[Any]:
        pieces = []
        for view, n in zip(views, prompts, strict=True):
            values = view["columns"][name]
            pieces += [np.zeros(n, values.dtype), values]
        return np.concatenate(pieces)

    def column(name: str, dtype: type[np.generic]) -> NDArray[Any]:
        return np.array([view[name] for view in views], dtype)

    positions: Sequence[NDArray[np.int32]] = [np.arange(n, dtype=np.int32) for n in lengths]
    return PackedBatch(
        input_ids=join("tokens", np.int32),
        position_ids=np.concatenate([np.zeros(0, np.int32), *positions]),
        cu_seqlens=np.concatenate(([0], np.cumsum(lengths))).astype(np.int32),
        max_seqlen=max(lengths, default=0),
        loss_mask=join("loss_mask", np.uint8),
        rollout_log_probs=join("log_probs", np.float32),
        versions=join("versions", np.uint32),
        rewards=column("reward", np.float32),
        group_ids=column("group_id", np.int64),
        trajectory_ids=column("trajectory_id", np.int64),
        prompt_ids=column("prompt_id", np.int64),
        prompt_lengths=np.array(prompts, np.int32),
        finish_reasons=np.array(
            [FINISH_REASONS.index(view["finish_reason"]) for view in views], np.uint8
        ),
        columns={name: join_column(name) for name in (views[0]["columns"] if views else ())},
    )


def _tokens(batch: PackedBatch, row: int) -> slice:
    return slice(int(batch.cu_seqlens[row]), int(batch.cu_seqlens[row + 1]))


def _response(batch: PackedBatch, row: int) -> slice:
    tokens = _tokens(batch, row)
    return slice(tokens.start + int(batch.prompt_lengths[row]), tokens.stop)


def _prompt(batch: PackedBatch, row: int) -> NDArray[np.int32]:
    start = int(batch.cu_seqlens[row])
    return batch.input_ids[start : start + int(batch.prompt_lengths[row])]
