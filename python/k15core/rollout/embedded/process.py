"""The embedded engine in a process of its own.

A decode step of a small model is mostly torch's way to each operation, which a process's threads do
not share: several such engines, as an `EmbeddedFleet`, use several processors.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from k15core.errors import Error, InvalidInputError, ProcessDiedError
from k15core.models.lean import LeanModel
from k15core.models.weights import ModelWeights
from k15core.rollout.embedded.channel import Channel
from k15core.rollout.embedded.messages import Weights

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from k15core.types import Chunk, Lease, WeightSource

GRACE_SECONDS = 10.0
"""How long a process may take to end by itself."""


class EmbeddedProcess:
    """A `RolloutEngine`: an `EmbeddedEngine` of these settings in a process with `threads` threads.

    `model` is a model, whose weights are copied, or a Hugging Face directory. Its tokens are those
    of the same engine in this process. The process ends with this one, however that ends.

    Raises as `EmbeddedEngine`; ProcessDiedError where the process ends, and `acquire` starts it
    again.
    """

    def __init__(
        self, model: LeanModel | str | Path, *, threads: int = 1, version: int = 0, **settings: Any
    ) -> None:
        if threads < 1:
            raise InvalidInputError(f"threads = {threads}: expected a count of at least 1")
        self.version = version
        self._model, self._threads = model, threads
        self._settings = {**settings, "version": version}
        self._fault: Exception | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._launch()

    @property
    def process_id(self) -> int | None:
        """The process's number, None once it is closed."""
        return None if self._process is None else self._process.pid

    def start(
        self,
        leases: Sequence[Lease],
        *,
        max_new_tokens: Sequence[int],
        temperature: float,
        seed: int,
    ) -> None:
        """Take in streams to continue. See `RolloutEngine.start`."""
        budgets = list(max_new_tokens)
        self._call(
            "start", list(leases), max_new_tokens=budgets, temperature=temperature, seed=seed
        )
        self._starts += 1

    async def chunks(self) -> AsyncIterator[Chunk]:
        """New tokens as they come, until no stream is left. See `RolloutEngine.chunks`."""
        news, loop = asyncio.Event(), asyncio.get_running_loop()

        def take_in() -> None:
            if self._fault is None:
                try:
                    self._note_all(self._channel.received())
                except ProcessDiedError as error:
                    self._fault = error
                news.set()

        if self._process is None:
            return
        descriptor = self._channel.fileno()
        loop.add_reader(descriptor, take_in)
        try:
            while True:
                while self._ready:
                    yield self._ready.popleft()
                if self._fault is not None:  # the process ends with it
                    fault = self._fault
                    self._forget()
                    raise fault
                if self._over == self._starts:
                    return
                await news.wait()
                news.clear()
        finally:
            loop.remove_reader(descriptor)

    def stop(self, trajectory_ids: Sequence[int]) -> None:
        """Sample no more for these streams, from the next step on. See `RolloutEngine.stop`."""
        try:
            self._send("stop", list(trajectory_ids))
            self._note_all(self._channel.taken())
        except ProcessDiedError as error:
            self._fault = error  # for who reads the chunks

    def update_weights(self, source: WeightSource, version: int) -> None:
        """Hand over new weights. See `RolloutEngine.update_weights`."""
        self._call("update_weights", Weights.of(source), version)
        self.version = version

    def acquire(self) -> None:
        """Start the process where it ended, with the model as it is now."""
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._launch()

    def release(self) -> None:
        """Nothing: an engine on the CPU keeps its memory between iterations."""

    def close(self) -> None:
        """End the process: it goes when nobody is at the other end of its socket."""
        process, self._process = self._process, None
        if process is None:
            return
        self._channel.close()
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _launch(self) -> None:
        self._forget()
        here, there = socket.socketpair()
        with there:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "k15core.rollout.embedded.program", str(there.fileno())],
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._channel = Channel(here)
        settings, model = dict(self._settings), self._model
        given: Any = model
        if isinstance(model, LeanModel):
            settings["device"] = settings.get("device") or str(model.embedding.device)
            settings["dtype"] = settings.get("dtype") or model.embedding.dtype
            given = model.config, Weights.of(ModelWeights(model))
        try:
            self._call("make", given, threads=self._threads, **settings)
        except Error:
            self.close()
            raise

    def _forget(self) -> None:
        """No stream runs, nothing is to be handed out."""
        self._ready: deque[Chunk] = deque()
        self._starts = self._over = 0  # calls of start; how many of them the process is done with
        self._fault = None

    def _call(self, name: str, *arguments: Any, **named: Any) -> None:
        """Have the process do something, and wait until it has; its error is raised here."""
        self._send(name, *arguments, **named)
        while True:
            try:
                kind, content = self._channel.receive()
            except ConnectionResetError as error:
                raise self._died() from error
            if kind == "done":
                break
            self._note(kind, content)
        self._note_all(self._channel.taken())
        if content is not None:
            raise content

    def _send(self, name: str, *arguments: Any, **named: Any) -> None:
        if self._process is None:
            raise ProcessDiedError("embedded engine: closed, expected acquire before its next use")
        try:
            self._channel.send((name, arguments, named), take_in=True)
        except ConnectionResetError as error:
            raise self._died() from error

    def _note_all(self, messages: Iterable[tuple[str, Any]]) -> None:
        """Take in what has come. Nothing that was read may be left: no event would tell of it."""
        try:
            for kind, content in messages:
                self._note(kind, content)
        except ConnectionResetError as error:
            raise self._died() from error

    def _note(self, kind: str, content: Any) -> None:
        if kind == "chunks":
            self._ready.extend(content.each())
        elif kind == "over":
            self._over = content
        else:
            self._fault = content

    def _died(self) -> ProcessDiedError:
        self._forget()
        assert self._process is not None
        try:
            code = self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return ProcessDiedError(
            f"embedded engine: process {self._process.pid} ended with code {code}; its last words "
            "are on this process's standard error"
        )
