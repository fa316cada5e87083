"""The program of a rank: `python -m k15core.trainer.megatron.worker FD PARENT`.

Takes (method, arguments, keywords) from the trainer over the socket FD, one after another, and
answers each with ("done", result), or ("error", exception or None, words). What it prints goes to
its log. It ends when the trainer closes the socket, and within a second when the process PARENT
ends while it computes.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

from k15core.errors import Error
from k15core.trainer.megatron.settings import Settings


class Worker:
    """Answers the trainer's calls; those that are not its own are the rank's."""

    def __init__(self) -> None:
        self._world: Any = None
        self._rank: Any = None

    def join(self, **place: Any) -> None:
        """Meet the other ranks."""
        if place["device"] == "cpu":
            from k15core.trainer.megatron import cpu_mode

            cpu_mode.enable()
        from k15core.trainer.megatron.groups import World

        self._world = World(**place)

    def build(self, settings: Settings) -> dict[str, Any]:
        """Hold a shard of a model, in the place of any other."""
        from k15core.trainer.megatron.rank import Rank

        if self._rank is not None:
            self._rank.close()
        self._rank = None  # its memory first
        self._rank = Rank(settings, self._world)
        coordinates: dict[str, Any] = self._rank.coordinates()
        return coordinates

    def call(self, method: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Do what a message asks for."""
        target = self if method in ("join", "build") else self._rank
        return getattr(target, method)(*arguments, **keywords)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    _end()


def _end() -> None:
    """End at once, with what a checkpoint has started. No farewell: other ranks may be gone."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def _failure(error: BaseException) -> tuple[str, BaseException | None, str]:
    """An exception of ours travels as it is, any other in words."""
    words = "".join(traceback.format_exception(error))
    print(words, file=sys.stderr, flush=True)
    if not isinstance(error, Error):
        return "error", None, traceback.format_exception_only(error)[-1].strip()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever it is made of, its words will do
        return "error", None, str(error)
    return "error", error, str(error)


def main() -> None:
    """Serve until the trainer hangs up."""
    channel = Connection(int(sys.argv[1]))
    threading.Thread(target=_end_with, args=(int(sys.argv[2]),), daemon=True).start()
    worker = Worker()
    while True:
        try:
            message = channel.recv()
        except EOFError:
            break
        try:
            answer: Any = ("done", worker.call(*message))
        except Exception as error:  # noqa: BLE001 - told to the trainer
            answer = _failure(error)
        channel.send(answer)
    _end()


if __name__ == "__main__":
    main()
