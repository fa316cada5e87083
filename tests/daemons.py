"""A daemon for tests: started, spoken to, and ended."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openapi
import pytest
from sandboxes import need
from slowness import SLOW

from k15core.sandbox import Client
from k15core.sandbox.http import UnixConnection
from k15core.sandbox.local import DAEMON

START = 60 * SLOW
"""Seconds that a daemon may take to start and to stop."""


class Daemon:
    """A daemon's process with what it logs."""

    def __init__(self, *arguments: str, listen: str = "127.0.0.1:0") -> None:
        command = [str(DAEMON), "--listen", listen, *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.log: list[dict[str, Any]] = []
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.wait_for("listening")

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.said += line
                if line.startswith("{"):
                    self.log.append(json.loads(line))

    def wait_for(self, event: str) -> dict[str, Any]:
        deadline = time.monotonic() + START
        while True:
            for line in list(self.log):
                if line["event"] == event:
                    return line
            assert time.monotonic() < deadline, self.said
            assert self.process.poll() is None or self._reader.is_alive(), self.said
            time.sleep(0.01)

    @property
    def address(self) -> str:
        return str(self.wait_for("listening")["address"])

    @property
    def url(self) -> str:
        return self.address if self.address.startswith("unix:") else f"http://{self.address}"

    def connect(self) -> http.client.HTTPConnection:
        if self.address.startswith("unix:"):
            return UnixConnection(self.address.removeprefix("unix:"), timeout=START)
        return http.client.HTTPConnection(self.address, timeout=START)

    def ask(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """The status, and the body: what its JSON says, or text. The OpenAPI document has it."""
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = self.connect()
        try:
            connection.request(method, path, content, headers or {})
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        openapi.check_answer(method, path, response.status, response.headers, text)
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text

    def gauge(self, name: str) -> float:
        """A metric's value, by its name with its labels; 0 before anything was counted."""
        lines = self.ask("GET", "/metrics")[1].splitlines()
        found = [line for line in lines if line.startswith(f"k15_sandboxd_{name} ")]
        return float(found[0].split()[-1]) if found else 0.0

    def wait_until_gauge(self, name: str, value: float) -> None:
        deadline = time.monotonic() + START
        while self.gauge(name) != value:
            assert time.monotonic() < deadline, (name, self.gauge(name))
            time.sleep(0.01)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        self.process.kill()
        self.wait()

    def wait(self) -> int:
        code = self.process.wait(START)
        self._reader.join(START)
        requests = [line for line in self.log if line["event"] == "request"]
        assert openapi.undocumented(requests) == set()
        return code


def need_daemon() -> None:
    """Skip the test, saying why, where no daemon can run."""
    need()
    if not DAEMON.is_file():
        pytest.skip(f"{DAEMON.name} is missing: bash scripts/build_daemon.sh")


@contextmanager
def daemon(*arguments: str, settings: str = "", home: Path | None = None) -> Iterator[Daemon]:
    """A daemon with these settings, which are written into `home`."""
    need_daemon()
    words: Sequence[str] = arguments
    if settings:
        assert home is not None
        (home / "sandboxd.toml").write_text(settings)
        words = ["--config", str(home / "sandboxd.toml"), *arguments]
    running = Daemon(*words)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.kill()


@contextmanager
def client_of(running: Daemon, **options: Any) -> Iterator[Client]:
    with Client(running.url, **options) as client:
        yield client
