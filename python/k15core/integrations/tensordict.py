"""Packed batches as TensorDicts: one row a trajectory, per-token arrays as jagged tensors.

A jagged tensor is `values` [T] and `offsets` [B + 1]: the arrays of a PackedBatch and its
cu_seqlens, so nothing is padded, and `batch["input_ids"].values()` is the pack that trainers take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tensordict import LazyStackedTensorDict, TensorDict, TensorDictBase

from k15core.errors import InvalidInputError
from k15core.types import PackedBatch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import DTypeLike, NDArray

PER_TOKEN: dict[str, type[np.generic]] = {
    "input_ids": np.int32,
    "position_ids": np.int32,
    "loss_mask": np.uint8,
    "rollout_log_probs": np.float32,
    "versions": np.uint32,
}
PER_ROW: dict[str, type[np.generic]] = {
    "rewards": np.float32,
    "group_ids": np.int64,
    "trajectory_ids": np.int64,
    "prompt_ids": np.int64,
    "prompt_lengths": np.int32,
    "finish_reasons": np.uint8,
}
_AS_SIGNED = {np.dtype(np.uint16): np.int16, np.dtype(np.uint32): np.int32}
REQUIRED = ("input_ids", "prompt_lengths", "rollout_log_probs", "rewards")


def to_tensordict(batch: PackedBatch) -> TensorDict:
    """A batch [B] as a TensorDict of batch size [B], in the batch's own memory.

    Per-token arrays are jagged tensors that share their offsets; those of `batch.columns` are
    among them, by their names. uint16 and uint32 are int16 and int32: few of torch's operations
    know the former. Copy a batch first whose buffers will be reused.
    """
    offsets = torch.from_numpy(batch.cu_seqlens.astype(np.int64))
    columns = {name: torch.from_numpy(getattr(batch, name)) for name in PER_ROW}
    per_token = {name: getattr(batch, name) for name in PER_TOKEN} | dict(batch.columns)
    for name, values in per_token.items():
        signed = values.view(_AS_SIGNED.get(values.dtype, values.dtype))
        columns[name] = torch.nested.nested_tensor_from_jagged(
            torch.from_numpy(signed), offsets, min_seqlen=0, max_seqlen=batch.max_seqlen
        )
    return TensorDict(columns, batch_size=[len(batch)])


def from_tensordict(
    data: TensorDictBase, *, columns: Mapping[str, str] | None = None
) -> PackedBatch:
    """A TensorDict of batch size [B] as a batch.

    `input_ids` and `rollout_log_probs` are jagged tensors, ragged entries of a lazy stack, or [B,
    T] where all rows have one length; `prompt_lengths` and `rewards` are [B]. What else may be
    there has a default: `loss_mask` (1 on the response), `versions` (0), `finish_reasons` (0:
    stop), `group_ids` (each row its own), `prompt_ids` (the group's), `trajectory_ids`.
    `position_ids` is not read. `columns`, as of `Store.columns()`, says which other keys are
    columns, and of what dtype; those that are not there are left out.

    Raises InvalidInputError for a key that is missing, has no place in a store, or does not fit.
    """
    if data.batch_dims != 1:
        raise InvalidInputError(f"batch_size = {list(data.batch_size)}: expected one dimension [B]")
    keys = {str(key) for key in data.keys()}  # noqa: SIM118 (a TensorDict iterates over its rows)
    for key in REQUIRED:
        if key not in keys:
            raise InvalidInputError(f"keys = {sorted(keys)}: expected {key} among them")
    known = [*PER_TOKEN, *PER_ROW, *(columns or ())]
    if unknown := sorted(keys.difference(known)):
        raise InvalidInputError(
            f"keys {unknown}: the store has no place for them; expected only {', '.join(known)}"
        )
    n = len(data)
    input_ids = _ragged(data, "input_ids")
    lengths = np.array([len(row) for row in input_ids], np.int64)
    rows = {name: _column(data, name) for name in PER_ROW if name in keys}
    places = np.arange(n, dtype=np.int64)
    rows.setdefault("group_ids", places)
    rows.setdefault("prompt_ids", rows["group_ids"])
    rows.setdefault("trajectory_ids", places)
    rows.setdefault("finish_reasons", np.zeros(n, np.uint8))
    positions = [np.arange(length, dtype=np.int32) for length in lengths]
    response = np.concatenate(
        [np.zeros(0, bool)]
        + [at >= first for at, first in zip(positions, rows["prompt_lengths"], strict=True)]
    )
    tokens: dict[str, NDArray[Any]] = {
        "input_ids": _join(input_ids, np.int32),
        "position_ids": np.concatenate([np.zeros(0, np.int32), *positions]),
        "loss_mask": response.astype(np.uint8),
        "versions": np.zeros(len(response), np.uint32),
    }
    dtypes = {name: np.dtype(dtype) for name, dtype in (columns or {}).items() if name in keys}
    own: dict[str, NDArray[Any]] = {}
    for name in ("rollout_log_probs", "loss_mask", "versions", *dtypes):
        if name not in keys:
            continue
        pieces = _ragged(data, name)
        for row, (piece, length) in enumerate(zip(pieces, lengths, strict=True)):
            if len(piece) != length:
                raise InvalidInputError(
                    f"{name} of row {row} has {len(piece)} entries: expected {length}, one a "
                    "token of input_ids"
                )
        if name in dtypes:
            own[name] = _join(pieces, dtypes[name])
        else:
            tokens[name] = _join(pieces, PER_TOKEN[name])
    arrays: dict[str, Any] = tokens | rows
    return PackedBatch(
        **arrays,
        cu_seqlens=np.concatenate(([0], np.cumsum(lengths))).astype(np.int32),
        max_seqlen=int(lengths.max(initial=0)),
        columns=own,
    )


def _ragged(data: TensorDictBase, name: str) -> list[torch.Tensor]:
    if isinstance(data, LazyStackedTensorDict):  # its get() refuses rows of several lengths
        rows = [row.get(name) for row in data.unbind(0)]
    else:
        rows = list(data.get(name).unbind(0))
    for place, row in enumerate(rows):
        if row.ndim != 1:
            raise InvalidInputError(
                f"{name} of row {place} has shape {list(row.shape)}: expected one dimension"
            )
    return rows


def _join(rows: list[torch.Tensor], dtype: DTypeLike) -> NDArray[Any]:
    joined = torch.cat(rows) if rows else torch.zeros(0)
    return joined.detach().cpu().numpy().astype(dtype, copy=False)


def _column(data: TensorDictBase, name: str) -> NDArray[Any]:
    values = data.get(name).detach().cpu()
    if values.shape != (len(data),):
        raise InvalidInputError(
            f"{name} has shape {list(values.shape)}: expected [{len(data)}], one entry a row"
        )
    found: NDArray[Any] = values.numpy().astype(PER_ROW[name], copy=False)
    return found
