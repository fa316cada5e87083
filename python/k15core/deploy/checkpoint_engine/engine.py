"""The checkpoint engine: owns one engine process, and answers for where that is.

Calls may come from many threads. Each says where the engine is to go and waits until it is there;
one thread takes the steps, and also goes there again when the engine's process dies by itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from k15core.deploy.checkpoint_engine import process
from k15core.deploy.checkpoint_engine.machine import NO_WEIGHTS, Machine, Release
from k15core.deploy.checkpoint_engine.program import EngineProgram
from k15core.deploy.checkpoint_engine.state import Phase, State
from k15core.deploy.closing import Closing
from k15core.errors import ConflictError, InvalidInputError, ProcessDiedError


class CheckpointEngine(Closing):
    """Owns the engine process that `program` describes; its state is in `directory`.

    Made where an earlier one died, it adopts the process that this one had started, or replaces it,
    and goes on to what was asked for last. `release` says how memory is given back: "restart" ends
    the process, "sleep" keeps it without its weights and caches, where it gives back enough.
    `start_seconds` is how long a start may take, `grace_seconds` how long a process that is to end
    is waited for before it is killed. `observer` is called with every state, from any thread.

    Raises ConflictError where another one is alive for this directory.
    """

    def __init__(
        self,
        program: EngineProgram,
        directory: str | Path,
        *,
        host: str = "127.0.0.1",
        release: Release = "restart",
        start_seconds: float = 600.0,
        grace_seconds: float = 20.0,
        observer: Callable[[State], None] = lambda _: None,
    ) -> None:
        if release not in ("restart", "sleep"):
            raise InvalidInputError(f"release = {release!r}: expected restart or sleep")
        self.directory = Path(directory)
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _be_the_only_one(self.directory / "sidecar.lock")
        self._machine = Machine(
            program,
            self.directory,
            host=host,
            release=release,
            start_seconds=start_seconds,
            grace_seconds=grace_seconds,
            observer=observer,
        )
        self._asked, self._settled, self._closing = 1, 0, False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="checkpoint-engine", daemon=True)
        self._thread.start()

    def state(self) -> State:
        """Where the engine is now."""
        return self._machine.state

    def is_healthy(self) -> bool:
        """Whether the engine's server answers and takes requests."""
        url = self.state().url
        return url is not None and self._machine.program.is_healthy(url)

    def start(self) -> State:
        """Have the engine's process run and take requests, on whatever weights it has.

        Nothing if it does; one that was drained takes requests again. Raises ProcessDiedError where
        it does not start.
        """

        def change(state: State) -> dict[str, Any]:
            if state.goal in ("serving", "drained") and state.version is not None:
                return {"goal": "serving"}
            return {"goal": "started", "last_error": None, **NO_WEIGHTS}

        return self._ask("start", change, "started", "serving")

    def update(self, directory: str, version: int, *, published: int | None = None) -> State:
        """Have it serve with the weights published in `directory`, and call them `version`.

        `published` is the version by which they are published there; None takes what is there now.
        Raises InvalidInputError where it was not started, or where the engine refuses the weights:
        it is "started" then, without weights, unless it could keep those that it had.
        """
        if published is None:
            published = _published(directory)
        weights = {"directory": directory, "version": version, "published": published}

        def change(state: State) -> dict[str, Any]:
            if state.phase == "failed":
                raise ProcessDiedError(f"update: {state.last_error}. Expected `start` first")
            _expect_up("update", state)
            return {"goal": "serving", "last_error": None, "loaded": None, **weights}

        return self._ask("update", change, "serving")

    def drain(self) -> State:
        """Have it take no more requests, and wait for those under way.

        `start` and `update` have it take them again.
        """

        def change(state: State) -> dict[str, Any]:
            _expect_up("drain", state)
            return {"goal": "drained"}

        return self._ask("drain", change, "drained")

    def release(self) -> State:
        """Have it give its memory back, as it was said: "stopped" afterwards, or "asleep"."""
        if self._machine.release == "restart":
            return self.stop()

        def change(state: State) -> dict[str, Any]:
            return {} if state.goal == "stopped" else {"goal": "asleep"}

        return self._ask("release", change, "asleep", "stopped", "failed")

    def stop(self) -> State:
        """End its process, whatever it is at."""

        def change(state: State) -> dict[str, Any]:
            phase = {"phase": "releasing"} if state.phase == "failed" else {}
            return {"goal": "stopped", **phase}

        return self._ask("stop", change, "stopped", interrupts=True)

    def close(self) -> None:
        """End this object; the engine's process lives on, for another to adopt it."""
        with self._machine.changed:
            self._closing = True
            self._machine.changed.notify_all()
        os.eventfd_write(self._machine.wake, 1)
        self._thread.join()
        if self._lock >= 0:
            os.close(self._lock)
            os.close(self._machine.wake)
            self._lock = -1

    def _ask(
        self,
        call: str,
        change: Callable[[State], dict[str, Any]],
        *wanted: Phase,
        interrupts: bool = False,
    ) -> State:
        """Write where it is to go, wait until it stands still, and see whether it is there."""
        machine = self._machine
        with machine.changed:
            if self._closing:
                raise ProcessDiedError(f"{call}: this checkpoint engine is closed")
            machine.change(**change(machine.state))
            machine.deaths = 0
            self._asked += 1
            mine = self._asked
            os.eventfd_write(machine.wake, 1)
        if interrupts and machine.state.phase in ("updating", "draining", "waking"):
            process.end(machine.mark, grace_seconds=0)  # the server may be hanging in that call
        with machine.changed:
            machine.changed.wait_for(lambda: self._settled >= mine or self._closing)
            if self._closing:
                raise ProcessDiedError(f"{call}: this checkpoint engine was closed meanwhile")
            state = machine.state
            if self._settled == mine and self._failure is not None:
                raise self._failure
        if state.phase not in wanted:
            raise ProcessDiedError(f"{call}: another call led it elsewhere: it is {state.phase}")
        return state

    def _work(self) -> None:
        machine = self._machine
        while True:
            machine.be_awake()
            with machine.changed:
                if self._closing:
                    return
                order = self._asked
            failure: Exception | None = None
            try:
                machine.advance()
            except Exception as error:  # noqa: BLE001 - whoever asked waits for this thread
                failure = error
                with contextlib.suppress(Exception):  # a disk that fails keeps no note of it
                    machine.change(last_error=str(error) or repr(error))
            with machine.changed:
                if self._asked != order:
                    continue  # where it stands is not where it was asked to go last
                self._settled, self._failure = order, failure
                machine.changed.notify_all()
            self._rest()

    def _rest(self) -> None:
        """Wait for a call, or for the end of the engine's process."""
        waits = select.poll()
        waits.register(self._machine.wake, select.POLLIN)
        pidfd = self._machine.watch()
        if pidfd is not None:
            waits.register(pidfd, select.POLLIN)
        elif self._machine.state.process is not None:
            return  # it ended in between
        try:
            waits.poll()
        finally:
            if pidfd is not None:
                os.close(pidfd)


def _expect_up(call: str, state: State) -> None:
    if state.goal in ("stopped", "asleep"):
        raise InvalidInputError(
            f"{call}: the engine is {state.phase}: expected `start` first, which takes its memory"
        )


def _published(directory: str) -> int:
    """The version that a directory has now. A restarted engine must not take a later one for it."""
    from k15core.deploy.shared_weights.manifest import read_manifest  # which loads numpy

    manifest = read_manifest(Path(directory))
    if manifest is None:
        raise InvalidInputError(f"directory = {directory!r}: no version of weights is there")
    return manifest.version


def _be_the_only_one(path: Path) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ConflictError(
            f"{path} is held: another checkpoint engine serves {path.parent} already"
        ) from None
    return lock
