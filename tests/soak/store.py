"""Hours of churn on a durable store that is at its capacity: `make soak-store`.

Several threads append, finish, score, sample, mark, rewind, drop and set columns, in responses of
one token to millions, while a few stay leased for long in files that grow old; now and then the
store is opened again, under another policy for what happens when it is full. Marks begin at a third
of the way. Everything that is read is checked, and memory, maps, disk, files and descriptors must
stay within their bounds.

A soak ends when it has run for its hours and appended its turnovers (times the capacity). Time in
which the process stood still does not count.

    python -m soak.store --hours 2 --capacity-gb 2 --share 0.5
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from k15core import Store
from k15core._core import verify_store
from k15core.errors import CapacityError, InvalidInputError
from soak.churn import COLUMN, Paced, Worker, World, check_batch
from soak.figures import Record, descriptors, look

POLICIES = ("evict_oldest", "block", "evict_stalest", "refuse")
MARKS_FROM = 1 / 3
EVERY = {"look": 1 / 16, "mark": 0.2, "rewind": 0.9, "reopen": 0.7, "sip": 0.01}
"""How often the trainer does what, in turnovers of the capacity."""
WAITING = 4
"""Rounds of the trainer in which a call for room did not return: it waits for some."""
STANDSTILL = 5.0
"""A gap between two looks at the clock that is longer was no work: the process was stopped."""
STUCK = 10_000
"""Rounds of the trainer in which nothing was appended though there was nothing left to take."""


@dataclass
class Way:
    """How far a soak is to go."""

    seconds: float
    turnovers: float
    capacity: int
    ran: float = 0.0
    """Seconds, less those in which the process stood still."""
    clock: float = field(default_factory=time.monotonic)

    def progress(self, appended: int) -> float:
        now = time.monotonic()
        self.ran += min(now - self.clock, STANDSTILL)
        self.clock = now
        work = appended / (self.turnovers * self.capacity)
        return min(work, self.ran / self.seconds) if self.seconds else work


class Trainer(Paced):
    """Consumes: samples, marks, rewinds, drops; opens the store again; decides when all is done."""

    def __init__(self, world: World, directory: Path, way: Way, record: Record) -> None:
        super().__init__(world, "trainer")
        self.directory, self.way, self.record = directory, way, record
        self.policy, self.openings = POLICIES[0], 0
        self.marks: list[tuple[int, int]] = []  # with their versions
        self.done_at = dict.fromkeys(EVERY, 0)
        self.seen = (0, 0)  # bytes appended, refusals
        self.waits = self.stuck = 0
        self.progress = 0.0

    def step(self) -> None:
        world = self.world
        self.progress = self.way.progress(world.appended)
        if self.due("look"):
            self.look()
        if self.progress > MARKS_FROM:
            if self.due("mark"):
                self.mark()
            if self.due("rewind") and self.marks:
                self.rewind()
        if self.due("reopen"):
            self.reopen()
        if self.progress >= 1:
            self.finish()
            return
        self.consume()
        time.sleep(0.005)

    def due(self, name: str) -> bool:
        if self.world.appended - self.done_at[name] < EVERY[name] * self.world.capacity:
            return False
        self.done_at[name] = self.world.appended
        return True

    def look(self) -> None:
        live = self.world.store.stats()["bytes_live"]
        self.record.add(look(self.world.store, self.directory, self.progress), live)
        self.forget()

    def forget(self) -> None:
        """Let go of the lengths of responses that can no longer be asked for."""
        world = self.world
        there = set()
        for group in world.store.pending_groups(2**32 - 1):
            try:
                there.update(world.store.group(group)["trajectory_ids"])
            except InvalidInputError:
                continue  # evicted in between
        with world.lock:
            # A group that came since may have higher ids.
            newest = max(there, default=0)
            world.lengths = {
                who: n for who, n in world.lengths.items() if who in there or who > newest
            }

    def consume(self) -> None:
        """Take what is complete: a little, or as much as it takes to let the others go on."""
        if self.due("sip"):
            self.drop(1) if self.random.random() < 0.1 else self.sample(self.random.randint(1, 3))
        if not self.is_short():
            return
        world = self.world
        self.record.refused(world.store.stats()["bytes_live"])
        if not self.sample(self.random.randint(1, 8)) and not self.drop(4):
            self.stuck += 1
            if self.stuck > STUCK:
                world.fault(f"nothing was appended any more: {world.store.stats()}")
        if self.marks:
            self.mark()  # what was used up before the mark before is free now

    def is_short(self) -> bool:
        """Whether the others want room: they were refused some, or wait for it."""
        world = self.world
        with world.lock:
            now = (world.appended, world.counts["refused"])
            self.waits = self.waits + 1 if world.calling and now[0] == self.seen[0] else 0
        refused = now[1] != self.seen[1]
        if now[0] != self.seen[0]:
            self.stuck = 0
        self.seen = now
        return refused or self.waits >= WAITING

    def sample(self, groups: int) -> int:
        """Check and use up some groups; how many rows they had."""
        world, draws = self.world, self.random
        strategy = draws.choice(["fifo", "uniform"])
        try:
            batch = world.store.sample(
                groups=groups,
                tokens=draws.choice([None, None, 100_000]),
                version=world.version,
                max_staleness=world.version,
                strategy=strategy,  # type: ignore[arg-type]
                seed=draws.randrange(1000),
                columns=[COLUMN] if draws.random() < 0.2 else None,
            )
        except InvalidInputError as error:
            if "expected at least" not in str(error):
                raise
            return 0  # the first group exceeds the budget
        except CapacityError:
            world.count("refused")
            return 0
        check_batch(batch)
        world.count("sampled", len(batch))
        return len(batch)

    def drop(self, most: int) -> int:
        pending = self.world.store.pending_groups(2**32 - 1)[: 4 * most]
        chosen = self.random.sample(pending, min(most, len(pending)))
        try:
            self.world.store.drop_groups(chosen)
        except InvalidInputError:
            return 0  # one was evicted in between
        except CapacityError:
            self.world.count("refused")
            return 0
        self.world.count("dropped", len(chosen))
        return len(chosen)

    def mark(self) -> None:
        world = self.world
        world.version += self.random.randint(0, 2)
        self.marks = [*self.marks, (world.store.mark(world.version), world.version)][-2:]
        world.count("marks")

    def park(self) -> None:
        """Have every worker stop between two calls; those that wait for room are given it."""
        world = self.world
        world.closing = True
        while True:
            with world.lock:
                if world.lock.wait_for(world.is_still, timeout=0.05):
                    return
            self.consume()

    def unpark(self) -> None:
        with self.world.lock:
            self.world.lives += 1
            self.world.closing = False
            self.world.lock.notify_all()

    def rewind(self) -> None:
        world = self.world
        self.park()
        mark, version = self.random.choice(self.marks)
        world.store.rewind(mark)
        world.version = version
        self.marks = [one for one in self.marks if one[0] <= mark]
        # Tokens of later versions are gone, and their ids may be given again.
        world.lengths.clear()
        world.count("rewinds")
        self.unpark()

    def reopen(self) -> None:
        world = self.world
        self.park()
        world.store.close()
        if self.openings % 8 == 7:
            found = verify_store(self.directory)
            if found["damages"] or found["opening"] != "clean":
                world.fault(f"verify: {found['opening']}, {found['damages'][:3]}")
        self.openings += 1
        self.policy = POLICIES[self.openings % len(POLICIES)]
        world.store = open_store(self.directory, self.record, self.policy)
        if world.store.recovery_report()["torn"]:
            world.fault(f"a closed store was torn: {world.store.recovery_report()}")
        for who in list(world.lengths):
            world.check_trajectory(who)
        world.count("openings")
        self.unpark()

    def finish(self) -> None:
        self.park()
        self.look()
        self.world.over = True
        self.unpark()


def open_store(directory: Path, record: Record, policy: str) -> Store:
    return Store(
        directory,
        capacity_bytes=record.capacity,
        file_bytes=record.file_bytes,
        when_full=policy,  # type: ignore[arg-type]
        columns={COLUMN: "float32"},
    )


@dataclass
class Churn:
    """What came of it."""

    world: World
    way: Way
    record: Record

    def faults(self) -> list[str]:
        return self.world.wrong[:20] + (self.record.faults() if self.record.looks else [])

    def line(self) -> str:
        world, last = self.world, self.record.looks[-1]
        turnovers = world.appended / world.capacity
        return (
            f"{self.way.ran:,.0f} s, {turnovers:,.1f} turnovers, MiB of memory "
            f"{last.anonymous >> 20}, mapped {last.mapped >> 20}, disk {last.disk >> 20}; "
            f"{last.files} files, {last.descriptors} descriptors, needed {last.live:.2f}, "
            f"{len(world.wrong)} wrong"
        )

    def table(self) -> str:
        world = self.world
        amount, ran = world.appended / (1 << 30), self.way.ran
        lines = [f"{amount:,.1f} GiB appended in {ran:,.0f} s of {world.capacity >> 20:,} MiB"]
        lines += [f"  {name:12}{number:>12,}" for name, number in sorted(world.counts.items())]
        return "\n".join([*lines, self.record.table()])


def churn(
    directory: Path,
    *,
    capacity: int,
    seconds: float,
    turnovers: float,
    workers: int,
    share: float,
    rate: float,
    seed: int,
    tell: Callable[[Churn], None],
) -> Churn:
    """Churn a new store in an empty directory; `tell` is called now and then."""
    way = Way(seconds, turnovers, capacity)
    record = Record(capacity, max(capacity // 64 // 4096 * 4096, 64 << 10), descriptors())
    store = open_store(directory, record, POLICIES[0])
    world = World(store, capacity, seed, share, rate, workers)
    done = Churn(world, way, record)
    trainer = Trainer(world, directory, way, record)
    threads = [trainer, *(Worker(world, number) for number in range(workers))]
    for thread in threads:
        thread.start()
    try:
        while not world.over:
            time.sleep(0.2)
            if record.looks:
                tell(done)
    finally:
        world.stop()
        for thread in threads:
            thread.join(timeout=60)
    if not any(thread.is_alive() for thread in threads):  # after a fault one may wait for room
        world.store.close()
    return done


def main() -> int:
    words = argparse.ArgumentParser(prog="soak.store", description=__doc__)
    words.add_argument("--hours", type=float, default=2.0)
    words.add_argument("--turnovers", type=float, default=10.0, help="at least so many")
    words.add_argument("--capacity-gb", type=float, default=2.0)
    words.add_argument("--directory", type=Path, help="an empty one; a temporary one if not given")
    words.add_argument("--workers", type=int, default=3)
    words.add_argument("--share", type=float, default=0.0, help="of one core; 0: all there is")
    words.add_argument("--rate", type=float, default=0.0, help="MB a second appended; 0: any")
    words.add_argument("--seed", type=int, default=0)
    given = words.parse_args()
    told = [0.0]

    def tell(done: Churn) -> None:
        now = time.monotonic()
        if now - told[0] > (1 if sys.stdout.isatty() else 30):
            told[0] = now
            print(done.line(), end="\r" if sys.stdout.isatty() else "\n", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        directory = given.directory or Path(temporary) / "store"
        if directory.exists() and any(directory.iterdir()):
            words.error(f"--directory: expected an empty one, {directory} is not")
        done = churn(
            directory,
            capacity=int(given.capacity_gb * (1 << 30)),
            seconds=given.hours * 3600,
            turnovers=given.turnovers,
            workers=given.workers,
            share=given.share,
            rate=given.rate * 1e6,
            seed=given.seed,
            tell=tell,
        )
    print(done.table())
    faults = done.faults()
    print("\n".join(faults) or "nothing wrong, nothing grew")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
