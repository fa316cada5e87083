"""kill -9 of clients and of the server: what was acknowledged is there, once, whole."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nursery import Ear, Nursery, nursery, wait_until
from store_writer import OPTIONS
from test_store_crash import Acknowledged

from k15core import SharedStore, Store

CLIENT_KILLS = 60
SERVER_KILLS = 40
LINES = 20
"""Acknowledged calls between two kills, on average."""
MANY = 1 << 20


class Cast:
    """A server, and clients whose words go into files that outlive them."""

    def __init__(self, home: Path, mother: Nursery) -> None:
        self.home, self.mother = home, mother
        self.directory, self.socket = home / "store", home / "socket"
        self.clients: dict[str, int] = {}
        self.born = 0
        self.ear, self.said, self.lines = Ear(home), Acknowledged(), 0
        self.server = 0
        self.start_server()

    def start_server(self) -> None:
        self.born += 1
        said = self.home / f"server-{self.born}.open"
        words = ("store_served", "serve", self.directory, self.socket)
        self.server = self.mother.start(said, *words)
        wait_until(lambda: said.exists() and said.read_text() == "open\n")

    def start_client(self, role: str) -> None:
        self.born += 1
        name = f"{role}-{self.born}"
        said = self.home / f"{name}.said"
        self.clients[name] = self.mother.start(said, "store_served", role, self.socket, self.born)
        wait_until(lambda: said.exists() and said.read_text() != "")

    def listen(self) -> int:
        """Hear what clients said; how many lines they have said by now."""
        said = self.ear.listen()
        self.said.hear(said)
        self.lines += said.count("\n")
        return self.lines

    def wait_for_lines(self, n: int) -> None:
        """Let the clients do n acknowledged calls more: an amount of work, not of time."""
        wanted = self.listen() + n
        wait_until(lambda: self.listen() >= wanted)

    def kill_client(self, name: str) -> None:
        self.mother.kill(self.clients.pop(name))

    def kill_server(self) -> None:
        self.mother.kill(self.server)

    def check(self, store: Store, most_in_flight: int = 0) -> int:
        """Everything that was acknowledged is there; how many trajectories that was."""
        self.listen()
        return self.said.check(store, most_in_flight or self.born)


@contextmanager
def cast(home: Path) -> Iterator[Cast]:
    with nursery("store_served") as mother:
        found = Cast(home, mother)
        for role in ("work", "work", "work", "read"):
            found.start_client(role)
        yield found


def test_killed_clients_lose_nothing_and_hold_nothing(tmp_path: Path) -> None:
    rng = random.Random(5)
    with cast(tmp_path) as found:
        for _ in range(CLIENT_KILLS):
            found.wait_for_lines(rng.randint(1, 2 * LINES))
            time.sleep(rng.uniform(0, 0.005))
            name = rng.choice(list(found.clients))
            found.kill_client(name)
            found.start_client(name.split("-")[0])
        for name in list(found.clients):
            found.kill_client(name)
        with SharedStore(found.socket) as store:
            # Leases of the dead are over at once, whatever their deadlines (1e9 seconds).
            leased: list[int] = []

            def all_are_free() -> bool:
                leases = store.lease(1000, now=0, duration=1e9)
                leased.extend(lease.trajectory_id for lease in leases)
                return len(leased) == store.unfinished()

            wait_until(all_are_free)
            checked = found.check(store)
        found.kill_server()
        with Store(found.directory, **OPTIONS) as store:
            assert found.check(store) == checked > 0
        print(f"{CLIENT_KILLS} clients killed, {found.lines} acknowledged calls")


def test_killed_servers_lose_nothing(tmp_path: Path) -> None:
    rng = random.Random(6)
    with cast(tmp_path) as found:
        clients = set(found.clients)
        for _ in range(SERVER_KILLS):
            found.wait_for_lines(rng.randint(1, 2 * LINES))
            time.sleep(rng.uniform(0, 0.005))
            found.kill_server()
            found.start_server()
            with SharedStore(found.socket) as store:
                assert store.recovery_report()["files"] > 0
                found.check(store, most_in_flight=MANY)  # clients go on meanwhile
        assert set(found.clients) == clients, "they went on with each new server"
        for name in list(found.clients):
            found.kill_client(name)
        with SharedStore(found.socket) as store:
            assert found.check(store) > 0
        print(f"{SERVER_KILLS} servers killed, {found.lines} acknowledged calls")
