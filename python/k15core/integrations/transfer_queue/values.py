"""Values by key in a trajectory store: one writer, and everything acknowledged survives it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from k15core._core import Store
from k15core.errors import InvalidInputError
from k15core.integrations.transfer_queue.codec import Encoded, Layout
from k15core.types import Prompt

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from numpy.typing import NDArray

Sync = Literal["never", "batch", "always"]

_LAST_VERSION = 2**32 - 1
_NOTHING = np.zeros(1, np.int32)  # a prompt has at least one token
_PIECE = 32_768
"""Tokens of one append: a piece must fit into one of the log's files, however small those are."""
_ZEROS = np.zeros(_PIECE, np.float32)
_ONES = np.ones(_PIECE, np.uint8)


class ValueStore:
    """Keys to values, each a group with one finished trajectory: an append-only log beneath a dict.

    A value is there when its trajectory is scored. What a dying process has begun and not scored is
    removed at the next opening; of a key that was written twice the later value counts.
    """

    def __init__(
        self,
        directory: str | PathLike[str] | None = None,
        *,
        capacity_bytes: int | None = None,
        sync: Sync = "batch",
    ) -> None:
        self._store = Store(directory, capacity_bytes=capacity_bytes, sync=sync)
        self._places: dict[str, tuple[int, int, Layout]] = {}
        self._read_index()

    def _read_index(self, newest: float = float("inf")) -> None:
        self._places = {}
        stale = []
        whole = set(self._store.complete_groups())
        for group_id in sorted(self._store.pending_groups(_LAST_VERSION)):
            if group_id not in whole or group_id > newest:
                stale.append(group_id)
                continue
            group = self._store.group(group_id)
            about = json.loads(group["prompt"].answer)
            (trajectory_id,) = group["trajectory_ids"]
            key = about.pop("key")
            if key in self._places:
                stale.append(self._places[key][0])
            layout = Layout(**about | {"shape": tuple(about["shape"])})
            self._places[key] = (group_id, trajectory_id, layout)
        self._store.drop_groups(stale)

    def __len__(self) -> int:
        return len(self._places)

    def put(self, keys: Sequence[str], encoded: Encoded) -> None:
        """Write values; a key that is there gets the new one, once it is whole."""
        if len(keys) != len(encoded.layouts):
            raise InvalidInputError(
                f"{len(keys)} keys for {len(encoded.layouts)} values: expected one each"
            )
        places = []
        for key, layout in zip(keys, encoded.layouts, strict=True):
            about = json.dumps({"key": key, **vars(layout)})
            (trajectory_id,) = self._store.add_group(Prompt(0, _NOTHING, about), 1)
            places.append((self._store.trajectory(trajectory_id)["group_id"], trajectory_id))
        try:
            self._write(places, encoded)
        except BaseException:
            self._store.drop_groups([group_id for group_id, _ in places])
            raise
        replaced = []
        for key, place, layout in zip(keys, places, encoded.layouts, strict=True):
            if key in self._places:
                replaced.append(self._places[key][0])
            self._places[key] = (*place, layout)
        self._store.drop_groups(replaced)

    def _write(self, places: list[tuple[int, int]], encoded: Encoded) -> None:
        ids = [trajectory_id for _, trajectory_id in places]
        leases = self._store.lease(len(ids), now=0, duration=1, trajectory_ids=ids)
        epochs = {lease.trajectory_id: lease.epoch for lease in leases}
        at = 0
        for (_, trajectory_id), layout in zip(places, encoded.layouts, strict=True):
            epoch = epochs[trajectory_id]
            for offset in range(0, layout.tokens, _PIECE):
                piece = slice(at + offset, at + min(offset + _PIECE, layout.tokens))
                n = piece.stop - piece.start
                mask = _ONES[:n] if encoded.mask is None else encoded.mask[piece]
                self._store.append(
                    trajectory_id,
                    epoch,
                    offset,
                    encoded.tokens[piece],
                    _ZEROS[:n],
                    0,
                    loss_mask=mask,
                )
            self._store.finish(trajectory_id, epoch, "stop")
            self._store.set_reward(trajectory_id, 0.0)
            at += layout.tokens

    def get(self, keys: Sequence[str]) -> Encoded:
        """The values of keys; KeyError names those that are not there."""
        if missing := [key for key in keys if key not in self._places]:
            raise KeyError(f"{missing[:8]}: expected keys that were put and not cleared")
        layouts, tokens, masks = [], [_NOTHING[:0]], [np.zeros(0, np.uint8)]
        for key in keys:
            _, trajectory_id, layout = self._places[key]
            view = self._store.trajectory(trajectory_id)
            layouts.append(layout)
            tokens.append(view["tokens"])
            masks.append(view["loss_mask"])
        mask: NDArray[Any] | None = None
        if any(layout.codec == "bytes" for layout in layouts):
            mask = np.concatenate(masks)
        return Encoded(layouts, np.concatenate(tokens), mask)

    def clear(self, keys: Sequence[str] | None = None) -> None:
        """Remove keys, or all; those that are not there are passed over."""
        wanted = self._places.keys() if keys is None else self._places.keys() & set(keys)
        gone = [self._places.pop(key)[0] for key in list(wanted)]
        self._store.drop_groups(gone)

    def mark(self) -> dict[str, int]:
        """Name the present point; the two newest marks can be returned to."""
        newest = max((group_id for group_id, _, _ in self._places.values()), default=-1)
        return {"mark": self._store.mark(0), "newest_group_id": newest}

    def rewind(self, mark: dict[str, int]) -> None:
        """Return to a mark: what was cleared or written over since is back, the rest is gone.

        InvalidInputError if it is not one of the two newest.
        """
        self._store.rewind(mark["mark"])
        self._read_index(mark["newest_group_id"])

    def close(self) -> None:
        """Let go of the directory."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
