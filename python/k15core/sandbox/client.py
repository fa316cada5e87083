"""The sandbox of a daemon: the calls of `Sandbox`, over HTTP."""

from __future__ import annotations

import asyncio
import json
import random
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from k15core.errors import InvalidInputError, SandboxError
from k15core.sandbox.data import as_json, result_of
from k15core.sandbox.http import Connections, Reply
from k15core.sandbox.runs import Runs
from k15core.sandbox.session import Session
from k15core.sandbox.submission import Submission, as_submission
from k15core.types import RunResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from k15core.sandbox.limits import Limits

FIRST_DELAY, LONGEST_DELAY = 0.05, 5.0
"""Seconds before a request is sent again, the first time and at most."""
AGAIN = {503, 504}
"""Statuses of a daemon that is busy or about to be replaced."""


class Client(Runs):
    """Runs sources of untrusted programs in the daemon at `url`, as `Sandbox` does in this process.

    `url` is http://HOST:PORT or unix:PATH. At most `connections` requests are under way at once;
    their connections are kept. `token` is the daemon's, if it wants one. The daemon serves clients
    in turn: they are told apart by `name`, or else by where they connect from.

    A daemon that is busy, that is being started again or cannot be reached is asked again, with
    growing pauses of random length, for `patience` seconds; a run may then have taken place twice.
    `timeout` is how many seconds an answer may take. A SandboxError says that nothing is known
    about the program: it is never scored as wrong.

    All methods can be called from several threads at once.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        token: str | None = None,
        name: str | None = None,
        connections: int = 64,
        patience: float = 300.0,
        timeout: float = 600.0,
    ) -> None:
        if not isinstance(connections, int) or connections < 1:
            raise InvalidInputError(f"connections = {connections!r}: expected at least 1")
        for field, value in (("patience", patience), ("timeout", timeout)):
            if not 0 <= value <= 86_400:
                raise InvalidInputError(f"{field} = {value!r}: expected seconds, at most a day")
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if name is not None:
            headers["X-K15-Client"] = name
        self._url = url
        self._connections = Connections(url, headers, timeout=timeout)
        weakref.finalize(self, self._connections.close)
        self._patience = patience
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="k15-client")

    def run_many(self, jobs: Sequence[Submission | Mapping[str, Any]]) -> list[RunResult]:
        """See `Sandbox.run_many`: as many at once as there are connections."""
        return list(self._threads.map(self._run, [as_submission(job) for job in jobs]))

    async def run_many_async(
        self, jobs: Sequence[Submission | Mapping[str, Any]]
    ) -> list[RunResult]:
        """`run_many` without blocking the event loop."""
        runs = [partial(self._run, as_submission(job)) for job in jobs]
        return list(await asyncio.gather(*map(self._in_thread, runs)))

    def languages(self) -> dict[str, str]:
        """The daemon's languages by name, each with a sentence on what is missing for it."""
        found = self._ask("GET", "/v1/languages", b"")
        return {str(name): str(missing) for name, missing in found.items()}

    def session(
        self, *, lease_seconds: float | None = None, limits: Limits | None = None
    ) -> Session:
        """A sandbox that lives over several steps: a context manager that ends it.

        It ends `lease_seconds` after its last use (None: as the daemon has it). Steps are given
        `limits` where they ask for nothing else; the disk is that of the session.
        """
        return Session(self._ask, lease_seconds=lease_seconds, limits=limits)

    def close(self) -> None:
        """Let the connections go. Runs under way are waited for."""
        self._threads.shutdown()
        self._connections.close()

    def _executor(self) -> ThreadPoolExecutor:
        return self._threads

    def _run(self, submission: Submission) -> RunResult:
        body = json.dumps(as_json(submission)).encode()
        return result_of(self._ask("POST", "/v1/run", body))

    def _ask(self, method: str, path: str, body: bytes, *, once: bool = False) -> dict[str, Any]:
        """The answer, after as many tries as patience allows.

        With `once` only a request that the daemon says it has not begun is sent again.
        """
        end = time.monotonic() + self._patience
        delay = FIRST_DELAY
        while True:
            wait = delay
            try:
                reply = self._connections.request(method, path, body)
            except OSError as error:
                said = f"{self._url}: {error}"
                if once:
                    raise SandboxError(said) from error
            else:
                if reply.status not in AGAIN:
                    return self._read(reply)
                said = f"{self._url}: {reply.message()}"
                wait = max(wait, reply.retry_after)
            # Callers that were turned away together must not come back together.
            wait = min(wait, LONGEST_DELAY) * random.uniform(0.5, 1.5)
            if time.monotonic() + wait > end:
                raise SandboxError(f"{said} (for {self._patience:g} seconds)")
            time.sleep(wait)
            delay *= 2

    def _read(self, reply: Reply) -> dict[str, Any]:
        if reply.status == 200:
            found = reply.json()
            if isinstance(found, dict):
                return found
        if reply.status in (400, 404, 409, 413):
            raise InvalidInputError(reply.message())
        raise SandboxError(f"{self._url}: {reply.status}: {reply.message()}")
