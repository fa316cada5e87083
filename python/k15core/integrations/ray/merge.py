"""Over several shards: which groups are taken, and their batches as one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from k15core._core import priorities, uniforms
from k15core.errors import InvalidInputError
from k15core.integrations.packed import groups_of
from k15core.types import PackedBatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Weights = Mapping[int, float] | tuple[NDArray[np.int64], NDArray[Any]]

#: The most tokens of a batch: `cu_seqlens` is int32.
MOST_TOKENS = 2**31 - 1


def choose(
    ids: NDArray[np.int64],
    tokens: NDArray[np.int64],
    prompt_ids: NDArray[np.int64],
    *,
    groups: int | None,
    budget: int | None,
    strategy: str,
    seed: int,
    weights: Weights | None,
) -> list[int]:
    """Of candidates [n] of all shards those that one store with the same ids would take."""
    if groups is None and budget is None:
        raise InvalidInputError("groups, tokens = none: expected at least one of the two")
    if weights is not None and strategy != "priority":
        raise InvalidInputError("weights = given: expected none, or the strategy priority")
    if strategy == "fifo":
        order = np.argsort(ids)
    elif strategy == "uniform":
        order = np.lexsort((ids, uniforms(seed, ids, np.zeros(len(ids), np.int64))))
    elif strategy == "priority":
        if weights is None:
            raise InvalidInputError(
                "weights = none: expected one for each prompt, with the strategy priority"
            )
        places = priorities(seed, ids, prompt_ids, weights)
        order = np.lexsort((ids, places))[: np.isfinite(places).sum()]
    else:
        raise InvalidInputError(f"strategy = {strategy!r}: expected fifo, uniform or priority")
    order = order[:groups]
    most = MOST_TOKENS if budget is None else min(budget, MOST_TOKENS)
    # The first group that does not fit ends the batch: passing it over would favour short ones.
    n = int(np.searchsorted(np.cumsum(tokens[order]), most, side="right"))
    if n == 0 and len(order):
        raise InvalidInputError(
            f"tokens = {most}: expected at least {tokens[order[0]]}, the tokens of group "
            f"{ids[order[0]]}, which is next"
        )
    return [int(each) for each in ids[order[:n]]]


def split(
    shards: int,
    rows: Sequence[NDArray[Any]],
    cu_seqlens: NDArray[np.int32],
    entries: Sequence[NDArray[Any]],
) -> dict[int, tuple[list[NDArray[Any]], NDArray[np.int32], list[NDArray[Any]]]]:
    """By shard what m chunks [m] with entries [n] have for it; `rows[0]` are trajectory ids."""
    m, n = len(rows[0]), len(entries[0])
    starts, ends = cu_seqlens[:-1], cu_seqlens[1:]
    bounds = [*starts[:1].tolist(), *cu_seqlens[-1:].tolist()]
    if any(len(each) != m for each in rows) or len(cu_seqlens) != m + 1:
        raise InvalidInputError(
            f"cu_seqlens has {len(cu_seqlens)} entries: expected {m + 1}, one more than "
            "each of the arrays of chunks"
        )
    if (ends < starts).any() or bounds not in ([], [0, n]) or {len(e) for e in entries} != {n}:
        raise InvalidInputError(f"cu_seqlens: expected it to rise from 0 to {n}, the entries")
    found = {}
    shard_of = rows[0] % shards
    for shard in np.unique(shard_of).tolist():
        ours = np.flatnonzero(shard_of == shard)
        lengths = ends[ours] - starts[ours]
        mine = np.repeat(shard_of == shard, ends - starts)
        found[shard] = (
            [each[ours] for each in rows],
            np.concatenate(([0], np.cumsum(lengths))).astype(np.int32),
            [each[mine] for each in entries],
        )
    return found


def mask_stale(batch: PackedBatch, oldest: int) -> PackedBatch:
    """The batch with a loss mask of 0 on tokens of versions before `oldest`."""
    kept = batch.versions >= oldest
    return batch if kept.all() else replace(batch, loss_mask=batch.loss_mask * kept)


def join(batches: Sequence[PackedBatch], order: Sequence[int]) -> PackedBatch:
    """The groups of several batches as one, in this order of their ids; one alone is not copied."""
    if len(batches) == 1:
        return batches[0]
    place = {
        int(batch.group_ids[rows.start]): (batch, rows)
        for batch in batches
        for rows in groups_of(batch)
    }
    parts = [place[each] for each in order if each in place]

    def entries(name: str) -> NDArray[Any]:
        none = getattr(batches[0], name)[:0]
        return np.concatenate([none, *(getattr(batch, name)[rows] for batch, rows in parts)])

    def packed(values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Of the arrays of tokens of each batch what belongs to the groups, in their order."""
        of = {id(batch): array for batch, array in zip(batches, values, strict=True)}
        pieces = [values[0][:0]]
        for batch, rows in parts:
            first, end = batch.cu_seqlens[rows.start], batch.cu_seqlens[rows.stop]
            pieces.append(of[id(batch)][first:end])
        return np.concatenate(pieces)

    def tokens(name: str) -> NDArray[Any]:
        return packed([getattr(batch, name) for batch in batches])

    lengths = [np.diff(batch.cu_seqlens)[rows] for batch, rows in parts]
    lengths_B = np.concatenate([np.zeros(0, np.int32), *lengths])
    return PackedBatch(
        input_ids=tokens("input_ids"),
        position_ids=tokens("position_ids"),
        cu_seqlens=np.concatenate(([0], np.cumsum(lengths_B))).astype(np.int32),
        max_seqlen=int(lengths_B.max(initial=0)),
        loss_mask=tokens("loss_mask"),
        rollout_log_probs=tokens("rollout_log_probs"),
        versions=tokens("versions"),
        rewards=entries("rewards"),
        group_ids=entries("group_ids"),
        trajectory_ids=entries("trajectory_ids"),
        prompt_ids=entries("prompt_ids"),
        prompt_lengths=entries("prompt_lengths"),
        finish_reasons=entries("finish_reasons"),
        columns={
            name: packed([batch.columns[name] for batch in batches]) for name in batches[0].columns
        },
    )
