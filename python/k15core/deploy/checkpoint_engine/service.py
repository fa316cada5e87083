"""The checkpoint engine over HTTP, with JSON bodies; docs/engines.md has the calls."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeGuard

from k15core.deploy.checkpoint_engine.engine import CheckpointEngine
from k15core.deploy.checkpoint_engine.state import State
from k15core.errors import InvalidInputError, ProcessDiedError

MAX_BODY = 1 << 20
CALLS = ("start", "update", "drain", "release", "stop")


Fetch = Callable[[str], int]
"""Brings what a `WeightSender` serves at an address into the service's directory of weights; the
version by which it is published there."""


class Service:
    """Serves `engine` at `host`:`port` (0: one that is free) once `serve` is called.

    `weights` is the directory that an update without one means. With `fetch` an update may name an
    address on another node instead.
    """

    def __init__(
        self,
        engine: CheckpointEngine,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        weights: str | None = None,
        fetch: Fetch | None = None,
    ) -> None:
        given = {
            "engine": engine,
            "weights": weights,
            "fetch": staticmethod(fetch) if fetch else None,
        }
        handler = type("Handler", (_Handler,), {**given, "fetching": threading.Lock()})
        self._server = ThreadingHTTPServer((host, port), handler)
        self._server.daemon_threads = True  # a call that waits must not hold up the end
        self.url = f"http://{host}:{self._server.server_address[1]}"

    def serve(self) -> None:
        """Answer until `shutdown` is called from another thread."""
        with self._server:
            self._server.serve_forever(poll_interval=0.1)

    def shutdown(self) -> None:
        """End `serve`."""
        self._server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    engine: CheckpointEngine
    weights: str | None
    fetch: Fetch | None
    fetching: threading.Lock
    protocol_version = "HTTP/1.1"
    timeout = 60  # between requests of a connection; a call may take longer

    def do_GET(self) -> None:
        """`/state` and `/health`."""
        if self.path == "/state":
            self._say(200, describe(self.engine.state()))
        elif self.path == "/health":
            state = self.engine.state()
            failed = state.phase == "failed"
            answer = {"phase": state.phase, "engine_answers": self.engine.is_healthy()}
            self._say(503 if failed else 200, answer)
        else:
            self._say(404, _error("InvalidInputError", f"{self.path}: expected /state or /health"))

    def do_POST(self) -> None:
        """`/start`, `/update`, `/drain`, `/release`, `/stop`."""
        length = self.headers.get("Content-Length", "0")
        if not length.isdigit() or int(length) > MAX_BODY:
            self.close_connection = True
            self._say(413, _error("InvalidInputError", f"a body of {length} bytes: {MAX_BODY} fit"))
            return
        content = self.rfile.read(int(length))
        try:
            self._say(200, describe(self._call(self.path.removeprefix("/"), content)()))
        except InvalidInputError as error:
            self._say(400, _error("InvalidInputError", str(error)))
        except ProcessDiedError as error:
            self._say(502, _error("ProcessDiedError", str(error)))
        except Exception as error:  # noqa: BLE001 - else the client takes the sidecar for dead
            self._say(500, _error(type(error).__name__, str(error)))

    def _call(self, name: str, content: bytes) -> Callable[[], State]:
        if name not in CALLS:
            raise InvalidInputError(f"/{name}: expected one of {', '.join(CALLS)}")
        try:
            body = json.loads(content) if content else {}
        except ValueError as error:
            raise InvalidInputError(f"the body: expected JSON: {error}") from None
        fields = {"directory", "version", "published", "address"} if name == "update" else set()
        if not isinstance(body, dict) or not body.keys() <= fields:
            words = "an object of directory, version, published, or of address and version"
            expected = words if fields else "none, or {}"
            raise InvalidInputError(f"the body of /{name}: expected {expected}")
        if name != "update":
            method: Callable[[], State] = getattr(self.engine, name)
            return method
        directory, version = body.get("directory", self.weights), body.get("version")
        published = body.get("published")
        if not isinstance(directory, str) or not directory.startswith("/"):
            raise InvalidInputError(f"directory = {directory!r}: expected an absolute path")
        if not _is_count(version):
            raise InvalidInputError(f"version = {version!r}: expected a count, at least 0")
        if published is not None and not _is_count(published):
            raise InvalidInputError(f"published = {published!r}: expected a count, at least 0")
        if "address" in body:
            return self._update_from(body, directory, version)
        return lambda: self.engine.update(directory, version, published=published)

    def _update_from(
        self, body: dict[str, Any], directory: str, version: int
    ) -> Callable[[], State]:
        """An update with weights of another node, once they are in this one's memory."""
        address, fetch = body["address"], self.fetch
        if body.keys() - {"address", "version"} or not isinstance(address, str):
            raise InvalidInputError(
                f"address = {address!r}: expected text, without directory and published beside it"
            )
        if fetch is None:
            raise InvalidInputError(
                f"address = {address!r}: this sidecar fetches nothing, expected it to be served "
                "with --fetch-host"
            )

        def update() -> State:
            with self.fetching:
                published = fetch(address)
            return self.engine.update(directory, version, published=published)

        return update

    def _say(self, status: int, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing: states are told by the observer."""


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0


def describe(state: State) -> dict[str, Any]:
    """A state as it is answered. `version` is that of the weights it serves with, else null."""
    return {
        "phase": state.phase,
        "goal": state.goal,
        "since": state.since,
        "version": state.loaded if state.phase in ("serving", "draining", "drained") else None,
        "directory": state.directory,
        "pid": state.process.pid if state.process else None,
        "url": state.url if state.process else None,
        "incarnation": state.incarnation,
        "memory": asdict(state.memory) if state.memory else None,
        "last_error": state.last_error,
        "sidecar_pid": os.getpid(),
    }


def _error(kind: str, message: str) -> dict[str, Any]:
    return {"error": {"kind": kind, "message": message}}
