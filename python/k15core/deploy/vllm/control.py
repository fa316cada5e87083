"""vLLM's HTTP control calls: health, weights, pause, sleep. Blocking, by the standard library.

The paths are those of vLLM 0.32.0 with VLLM_SERVER_DEV_MODE=1 (`entrypoints/rl/online` and
`entrypoints/serve/dev` of the package). They let anybody who reaches the port change the model:
bind it where only the trainer's machines are.
"""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from k15core.deploy.vllm.arguments import UNKNOWN, version_of
from k15core.errors import Error, InvalidInputError, ProcessDiedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class VllmControl:
    """Calls to one server at `url`. `seconds` is how long a call may take."""

    def __init__(self, url: str, *, seconds: float = 600.0) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise InvalidInputError(f"url = {url!r}: expected http://HOST:PORT")
        self.url = url.rstrip("/")
        self.host, self.port = parts.hostname, parts.port or 80
        self.seconds = seconds

    def is_healthy(self, *, seconds: float = 5.0) -> bool:
        """Whether it answers, and its engine lives."""
        try:
            self.call("GET", "/health", seconds=seconds)
        except Error:
            return False
        return True

    def version(self) -> int | None:
        """Of the weights that it samples with, as its engine core reports it; None for weights that
        nobody named: dummy ones, or those of an update that did not end."""
        return version_of(self.call("GET", "/weight_info")["weight_version"])

    def update_weights(
        self, directory: str | Path, version: int, *, published: int | None = None
    ) -> None:
        """Load weights from shared memory into every worker and call them `version`.

        Requests that run are aborted, and no KV block of older weights is left. `published` is what
        the directory's manifest must say, None takes what is there. Raises InvalidInputError where
        vLLM could not load them; it then has weights without a version, and waits for others.
        """
        self.call("POST", "/pause", query={"mode": "abort"})
        self.forget_version()
        self.call("POST", "/start_weight_update")
        info = {"directory": str(directory), "version": published}
        self.call("POST", "/update_weights", {"update_info": info})
        self.call("POST", "/finish_weight_update", {})
        if not self.call("POST", "/reset_prefix_cache")["success"]:
            raise Error(f"vLLM at {self.url} kept KV blocks of older weights")
        self.name_version(version)
        self.call("POST", "/resume")

    def name_version(self, version: int) -> None:
        """Say what the weights are that it has loaded by itself."""
        self.call("POST", "/update_weight_version", {"new_version": str(version)})

    def forget_version(self) -> None:
        """From now on its weights have no version."""
        self.call("POST", "/update_weight_version", {"new_version": UNKNOWN})

    def drain(self, *, wait: bool = False) -> None:
        """Take no more requests. Those that run are ended (their tokens so far have been sent), or
        waited for. Prefix cache and KV blocks are dropped."""
        self.call("POST", "/pause", query={"mode": "wait" if wait else "abort"})

    def resume(self) -> None:
        """Take requests again after `drain`."""
        self.call("POST", "/resume")

    def sleep(self) -> None:
        """Give the memory of weights and KV cache back (level 2; a CPU keeps it)."""
        self.drain()
        self.forget_version()
        self.call("POST", "/sleep", query={"level": "2"})

    def wake(self) -> None:
        """Take the memory again. The weights are without content until the next update."""
        self.call("POST", "/wake_up")

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, str] | None = None,
        seconds: float | None = None,
    ) -> Any:
        """One call; its JSON answer, or None.

        Raises ProcessDiedError where nobody answers, InvalidInputError, with vLLM's words, where it
        refuses.
        """
        where = path + (f"?{urlencode(query)}" if query else "")
        connection = http.client.HTTPConnection(
            self.host, self.port, timeout=self.seconds if seconds is None else seconds
        )
        content = None if body is None else json.dumps(body)
        try:
            connection.request(method, where, content, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ProcessDiedError(
                f"vLLM at {self.url} does not answer {method} {path}: {error!r}"
            ) from error
        finally:
            connection.close()
        if answer.status != 200:
            raise InvalidInputError(
                f"vLLM at {self.url} answers {method} {path} with {answer.status}: "
                f"{text.decode(errors='replace')[:500]}"
            )
        return json.loads(text) if text else None
