"""The threads that churn a store: they lease, append, finish, score, and check all that they read.

Tokens are a function of (trajectory, position), as in store_writer.py: whoever reads can check.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from store_writer import log_probs_of, tokens_of

from k15core import Lease, PackedBatch, Prompt, Store
from k15core.errors import CapacityError, ConflictError, InvalidInputError, LeaseExpiredError

FOREVER = 1e12
FENCED = (LeaseExpiredError, ConflictError, InvalidInputError)
"""What a call under a lease that is over may meet: another's lease, another's end, nothing."""
COLUMN = "values"
WANTED = 24
"""Unfinished trajectories that are free to be leased: below that a group is added."""
HELD = 3
"""Stragglers of a worker: leased for long, so that nothing evicts them, in files that grow old."""


def values_of(who: int, start: int, stop: int) -> NDArray[np.float32]:
    """Never 0, which means that there is none."""
    return (np.arange(start, stop) % 1000 + who % 7 + 1).astype(np.float32)


class FaultError(Exception):
    """Something that is not as it was acknowledged."""


def check_response(
    who: int, tokens: NDArray[np.int32], log_probs: NDArray[np.float32] | None = None
) -> None:
    if not np.array_equal(tokens, tokens_of(who, 0, len(tokens))):
        raise FaultError(
            f"trajectory {who}: its {len(tokens)} tokens are not those that were appended"
        )
    if log_probs is not None and not np.array_equal(log_probs, log_probs_of(tokens)):
        raise FaultError(f"trajectory {who}: its log-probs are not those that were appended")


def check_values(who: int, values: NDArray[np.float32]) -> None:
    wanted = values_of(who, 0, len(values))
    if not np.array_equal(values, np.where(values == 0, 0, wanted)):
        raise FaultError(f"trajectory {who}: its column holds what was never set")


@dataclass
class World:
    """What the threads share."""

    store: Store
    capacity: int
    seed: int
    share: float
    """Of one core, for all threads together; 0: as fast as they can."""
    rate: float
    """Bytes a second that all threads together append; 0: as fast as they can."""
    workers: int
    version: int = 0
    appended: int = 0
    """Bytes, of tokens, log-probs and masks."""
    lengths: dict[int, int] = field(default_factory=dict)
    """Tokens of each response that were acknowledged."""
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lives: int = 0
    """How often leases became void: by a rewind or another opening."""
    parked: int = 0
    """Workers that wait until they may go on."""
    calling: int = 0
    """Workers in a call that needs room."""
    lock: threading.Condition = field(default_factory=threading.Condition)
    closing: bool = False
    over: bool = False

    def gate(self) -> None:
        """Wait while the store is opened again or taken back."""
        with self.lock:
            if not self.closing:
                return
            self.parked += 1
            self.lock.notify_all()
            self.lock.wait_for(lambda: not self.closing or self.over)
            self.parked -= 1

    def is_still(self) -> bool:
        return self.over or self.parked == self.workers

    @contextmanager
    def needing_room(self) -> Iterator[None]:
        with self.lock:
            self.calling += 1
        try:
            yield
        finally:
            with self.lock:
                self.calling -= 1

    def stop(self) -> None:
        with self.lock:
            self.over = True
            self.lock.notify_all()

    def count(self, name: str, n: int = 1) -> None:
        with self.lock:
            self.counts[name] += n

    def has(self, who: int, length: int) -> None:
        with self.lock:
            self.lengths[who] = length

    def fault(self, what: str) -> None:
        with self.lock:
            self.wrong.append(what)
        self.stop()

    def is_gone(self, who: int) -> bool:
        try:
            return bool(self.store.trajectory(who)["state"] == "gone")
        except InvalidInputError:
            return True

    def check_trajectory(self, who: int) -> None:
        """One that is there is what was acknowledged, and no shorter."""
        least = self.lengths.get(who, 0)
        try:
            view = self.store.trajectory(who)
        except InvalidInputError:
            return  # its group is used up, dropped or evicted
        check_response(who, view["tokens"], view["log_probs"])
        check_values(who, view["columns"][COLUMN])
        if len(view["tokens"]) < least and view["state"] != "gone":
            raise FaultError(
                f"trajectory {who} has {len(view['tokens'])} tokens, {least} were acknowledged"
            )


class Paced(threading.Thread):
    """A thread that rests between its steps, so that all of them together keep to the shares."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.world = world
        self.random = random.Random(f"{world.seed} {name}")
        self.bytes = 0
        """What the present step appended."""

    def run(self) -> None:
        world = self.world
        while not world.over:
            world.gate()
            used, self.bytes = time.thread_time(), 0
            try:
                self.step()
            except FaultError as fault:
                world.fault(str(fault))
            except Exception as error:  # noqa: BLE001 - whatever it is, the soak must end and tell
                world.fault(f"{self.name}: {type(error).__name__}: {error}")
            self.rest(time.thread_time() - used)

    def step(self) -> None:
        raise NotImplementedError

    def rest(self, used: float) -> None:
        world = self.world
        threads = world.workers + 1
        pause = used * (threads / world.share - 1) if world.share else 0.0
        if world.rate:
            pause = max(pause, self.bytes * world.workers / world.rate - used)
        if pause > 0:
            time.sleep(min(pause, 60))


@dataclass
class Straggler:
    lease: Lease
    length: int
    life: int
    until: int
    """The bytes that all will have appended when it ends."""


