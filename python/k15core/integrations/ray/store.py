"""The client's face: the calls of `Store` over the shards of a cluster."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import ray

from k15core.errors import ConflictError, InvalidInputError
from k15core.integrations.ray import merge
from k15core.integrations.ray.calls import Actors, Wanted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from k15core.types import FinishReason, Lease, PackedBatch, Prompt


class ShardedStore:
    """The calls of `k15core.Store`, over n shards; group g is on shard g mod n.

    It can be handed to tasks and actors. Calls raise what those of `Store` raise, and
    DisconnectedError if the process of an actor ended during a call that may not be made twice
    (`add_group`, `release`, `sample`, `drop_groups`), or does not come back. A shard that was
    started again has voided its leases.

    What concerns one trajectory or group is as in `Store`. Over all shards:

    - `add_group` puts a group where the lowest id is next: one client's ids count up from 0.
    - `lease` takes an equal share of each shard, in its order, and what one lacks from the others.
    - `sample` asks every shard for what could be taken, chooses over all of them as one store with
      these ids would, and takes from each what was chosen. If two clients sample at once, each
      group is still given once (`max_uses` times), and a batch may be smaller.
    - `mark` and `rewind` concern all shards: a mark is one when all have it.
    """

    def __init__(self, handles: Sequence[Any], *, patience: float = 60.0) -> None:
        self._handles, self._patience = list(handles), patience
        self._actors = Actors(handles, patience)
        self._next = list(range(len(self._handles)))

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._handles, self._patience)

    @property
    def shards(self) -> int:
        """How many there are."""
        return len(self._handles)

    def _of(self, number: int, method: str, *arguments: Any, again: bool, **options: Any) -> Any:
        """Ask the shard of a trajectory or group."""
        shard = int(number) % self.shards
        return self._actors.call(shard, method, number, *arguments, again=again, **options)

    def _merged(self, method: str, *arguments: Any) -> list[int]:
        return sorted(chain(*self._actors.call_all(method, *arguments, again=True)))

    def add_group(self, prompt: Prompt, k: int, *, version: int = 0) -> list[int]:
        """`Store.add_group`; the ids of its k trajectories are n apart."""
        shard = self._next.index(min(self._next))
        group, ids = self._actors.call(shard, "add_group", prompt, k, version, again=False)
        self._next[shard] = group + self.shards
        return list(ids)

    def lease(
        self,
        n: int,
        *,
        now: float,
        duration: float,
        order: Literal["oldest", "stalest", "longest"] = "oldest",
        trajectory_ids: Sequence[int] | None = None,
    ) -> list[Lease]:
        """`Store.lease`."""
        options = {"now": now, "duration": duration, "order": order}
        if trajectory_ids is not None:
            return self._lease_of(n, options, trajectory_ids)
        shares = {s: (n + self.shards - 1 - s) // self.shards for s in range(self.shards)}
        wanted: Wanted = {s: ((share, options), {}) for s, share in shares.items() if share}
        found = self._actors.call_many(wanted, "lease", again=True)
        leases: list[Lease] = [*chain(*found.values())]
        for shard, share in shares.items():
            # One that gave its whole share may have more; one that lacked some has none.
            if len(leases) < n and len(found.get(shard, [])) == share:
                rest = (n - len(leases), options)
                leases += self._actors.call(shard, "lease", *rest, again=True)
        return sorted(leases, key=lambda lease: _rank(lease, order))

    def _lease_of(self, n: int, options: dict[str, Any], ids: Sequence[int]) -> list[Lease]:
        leases: list[Lease] = []
        for shard in range(self.shards):
            ours = [each for each in ids if int(each) % self.shards == shard]
            if ours and len(leases) < n:
                of = {**options, "trajectory_ids": ours}
                leases += self._actors.call(shard, "lease", n - len(leases), of, again=True)
        return sorted(leases, key=lambda lease: _rank(lease, options["order"]))

    def release(self, trajectory_id: int, epoch: int) -> None:
        """`Store.release`."""
        self._of(trajectory_id, "release", epoch, again=False)

    def append(
        self,
        trajectory_id: int,
        epoch: int,
        offset: int,
        tokens: NDArray[np.int32],
        log_probs: NDArray[np.float32],
        version: int,
        *,
        loss_mask: NDArray[np.uint8] | None = None,
    ) -> None:
        """`Store.append`."""
        chunk = (epoch, offset, tokens, log_probs, version)
        self._of(trajectory_id, "append", *chunk, again=True, loss_mask=loss_mask)

    def append_many(
        self,
        trajectory_ids: NDArray[np.int64],
        epochs: NDArray[np.int64],
        offsets: NDArray[np.int64],
        cu_seqlens: NDArray[np.int32],
        tokens: NDArray[np.int32],
        log_probs: NDArray[np.float32],
        version: int,
    ) -> None:
        """`Store.append_many`; each shard checks all of its chunks before it writes the first."""
        chunks = (trajectory_ids, epochs, offsets)
        parts = merge.split(self.shards, chunks, cu_seqlens, (tokens, log_probs))
        wanted: Wanted = {
            shard: ((*rows, ends, *entries, version), {})
            for shard, (rows, ends, entries) in parts.items()
        }
        self._actors.call_many(wanted, "append_many", again=True)

    def finish(self, trajectory_id: int, epoch: int, reason: FinishReason) -> None:
        """`Store.finish`."""
        self._of(trajectory_id, "finish", epoch, reason, again=True)

    def set_reward(self, trajectory_id: int, reward: float) -> None:
        """`Store.set_reward`."""
        self._of(trajectory_id, "set_reward", reward, again=True)

    def columns(self) -> dict[str, str]:
        """`Store.columns`."""
        return dict(self._actors.call(0, "columns", again=True))

    def set_column(
        self, trajectory_id: int, name: str, values: NDArray[Any], *, offset: int | None = None
    ) -> None:
        """`Store.set_column`."""
        self._of(trajectory_id, "set_column", name, values, offset, again=True)

    def set_column_many(
        self,
        trajectory_ids: NDArray[np.int64],
        offsets: NDArray[np.int64],
        cu_seqlens: NDArray[np.int32],
        name: str,
        values: NDArray[Any],
    ) -> None:
        """`Store.set_column_many`; a shard checks all of its ranges before it writes the first."""
        parts = merge.split(self.shards, (trajectory_ids, offsets), cu_seqlens, (values,))
        wanted: Wanted = {
            shard: ((*rows, ends, name, *entries), {})
            for shard, (rows, ends, entries) in parts.items()
        }
        self._actors.call_many(wanted, "set_column_many", again=True)

    def sample(
        self,
        *,
        groups: int | None = None,
        tokens: int | None = None,
        max_staleness: int,
        version: int,
        strategy: Literal["fifo", "uniform", "priority"] = "fifo",
        seed: int = 0,
        columns: Sequence[str] | None = None,
        weights: merge.Weights | None = None,
        max_segment_staleness: int | None = None,
    ) -> PackedBatch:
        """`Store.sample`; its arrays are read-only views of Ray's memory if one shard gave all."""
        asked = {"max_staleness": max_staleness, "version": version, "columns": columns}
        found = self._actors.call_all("candidates", asked, again=True)
        candidates = [np.concatenate(each) for each in zip(*found, strict=True)]
        rules: dict[str, Any] = {"groups": groups, "budget": tokens, "strategy": strategy}
        chosen = merge.choose(*candidates, **rules, seed=seed, weights=weights)
        share = {s: [g for g in chosen if g % self.shards == s] for s in range(self.shards)}
        # An empty batch has its columns too.
        wanted: Wanted = {s: ((ours, columns), {}) for s, ours in share.items() if ours} or {
            0: (([], columns), {})
        }
        batches = self._actors.call_many(wanted, "take", again=False)
        batch = merge.join(list(batches.values()), chosen)
        if max_segment_staleness is None:
            return batch
        return merge.mask_stale(batch, version - max_segment_staleness)

    def marks(self) -> dict[int, int]:
        """Policy versions of the marks that all shards can return to, by id, oldest first."""
        found = self._actors.call_all("marks", again=True)
        common = set.intersection(*(set(each) for each in found))
        return {mark: found[0][mark] for mark in sorted(common)}

    def mark(self, version: int) -> int:
        """`Store.mark` on every shard; it is taken when all have it.

        If the caller dies in between, some shards have a mark that others lack. It is none: `marks`
        does not have it, and the next `mark` is a ConflictError until `rewind` has removed it.
        """
        newest = [max(each, default=0) for each in self._actors.call_all("marks", again=True)]
        if len(set(newest)) > 1:
            raise ConflictError(
                f"mark {max(newest)} was not taken on all shards (newest of each: {newest}): "
                f"expected a rewind to one of {sorted(self.marks())} first"
            )
        number = newest[0] + 1
        self._actors.call_all("mark", number, version, again=True)
        return number

    def rewind(self, mark: int) -> None:
        """`Store.rewind` on every shard, to a mark that all have. It can be made again."""
        common = self.marks()
        if mark not in common:
            raise InvalidInputError(f"mark = {mark}: expected one of those kept: {sorted(common)}")
        self._actors.call_all("rewind", mark, again=True)

    def drop_groups(self, group_ids: Sequence[int]) -> None:
        """`Store.drop_groups`."""
        wanted: Wanted = {}
        for each in group_ids:
            wanted.setdefault(int(each) % self.shards, (([],), {}))[0][0].append(each)
        self._actors.call_many(wanted, "drop_groups", again=False)

    def unfinished(self) -> int:
        """`Store.unfinished`."""
        return sum(self._actors.call_all("unfinished", again=True))

    def pending_groups(self, before_version: int) -> list[int]:
        """`Store.pending_groups`."""
        return self._merged("pending_groups", before_version)

    def groups_of_version(self, version: int) -> list[int]:
        """`Store.groups_of_version`."""
        return self._merged("groups_of_version", version)

    def complete_groups(self) -> list[int]:
        """`Store.complete_groups`."""
        return self._merged("complete_groups")

    def group(self, group_id: int) -> dict[str, Any]:
        """`Store.group`."""
        return dict(self._of(group_id, "group", again=True))

    def trajectory(self, trajectory_id: int) -> dict[str, Any]:
        """`Store.trajectory`."""
        return dict(self._of(trajectory_id, "trajectory", again=True))

    def leases(self) -> list[tuple[int, int, float]]:
        """`Store.leases`."""
        held = self._actors.call_all("leases", again=True)
        return sorted(chain(*held), key=lambda lease: (lease[2], lease[0]))

    def stats(self) -> dict[str, int]:
        """`Store.stats`, summed over the shards."""
        total: Counter[str] = Counter()
        for each in self._actors.call_all("stats", again=True):
            total.update(each)
        return dict(total)

    def recovery_reports(self) -> list[dict[str, Any]]:
        """`Store.recovery_report` of each shard: of its last opening."""
        return self._actors.call_all("recovery_report", again=True)

    def flush(self) -> None:
        """`Store.flush`."""
        self._actors.call_all("flush", again=True)

    def shutdown(self) -> None:
        """Close the stores and end the actors, for all who have this store."""
        for handle in self._handles:
            # What a dead one acknowledged is on its way to the disk already.
            with suppress(ray.exceptions.RayError):
                ray.get(handle.close.remote())
            ray.kill(handle)


def _again(handles: Sequence[Any], patience: float) -> ShardedStore:
    return ShardedStore(handles, patience=patience)


def _rank(lease: Lease, order: str) -> tuple[int, int]:
    """The place of a lease in the order of `Store.lease`."""
    response = lease.versions[lease.prompt_length :]
    if order == "stalest":
        return (int(response[0]) if len(response) else 1 << 32, lease.trajectory_id)
    return (-len(response) if order == "longest" else 0, lease.trajectory_id)
