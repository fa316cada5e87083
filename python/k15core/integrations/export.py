"""A store's trajectories as files of other tools: NumPy arrays, an Arrow file, an HF data set.

Nothing is changed in the store, and it is read trajectory by trajectory: it may be larger than
memory. What is written appears under its name when it is whole.
"""

from __future__ import annotations

import importlib
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from k15core._core import StoreReader
from k15core.errors import InvalidInputError
from k15core.types import FINISH_REASONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

FORMATS = ("numpy", "arrow", "hf")
NO_REASON = 255
"""The finish reason of a trajectory without one, in `finish_reasons.npy`."""

_PER_TOKEN: dict[str, tuple[str, type[np.generic]]] = {
    "input_ids": ("tokens", np.int32),
    "loss_mask": ("loss_mask", np.uint8),
    "rollout_log_probs": ("log_probs", np.float32),
    "versions": ("versions", np.uint32),
}
_TAKEN = {*_PER_TOKEN, "trajectory_id", "group_id", "prompt_id", "state", "finish_reason"}
_TAKEN |= {"reward", "prompt_length"}
"""Names of what is written of every store."""
_ROWS_AT_ONCE = 256


def export_store(
    directory: str | os.PathLike[str],
    to: str,
    out: str | os.PathLike[str],
    *,
    unscored: bool = False,
    max_uses: int = 1,
) -> int:
    """Write the scored trajectories of a store that nobody has open; how many there were.

    With `unscored`, those that are not finished or not scored yet too. Groups that were sampled
    `max_uses` times are gone, as when the store is opened with that. `to`:

    "numpy": a directory of .npy files, packed: `cu_seqlens` [B + 1] (int64); per token [T]
    input_ids, loss_mask, rollout_log_probs, versions; per trajectory [B] rewards (NaN: none),
    trajectory_ids, group_ids, prompt_ids, prompt_lengths, finish_reasons (places in
    `k15core.types.FINISH_REASONS`, 255: none). Columns of the store's own are per-token arrays
    under their names (with `_column` behind it where something else has the name), 0 on prompts and
    where no value was set. "arrow": one Arrow IPC file, a row a trajectory
    (needs pyarrow). "hf": a directory for `datasets.load_from_disk`, with the same columns (needs
    datasets).

    Raises InvalidInputError if `out` is there already, or a package is missing; and what opening a
    StoreReader raises.
    """
    if to not in FORMATS:
        raise InvalidInputError(f"to = {to!r}: expected one of {', '.join(FORMATS)}")
    out = Path(out)
    if out.exists():
        raise InvalidInputError(f"out = {out}: expected a name that is not taken")
    write = {"numpy": _write_numpy, "arrow": _write_arrow, "hf": _write_hf}[to]
    for package in {"numpy": (), "arrow": ("pyarrow",), "hf": ("pyarrow", "datasets")}[to]:
        _require(package, to)
    with StoreReader(directory, max_uses=max_uses) as reader, _appearing(out) as unfinished:
        return write(reader, unfinished, unscored)


