"""Many runs in a row with known verdicts, while slots are killed at random: `make soak`.

No verdict may be wrong or missing, and nothing may grow: processes, mounts, cgroups, descriptors,
memory. `soak()` is what tests/integration/test_soak.py runs for a moment.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from k15core.errors import SandboxError
from k15core.sandbox import Limits, Sandbox
from soak.endings import ENDINGS, Ending
from soak.host import COUNTED, count, kill_one

KILL_EVERY = 0.4
"""Seconds between kills, on average."""
MOST_KILLS = 2
"""How many kills one run may be under way at: one that loses three slots in a row has no verdict.

Without this bound some do: a run that ends at its memory limit takes 0.1 s, and a new slot 0.05 s,
on a busy machine."""
GROWTH = 16 << 10
"""KiB by which this process's memory may grow after the first tenth: a leak of 0.2 KiB a run."""


@dataclass
class Soak:
    """What came of it."""

    runs: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    under_way: dict[int, int] = field(default_factory=dict)
    """The runs that are, each with the kills that there were meanwhile."""
    met: Counter[int] = field(default_factory=Counter)
    """How many runs were under way at how many kills."""
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """What was counted, by when: `before`, `a tenth`, `all`, `after`."""
    seconds: float = 0.0

    def faults(self) -> list[str]:
        """What was not as it should be, in words."""
        found = self.wrong[:20]
        before, tenth, last, after = self.counts.values()
        for name in COUNTED:
            if last[name] > tenth[name]:
                found.append(f"{name} grew from {tenth[name]} to {last[name]}")
            if after[name] > before[name]:
                found.append(f"{name}: {after[name]} after closing, {before[name]} before")
        if last["resident"] > tenth["resident"] + GROWTH:
            found.append(f"memory grew from {tenth['resident']} to {last['resident']} KiB")
        return found


