"""Who keeps the vLLM server that an engine samples with: this process, somebody else, a sidecar."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from k15core.deploy.checkpoint_engine import CheckpointEngineClient
from k15core.deploy.vllm.control import VllmControl
from k15core.deploy.vllm.server import VllmServer
from k15core.errors import InvalidInputError, ProcessDiedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from k15core.deploy.mooncake import WeightSender
    from k15core.deploy.vllm.program import VllmProgram

PATIENCE = 30.0
"""Seconds in which a sidecar that died is replaced."""

Release = Literal["sleep", "restart"]


class Owner(Protocol):
    """What an engine asks of whoever keeps the server. Raises ProcessDiedError where it died."""

    def acquire(self) -> VllmControl:
        """Have it run with the device's memory, on whatever weights; how it is spoken to."""
        ...

    def update(self, directory: Path, version: int, published: int) -> VllmControl:
        """Have it load the published version of a directory, to be called `version`."""
        ...

    def release(self) -> None:
        """Have it give the device's memory back."""
        ...

    def close(self) -> None:
        """End it, where it is ours to end."""
        ...


class OwnServer:
    """A server that this process starts, and that ends with it.

    It is started as `first` says, and again as `later` says: on dummy weights, since others come.
    `release` "sleep" keeps the process without its memory (a CPU keeps that too), "restart" ends
    it. Its log goes to `log`, by default a temporary file that is removed at the end.
    """

    def __init__(
        self,
        first: VllmProgram,
        later: VllmProgram,
        *,
        release: Release,
        log: str | Path | None,
        seconds: float,
    ) -> None:
        if release not in ("sleep", "restart"):
            raise InvalidInputError(f"release = {release!r}: expected sleep or restart")
        self._release, self._seconds = release, seconds
        self._temporary = log is None
        if log is None:
            file, log = tempfile.mkstemp(prefix="k15core-vllm-", suffix=".log")
            os.close(file)
        self.server = VllmServer(first, log=log)
        self._later = later
        self._asleep = False

    def acquire(self) -> VllmControl:
        """Start it where it does not run, and wait until it answers."""
        if not self._runs():
            self._asleep = False
            self.server.start()
            self.server.program = self._later
            self.server.wait_healthy(seconds=self._seconds)
        if self._asleep:
            self.server.wake()
            self._asleep = False
        return self.server.control

    def update(self, directory: Path, version: int, published: int) -> VllmControl:
        """Load weights by vLLM's own calls."""
        self.server.update_weights(directory, version, published=published)
        return self.server.control

    def release(self) -> None:
        """Sleep, or end the process."""
        if self._release == "restart":
            self.server.stop()
        elif not self._asleep and self.server.is_alive():
            self.server.sleep()
            self._asleep = True

    def _runs(self) -> bool:
        """Wait until a server started earlier answers; False where there is none, or it ended.

        One that was killed has closed its connections a while before it counts as ended.
        """
        if not self.server.is_alive():
            return False
        try:
            self.server.wait_healthy(seconds=self._seconds)
        except ProcessDiedError:
            if self.server.is_alive():
                raise
            return False
        return True

    def close(self) -> None:
        """End the process."""
        self.server.stop()
        if self._temporary:
            self.server.log.unlink(missing_ok=True)


class GivenServer:
    """A server that somebody else started (`VllmProgram`) and keeps running."""

    def __init__(self, url: str, *, seconds: float) -> None:
        self._control = VllmControl(url)
        self._seconds = seconds
        self._asleep = False

    def acquire(self) -> VllmControl:
        """Wait until it answers."""
        deadline = time.monotonic() + self._seconds
        while not self._control.is_healthy():
            if time.monotonic() > deadline:
                raise ProcessDiedError(f"vLLM at {self._control.url} does not answer")
            time.sleep(0.1)
        if self._asleep:
            self._control.wake()
            self._asleep = False
        return self._control

    def update(self, directory: Path, version: int, published: int) -> VllmControl:
        """Load weights by vLLM's own calls."""
        self._control.update_weights(directory, version, published=published)
        return self._control

    def release(self) -> None:
        """Sleep."""
        if not self._asleep:
            self._control.sleep()
            self._asleep = True

    def close(self) -> None:
        """Nothing: it is not ours."""


class SidecarServer:
    """A server that a checkpoint engine (`k15 engine serve`) keeps, at this address of it.

    With `transfer` (arguments of `WeightSender`: host, protocol, device) it is on another node, to
    which Mooncake brings the weights.
    """

    def __init__(
        self, url: str, *, seconds: float, transfer: Mapping[str, Any] | None = None
    ) -> None:
        self._client = CheckpointEngineClient(url, patience=min(seconds, PATIENCE))
        self._transfer = transfer
        self._senders: dict[Path, WeightSender] = {}

    def acquire(self) -> VllmControl:
        """Have the sidecar start it, or wake it up."""
        return self._control(self._client.start().url)

    def update(self, directory: Path, version: int, published: int) -> VllmControl:
        """Have the sidecar load what is published in the directory."""
        if self._transfer is None:
            return self._control(self._client.update(directory, version, published=published).url)
        address = self._sender(directory).serve(published)
        return self._control(self._client.update_from(address, version).url)

    def release(self) -> None:
        """Have the sidecar give the memory back, in the way that it was told to."""
        self._client.release()

    def close(self) -> None:
        """Have the sidecar end the engine's process; it stays itself."""
        for sender in self._senders.values():
            sender.close()
        self._senders.clear()
        self._client.stop()

    def _sender(self, directory: Path) -> WeightSender:
        from k15core.deploy.mooncake import WeightSender

        if directory not in self._senders:
            try:
                self._senders[directory] = WeightSender(directory, **self._transfer or {})
            except TypeError as error:
                raise InvalidInputError(f"transfer = {self._transfer}: {error}") from error
        return self._senders[directory]

    def _control(self, url: str | None) -> VllmControl:
        if url is None:
            raise ProcessDiedError("the checkpoint engine has no server running")
        return VllmControl(url)
