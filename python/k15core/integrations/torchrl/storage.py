"""The storage of a TorchRL replay buffer, on a k15core store."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase, lazy_stack
from torchrl.data import LazyStackStorage

from k15core.errors import InvalidInputError
from k15core.integrations.packed import read_packed, write_packed
from k15core.integrations.tensordict import from_tensordict, to_tensordict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from k15core._core import Store
    from k15core.types import PackedBatch

# What a buffer writes into the batches that it hands out; it may come back with them.
_OF_THE_BUFFER = {"index", "priority_weight"}
_FILE = "k15_storage.json"


# A ReplayBuffer chooses how to collate by the class of its storage: this one's batches stay as they
# are.
class TrajectoryStorage(LazyStackStorage):
    """The scored trajectories of a store as the items of a replay buffer.

    `max_size` counts trajectories. With `group_size` k, each k rows that are written are the
    responses to one prompt: they become one group of the store, and are overwritten together.
    Scored trajectories that the store holds already are taken in, oldest first; if they are more
    than `max_size`, the oldest groups are removed, as a full buffer's are.

    `get` gives a TensorDict of batch size [B] with jagged per-token entries, copied from the store
    in one piece each; no use is recorded. Columns that the store declares are entries of an item,
    by their names; what is written may have them or not. What was written survives the process, if
    the store has a directory. The store must not evict by itself, and needs room for `max_size`
    trajectories and those of one `extend` more.

    Raises InvalidInputError if `max_size` is not a multiple of `group_size`, or groups of another
    size are in the store.
    """

    def __init__(self, store: Store, max_size: int, *, group_size: int = 1) -> None:
        if group_size < 1 or max_size < group_size or max_size % group_size:
            raise InvalidInputError(
                f"max_size = {max_size}, group_size = {group_size}: expected max_size to be a "
                "multiple of group_size, and both to be at least 1"
            )
        super().__init__(max_size)
        self.store = store
        self.group_size = group_size
        self.version = 0
        """The newest policy version among the items."""
        self._ids = np.zeros(0, np.int64)
        groups = store.complete_groups()
        for group_id in groups:
            if (n := len(store.group(group_id)["trajectory_ids"])) != group_size:
                raise InvalidInputError(
                    f"group {group_id} of the store has {n} trajectories: expected group_size = "
                    f"{group_size}"
                )
        surplus = len(groups) - max_size // group_size
        if surplus > 0:
            store.drop_groups(groups[:surplus])
            groups = groups[surplus:]
        self._take([i for g in groups for i in store.group(g)["trajectory_ids"]])

    @property
    def trajectory_ids(self) -> NDArray[np.int64]:
        """The store's id of each item [len]."""
        return self._ids.copy()

    def set(
        self,
        cursor: int | Sequence[int] | slice | torch.Tensor,
        data: TensorDictBase | Sequence[TensorDictBase],
        *,
        set_cursor: bool = True,
    ) -> None:
        """Write whole groups at the given places; what was there is removed from the store."""
        if isinstance(cursor, slice):
            cursor = list(range(*cursor.indices(self.max_size)))
        if isinstance(cursor, int) or (isinstance(cursor, torch.Tensor) and cursor.ndim == 0):
            cursor, data = [int(cursor)], [data]
        places = np.asarray(cursor, np.int64)
        batch = _batch(data, self.store.columns())
        self._check_places(places, len(batch))
        groups = np.repeat(np.arange(len(places) // self.group_size), self.group_size)
        batch = _with_groups(batch, groups)
        first = places[:: self.group_size]
        replaced = self._ids[first[first < len(self._ids)]]
        # First in, then out: what is refused, or cut short by a crash, costs no item.
        ids = write_packed(self.store, batch)
        self.store.drop_groups([self.store.trajectory(int(i))["group_id"] for i in replaced])
        grown = np.zeros(max(len(self._ids), int(places.max()) + 1), np.int64)
        grown[: len(self._ids)] = self._ids
        grown[places] = ids
        self._ids = grown
        self.version = max(self.version, int(batch.versions.max(initial=0)))
        if set_cursor:
            self._set_last_cursor(torch.from_numpy(places))
        self._bump_mutation_revision()

    def _check_places(self, places: NDArray[np.int64], n: int) -> None:
        k = self.group_size
        if len(places) != n or n == 0 or n % k:
            raise InvalidInputError(
                f"{n} rows for {len(places)} places: expected a multiple of group_size = {k}, and "
                "a place for each"
            )
        rows = places.reshape(-1, k)
        if np.any(rows[:, 0] % k) or np.any(np.diff(rows, axis=1) != 1):
            raise InvalidInputError(
                f"places {places.tolist()}: expected whole groups of {k}, one after another"
            )
        length = len(self._ids)
        for first in rows[:, 0]:
            if not 0 <= first <= min(length, self.max_size - k):
                raise InvalidInputError(
                    f"place {first}: expected 0 to {min(length, self.max_size - k)}, the storage "
                    f"has {length} of {self.max_size} items"
                )
            length = max(length, int(first) + k)
        if len(np.unique(places)) != len(places):
            raise InvalidInputError(
                f"{n} rows: expected no more than max_size = {self.max_size} at once"
            )

    def get(self, index: int | Sequence[int] | slice | torch.Tensor) -> TensorDict:
        """The items at the given places, copied; one place gives a row without a batch size."""
        if isinstance(index, tuple):
            (index,) = index
        found = self._ids[index.cpu().numpy() if isinstance(index, torch.Tensor) else index]
        if np.ndim(found) == 0:
            return to_tensordict(read_packed(self.store, [int(found)])).unbind(0)[0]
        return to_tensordict(read_packed(self.store, found))

    def __len__(self) -> int:
        return len(self._ids)

    def _contains_int(self, item: int) -> bool:
        return 0 <= item < len(self._ids)

    def _empty(self) -> None:
        first = self._ids[:: self.group_size]
        self.store.drop_groups([self.store.trajectory(int(i))["group_id"] for i in first])
        self._ids = np.zeros(0, np.int64)
        self._bump_mutation_revision()

    def state_dict(self) -> dict[str, Any]:
        """A mark in the store, and which of its trajectories are the items."""
        mark = self.store.mark(self.version)
        return {
            "mark": mark,
            "group_size": self.group_size,
            "trajectory_ids": self._ids.tolist(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Return to `state_dict`: what was overwritten since is back, what was written is gone.

        The store keeps its two newest marks. InvalidInputError if the mark is not one of them.
        """
        if state_dict["group_size"] != self.group_size:
            raise InvalidInputError(
                f"group_size = {self.group_size}: expected {state_dict['group_size']}, that of the "
                "saved storage"
            )
        self.store.rewind(state_dict["mark"])
        wanted = set(state_dict["trajectory_ids"])
        later = [
            group_id
            for group_id in self.store.complete_groups()
            if not wanted & set(self.store.group(group_id)["trajectory_ids"])
        ]
        self.store.drop_groups(later)
        self._take(state_dict["trajectory_ids"])
        self._bump_mutation_revision()

    def dumps(self, path: str | Path) -> None:
        """Write `state_dict` into a directory; the trajectories stay in the store."""
        Path(path).mkdir(parents=True, exist_ok=True)
        (Path(path) / _FILE).write_text(json.dumps(self.state_dict()))

    def loads(self, path: str | Path) -> None:
        """Return to what `dumps` wrote, in the same store."""
        self.load_state_dict(json.loads((Path(path) / _FILE).read_text()))

    def _take(self, ids: Sequence[int]) -> None:
        self._ids = np.array(ids, np.int64)
        newest = (self.store.trajectory(i)["versions"].max(initial=0) for i in ids)
        self.version = int(max(newest, default=0))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(len={len(self)}, max_size={self.max_size}, "
            f"group_size={self.group_size})"
        )


def _batch(
    data: TensorDictBase | Sequence[TensorDictBase], columns: Mapping[str, str]
) -> PackedBatch:
    rows = data if isinstance(data, TensorDictBase) else lazy_stack(list(data))
    return from_tensordict(rows.exclude(*(_OF_THE_BUFFER - columns.keys())), columns=columns)


def _with_groups(batch: PackedBatch, groups: NDArray[np.int64]) -> PackedBatch:
    return replace(batch, group_ids=groups)
