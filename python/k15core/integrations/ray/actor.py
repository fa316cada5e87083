"""One shard: an actor's process that has a store open, and the ids that it gives to the cluster.

Group g of the cluster is group g // n of shard g mod n, and trajectory t likewise. The store knows
nothing of it: ids change here, on their way in and out.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from k15core._core import Store
from k15core.errors import ConflictError, InvalidInputError, StorageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from k15core.types import FinishReason, Lease, PackedBatch, Prompt

# So long a new process waits for the one before it to end.
_OPENING_SECONDS = 60.0


class Shard:
    """Shard `shard` of `shards`, over a store in `directory`; `options` are those of `Store`.

    The store is opened by the first call, which so can say why it is not. The directory remembers
    which shard it is: under another number, or among another count of shards, its ids would be
    other groups' ids (InvalidInputError).
    """

    def __init__(self, directory: str, shard: int, shards: int, options: dict[str, Any]) -> None:
        self._directory, self._options = Path(directory), options
        self._shard, self._shards = shard, shards
        self._opening = threading.Lock()
        self._opened: Store | None = None

    @property
    def _store(self) -> Store:
        with self._opening:
            if self._opened is None:
                store = _open(self._directory, self._options)
                which = {"shard": self._shard, "shards": self._shards}
                try:
                    _remember(self._directory / "shard.json", which)
                except BaseException:
                    store.close()
                    raise
                self._opened = store
            return self._opened

    def _out(self, local: int) -> int:
        return local * self._shards + self._shard

    def _in(self, name: str, number: int) -> int:
        if int(number) % self._shards != self._shard:
            raise InvalidInputError(f"{name} = {number}: expected one of shard {self._shard}")
        return int(number) // self._shards

    def _all_in(self, name: str, numbers: Sequence[int]) -> list[int]:
        return [self._in(name, number) for number in numbers]

    def ping(self) -> None:
        """Answer, once the store is open."""
        self._store.unfinished()

    def add_group(self, prompt: Prompt, k: int, version: int) -> tuple[int, list[int]]:
        """`Store.add_group`: the group's id and those of its trajectories."""
        ids = self._store.add_group(prompt, k, version=version)
        group = self._store.trajectory(ids[0])["group_id"]
        return self._out(group), [self._out(each) for each in ids]

    def lease(self, n: int, options: dict[str, Any]) -> list[Lease]:
        """`Store.lease`."""
        if options.get("trajectory_ids") is not None:
            ids = self._all_in("trajectory_ids", options["trajectory_ids"])
            options = {**options, "trajectory_ids": ids}
        leases = self._store.lease(n, **options)
        return [replace(each, trajectory_id=self._out(each.trajectory_id)) for each in leases]

    def release(self, trajectory_id: int, epoch: int) -> None:
        """`Store.release`."""
        self._store.release(self._in("trajectory_id", trajectory_id), epoch)

    def append(self, trajectory_id: int, *arguments: Any, **options: Any) -> None:
        """`Store.append`."""
        self._store.append(self._in("trajectory_id", trajectory_id), *arguments, **options)

    def append_many(self, trajectory_ids: NDArray[np.int64], *arguments: Any) -> None:
        """`Store.append_many`."""
        self._store.append_many(trajectory_ids // self._shards, *arguments)

    def finish(self, trajectory_id: int, epoch: int, reason: FinishReason) -> None:
        """`Store.finish`."""
        self._store.finish(self._in("trajectory_id", trajectory_id), epoch, reason)

    def set_reward(self, trajectory_id: int, reward: float) -> None:
        """`Store.set_reward`."""
        self._store.set_reward(self._in("trajectory_id", trajectory_id), reward)

    def set_column(
        self, trajectory_id: int, name: str, values: NDArray[Any], offset: int | None
    ) -> None:
        """`Store.set_column`."""
        ours = self._in("trajectory_id", trajectory_id)
        self._store.set_column(ours, name, values, offset=offset)

    def set_column_many(self, trajectory_ids: NDArray[np.int64], *arguments: Any) -> None:
        """`Store.set_column_many`."""
        self._store.set_column_many(trajectory_ids // self._shards, *arguments)

    def columns(self) -> dict[str, str]:
        """`Store.columns`."""
        return self._store.columns()

    def candidates(self, options: dict[str, Any]) -> tuple[NDArray[np.int64], ...]:
        """`Store.candidates`."""
        ids, tokens, prompt_ids = self._store.candidates(**options)
        return ids * self._shards + self._shard, tokens, prompt_ids

    def take(self, group_ids: Sequence[int], columns: Sequence[str] | None) -> PackedBatch:
        """`Store.take`."""
        batch = self._store.take(self._all_in("group_id", group_ids), columns=columns)
        return replace(
            batch,
            group_ids=batch.group_ids * self._shards + self._shard,
            trajectory_ids=batch.trajectory_ids * self._shards + self._shard,
        )

    def marks(self) -> dict[int, int]:
        """`Store.marks`."""
        return self._store.marks()

    def mark(self, number: int, version: int) -> None:
        """Take mark `number`, the next one; nothing if it is the newest that is there."""
        newest = max(self._store.marks(), default=0)
        if newest == number:
            return
        if newest + 1 != number:
            raise ConflictError(f"shard {self._shard} has mark {newest}: expected {number - 1}")
        taken = self._store.mark(version)
        assert taken == number, "a new mark is the newest and one"

    def rewind(self, mark: int) -> None:
        """`Store.rewind`."""
        self._store.rewind(mark)

    def drop_groups(self, group_ids: Sequence[int]) -> None:
        """`Store.drop_groups`, for those that are still known."""
        self._store.drop_groups(self._all_in("group_id", group_ids))

    def unfinished(self) -> int:
        """`Store.unfinished`."""
        return self._store.unfinished()

    def pending_groups(self, before_version: int) -> list[int]:
        """`Store.pending_groups`."""
        return [self._out(each) for each in self._store.pending_groups(before_version)]

    def groups_of_version(self, version: int) -> list[int]:
        """`Store.groups_of_version`."""
        return [self._out(each) for each in self._store.groups_of_version(version)]

    def complete_groups(self) -> list[int]:
        """`Store.complete_groups`."""
        return [self._out(each) for each in self._store.complete_groups()]

    def group(self, group_id: int) -> dict[str, Any]:
        """`Store.group`."""
        view: dict[str, Any] = dict(self._store.group(self._in("group_id", group_id)))
        view["trajectory_ids"] = [self._out(each) for each in view["trajectory_ids"]]
        return view

    def trajectory(self, trajectory_id: int) -> dict[str, Any]:
        """`Store.trajectory`."""
        view = self._store.trajectory(self._in("trajectory_id", trajectory_id))
        ours = {"trajectory_id": int(trajectory_id), "group_id": self._out(view["group_id"])}
        return {**view, **ours}

    def leases(self) -> list[tuple[int, int, float]]:
        """`Store.leases`."""
        return [(self._out(i), epoch, end) for i, epoch, end in self._store.leases()]

    def stats(self) -> dict[str, int]:
        """`Store.stats`."""
        return self._store.stats()

    def recovery_report(self) -> dict[str, Any]:
        """`Store.recovery_report`."""
        return dict(self._store.recovery_report())

    def flush(self) -> None:
        """`Store.flush`."""
        self._store.flush()

    def close(self) -> None:
        """`Store.close`."""
        self._store.close()


def _open(directory: Path, options: dict[str, Any]) -> Store:
    end = time.monotonic() + _OPENING_SECONDS
    while True:
        try:
            return Store(directory, **options)
        except StorageError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def _remember(path: Path, which: dict[str, int]) -> None:
    if path.exists():
        there = json.loads(path.read_text())
        if there != which:
            raise InvalidInputError(
                f"{path.parent} is shard {there['shard']} of {there['shards']}: expected shard "
                f"{which['shard']} of {which['shards']}"
            )
        return
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(which))
    fresh.rename(path)
