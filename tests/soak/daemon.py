"""A daemon under more load than it bears, and one that is killed often: `make soak-daemon`.

`overload()` sends ten times what the slots can run. `kills()` kills the daemon under the load of a
few clients and starts it again on the same socket; nothing may stay behind, and every run gets its
answer. With --verl PYTHON, an interpreter that has verl, verl's client asks with twice as many
requests at once as the daemon can hold: no right program may be scored as wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from daemons import Daemon, client_of, daemon
from overload import (
    Load,
    await_idle,
    descriptors,
    flood,
    resident,
    waited_longer,
)
from sandboxes import groups, registry, run_processes, wait_until

SLOTS = 8
SETTLED = 10.0
"""Seconds of the flood after which memory may not grow any more: the queue is then full."""
GROWTH = 16 << 10
"""KiB by which it may all the same."""
START_WITHIN, BUCKET = 8.0, 8.192
"""Seconds by which a request must have started, and the bucket of the metrics that ends there."""
HELD = 1.0
"""Seconds after which a 504 did not come at once."""
SLEEP = 0.5
"""Seconds that a program takes: slots are what is scarce, not the processors of who asks."""


def overload(seconds: float, home: Path) -> list[str]:
    """Ten times the sustainable load; what was not as it should be."""
    settings = f"log_requests = false\n[sandbox]\nslots = {SLOTS}\n"
    with daemon(settings=settings, home=home) as it, client_of(it) as client:
        asyncio.run(flood(it, SLOTS / SLEEP, 4, clients=1, sleep=SLEEP))
        await_idle(it)
        before = descriptors(it)
        opened = it.gauge('slots{state="open"}')
        settled: list[int] = []
        timer = threading.Timer(min(SETTLED, seconds / 2), lambda: settled.append(resident(it)))
        timer.start()
        load = asyncio.run(flood(it, 10 * SLOTS / SLEEP, seconds, clients=4, sleep=SLEEP))
        timer.join()
        last = resident(it)
        await_idle(it)
        late = waited_longer(it, BUCKET)
        report(load, seconds, late, settled[0], last)
        found = faults_of(load, late)
        if last > settled[0] + GROWTH:
            found.append(f"memory grew from {settled[0]} to {last} KiB")
        if (now := it.gauge('slots{state="open"}')) != opened:
            found.append(f"{now} slots are open, {opened} were")
        if client.run("print(1)", language="python").stdout != b"1\n":
            found.append("no run after it")
        client.close()
        if not wait_until(lambda: descriptors(it) <= before, seconds=20):
            found.append(f"{descriptors(it)} descriptors, {before} before")
        return found


def report(load: Load, seconds: float, late: int, settled: int, last: int) -> None:
    answers = ", ".join(f"{count:,} {answer}" for answer, count in load.answers.items())
    print(f"overload: {load.sent:,} requests in {seconds:g} s: {answers}")
    print(f"  {late} started late; {load.held_in_vain(HELD)} of the 504 were held first")
    print(f"  memory: {settled:,} KiB with the queue full, {last:,} at the end", flush=True)


def faults_of(load: Load, late: int) -> list[str]:
    found = load.wrong[:10]
    if set(load.answers) != {"200", "504"} or sum(load.answers.values()) != load.sent:
        found.append(f"answers: {load.answers}")
    if late:
        found.append(f"{late} requests started late")
    if (vain := load.held_in_vain(HELD)) > len(load.refused_after) / 20:
        found.append(f"{vain} of {len(load.refused_after)} were held before they were refused")
    return found


class Askers:
    """Clients that have runs made, one after the other, and look at what comes back."""

    def __init__(self, it: Daemon, count: int) -> None:
        self.answered = 0
        self.wrong: list[str] = []
        self._over = threading.Event()
        self._clients = [
            threading.Thread(target=self._ask, args=(it, number)) for number in range(count)
        ]
        for thread in self._clients:
            thread.start()

    def _ask(self, it: Daemon, client_number: int) -> None:
        number = 0
        with client_of(it, patience=600) as client:
            while not self._over.is_set():
                word = f"{client_number}-{number}"
                code = f"import time; time.sleep(0.02); print({word!r})"
                result = client.run(code, language="python")
                if (result.verdict, result.stdout.decode()) != ("ok", f"{word}\n"):
                    self.wrong.append(f"{word}: {result}")
                self.answered += 1
                number += 1

    def await_more(self, runs: int) -> bool:
        """An amount of work, not of time: on a slow machine, too, they have their runs."""
        target = self.answered + runs
        return wait_until(lambda: self.answered >= target, seconds=120)

    def stop(self) -> None:
        self._over.set()
        for thread in self._clients:
            thread.join()


def kills(times: int, home: Path) -> list[str]:
    """Kill and restart a daemon under load; what was left behind, and what went wrong."""
    address = f"unix:{home}/socket"
    draws, killed = random.Random(times), list[int]()
    before = left_on_host()
    it = Daemon("--slots", "2", listen=address)
    askers = Askers(it, 6)
    for _ in range(times):
        if not askers.await_more(draws.randrange(1, 12)):
            askers.wrong.append(f"clients did not recover: {askers.answered} runs")
            break
        killed.append(it.process.pid)
        it.kill()
        it = Daemon("--slots", "2", listen=address)
    askers.stop()
    found = askers.wrong
    if (code := it.stop()) != 0:
        found.append(f"the last daemon ended with {code}")
    for pid in [*killed, it.process.pid]:
        if not wait_until(lambda pid=pid: not left_by(pid), seconds=20):
            found.append(f"left by {pid}: {left_by(pid)}")
    if more := left_on_host() - before:
        found.append(f"left: {sorted(more)}")
    if (home / "socket").exists():
        found.append("the socket is still there")
    print(f"kills: {len(killed)}; {askers.answered} runs of 6 clients had their answers")
    return found


def left_on_host() -> set[str]:
    """Mounts and temporary directories that are ours by their names."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    own = {line.split()[4] for line in mounts if "k15" in line.split()[4]}
    return own | {str(path) for path in Path(tempfile.gettempdir()).glob("k15core*")}


