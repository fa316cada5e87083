"""The state machine: from what is to what was asked for, one step after the other.

A step writes what it is about to do, does it, and writes that it is done. Whichever process dies,
and whenever, the next step is chosen from what was written and from what is alive: so a machine
that takes over from a dead one does nothing that this one would not have done.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from k15core.deploy.checkpoint_engine import process
from k15core.deploy.checkpoint_engine.launch import LOCKED
from k15core.deploy.checkpoint_engine.memory import Meter
from k15core.deploy.checkpoint_engine.process import Identity
from k15core.deploy.checkpoint_engine.program import EngineProgram
from k15core.deploy.checkpoint_engine.state import Memory, State, StateFile
from k15core.errors import Error, ProcessDiedError

Release = Literal["restart", "sleep"]

DEATHS = 3
"""How many processes may die between two calls before it is given up."""

SLEEP_SHARE = 0.25
"""What a sleeping engine may still hold of what it held awake. One that holds more is stopped."""

NO_WEIGHTS = {"directory": None, "version": None, "published": None, "loaded": None}

LOOK_SECONDS = 0.05
"""Between two looks at whether a server that is starting answers."""


class Machine:
    """Takes one engine process from state to state. `advance` is called by one thread."""

    def __init__(
        self,
        program: EngineProgram,
        directory: Path,
        *,
        host: str,
        release: Release,
        start_seconds: float,
        grace_seconds: float,
        observer: Callable[[State], None],
    ) -> None:
        self.program, self.directory, self.host = program, directory, host
        self.release, self.start_seconds = release, start_seconds
        self.grace_seconds, self.observer = grace_seconds, observer
        self.mark = str(directory.resolve())
        self.changed = threading.Condition(threading.RLock())
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.deaths = 0
        self._file = StateFile(directory)
        self._code: int | None = None
        """How the process ended, where it was a child of this one."""
        self.state = self._file.load()
        if self.state.phase in ("updating", "waking") and self.state.goal != "stopped":
            # A dead sidecar's request may still be carried out there: none beside it is safe.
            self.change(phase="releasing")

    def change(self, **fields: Any) -> None:
        """Write a new state."""
        with self.changed:
            if fields.get("phase", self.state.phase) != self.state.phase:
                fields["since"] = time.time()
            self.state = replace(self.state, **fields)
            self._file.save(self.state)
            self.observer(self.state)
            self.changed.notify_all()

    def advance(self) -> None:
        """Take steps until the goal is reached, whatever that is by then.

        Raises ProcessDiedError where the engine died too often or does not start, InvalidInputError
        where it refused the weights. The state says so too, and is one that can be left.
        """
        while True:
            goal = self.state.goal
            if goal == "stopped":
                if self.state.phase not in ("stopped", "failed"):
                    self._give_back()
                return
            if goal == "asleep":
                self._fall_asleep()
                return
            if not self._is_alive():
                if self._note_death():
                    self.deaths += 1
                if self.deaths == DEATHS:
                    self._fail(f"{DEATHS} processes of it ended: {self.state.last_error}")
                self._launch()
            elif self._step():
                return

    def watch(self) -> int | None:
        """A pidfd of the engine process, if there is one."""
        return None if self.state.process is None else self.state.process.watch()

    def be_awake(self) -> None:
        """Take note of what `wake` was written for."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.wake)

    def _is_alive(self) -> bool:
        known = self.state.process
        if known is not None and self._code is None:
            self._code = process.exit_code(known.pid)  # so that it does not stay as a zombie
        return known is not None and known.is_alive()

    def _end(self, grace_seconds: float = 0) -> None:
        process.end(self.mark, grace_seconds=grace_seconds, leader=self.state.process)
        self._is_alive()

    def _step(self) -> bool:
        """One step up; True where there is none left to take. The process was alive before it."""
        state, url = self.state, self.state.url or ""
        if state.phase == "releasing":
            self._end()
            self.change(process=None, phase="starting")
        elif state.phase == "starting":
            self._await_health()
        elif state.phase in ("asleep", "waking"):
            self.change(phase="waking", loaded=None)
            if self._call(self.program.wake, url):
                self.change(phase="started")
        elif state.goal != "started" and state.version != state.loaded:
            self.change(phase="updating")
            self._update(url)
        elif state.goal == "drained" and state.phase != "drained":
            self.change(phase="draining")
            if self._call(self.program.drain, url):
                self.change(phase="drained")
        elif state.goal != "drained" and state.phase in ("draining", "drained"):
            if self._call(self.program.resume, url):
                self.change(phase="started" if state.loaded is None else "serving")
        else:
            return True
        return False

    def _call(self, function: Callable[[str], None], url: str) -> bool:
        """Call the server; False where it is gone. One that does not answer is ended."""
        try:
            with self._watched():
                function(url)
        except ProcessDiedError as error:
            self._lose(error)
            return False
        return True

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """While a call is under way: if its process dies, end what that leaves.

        Workers may hold the socket that the call waits on, and nobody would ever answer.
        """
        pidfd = self.watch()
        if pidfd is None:
            raise ProcessDiedError(f"the engine process ended: it was {self.state.phase}")
        done = os.eventfd(0, os.EFD_CLOEXEC)

        def look() -> None:
            waits = select.poll()
            for file in (done, pidfd):
                waits.register(file, select.POLLIN)
            if all(file != done for file, _ in waits.poll()):
                process.end(self.mark, grace_seconds=0, leader=self.state.process)

        watcher = threading.Thread(target=look, name="engine-watch", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            os.eventfd_write(done, 1)
            watcher.join()
            for file in (done, pidfd):
                os.close(file)

    def _lose(self, error: Error) -> None:
        if self._is_alive() and self.state.goal not in ("stopped", "asleep"):
            self._end()
        self.change(last_error=str(error))

    def _update(self, url: str) -> None:
        asked = self.state
        try:
            with self._watched():
                self.program.update(
                    url, asked.directory or "", asked.version or 0, asked.published or 0
                )
        except ProcessDiedError as error:
            self._lose(error)
        except Error as error:
            has = self._version(url)
            where: Literal["started", "serving"] = "started" if has is None else "serving"
            weights = {**NO_WEIGHTS, "version": has, "loaded": has}
            with self.changed:
                if self._still_wants(asked):
                    self.change(phase=where, goal=where, last_error=str(error), **weights)
                    raise
                self.change(loaded=None, last_error=str(error))
        else:
            with self.changed:
                if self._still_wants(asked):
                    self.change(phase="serving", loaded=asked.version)

    def _still_wants(self, asked: State) -> bool:
        """Whether no call has led elsewhere since that state."""
        return all(
            getattr(self.state, name) == getattr(asked, name)
            for name in ("goal", "directory", "version", "published")
        )

    def _version(self, url: str) -> int | None:
        try:
            with self._watched():
                return self.program.version(url)
        except Error:
            return None

    def _await_health(self) -> None:
        deadline = time.monotonic() + self.start_seconds
        order = self.state.goal
        while self.state.goal == order and self._is_alive():
            if self.program.is_healthy(self.state.url or ""):
                self.change(phase="started", loaded=None)
                return
            if time.monotonic() > deadline:
                self._fail(f"it did not answer within {self.start_seconds:g} s")
            self._pause()

    def _pause(self) -> None:
        """Wait for a moment, or for the end of the process or another goal."""
        waits = select.poll()
        waits.register(self.wake, select.POLLIN)
        pidfd = self.watch()
        if pidfd is not None:
            waits.register(pidfd, select.POLLIN)
        waits.poll(LOOK_SECONDS * 1000)
        self.be_awake()
        if pidfd is not None:
            os.close(pidfd)

    def _note_death(self) -> bool:
        """Say how a process ended, if one did. Gives up if it was by itself and at its start."""
        state, code = self.state, self._code
        if state.process is None:
            return False
        if code == LOCKED:
            lock = self.directory / "engine.lock"
            self.change(process=None, last_error=f"another engine process holds {lock}")
            time.sleep(LOOK_SECONDS)  # whose lock it is may not be marked yet
            return True
        how = "" if code is None else f" by signal {-code}" if code < 0 else f" with code {code}"
        said = f"the engine process {state.process.pid} ended{how} while {state.phase}"
        if state.phase == "starting" and code is not None and code >= 0:
            self._fail(f"{said}. {self.last_words()}")
        self._end()
        self.change(process=None, loaded=None, last_error=said)
        return True

    def _launch(self) -> None:
        """Start a process, unless one that is starting is found that nobody has written down."""
        found = process.leaders(self.mark)
        if self.state.phase == "starting" and len(found) == 1:
            url = process.url_of(found[0])
            if url is not None:
                self.change(process=found[0], url=url)
                return
        self._end()
        with socket.socket() as bound:
            bound.bind((self.host, 0))
            self._launch_at(bound)

    def _launch_at(self, bound: socket.socket) -> None:
        bound.set_inheritable(True)
        url = f"http://{self.host}:{bound.getsockname()[1]}"
        incarnation = self.state.incarnation + 1
        self.change(phase="starting", process=None, url=url, loaded=None, incarnation=incarnation)
        log = self.directory / "engine.log"
        with contextlib.suppress(FileNotFoundError):
            log.replace(log.with_suffix(".log.before"))
        self._code = None
        pid = process.launch(
            self.program.command(bound.fileno()),
            self.program.environment(),
            mark=self.mark,
            url=url,
            lock=self.directory / "engine.lock",
            log=log,
        )
        self.change(process=Identity.of(pid) or Identity(pid, 0, ""))

    def _give_back(self) -> None:
        """End all processes, and see that their memory is free."""
        pids = process.marked(self.mark)
        meter = Meter(pids)
        held = meter.read(pids)
        self.change(phase="releasing")
        self._end(self.grace_seconds)
        memory = Memory(meter.kind, held, meter.read([])) if pids else self.state.memory
        self._leave("stopped", memory=memory)

    def _fall_asleep(self) -> None:
        if self.state.phase == "asleep" and self._is_alive():
            return
        if not self._is_alive():  # and with it its memory
            self._end()
            self._leave("stopped")
            return
        pids = process.marked(self.mark)
        meter = Meter(pids)
        held = meter.read(pids)
        self.change(phase="releasing", loaded=None)
        if not self._call(self.program.sleep, self.state.url or ""):
            self._give_back()
            return
        left = meter.read(process.marked(self.mark))
        if left <= held * SLEEP_SHARE:
            memory = Memory(meter.kind, held, left)
            self.change(phase="asleep", memory=memory, **NO_WEIGHTS)
            return
        self.change(
            last_error=f"asleep it still held {left} of {held} bytes ({meter.kind}): it was stopped"
        )
        self._give_back()

    def _leave(self, phase: Literal["stopped", "failed"], **fields: Any) -> None:
        self.change(
            phase=phase,
            goal="stopped",
            process=None,
            url=None,
            **NO_WEIGHTS,
            **fields,
        )

    def _fail(self, why: str) -> None:
        self._end()
        message = f"the engine failed: {why}"
        self._leave("failed", last_error=message)
        raise ProcessDiedError(message)

    def last_words(self) -> str:
        """The end of the engine's log, for a message."""
        log = self.directory / "engine.log"
        try:
            lines = log.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        said = "\n".join(line for line in lines[-20:] if line.strip())
        return f"Its last words ({log}):\n{said}" if said else f"It said nothing ({log})"
