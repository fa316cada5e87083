"""The program of an `EmbeddedProcess`: `python -m k15core.rollout.embedded.program SOCKET`.

Takes (method, arguments, keywords) between decode steps and says ("done", None or the error) to
each but `stop`. In between it says ("chunks", Chunks), ("over", how many calls of `start` are done
with), or ("failed", error), after which it ends.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

from k15core.errors import Error
from k15core.models.lean import LeanModel
from k15core.models.runtime import configure
from k15core.models.weights import copy_weights
from k15core.rollout.embedded.channel import Channel
from k15core.rollout.embedded.engine import EmbeddedEngine
from k15core.rollout.embedded.messages import Chunks

if TYPE_CHECKING:
    from k15core.types import Chunk

CHUNKS = 8
"""Chunks that are sent together: a message costs both sides about as much as a chunk. The end of a
stream is told at once, since somebody may wait for it."""


class Program:
    """Serves one channel until its other end is gone."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._engine: EmbeddedEngine | None = None
        self._starts = 0
        self._started = asyncio.Event()
        self._hung_up = asyncio.Event()

    async def run(self) -> None:
        """Take calls between steps, hand out chunks as they come."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._channel.fileno(), self._take_calls)
        tasks = [loop.create_task(each) for each in (self._hand_out(), self._hung_up.wait())]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def _hand_out(self) -> None:
        try:
            while True:
                await self._started.wait()
                self._started.clear()
                assert self._engine is not None
                await self._send_chunks(self._engine)
        except ConnectionResetError:
            return
        except Exception as error:
            self._channel.send(("failed", _ours(error)))
            raise

    async def _send_chunks(self, engine: EmbeddedEngine) -> None:
        chunks: list[Chunk] = []
        async for chunk in engine.chunks():
            chunks.append(chunk)
            if len(chunks) == CHUNKS or chunk.finish_reason is not None:
                self._channel.send(("chunks", Chunks.of(chunks)))
                chunks = []
        if chunks:
            self._channel.send(("chunks", Chunks.of(chunks)))
        self._channel.send(("over", self._starts))

    def _take_calls(self) -> None:
        try:
            for name, arguments, named in self._channel.received():
                error = self._answer(name, arguments, named)
                if name != "stop":
                    self._channel.send(("done", error))
        except ConnectionResetError:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            self._hung_up.set()

    def _answer(self, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Error | None:
        try:
            if name == "make":
                self._make(*arguments, **named)
                return None
            engine = self._engine
            assert engine is not None
            getattr(engine, name)(*arguments, **named)
            if name == "start":
                self._starts += 1
                self._started.set()
        except Exception as error:  # noqa: BLE001 - told to whoever called
            return _ours(error)
        return None

    def _make(self, model: Any, *, threads: int, **settings: Any) -> None:
        configure(threads, str(settings.get("device") or "cpu"))
        if isinstance(model, tuple):
            config, weights = model
            model = LeanModel(config, dtype=settings["dtype"])
            copy_weights(model, weights.tensors())
        self._engine = EmbeddedEngine(model, **settings)


def _ours(error: Exception) -> Error:
    """Exceptions of ours travel as they are, others in words."""
    return error if isinstance(error, Error) else Error(f"{type(error).__name__}: {error}")


def main() -> None:
    """Serve the socket whose descriptor is the argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this ends it
    asyncio.run(Program(Channel(socket.socket(fileno=int(sys.argv[1])))).run())


if __name__ == "__main__":
    main()