class Worker(Paced):
    """Leases responses and brings them to their ends; keeps some for long."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, f"worker {number}")
        self.held: list[Straggler] = []

    def step(self) -> None:
        world, draws = self.world, self.random
        try:
            if world.store.unfinished() < WANTED + HELD * world.workers:
                self.add_group()
            if self.held and draws.random() < 0.3:
                self.tend(draws.randrange(len(self.held)))
            order = draws.choice(["oldest", "stalest", "longest"])
            for lease in world.store.lease(1, now=0, duration=FOREVER, order=order):
                self.advance(lease)
        except CapacityError:
            world.count("refused")
            time.sleep(0.005)

    def add_group(self) -> None:
        draws = self.random
        prompt = np.arange(draws.choice([1, 50, 300, 3000]), dtype=np.int32)
        wanted, world = Prompt(len(prompt), prompt, "answer"), self.world
        world.gate()
        with world.needing_room():
            world.store.add_group(wanted, draws.randint(1, 4), version=world.version)
        world.count("groups")

    def advance(self, lease: Lease) -> None:
        world, draws = self.world, self.random
        who, length, life = lease.trajectory_id, lease.response_length, world.lives
        check_response(who, lease.input_ids[lease.prompt_length :])
        if length < world.lengths.get(who, 0):
            raise FaultError(
                f"trajectory {who} is leased with {length} tokens, more were acknowledged"
            )
        if len(self.held) < HELD and draws.random() < 0.1:
            until = world.appended + int(world.capacity * draws.uniform(0.5, 3))
            self.held.append(Straggler(lease, length, life, until))
            return
        try:
            for _ in range(draws.randint(1, 4)):
                length = self.append(lease, length)
            if draws.random() < 0.5:
                self.end(lease, length)
            elif draws.random() < 0.1:
                world.has(who, 0)  # before: another worker may have it at once
                world.store.finish(who, lease.epoch, "abort")
                world.count("aborts")
            else:
                world.store.release(who, lease.epoch)
        except CapacityError:
            self.give_back(lease, life)
            raise
        except FENCED as error:
            self.fenced(who, life, error)

    def give_back(self, lease: Lease, life: int) -> None:
        try:
            self.world.store.release(lease.trajectory_id, lease.epoch)
        except FENCED as error:
            self.fenced(lease.trajectory_id, life, error)

    def tend(self, place: int) -> None:
        """A few tokens more for a straggler, or its end."""
        world, held = self.world, self.held[place]
        try:
            held.length = self.append(held.lease, held.length, few=True)
            if world.appended >= held.until:
                self.end(held.lease, held.length)
                world.count("stragglers")
                del self.held[place]
        except FENCED as error:
            del self.held[place]
            self.fenced(held.lease.trajectory_id, held.life, error)

    def fenced(self, who: int, life: int, error: Exception) -> None:
        """A lease does not hold any more: leases became void, or the group is gone."""
        if self.world.lives == life and not self.world.is_gone(who):
            raise FaultError(f"trajectory {who}: its lease was taken away: {error}")
        self.world.count("fenced")

    def append(self, lease: Lease, length: int, *, few: bool = False) -> int:
        world, draws, who = self.world, self.random, lease.trajectory_id
        largest = world.capacity // 400 // 9
        sizes = [1, 10, 100] if few else [1, 10, 100, 1000, 1000, 10_000, largest // 8]
        n = largest if not few and draws.random() < 0.01 else min(draws.choice(sizes), largest)
        tokens = tokens_of(who, length, length + n)
        before = int(lease.versions[-1]) if lease.response_length else 0
        version = max(world.version, before)
        world.gate()
        log_probs = log_probs_of(tokens)
        with world.needing_room():
            world.store.append(who, lease.epoch, length, tokens, log_probs, version)
        world.has(who, length + n)
        self.bytes += 9 * n
        with world.lock:
            world.appended += 9 * n
            world.counts["appends"] += 1
        return length + n

    def end(self, lease: Lease, length: int) -> None:
        """Finish a response, perhaps with values in its column, and score it."""
        world, draws, who = self.world, self.random, lease.trajectory_id
        world.gate()
        life = world.lives
        world.store.finish(who, lease.epoch, draws.choice(["stop", "length", "repetition"]))
        world.count("finished")
        try:
            if draws.random() < 0.5:
                start = draws.choice([0, 0, draws.randrange(length)])
                values = values_of(who, start, length)
                with world.needing_room():
                    world.store.set_column(who, COLUMN, values, offset=start)
                world.count("columns")
            if draws.random() < 0.1:
                world.check_trajectory(who)
            world.gate()
            if world.lives == life:  # else a rewind may have taken its end back
                world.store.set_reward(who, who % 5)
        except CapacityError:
            world.count("refused")


def check_batch(batch: PackedBatch) -> None:
    starts: Any = batch.cu_seqlens
    values = batch.columns[COLUMN]
    for row, (who, prompt) in enumerate(
        zip(batch.trajectory_ids.tolist(), batch.prompt_lengths.tolist(), strict=True)
    ):
        part = slice(starts[row] + prompt, starts[row + 1])
        check_response(who, batch.input_ids[part], batch.rollout_log_probs[part])
        check_values(who, values[part])
        if batch.rewards[row] != who % 5:
            raise FaultError(f"trajectory {who}: its reward is {batch.rewards[row]}")
