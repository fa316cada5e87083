"""How the cost of the store's calls grows from 10^3 to 10^6 trajectories, in memory and on opening.

A store of each size is filled once: half of its trajectories are scored and wait to be sampled, a
quarter is unfinished and free, a quarter is held. Then each round does the same work on each: some
groups come in and as many are sampled, so that sizes stay. Beside them a buffer of dicts and lists
of the largest size, which a team would write first: its calls do no more than they must, look
nothing up but by key, check nothing, and survive nothing. Costs are processor time a trajectory.

A row's ratio is the cost at the smaller size over that at 10^6: 1 where nothing grows.
"""

from __future__ import annotations

import gc
import pickle
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import ROUNDS, Entry, compare
from k15core import Prompt, Store

SIZES = (1_000, 10_000, 100_000, 1_000_000)
MEMBERS = 8
WORKED = 512
"""Trajectories that come and go in a round."""
PROMPT = Prompt(0, np.arange(8, dtype=np.int32), "")
TOKENS, LOG_PROBS = np.arange(16, dtype=np.int32), np.full(16, -0.5, np.float32)
LISTS = "a dict of lists, at 10^6"

Costs = dict[str, float]


class Clock:
    """Processor time of the parts of a round, by name."""

    def __init__(self) -> None:
        self.costs: Costs = {}

    def __call__(self, name: str, work: Callable[[], Any], *, per: int = WORKED) -> Any:
        """Do the work and remember its seconds, divided by `per`."""
        start = time.process_time()
        done = work()
        self.costs[name] = (time.process_time() - start) / per
        return done