def left_by(pid: int) -> list[str]:
    """What a daemon that is gone has left: processes, cgroups, entries of its pools."""
    entries = [*groups(pid), *registry().glob(f"k15core-{pid}-*")]
    return run_processes(pid) + [str(each) for each in entries]


def verl(python: str, seconds: float, home: Path) -> list[str]:
    """verl's client with twice the sustainable load; what it scored as wrong."""
    settings = f"log_requests = false\n[sandbox]\nslots = {SLOTS}\n"
    script = Path(__file__).with_name("verl_load.py")
    with daemon(settings=settings, home=home) as it:

        def ask(clients: int, seconds: float) -> dict[str, float]:
            words = [python, str(script), f"{it.url}/run_code", str(clients), str(seconds)]
            done = subprocess.run([*words, str(SLEEP)], check=True, capture_output=True)
            return dict(json.loads(done.stdout))

        alone = ask(2 * SLOTS, 10)
        rate = alone["scored"] / alone["seconds"]
        clients = round(2 * START_WITHIN * rate)
        done = ask(clients, seconds)
        print(f"verl: {rate:.1f} runs a second; {clients} requests at once: {done}")
    return [f"verl scored {done['wrong']} right programs as wrong"] if done["wrong"] else []


def main() -> int:
    words = argparse.ArgumentParser(prog="soak.daemon", description=__doc__)
    words.add_argument("--seconds", type=float, default=60)
    words.add_argument("--kills", type=int, default=50)
    words.add_argument("--verl", metavar="PYTHON", help="an interpreter that has verl")
    given = words.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as home:
        found += overload(given.seconds, Path(home))
        found += kills(given.kills, Path(home))
        if given.verl:
            found += verl(given.verl, given.seconds, Path(home))
    print("\n".join(found) or "nothing late, nothing lost, nothing left")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
