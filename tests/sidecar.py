"""A checkpoint engine over the tiny engine, as a process that kills or is killed where it is told.

`sidecar.py DIRECTORY PORT RELEASE KILLS`: KILLS is a list of `WHO:PHASE`, each done once, the first
time that the phase is entered; WHO is sidecar, engine or both. `sidecar:launched` is the moment
between the start of the engine's process and the note of it.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from k15core.deploy.checkpoint_engine import CheckpointEngine, Service, State, process
from k15core.errors import InvalidInputError, ProcessDiedError

TINY = Path(__file__).with_name("tiny_engine.py")


class TinyEngine:
    """How the tiny engine is started and spoken to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def command(self, listening: int) -> list[str]:
        places = (self.directory / "device", self.directory / "trace")
        return [sys.executable, "-S", "-E", str(TINY), str(listening), *map(str, places)]

    def environment(self) -> dict[str, str]:
        return {}

    def is_healthy(self, url: str) -> bool:
        try:
            return bool(ask(url, None, seconds=1)["takes_requests"])
        except (ProcessDiedError, InvalidInputError):
            return False

    def version(self, url: str) -> int | None:
        version: int | None = ask(url, None)["version"]
        return version

    def update(self, url: str, directory: str, version: int, published: int) -> None:
        weights = {"directory": directory, "version": version, "published": published}
        ask(f"{url}/update", weights)

    def drain(self, url: str) -> None:
        ask(f"{url}/drain", {})

    def resume(self, url: str) -> None:
        ask(f"{url}/resume", {})

    def sleep(self, url: str) -> None:
        ask(f"{url}/sleep", {})

    def wake(self, url: str) -> None:
        ask(f"{url}/wake", {})


def ask(url: str, body: dict[str, Any] | None, *, seconds: float = 600) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=seconds) as answer:
            return dict(json.loads(answer.read()))
    except urllib.error.HTTPError as error:
        with error:
            raise InvalidInputError(json.loads(error.read())["error"]) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ProcessDiedError(f"the tiny engine at {url}: {error}") from error


class Killer:
    """Does what KILLS says; what was done is kept in files, as it may be done to ourselves."""

    def __init__(self, directory: Path, kills: list[str]) -> None:
        self.directory, self.kills = directory, kills

    def __call__(self, state: State) -> None:
        self.strike(state.phase, state.process)

    def strike(self, moment: str, engine: process.Identity | None) -> None:
        for kill in self.kills:
            who, when = kill.split(":")
            pidfd = engine.watch() if engine is not None else None
            if when != moment or (who != "sidecar" and pidfd is None):
                continue
            try:
                (self.directory / f"killed:{kill}").touch(exist_ok=False)
            except FileExistsError:
                continue
            if who != "sidecar" and pidfd is not None:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if who != "engine":
                os.kill(os.getpid(), signal.SIGKILL)
            elif pidfd is not None:
                select.select([pidfd], [], [])

    def launching(self, launch: Callable[..., Any]) -> Callable[..., Any]:
        def launched(*arguments: Any, **options: Any) -> Any:
            child = launch(*arguments, **options)
            self.strike("launched", None)  # nobody has written down what was started
            return child

        return launched


def main() -> None:
    directory, port, release, *kills = sys.argv[1:]
    killer = Killer(Path(directory), kills)
    process.launch = killer.launching(process.launch)
    program = TinyEngine(Path(directory))
    with CheckpointEngine(
        program, directory, release=release, grace_seconds=5, observer=killer
    ) as engine:
        service = Service(engine, port=int(port), weights=f"{directory}/weights")
        (Path(directory) / "url").write_text(service.url)
        service.serve()


if __name__ == "__main__":
    main()
