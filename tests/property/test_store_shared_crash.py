"""kill -9 of clients and of the server: what was acknowledged is there, once, whole."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import store_served
from store_writer import OPTIONS, log_probs_of, tokens_of
from test_store_crash import Acknowledged

from k15core import SharedStore, Store
from k15core.errors import InvalidInputError


class Cast:
    """A server, and clients whose words go into files that outlive them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.directory, self.socket = home / "store", home / "socket"
        self.clients: dict[str, subprocess.Popen[str]] = {}
        self.born = 0
        self.server = self.start_server()

    def start_server(self) -> subprocess.Popen[str]:
        server = self.start("serve", self.directory, self.socket, stdout=subprocess.PIPE)
        assert server.stdout is not None
        assert server.stdout.readline() == "open\n"
        return server

    def start(self, *words: object, stdout: object) -> subprocess.Popen[str]:
        command = [sys.executable, store_served.__file__, *map(str, words)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, text=True)

    def start_client(self, role: str) -> None:
        self.born += 1
        name = f"{role}-{self.born}"
        with (self.home / f"{name}.said").open("w") as said:
            self.clients[name] = self.start(role, self.socket, self.born, stdout=said)

    def said(self) -> str:
        """All that was acknowledged by now; a line that is being written is not yet said."""
        texts = [path.read_text() for path in self.home.glob("*.said")]
        return "".join(text[: text.rfind("\n") + 1] for text in texts)

    def kill_client(self, name: str) -> None:
        with self.clients.pop(name) as client:
            assert client.poll() is None, f"{name} ended by itself"
            client.kill()

    def kill_server(self) -> None:
        with self.server as server:
            server.kill()

    def wait_until_all_are_at_work(self) -> None:
        self.wait_until(
            lambda: all((self.home / f"{name}.said").read_text() for name in self.clients)
        )

    def wait_for_lines(self, n: int) -> None:
        """Let the clients do n acknowledged calls more: an amount of work, not of time."""
        wanted = self.said().count("\n") + n
        self.wait_until(lambda: self.said().count("\n") >= wanted)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@contextmanager
def cast(home: Path) -> Iterator[Cast]:
    found = Cast(home)
    try:
        yield found
    finally:
        for name in list(found.clients):
            found.kill_client(name)
        if found.server.poll() is None:
            with found.server:
                found.server.communicate("")


def check(cast: Cast, store: Store) -> int:
    """Everything that was acknowledged is there; how many trajectories that was.

    A response may be longer than what was acknowledged by what was on its way when clients died.
    """
    said = Acknowledged()
    said.hear(cast.said())
    checked = 0
    complete = store.complete_groups()
    for who, prompt_length in said.prompts.items():
        with contextlib.suppress(InvalidInputError):  # used up, and let go of
            view = store.trajectory(who)
            checked += 1
            length = len(view["tokens"])
            assert len(view["prompt_tokens"]) == prompt_length
            assert length >= said.lengths[who]
            np.testing.assert_array_equal(view["tokens"], tokens_of(who, 0, length))
            np.testing.assert_array_equal(view["log_probs"], log_probs_of(view["tokens"]))
            assert who not in said.finished or view["finish_reason"] == "stop"
            assert who not in said.rewards or view["reward"] == said.rewards[who]
            assert who not in said.used or view["group_id"] not in complete
            continue
        assert who in said.finished
    return checked


def test_killed_clients_lose_nothing_and_hold_nothing(tmp_path: Path) -> None:
    rng = random.Random(5)
    with cast(tmp_path) as found:
        for role in ("work", "work", "work", "read"):
            found.start_client(role)
        found.wait_until_all_are_at_work()
        for _ in range(12):
            found.wait_for_lines(rng.randint(1, 60))
            time.sleep(rng.uniform(0, 0.02))
            name = rng.choice(list(found.clients))
            found.kill_client(name)
            found.start_client(name.split("-")[0])
            found.wait_until_all_are_at_work()
        for name in list(found.clients):
            found.kill_client(name)
        with SharedStore(found.socket) as store:
            # Leases of the dead are over at once, whatever their deadlines (1e9 seconds).
            deadline = time.monotonic() + 30
            free = 0
            while free < store.unfinished():
                assert time.monotonic() < deadline
                free += len(store.lease(1000, now=0, duration=1e9))
                time.sleep(0.01)
            checked = check(found, store)
    with Store(tmp_path / "store", **OPTIONS) as store:
        assert check(found, store) == checked > 0


def test_a_killed_server_loses_nothing(tmp_path: Path) -> None:
    rng = random.Random(6)
    with cast(tmp_path) as found:
        for role in ("work", "work", "work", "read"):
            found.start_client(role)
        found.wait_until_all_are_at_work()
        clients = set(found.clients)
        for _ in range(12):
            found.wait_for_lines(rng.randint(1, 60))
            time.sleep(rng.uniform(0, 0.02))
            found.kill_server()
            acknowledged = Acknowledged()
            acknowledged.hear(found.said())
            found.server = found.start_server()
            with SharedStore(found.socket) as store:
                assert store.recovery_report()["files"] > 0
                for who, length in acknowledged.lengths.items():
                    with contextlib.suppress(InvalidInputError):  # used up meanwhile
                        assert len(store.trajectory(who)["tokens"]) >= length
        assert set(found.clients) == clients, "they went on with each new server"
        for name in list(found.clients):
            found.kill_client(name)
        with SharedStore(found.socket) as store:
            assert check(found, store) > 0
