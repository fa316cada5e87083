"""Speaks to a checkpoint engine over HTTP: the same calls, from the trainer's side of the pod."""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from k15core.errors import Error, InvalidInputError, ProcessDiedError

RETRY_SECONDS = 0.1


@dataclass(frozen=True)
class EngineState:
    """What GET /state says. `url` is the engine's own, `version` that of the weights it has.

    `incarnation` counts the processes that were started: where it has grown, streams of before are
    gone. `memory` is what the last release gave back: its `kind`, `held` before and `left` after.
    """

    phase: str
    goal: str
    since: float
    version: int | None
    directory: str | None
    pid: int | None
    url: str | None
    incarnation: int
    memory: dict[str, Any] | None
    last_error: str | None
    sidecar_pid: int


class CheckpointEngineClient:
    """Calls the checkpoint engine at `url`, such as `http://127.0.0.1:8300`.

    A call comes back when the engine is where it was to go, within `seconds`. While no sidecar
    answers, or one dies under a call, the call is made again for `patience` seconds: each may be
    made twice. Raises ProcessDiedError where no sidecar answers or the engine's process failed,
    InvalidInputError with the sidecar's words where it refuses.
    """

    def __init__(self, url: str, *, seconds: float = 3600.0, patience: float = 30.0) -> None:
        parts = urllib.parse.urlsplit(url)
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if parts.scheme != "http" or not host or port is None or parts.path.strip("/"):
            raise InvalidInputError(f"url = {url!r}: expected http://HOST:PORT")
        self.url, self._host, self._port = url, host, port
        self._seconds, self._patience = seconds, patience

    def state(self) -> EngineState:
        """Where the engine is now."""
        return EngineState(**self._call("GET", "state"))

    def is_healthy(self) -> bool:
        """Whether the sidecar and the engine's server answer."""
        try:
            return bool(self._call("GET", "health", patience=0)["engine_answers"])
        except Error:
            return False

    def start(self) -> EngineState:
        """Have the engine run, on whatever weights; nothing if it does."""
        return EngineState(**self._call("POST", "start"))

    def update(
        self, directory: str | Path | None, version: int, *, published: int | None = None
    ) -> EngineState:
        """Have it serve with the weights in `directory` (None: the sidecar's own) as `version`.

        `published` is the version by which they are published there; None takes what is there now.
        """
        body: dict[str, Any] = {"version": version}
        if directory is not None:
            body["directory"] = str(directory)
        if published is not None:
            body["published"] = published
        return EngineState(**self._call("POST", "update", body))

    def update_from(self, address: str, version: int) -> EngineState:
        """Have it serve, as `version`, with what a `WeightSender` of another node serves there."""
        body = {"address": address, "version": version}
        return EngineState(**self._call("POST", "update", body))

    def drain(self) -> EngineState:
        """Have it take no more requests, and wait for those under way."""
        return EngineState(**self._call("POST", "drain"))

    def release(self) -> EngineState:
        """Have it give its memory back: "stopped" or "asleep" afterwards."""
        return EngineState(**self._call("POST", "release"))

    def stop(self) -> EngineState:
        """End its process."""
        return EngineState(**self._call("POST", "stop"))

    def _call(
        self,
        method: str,
        name: str,
        body: dict[str, Any] | None = None,
        *,
        patience: float | None = None,
    ) -> dict[str, Any]:
        seconds = self._patience if patience is None else patience
        deadline: float | None = None
        while True:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=self._seconds)
            try:
                content = None if body is None else json.dumps(body)
                connection.request(method, f"/{name}", content, {"Connection": "close"})
                response = connection.getresponse()
                status, answer = response.status, json.loads(response.read())
                break
            except TimeoutError:
                raise ProcessDiedError(
                    f"the checkpoint engine at {self.url} did not answer /{name} in "
                    f"{self._seconds:g} s"
                ) from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                deadline = deadline or time.monotonic() + seconds
                if time.monotonic() >= deadline:
                    raise ProcessDiedError(
                        f"the checkpoint engine at {self.url} does not answer /{name} ({error}): "
                        "expected `k15 engine serve` to run there"
                    ) from error
                time.sleep(RETRY_SECONDS)
            finally:
                connection.close()
        if status == 200 or name == "health":
            return dict(answer)
        said = answer["error"]["message"]
        raise InvalidInputError(said) if status in (400, 404, 413) else ProcessDiedError(said)