def soak(
    runs: int,
    *,
    runner: str,
    slots: int,
    seed: int,
    tell: Callable[[Soak], None],
    least_kills: int = 0,
    kill_every: float = KILL_EVERY,
    endings: Sequence[Ending] = ENDINGS,
) -> Soak:
    """Make `runs` runs in `slots` slots of `runner`, and more until there were so many kills.

    `tell` is called now and then.
    """
    done = Soak()
    with tempfile.TemporaryDirectory() as folder:
        shown = Path(folder) / "soak"  # the folder itself is its owner's alone
        shown.mkdir(mode=0o755)
        source = Path(__file__).with_name("program.c")
        subprocess.run(["gcc", "-O1", "-static", "-o", shown / "program", source], check=True)
        done.counts["before"] = count()
        start = time.monotonic()
        with Sandbox(runner=runner, slots=slots, binds={"/soak": shown}) as sandbox:
            for upto, kills, when in [(runs // 10, 0, "a tenth"), (runs, least_kills, "all")]:
                killer = Killer(done, kill_every, random.Random(f"{seed} kills {upto}"))
                work_until(upto, kills, sandbox, killer, endings, seed, tell)
                fill(sandbox, slots)
                done.counts[when] = count()
        done.seconds = time.monotonic() - start
    done.counts["after"] = count()
    return done


def work_until(
    upto: int,
    least_kills: int,
    sandbox: Sandbox,
    killer: Killer,
    endings: Sequence[Ending],
    seed: int,
    tell: Callable[[Soak], None],
) -> None:
    done, lock = killer.done, killer.lock
    weights = [ending.weight for ending in endings]

    def work() -> None:
        while True:
            with lock:
                number = done.runs
                if number >= upto and sum(done.kills.values()) >= least_kills:
                    return
                done.runs += 1
                done.under_way[number] = 0
            (ending,) = random.Random(f"{seed} {number}").choices(endings, weights)
            fault = run(sandbox, ending, number)
            with lock:
                done.met[done.under_way.pop(number)] += 1
                done.endings[ending.name] += 1
                done.wrong += [fault] if fault else []

    workers = [threading.Thread(target=work) for _ in range(sandbox.slots)]
    for thread in [*workers, killer]:
        thread.start()
    for thread in workers:
        while thread.is_alive():
            thread.join(timeout=1)
            tell(done)
    killer.over.set()
    killer.join()


class Killer(threading.Thread):
    """Kills what slots are made of, no oftener than leaves every run a slot to end in."""

    def __init__(self, done: Soak, every: float, draws: random.Random) -> None:
        super().__init__()
        self.done, self.every, self.draws = done, every, draws
        self.lock, self.over = threading.Lock(), threading.Event()

    def run(self) -> None:
        while not self.over.wait(self.draws.expovariate(1 / self.every)):
            with self.lock:  # no run begins meanwhile: it is known which ones this kill meets
                if max(self.done.under_way.values(), default=0) == MOST_KILLS:
                    continue
                if name := kill_one(self.draws):
                    self.done.kills[name] += 1
                    for number in self.done.under_way:
                        self.done.under_way[number] += 1


def run(sandbox: Sandbox, ending: Ending, number: int) -> str:
    """One run; what is wrong with its result, or ""."""
    word = str(number)
    try:
        result = sandbox.execute(
            ["/soak/program", ending.name, word],
            stdin=word.encode() if ending.reads else b"",
            fetch=["made"] if ending.makes else [],
            limits=ending.limits,
        )
    except SandboxError as error:
        return f"{ending.name} {number}: no verdict: {error}"
    return "" if ending.fits(result, number, word) else f"{ending.name} {number}: {result}"


def fill(sandbox: Sandbox, slots: int) -> None:
    """Have every slot open: those that were killed are replaced when they are needed."""
    limits = Limits(wall_seconds=1)
    arguments = ["/soak/program", "sleep", "."]
    for _ in range(2):  # so long that no slot takes two
        threads = [
            threading.Thread(target=sandbox.execute, args=(arguments,), kwargs={"limits": limits})
            for _ in range(slots)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def table(done: Soak) -> str:
    rate = done.runs / done.seconds
    lines = [f"{done.runs:,} runs in {done.seconds:.0f} s, {rate:,.0f} a second"]
    verdicts = {ending.name: ending.verdict for ending in ENDINGS}
    lines += [f"  {name:8} {done.endings[name]:7,}  {verdicts[name]}" for name in verdicts]
    kills = ", ".join(f"{number} {name}s" for name, number in sorted(done.kills.items()))
    lines.append(f"killed meanwhile: {kills or 'nothing'}")
    met = (f"{done.met[number]:,} at {number}" for number in range(MOST_KILLS + 1))
    lines.append(f"runs by the kills that they were under way at: {', '.join(met)}")
    lines.append(f"wrong or missing: {len(done.wrong)}")
    lines.append(" " * 18 + "".join(f"{when:>10}" for when in done.counts))
    for name in (*COUNTED, "resident"):
        lines.append(f"  {name:16}" + "".join(f"{one[name]:10,}" for one in done.counts.values()))
    return "\n".join(lines)


def main() -> int:
    words = argparse.ArgumentParser(prog="soak", description=__doc__)
    words.add_argument("--runs", type=int, default=100_000)
    words.add_argument("--runner", default="direct")
    words.add_argument("--slots", type=int, default=8)
    words.add_argument("--seed", type=int, default=0)
    given = words.parse_args()
    start, told = time.monotonic(), [0.0]

    def tell(done: Soak) -> None:
        now = time.monotonic()
        if now - told[0] > (0.5 if sys.stdout.isatty() else 10):
            told[0] = now
            kills, rate = sum(done.kills.values()), done.runs / (now - start)
            line = f"{done.runs:,} of {given.runs:,} runs, {rate:,.0f} a second, {kills} kills,"
            end = "\r" if sys.stdout.isatty() else "\n"
            print(f"{line} {len(done.wrong)} wrong", end=end, flush=True)

    done = soak(given.runs, runner=given.runner, slots=given.slots, seed=given.seed, tell=tell)
    print(table(done))
    faults = done.faults()
    print("\n".join(faults) or "nothing wrong, nothing grew")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
