"""One vLLM server as a process that somebody owns: started, watched, ended with all it started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from k15core.deploy.shared_weights.directory import start_time
from k15core.deploy.vllm.group import end_group, stat
from k15core.errors import InvalidInputError, ProcessDiedError

if TYPE_CHECKING:
    from k15core.deploy.vllm.control import VllmControl
    from k15core.deploy.vllm.program import VllmProgram

POLL_SECONDS = 0.05

LOG_TAIL = 1500
"""Characters of the log that a message about a start that failed quotes."""


@dataclass(frozen=True)
class ServerProcess:
    """What somebody else needs to find a running server again. `started` tells it from a later
    process with the same id (ticks since boot)."""

    pid: int
    started: int
    url: str


class VllmServer:
    """A handle on one vLLM server process, which it starts, or adopts.

    `host` and `port` are where it listens (port 0 takes a free one). Its output goes to the file
    `log`. The server ends when this process ends, however it ends, unless `outlives`: then it
    stays, and `adopt` takes it over. It leads a process group of its own, which `kill` ends as a
    whole.
    """

    def __init__(
        self,
        program: VllmProgram,
        *,
        log: str | Path,
        host: str = "127.0.0.1",
        port: int = 0,
        outlives: bool = False,
    ) -> None:
        self.program = program
        self.log = Path(log)
        self._host, self._port, self._outlives = host, port, outlives
        self._child: subprocess.Popen[bytes] | None = None
        self._lifeline: int | None = None
        self.process: ServerProcess | None = None

    def start(self) -> ServerProcess:
        """Start the process and return at once: see `wait_healthy`. Nothing if it is alive.

        Raises InvalidInputError where the address cannot be bound.
        """
        if self.process is not None and self.is_alive():
            return self.process
        self.kill()
        with socket.socket() as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listening.bind((self._host, self._port))
            except OSError as error:
                raise InvalidInputError(
                    f"host = {self._host!r}, port = {self._port}: {error}, expected a free address"
                ) from error
            port = listening.getsockname()[1]
            reading, writing = (-1, -1) if self._outlives else os.pipe()
            try:
                self._child = self._spawn(listening.fileno(), reading)
            except OSError as error:
                if writing >= 0:
                    os.close(writing)
                raise InvalidInputError(f"python: {error}, expected an interpreter") from error
            finally:
                if reading >= 0:
                    os.close(reading)
        self._lifeline = writing if writing >= 0 else None
        started = start_time(self._child.pid)
        assert started is not None, "a child that was not waited for has an entry in /proc"
        self.process = ServerProcess(self._child.pid, started, f"http://{self._host}:{port}")
        return self.process

    def adopt(self, process: ServerProcess) -> bool:
        """Take over a server that another process started; False if it does not live any more."""
        self.process, self._child = process, None
        return self.is_alive()

    def is_alive(self) -> bool:
        """Whether the process runs. It may not answer yet, or any more: see `is_healthy`."""
        if self.process is None:
            return False
        if self._child is not None:
            return self._child.poll() is None
        pid = self.process.pid
        return start_time(pid) == self.process.started and stat(pid)[:1] != ["Z"]

    def is_healthy(self) -> bool:
        """Whether it answers, and its engine lives."""
        return self.is_alive() and self.control.is_healthy()

    def wait_healthy(self, *, seconds: float = 1800.0) -> None:
        """Wait until it answers. Raises ProcessDiedError, with the log's end, if it does not."""
        deadline = time.monotonic() + seconds
        while not self.is_healthy():
            late = time.monotonic() > deadline
            if late or not self.is_alive():
                what = f"does not answer after {seconds:g} s" if late else "ended while it started"
                raise ProcessDiedError(f"vLLM {what}; {self.log} ends with: {self._log_tail()}")
            time.sleep(POLL_SECONDS)

    @property
    def control(self) -> VllmControl:
        """Its HTTP control calls."""
        if self.process is None:
            raise ProcessDiedError("vLLM was not started")
        return self.program.control(self.process.url)

    def version(self) -> int | None:
        """Of the weights that it samples with; None for dummy ones."""
        return self.control.version()

    def update_weights(
        self, directory: str | Path, version: int, *, published: int | None = None
    ) -> None:
        """Load weights from shared memory: see `VllmControl.update_weights`."""
        self.control.update_weights(directory, version, published=published)

    def drain(self, *, wait: bool = False) -> None:
        """Take no more requests: see `VllmControl.drain`."""
        self.control.drain(wait=wait)

    def resume(self) -> None:
        """Take requests again."""
        self.control.resume()

    def sleep(self) -> None:
        """Give its memory back and keep the process: see `VllmControl.sleep`."""
        self.control.sleep()

    def wake(self) -> None:
        """Take the memory again."""
        self.control.wake()

    def stop(self, *, seconds: float = 30.0) -> None:
        """Ask it to end, and kill what is left after `seconds`. Nothing if it has ended."""
        if self.process is not None and self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGTERM)
            deadline = time.monotonic() + seconds
            while self.is_alive() and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the process and everything that it started, and wait until they are gone."""
        if self.process is None:
            return
        # Numbers are not used again while their group lives; after that it is another's leader.
        if start_time(self.process.pid) in (None, self.process.started):
            end_group(self.process.pid)
        if self._child is not None:
            self._child.wait()
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        self.process = self._child = None

    def _spawn(self, listening: int, lifeline: int) -> subprocess.Popen[bytes]:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.program.command(listening, lifeline),
                env={**os.environ, **self.program.environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[listening] if lifeline < 0 else [listening, lifeline],
                start_new_session=True,
            )

    def _log_tail(self) -> str:
        try:
            return self.log.read_text(errors="replace")[-LOG_TAIL:]
        except OSError as error:
            return str(error)