class Ours:
    """A store of n trajectories."""

    def __init__(self, n: int, directory: Path | None = None) -> None:
        self.store = Store(directory, capacity_bytes=2 << 30, max_uses=1, sync="never")
        self.turn = 0
        for first in range(0, n, 10_000):
            self.fill(min(10_000, n - first))

    def fill(self, n: int) -> None:
        """A quarter stays free, a quarter held, half is scored."""
        store = self.store
        for _ in range(n // 4 // MEMBERS):
            store.add_group(PROMPT, MEMBERS)
        ids = [i for _ in range(3 * n // 4 // MEMBERS) for i in store.add_group(PROMPT, MEMBERS)]
        leases = store.lease(len(ids), now=0, duration=1e9, trajectory_ids=ids)
        self.append(leases)
        scored = leases[: 2 * len(leases) // 3 // MEMBERS * MEMBERS]
        self.finish(scored)
        self.score(scored)

    def append(self, leases: list[Any]) -> None:
        """The response of each."""
        for lease in leases:
            self.store.append(lease.trajectory_id, lease.epoch, 0, TOKENS, LOG_PROBS, 0)

    def finish(self, leases: list[Any]) -> None:
        """End each."""
        for lease in leases:
            self.store.finish(lease.trajectory_id, lease.epoch, "stop")

    def score(self, leases: list[Any]) -> None:
        """A reward for each."""
        for lease in leases:
            self.store.set_reward(lease.trajectory_id, 1.0)

    def lease(self) -> list[Any]:
        """As many as a round works on."""
        found = []
        for _ in range(WORKED // 64):
            found += self.store.lease(64, now=0, duration=1e9)
        return found

    def round(self) -> Costs:
        """What each call costs for a trajectory; that of a mark for a mark."""
        store, clock = self.store, Clock()
        groups = WORKED // MEMBERS
        clock("add_group", lambda: [store.add_group(PROMPT, MEMBERS) for _ in range(groups)])
        leases = clock("lease", self.lease)
        clock("append", lambda: self.append(leases))
        clock("finish", lambda: self.finish(leases))
        clock("set_reward", lambda: self.score(leases))
        how: dict[str, Any] = {"groups": groups // 2, "version": 0, "max_staleness": 0}
        fifo = clock("sample_fifo", lambda: store.sample(**how, strategy="fifo"), per=WORKED // 2)
        assert len(fifo) == WORKED // 2
        self.turn += 1
        how |= {"strategy": "uniform", "seed": self.turn}
        clock("sample_uniform", lambda: store.sample(**how), per=WORKED // 2)
        clock("mark", lambda: store.mark(0), per=1)
        return clock.costs


class Lists:
    """The same as dicts and lists."""

    def __init__(self, n: int) -> None:
        self.rows: dict[int, dict[str, Any]] = {}
        self.free: deque[int] = deque()
        self.ready: deque[int] = deque()
        self.waits: dict[int, int] = {}
        self.next = 0
        tokens, log_probs = TOKENS.tolist(), LOG_PROBS.tolist()
        for place in range(n // MEMBERS):
            ids = self.add_group()
            if place % 4:
                for _ in ids:
                    self.free.pop()
                self.append(ids, tokens, log_probs)
            if place % 4 > 1:
                self.finish(ids)
                self.score(ids)

    def add_group(self) -> list[int]:
        """The members of a new group."""
        prompt, first = PROMPT.input_ids.tolist(), self.next
        self.next += MEMBERS
        for who in range(first, self.next):
            self.rows[who] = {"prompt": prompt, "tokens": [], "log_probs": [], "group": first}
            self.free.append(who)
        self.waits[first] = MEMBERS
        return list(range(first, self.next))

    def append(self, ids: list[int], tokens: list[int], log_probs: list[float]) -> None:
        """The response of each."""
        for who in ids:
            self.rows[who]["tokens"].extend(tokens)
            self.rows[who]["log_probs"].extend(log_probs)

    def finish(self, ids: list[int]) -> None:
        """End each."""
        for who in ids:
            self.rows[who]["finish_reason"] = "stop"

    def score(self, ids: list[int]) -> None:
        """A reward for each, and what is complete."""
        for who in ids:
            row = self.rows[who]
            row["reward"] = 1.0
            self.waits[row["group"]] -= 1
            if not self.waits[row["group"]]:
                self.ready.append(row["group"])

    def sample(self, groups: int) -> list[Any]:
        """The oldest complete groups, packed."""
        taken = [self.ready.popleft() for _ in range(groups)]
        rows = [self.rows.pop(first + i) for first in taken for i in range(MEMBERS)]
        for first in taken:
            del self.waits[first]
        zeros = [0.0] * len(PROMPT.input_ids)
        return [
            np.array([t for row in rows for t in row["prompt"] + row["tokens"]], np.int32),
            np.array([p for row in rows for p in zeros + row["log_probs"]], np.float32),
            np.array([row["reward"] for row in rows], np.float32),
        ]

    def round(self) -> Costs:
        """What each call costs for a trajectory."""
        clock = Clock()
        tokens, log_probs = TOKENS.tolist(), LOG_PROBS.tolist()
        clock("add_group", lambda: [self.add_group() for _ in range(WORKED // MEMBERS)])
        ids = clock("lease", lambda: [self.free.popleft() for _ in range(WORKED)])
        clock("append", lambda: self.append(ids, tokens, log_probs))
        clock("finish", lambda: self.finish(ids))
        clock("set_reward", lambda: self.score(ids))
        clock("sample_fifo", lambda: self.sample(WORKED // MEMBERS // 2), per=WORKED // 2)
        self.sample(WORKED // MEMBERS // 2)
        return clock.costs


def resident() -> int:
    """Bytes of memory of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def memory(make: Callable[[int], Any], n: int) -> tuple[Any, float]:
    """What was made, and the bytes that it takes for a trajectory."""
    before = resident()
    made = make(n)
    return made, (resident() - before) / n


def at(n: int) -> str:
    """A peer's name."""
    return f"the same at 10^{len(str(n)) - 1}"


def calls(contenders: dict[str, Any]) -> list[Entry]:
    gc.collect()
    gc.disable()  # a collection that looks at millions of objects belongs to no call
    try:
        for contender in contenders.values():
            contender.round()
        rounds = [{name: c.round() for name, c in contenders.items()} for _ in range(ROUNDS)]
    finally:
        gc.enable()
    entries: list[Entry] = []
    largest = at(SIZES[-1])
    for call in rounds[0][largest]:
        costs = {
            name: iter([costs[name][call] for costs in rounds])
            for name in contenders
            if call in rounds[0][name]
        }
        ours = costs.pop(largest)
        peers = {name: values.__next__ for name, values in costs.items()}
        entries += compare(
            f"store.growth.{call}",
            ours.__next__,
            peers,
            bars=dict.fromkeys(peers),
            unit="us",
            figure=lambda seconds: seconds * 1e6,
            warmup=0,
        )
    return entries


def opening(directory: Path) -> list[Entry]:
    """Seconds a trajectory to open the log, and of unpickling the dict of lists."""
    for n in SIZES:
        Ours(n, directory / str(n)).store.close()

    def opened(n: int) -> float:
        start = time.process_time()
        store = Store(directory / str(n), capacity_bytes=2 << 30, sync="never")
        seconds = time.process_time() - start
        store.close()
        return seconds / n

    n = SIZES[-2]
    pickled = pickle.dumps(Lists(n).__dict__)

    def unpickled() -> float:
        start = time.process_time()
        pickle.loads(pickled)
        return (time.process_time() - start) / n

    entries: list[Entry] = []
    for ours, peers in (
        (SIZES[-1], {at(n): partial(opened, n) for n in SIZES[:-1]}),
        (n, {"unpickling a dict of lists, at 10^5": unpickled}),
    ):
        entries += compare(
            "store.growth.recover",
            partial(opened, ours),
            peers,
            bars=dict.fromkeys(peers),
            unit="us",
            figure=lambda seconds: seconds * 1e6,
            rounds=ROUNDS if ours == n else 3,
            warmup=1 if ours == n else 0,
        )
    return entries


def run() -> list[Entry]:
    entries: list[Entry] = []
    contenders: dict[str, Any] = {}
    sizes: dict[str, float] = {}
    for n in SIZES:
        contenders[at(n)], sizes[at(n)] = memory(Ours, n)
    contenders[LISTS], sizes[LISTS] = memory(Lists, SIZES[-1])
    ours = sizes.pop(at(SIZES[-1]))
    for name in (at(SIZES[-2]), LISTS):  # less is not to be told from what a process takes anyway
        size = sizes[name]
        ratio, pairs = size / ours, [(ours, size)]
        entries.append(
            Entry("store.growth.memory", ours, size, name, "B", ratio, None, ok=True, pairs=pairs)
        )
    entries += calls(contenders)
    contenders.clear()
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-store-") as directory:
        entries += opening(Path(directory))
    return entries
