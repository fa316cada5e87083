"""The trainer's worker processes: started, asked, and found dead.

They are started by exec, for a fork of a process with threads and an accelerator is unsafe; each
is the leader of its own session, so that a signal to the trainer's terminal does not reach it
first, and what it starts itself can be ended with it. Each prints to a log of its own.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from shutil import rmtree
from typing import Any

from k15core.errors import (
    ConflictError,
    Error,
    InvalidInputError,
    ProcessDiedError,
    StorageError,
)
from k15core.trainer.optimizer import DivergedError

WORDS = 2000
"""Characters of a dead worker's log that are told."""

GRACE_SECONDS = 5.0
"""A rank that dies breaks its connections to others: how long its own end is waited for, where
another was faster to tell of that."""

IN_STEP = (DivergedError, StorageError, ConflictError)
"""What a rank raises with every rank at the same place, so that all can go on: each meets it, or
does the rest of its part first."""


class Workers:
    """`ranks` processes of this machine, one a rank, that are all asked the same at one time.

    They start without waiting, so that several sets can start at once; the first `call` waits. Once
    one ends or fails, all are ended, and every later call raises ProcessDiedError.
    """

    def __init__(self, ranks: int, *, device: str = "cpu") -> None:
        if ranks < 1:
            raise InvalidInputError(f"ranks is {ranks}: expected at least 1")
        self.device = device
        self.directory = Path(tempfile.mkdtemp(prefix="k15core-megatron-"))
        """Holds the logs, rank-0.log, …, and the file at which the ranks meet."""
        weakref.finalize(self, rmtree, self.directory, ignore_errors=True)
        self._started: list[tuple[subprocess.Popen[bytes], Connection]] = []
        self._died: str | None = None
        environment = {**os.environ}
        if device == "cpu":
            share = max(1, (os.cpu_count() or 1) // ranks)
            environment.setdefault("OMP_NUM_THREADS", str(share))
        else:
            # So that a GPU computes and communicates in the order that Megatron counts on.
            environment.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
        for rank in range(ranks):
            self._started.append(self._start(rank, environment))
        self._joined = False

    def __len__(self) -> int:
        return len(self._started)

    @property
    def pids(self) -> list[int]:
        """The processes, by rank."""
        return [process.pid for process, _ in self._started]

    @property
    def alive(self) -> bool:
        """Whether calls can still be made, as far as is known."""
        return self._died is None

    def _start(
        self, rank: int, environment: dict[str, str]
    ) -> tuple[subprocess.Popen[bytes], Connection]:
        ours, theirs = socket.socketpair()
        program = [sys.executable, "-m", "k15core.trainer.megatron.worker"]
        with theirs, self._log(rank).open("wb") as log:
            process = subprocess.Popen(
                [*program, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=environment,
            )
        return process, Connection(ours.detach())

    def call(self, method: str, *shared: Any, each: Sequence[Any] = (), **keywords: Any) -> list:  # type: ignore[type-arg]
        """Ask every rank for `method`; their results, by rank.

        `each` has a first argument for every rank. An exception of k15core that a rank raises is
        raised here, and what else it raises as ProcessDiedError with its words. All ranks are ended
        then, for some may wait for that one; those of IN_STEP leave them alive.
        """
        if self._died is not None:
            raise ProcessDiedError(self._died)
        try:
            if not self._joined:
                self._joined = True
                self._join()
            firsts = [(value,) for value in each] if each else [()] * len(self)
            self._send(method, [((*first, *shared), keywords) for first in firsts])
            return self._answers()
        except Error:
            raise
        except BaseException:
            # Interrupted: an answer that nobody has read would be taken for that of the next call.
            self._died = f"the call of {method} was interrupted"
            self._kill()
            raise

    def _join(self) -> None:
        common = {
            "ranks": len(self),
            "rendezvous": f"file://{self.directory / 'rendezvous'}",
            "device": self.device,
        }
        self._send("join", [((), {"rank": rank, **common}) for rank in range(len(self))])
        self._answers()

    def _send(self, method: str, messages: Sequence[tuple[tuple[Any, ...], Any]]) -> None:
        for rank, (arguments, keywords) in enumerate(messages):
            try:
                self._started[rank][1].send((method, arguments, keywords))
            except OSError:
                raise self._ended(rank) from None

    def _answers(self) -> list[Any]:
        results: list[Any] = [None] * len(self)
        waiting = {channel: rank for rank, (_, channel) in enumerate(self._started)}
        refused: BaseException | None = None
        while waiting:
            for channel in wait(list(waiting)):
                assert isinstance(channel, Connection)
                rank = waiting.pop(channel)
                try:
                    answer = channel.recv()
                except (EOFError, OSError):
                    raise self._ended(rank) from None
                if answer[0] == "done":
                    results[rank] = answer[1]
                elif isinstance(answer[1], IN_STEP):
                    refused = answer[1]
                else:
                    raise self._failed(rank, answer[1], answer[2], waiting)
        if refused is not None:
            raise refused
        return results

    def _ended(self, rank: int) -> ProcessDiedError:
        """Rank `rank` hung up: end the others, and say how it ended."""
        process = self._started[rank][0]
        # Not reaped yet: its number still stands for the group of what it has started itself.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        self._kill()
        code = process.returncode
        how = f"by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"with code {code}"
        words = self._log(rank).read_text(errors="replace")[-WORDS:].strip()
        said = f"; the end of its log: {words}" if words else ""
        self._died = f"rank {rank} of {len(self)} ended {how}{said}"
        return ProcessDiedError(self._died)

    def _failed(
        self, rank: int, error: BaseException | None, words: str, waiting: dict[Connection, int]
    ) -> BaseException:
        """Rank `rank` raised: end the others. If one of them has died, that is what is told."""
        deadline = time.monotonic() + GRACE_SECONDS
        while error is None and waiting and time.monotonic() < deadline:
            for channel in wait(list(waiting), deadline - time.monotonic()):
                assert isinstance(channel, Connection)
                other = waiting.pop(channel)
                try:
                    channel.recv()
                except (EOFError, OSError):
                    return self._ended(other)
        self._died = f"rank {rank} of {len(self)} failed: {words}"
        self._kill()
        return error or ProcessDiedError(self._died)

    def _log(self, rank: int) -> Path:
        return self.directory / f"rank-{rank}.log"

    def _kill(self) -> None:
        for process, channel in self._started:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            channel.close()

    def close(self) -> None:
        """End all of them, and remove the logs. A second call does nothing."""
        self._kill()
        self._died = self._died or "the trainer is closed"
        rmtree(self.directory, ignore_errors=True)
