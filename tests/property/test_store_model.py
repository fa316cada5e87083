"""Random operations on the store and on a naive model give the same answers, through restarts."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_model import ModelStore

from k15core import Prompt, Store
from k15core._core import uniforms
from k15core.errors import (
    CapacityError,
    ConflictError,
    InvalidInputError,
    LeaseExpiredError,
)

FILE = 4096
OPERATIONS = {
    "add_group": 3,
    "lease": 4,
    "append": 10,
    "finish": 3,
    "set_reward": 3,
    "set_column": 3,
    "set_all_columns": 1,
    "finish_everything": 1,
    "sample": 2,
    "drop": 0.4,
    "release": 0.5,
    "mark": 0.8,
    "rewind": 0.5,
    "reopen": 0.5,
}


WORDS = ("lease", "finish", "set_reward", "finish_everything")


class Walk:
    """A store, its model, and random operations on both."""

    def __init__(self, seed: int, directory: Path | None) -> None:
        self.random = random.Random(seed)
        self.directory = directory
        self.options = {
            "capacity_bytes": self.random.choice([40, 4000]) * FILE,
            "file_bytes": FILE,
            "max_uses": self.random.randint(1, 2),
        }
        columns = {"ref_log_probs": "float32"}
        self.store = Store(directory, sync="never", columns=columns, **self.options)
        self.columns: dict[str, Any] = {"ref_log_probs": np.float32}
        self.model = ModelStore(self.options["max_uses"])
        self.now = 0.0
        self.some = random.Random(seed)  # of its own, so that a walk stays the walk of its seed
        self.seen = 0
        self.counts: Counter[str] = Counter()

    def step(self) -> None:
        names, weights = zip(*OPERATIONS.items(), strict=True)
        name = self.random.choices(names, weights)[0]
        self.counts[name] += 1
        try:
            getattr(self, name)()
        except CapacityError:
            # What frees space is always accepted; a word about data needs a little room.
            assert name in WORDS
            self.counts["full"] += 1
        if self.random.random() < 0.3 or name in ("rewind", "reopen"):
            self.same_answers()

    def add_group(self) -> None:
        model = self.model
        k, length = self.random.randint(1, 3), self.random.randint(1, 400)
        ahead = self.random.choice([0, 1, 1, 1, 2])
        prompt = np.arange(length, dtype=np.int32)
        version = max(0, model.version + ahead - 1)
        group_id = model.next_group
        wanted = Prompt(group_id - 3, prompt, str(group_id), ("t",) * k, length / 8)
        try:
            members = self.store.add_group(wanted, k, version=version)
        except CapacityError:
            self.counts["full"] += 1
            return
        assert members == list(range(model.next_trajectory, model.next_trajectory + k))
        model.record("group", group_id, members[0], k, prompt.tolist(), version=version)
        model.next_group += 1
        model.next_trajectory += k

    def lease(self) -> None:
        n, duration = self.random.randint(0, 4), self.random.choice([1.0, 100.0])
        order = self.random.choice(["oldest", "stalest", "longest"])
        self.now += self.random.choice([0.0, 0.0, 2.0])
        model = self.model
        keys = {
            "oldest": lambda _: 0,
            "stalest": lambda t: min((token[3] for token in t.tokens), default=2**32),
            "longest": lambda t: -len(t.tokens),
        }
        never = (0, -float("inf"))
        free = [i for i in model.unfinished() if model.holders.get(i, never)[1] <= self.now]
        free.sort(key=lambda i: (keys[order](model.trajectories[i]), i))
        among = None
        if self.some.random() < 0.3:
            among = [i for i in model.unfinished() if i in free[:n] or self.some.random() < 0.5]
            self.some.shuffle(among)
            free = [i for i in free if i in among]
        now = self.now
        if n == 0 and self.some.random() < 0.5:
            now -= 5  # a clock that is behind: what had expired is held again
        leases = self.store.lease(n, now=now, duration=duration, order=order, trajectory_ids=among)
        assert [lease.trajectory_id for lease in leases] == free[:n]
        for lease in leases:
            trajectory = model.trajectories[lease.trajectory_id]
            prompt = model.groups[trajectory.group_id].prompt
            assert lease.input_ids.tolist() == prompt + [t[0] for t in trajectory.tokens]
            zeros = [0] * len(prompt)
            assert lease.versions.tolist() == zeros + [t[3] for t in trajectory.tokens]
            assert lease.deadline == self.now + duration
            assert lease.epoch > model.last_epoch
            model.last_epoch = lease.epoch
            model.holders[lease.trajectory_id] = (lease.epoch, lease.deadline)

    def pick(self) -> int | None:
        held = [i for i in self.model.holders if i in self.model.unfinished()]
        return self.random.choice(sorted(held)) if held else None

    def append(self) -> None:
        model, n = self.model, self.random.choice([0, 1, 1, 2, 20, 150, 300])
        ahead = self.random.choice([0, 1, 1, 1, 2])
        if (who := self.pick()) is None:
            return
        trajectory = model.trajectories[who]
        least = max([model.groups[trajectory.group_id].version, *(t[3] for t in trajectory.tokens)])
        version = max(least, model.version + ahead - 1)
        self.seen += 1
        tokens = np.arange(n, dtype=np.int32) + 1000 * self.seen
        log_probs = -np.arange(n, dtype=np.float32) / self.seen
        mask = (tokens % 3 > 0).astype(np.uint8)
        epoch = model.holders[who][0]
        offset = len(trajectory.tokens)
        try:
            self.store.append(who, epoch, offset, tokens, log_probs, version, loss_mask=mask)
        except CapacityError:
            self.counts["full"] += 1
            return
        if n:
            columns = zip(tokens.tolist(), log_probs.tolist(), mask.tolist(), strict=True)
            model.record("append", who, list(columns), version=version)
        # Again, in part, and beside the point.
        cut = self.random.randint(0, n)
        stop = self.random.randint(cut, n)
        part = slice(cut, stop)
        again = (tokens[part], log_probs[part], version)
        self.store.append(who, epoch, offset + cut, *again, loss_mask=mask[part])
        one = (np.ones(1, np.int32), np.zeros(1, np.float32), version)
        with pytest.raises(ConflictError):
            self.store.append(who, epoch, offset + n + 1, *one)
        with pytest.raises(LeaseExpiredError):
            self.store.append(who, epoch + 1, offset + n, *one)
        if least > 0:
            with pytest.raises(InvalidInputError):
                self.store.append(who, epoch, offset + n, *one[:2], least - 1)

    def finish(self) -> None:
        reason = self.random.choice(["stop", "length", "repetition", "abort"])
        if (who := self.pick()) is None:
            return
        epoch = self.model.holders[who][0]
        with pytest.raises(ConflictError):
            self.store.set_reward(who, 1.0)
        self.store.finish(who, epoch, reason)
        del self.model.holders[who]
        if reason == "abort":
            self.model.record("abort", who)
            with pytest.raises(LeaseExpiredError):
                self.store.finish(who, epoch, reason)
        else:
            self.model.record("finish", who, reason)
            self.store.finish(who, epoch, reason)

    def set_reward(self) -> None:
        reward = self.random.choice([0.0, 0.25, 1.0])
        trajectories = self.model.trajectories.items()
        done = [
            i
            for i, t in trajectories
            if t.reason and t.reward is None and self.model.alive(t.group_id)
        ]
        if done:
            who = self.random.choice(done)
            self.store.set_reward(who, reward)
            self.model.record("reward", who, reward)
            with pytest.raises(ConflictError):
                self.store.set_reward(who, reward + 1)

    def set_column(self) -> None:
        """Values for a range of any response; now and then a column more, or none such."""
        model = self.model
        name = self.random.choice(sorted(self.columns))
        ids = [i for i, t in model.trajectories.items() if t.tokens and model.alive(t.group_id)]
        if not ids:
            return
        who = self.random.choice(ids)
        length = len(model.trajectories[who].tokens)
        offset = self.random.choice([0, 0, self.random.randrange(length)])
        n = self.random.choice([length - offset, self.random.randint(0, length - offset)])
        self.seen += 1
        values = (np.arange(n) + self.random.choice([5, self.seen])).astype(self.columns[name])
        try:
            self.store.set_column(who, name, values, offset=offset)
        except CapacityError:
            # A range that a file does not hold comes in pieces, and the first may be there.
            self.counts["full"] += 1
            found = self.store.trajectory(who)["columns"][name][offset : offset + n].tolist()
            old = model.trajectories[who].column(name)[offset : offset + n]
            same = [
                k for k in range(n + 1) if found[:k] == values[:k].tolist() and found[k:] == old[k:]
            ]
            assert same
            n = same[-1]
        if n:
            model.record("column", who, name, offset, values[:n].tolist())
        with pytest.raises(InvalidInputError, match="response tokens that trajectory"):
            self.store.set_column(who, name, np.zeros(1, values.dtype), offset=length)
        with pytest.raises(InvalidInputError, match="a one-dimensional array of"):
            self.store.set_column(who, name, np.zeros(1, np.complex64))
        with pytest.raises(InvalidInputError, match="declared at an opening"):
            self.store.set_column(who, "nobody", values)

    def set_all_columns(self) -> None:
        """Makes groups complete in a column, in one call."""
        if self.store.stats()["capacity_bytes"] < 100 * FILE:
            return  # what is there when it is full in between is for set_column
        name, model = self.random.choice(sorted(self.columns)), self.model
        ids = [i for i, t in model.trajectories.items() if t.tokens and model.alive(t.group_id)]
        ends = np.cumsum([0, *(len(model.trajectories[i].tokens) for i in ids)]).astype(np.int32)
        values = np.arange(ends[-1]).astype(self.columns[name])
        starts = np.zeros(len(ids), np.int64)
        self.store.set_column_many(np.array(ids, np.int64), starts, ends, name, values)
        for who, start, stop in zip(ids, ends[:-1], ends[1:], strict=True):
            model.record("column", who, name, 0, values[start:stop].tolist())

    def finish_everything(self) -> None:
        """Brings whole groups to an end, which single steps seldom do."""
        leases = self.store.lease(1000, now=self.now, duration=1)
        for lease in leases:
            self.model.last_epoch = lease.epoch
            self.model.holders[lease.trajectory_id] = (lease.epoch, lease.deadline)
        for lease in leases:
            self.store.finish(lease.trajectory_id, lease.epoch, "stop")
            self.model.holders.pop(lease.trajectory_id, None)
            self.model.record("finish", lease.trajectory_id, "stop")
        for i, trajectory in self.model.trajectories.items():
            if (
                trajectory.reason
                and trajectory.reward is None
                and self.model.alive(trajectory.group_id)
            ):
                self.store.set_reward(i, i % 3)
                self.model.record("reward", i, i % 3)

    def sample(self) -> None:
        model, version = self.model, self.model.version + self.random.randint(0, 2)
        groups = self.random.choice([None, 0, 1, 2, 3])
        tokens = self.random.choice([None, None, 100, 1000, 2000])
        max_staleness = self.random.randint(0, 4)
        bounds: dict[str, Any] = {"version": version, "max_staleness": max_staleness}
        if groups is None and tokens is None:
            groups = 1
        needed: tuple[str, ...] = ()
        if self.random.random() < 0.3:
            needed = (self.random.choice(sorted(self.columns)),)
            bounds["columns"] = needed
        keys, order = self.order()
        bounds |= order
        wanted = model.take(groups, tokens, version, max_staleness, needed, keys)
        if wanted is None:
            with pytest.raises(InvalidInputError, match="expected at least"):
                self.store.sample(groups=groups, tokens=tokens, **bounds)
            return
        age = bounds["max_segment_staleness"] = self.some.choice([None, None, 0, 1, 2])
        batch = self.store.sample(groups=groups, tokens=tokens, **bounds)
        rows = [(g, m) for g in wanted for m in model.groups[g].members]
        assert batch.group_ids.tolist() == [g for g, _ in rows]
        assert batch.trajectory_ids.tolist() == [m for _, m in rows]
        assert batch.prompt_ids.tolist() == [g - 3 for g, _ in rows]
        columns: list[list[object]] = [[], [], [], [], []]
        starts = [0]
        for group_id, member in rows:
            whole = self.whole(group_id, member, 0 if age is None else version - age)
            for column, values in zip(columns, zip(*whole, strict=True), strict=False):
                column.extend(values)
            columns[4] += range(len(whole))
            starts.append(starts[-1] + len(whole))
        assert batch.cu_seqlens.tolist() == starts
        names = ("input_ids", "rollout_log_probs", "loss_mask", "versions", "position_ids")
        for name, column in zip(names, columns, strict=True):
            assert getattr(batch, name).tolist() == column, name
        assert set(batch.columns) == set(needed or self.columns)
        for name, found in batch.columns.items():
            assert found.dtype == self.columns[name]
            column = []
            for group_id, member in rows:
                column += [0] * len(model.groups[group_id].prompt)
                column += model.trajectories[member].column(name)
            assert found.tolist() == column
        assert batch.rewards.tolist() == [model.trajectories[m].reward for _, m in rows]
        assert batch.prompt_lengths.tolist() == [len(model.groups[g].prompt) for g, _ in rows]
        reasons = ["stop", "length", "repetition"]
        codes = [reasons.index(str(model.trajectories[m].reason)) for _, m in rows]
        assert batch.finish_reasons.tolist() == codes
        assert batch.max_seqlen == max(np.diff(starts), default=0)
        for group_id in wanted:
            model.record("use", group_id)

    def order(self) -> tuple[dict[int, float], dict[str, Any]]:
        """A strategy: the numbers by which the groups go, and the keywords of the call."""
        strategy, groups = (
            self.some.choice(["fifo", "uniform", "priority"]),
            list(self.model.groups),
        )
        seed = self.some.randrange(2**64)
        keywords: dict[str, Any] = {"strategy": strategy, "seed": seed}
        drawn = uniforms(seed, np.array(groups, np.int64), np.zeros(len(groups), np.int64))
        uniform: dict[int, float] = dict(zip(groups, drawn.tolist(), strict=True))
        if strategy != "priority":
            return ({i: i for i in groups} if strategy == "fifo" else uniform), keywords
        # The prompt of a group has the group's id less 3 in this walk.
        weights = {i - 3: self.some.choice([0, 0.5, 1, 40]) for i in groups}
        keywords["weights"] = weights
        if self.some.random() < 0.5:
            ids = self.some.sample(sorted(weights), len(weights))
            values = np.array([weights[i] for i in ids], np.float64)
            keywords["weights"] = (np.array(ids, np.int64), values)
        keys = {
            i: -math.log1p(-u) / w if (w := weights[i - 3]) else math.inf
            for i, u in uniform.items()
        }
        return keys, keywords

    def whole(self, group_id: int, member: int, oldest_trained: int) -> list[tuple[Any, ...]]:
        """Token, log-prob, mask and version of a prompt and its response."""
        prompt, response = (
            self.model.groups[group_id].prompt,
            self.model.trajectories[member].tokens,
        )
        masked = [(t, p, m if v >= oldest_trained else 0, v) for t, p, m, v in response]
        return [(t, 0.0, 0, 0) for t in prompt] + masked

    def drop(self) -> None:
        alive = [i for i in self.model.groups if self.model.alive(i)]
        if alive:
            group_id = self.random.choice(alive)
            self.store.drop_groups([group_id])
            self.model.record("drop", group_id)
            for member in self.model.groups[group_id].members:
                self.model.holders.pop(member, None)

    def release(self) -> None:
        if (who := self.pick()) is not None:
            self.store.release(who, self.model.holders.pop(who)[0])

    def mark(self) -> None:
        version = self.model.version + self.random.randint(0, 2)
        assert self.store.mark(version) == self.model.mark(version)

    def rewind(self) -> None:
        if not self.model.marks:
            return
        mark = self.random.choice([m[0] for m in self.model.marks])
        self.store.rewind(mark)
        self.model.rewind(mark)
        with pytest.raises(InvalidInputError, match="one of those kept"):
            self.store.rewind(mark + 1)

    def reopen(self) -> None:
        if self.directory is None:
            return
        self.store.close()
        more = {}
        if len(self.columns) < 4:
            dtype = self.random.choice(["uint8", "int16", "int64", "float64"])
            more = {f"column_{len(self.columns)}": dtype}
        self.store = Store(self.directory, sync="never", columns=more, **self.options)
        self.columns |= {name: np.dtype(dtype).type for name, dtype in more.items()}
        assert self.store.columns() == {k: np.dtype(v).name for k, v in self.columns.items()}
        assert self.store.recovery_report()["torn"] is None
        self.model.holders.clear()

    def same_answers(self) -> None:
        model, store = self.model, self.store
        alive = [i for i in sorted(model.groups) if model.alive(i)]
        assert store.unfinished() == len(model.unfinished())
        assert store.pending_groups(2**32 - 1) == alive
        assert store.complete_groups() == model.complete()
        for version in range(model.version + 3):
            want = [i for i in alive if model.groups[i].version == version]
            known = {i for i, g in model.groups.items() if g.version == version}
            found = store.groups_of_version(version)
            assert [i for i in found if i in alive] == want
            assert found == sorted(found)
            assert set(found) <= known
        for group_id in alive:
            for member in model.groups[group_id].members:
                wanted, view = model.trajectories[member], store.trajectory(member)
                columns = ("tokens", "log_probs", "loss_mask", "versions")
                found = zip(*(view[name].tolist() for name in columns), strict=True)
                assert list(found) == wanted.tokens
                assert view["finish_reason"] == wanted.reason
                assert view["reward"] == wanted.reward
                for name in self.columns:
                    assert view["columns"][name].tolist() == wanted.column(name)
                assert view["epoch"] == model.holders.get(member, (None,))[0]
        stats = store.stats()
        assert stats["bytes_allocated"] <= stats["capacity_bytes"]


@pytest.mark.parametrize("durable", [False, True], ids=["memory", "directory"])
@pytest.mark.parametrize("seed", [*range(16), 100, 101])
def test_random_operations(seed: int, durable: bool, tmp_path: Path) -> None:
    walk = Walk(seed, tmp_path if durable else None)
    for _ in range(500):
        walk.step()
    walk.same_answers()
    walk.store.close()