def _require(package: str, extra: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError:
        raise InvalidInputError(
            f"--to {extra} needs the package {package}, which is not installed: "
            f"pip install 'k15core[{extra}]'"
        ) from None


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    unfinished = out.with_name(f".{out.name}.unfinished")
    _remove(unfinished)
    try:
        yield unfinished
        unfinished.rename(out)
    finally:
        _remove(unfinished)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _trajectories(reader: StoreReader, unscored: bool) -> Iterator[dict[str, Any]]:
    for trajectory_id in reader.trajectory_ids():
        view = reader.trajectory(trajectory_id)
        if unscored or view["state"] == "scored":
            yield view


def _about(view: dict[str, Any]) -> dict[str, Any]:
    return {
        "trajectory_id": view["trajectory_id"],
        "group_id": view["group_id"],
        "prompt_id": view["prompt_id"],
        "state": view["state"],
        "finish_reason": view["finish_reason"],
        "reward": view["reward"],
        "prompt_length": len(view["prompt_tokens"]),
    }


_Columns = dict[str, tuple[str, np.dtype[Any]]]
"""Columns of the store's own by the name under which they are written: their name and dtype."""


def _columns(reader: StoreReader) -> _Columns:
    columns: _Columns = {}
    for name, about in reader.inspect()["columns"].items():
        written = name
        while written in _TAKEN or written in columns:
            written += "_column"
        columns[written] = (name, np.dtype(about["dtype"]))
    return columns


def _row(view: dict[str, Any], columns: _Columns) -> dict[str, Any]:
    prompt, row = view["prompt_tokens"], _about(view)
    for name, (source, dtype) in _PER_TOKEN.items():
        before = prompt if name == "input_ids" else np.zeros(len(prompt), dtype)
        row[name] = np.concatenate([before, view[source]]).astype(dtype, copy=False)
    for name, (source, own) in columns.items():
        row[name] = np.concatenate([np.zeros(len(prompt), own), view["columns"][source]])
    return row


def _write_numpy(reader: StoreReader, out: Path, unscored: bool) -> int:
    out.mkdir(parents=True)
    views, lengths = [], [0]
    for view in _trajectories(reader, unscored):
        views.append(_about(view))
        lengths.append(len(view["prompt_tokens"]) + len(view["tokens"]))
    cu_seqlens = np.cumsum(lengths, dtype=np.int64)
    reasons = [view["finish_reason"] for view in views]
    columns: dict[str, NDArray[Any]] = {
        "cu_seqlens": cu_seqlens,
        "rewards": np.array(
            [np.nan if view["reward"] is None else view["reward"] for view in views], np.float32
        ),
        "trajectory_ids": np.array([view["trajectory_id"] for view in views], np.int64),
        "group_ids": np.array([view["group_id"] for view in views], np.int64),
        "prompt_ids": np.array([view["prompt_id"] for view in views], np.int64),
        "prompt_lengths": np.array([view["prompt_length"] for view in views], np.int32),
        "finish_reasons": np.array(
            [NO_REASON if reason is None else FINISH_REASONS.index(reason) for reason in reasons],
            np.uint8,
        ),
    }
    own = _columns(reader)
    dtypes = {name: np.dtype(dtype) for name, (_, dtype) in _PER_TOKEN.items()}
    dtypes |= {name: dtype for name, (_, dtype) in own.items()}
    for name, column in columns.items():
        np.save(out / f"{name}.npy", column)
    if not len(views) or not cu_seqlens[-1]:  # a map of nothing cannot be made
        for name, dtype in dtypes.items():
            np.save(out / f"{name}.npy", np.zeros(0, dtype))
        return len(views)
    maps = {
        name: np.lib.format.open_memmap(
            out / f"{name}.npy", mode="w+", dtype=dtype, shape=(int(cu_seqlens[-1]),)
        )
        for name, dtype in dtypes.items()
    }
    for place, view in enumerate(_trajectories(reader, unscored)):
        row = _row(view, own)
        for name, target in maps.items():
            target[cu_seqlens[place] : cu_seqlens[place + 1]] = row[name]
    for target in maps.values():
        target.flush()
    return len(views)


def _schema(columns: _Columns) -> Any:
    import pyarrow as pa

    per_token = {
        "input_ids": pa.int32(),
        "loss_mask": pa.uint8(),
        "rollout_log_probs": pa.float32(),
        "versions": pa.uint32(),
    }
    return pa.schema(
        [
            *((name, pa.int64()) for name in ("trajectory_id", "group_id", "prompt_id")),
            ("state", pa.string()),
            ("finish_reason", pa.string()),
            ("reward", pa.float32()),
            ("prompt_length", pa.int32()),
            *((name, pa.list_(kind)) for name, kind in per_token.items()),
            *((name, pa.list_(pa.from_numpy_dtype(d))) for name, (_, d) in columns.items()),
        ]
    )


def _batches(reader: StoreReader, unscored: bool) -> Iterator[Any]:
    import pyarrow as pa

    columns = _columns(reader)
    schema = _schema(columns)
    rows: list[dict[str, Any]] = []
    for view in _trajectories(reader, unscored):
        rows.append(_row(view, columns))
        if len(rows) == _ROWS_AT_ONCE:
            yield pa.RecordBatch.from_pylist(rows, schema)
            rows = []
    if rows:
        yield pa.RecordBatch.from_pylist(rows, schema)


def _write_arrow(reader: StoreReader, out: Path, unscored: bool) -> int:
    import pyarrow as pa

    out.parent.mkdir(parents=True, exist_ok=True)
    n = 0
    with pa.ipc.new_file(str(out), _schema(_columns(reader))) as file:
        for batch in _batches(reader, unscored):
            file.write_batch(batch)
            n += batch.num_rows
    return n


def _write_hf(reader: StoreReader, out: Path, unscored: bool) -> int:
    import pyarrow as pa
    from datasets import Dataset

    out.parent.mkdir(parents=True, exist_ok=True)
    stream = out.with_name(f"{out.name}.arrow")  # which the data set maps while it is saved
    n = 0
    try:
        with pa.ipc.new_stream(str(stream), _schema(_columns(reader))) as file:
            for batch in _batches(reader, unscored):
                file.write_batch(batch)
                n += batch.num_rows
        Dataset.from_file(str(stream)).save_to_disk(str(out))
    finally:
        stream.unlink(missing_ok=True)
    return n
