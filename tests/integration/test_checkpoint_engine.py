"""The checkpoint engine over a real server process: what happens when which process dies, and when.

The server is tests/tiny_engine.py; tests/peers/vllm does the same with vLLM.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sidecar import TinyEngine

from k15core.deploy.checkpoint_engine import (
    CheckpointEngine,
    CheckpointEngineClient,
    State,
    process,
)
from k15core.deploy.shared_weights.manifest import Manifest, encode
from k15core.errors import ConflictError, CorruptionError, InvalidInputError, ProcessDiedError

SIDECAR = Path(__file__).parents[1] / "sidecar.py"
PACKAGE = Path(__file__).parents[2] / "python"

GOING_UP = ["starting", "started", "updating", "serving", "draining", "drained"]


class Sidecars:
    """A sidecar that is started again whenever it dies, at the same address."""

    def __init__(self, directory: Path, release: str, kills: list[str]) -> None:
        self.directory, self.arguments = directory, [release, *kills]
        self.deaths = 0
        self.ended = threading.Event()
        self.port = "0"
        self.process = self.start()
        url = directory / "url"
        while not url.exists() or not url.read_text():
            assert self.process.poll() is None, "the sidecar does not start"
            self.ended.wait(0.01)
        self.url = url.read_text()
        self.port = self.url.rpartition(":")[2]
        self.keeper = threading.Thread(target=self.keep)
        self.keeper.start()

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, SIDECAR, self.directory, self.port, *self.arguments],
            env={**os.environ, "PYTHONPATH": str(PACKAGE)},
        )

    def keep(self) -> None:
        while True:
            code = self.process.wait()
            if self.ended.is_set():
                return
            assert code == -signal.SIGKILL
            self.deaths += 1
            self.process = self.start()

    def end(self) -> None:
        self.ended.set()
        while self.keeper.is_alive():
            self.process.kill()
            self.keeper.join(0.05)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    process.end(str(tmp_path.resolve()), grace_seconds=0)


@pytest.fixture
def sidecars(room: Path) -> Iterator[Callable[[str, list[str]], Sidecars]]:
    made: list[Sidecars] = []

    def make(release: str, kills: list[str]) -> Sidecars:
        made.append(Sidecars(room, release, kills))
        return made[-1]

    yield make
    for each in made:
        each.end()


@pytest.fixture
def engine(room: Path) -> Iterator[CheckpointEngine]:
    with CheckpointEngine(TinyEngine(room), room, grace_seconds=5) as engine:
        yield engine


def publish(directory: Path, version: int) -> str:
    """A manifest as a writer of weights leaves it, of no weights."""
    weights = directory / "weights"
    weights.mkdir(exist_ok=True)
    fresh = weights / "fresh"
    fresh.write_bytes(encode(Manifest(version, "buffer-0", 0, ())))
    fresh.rename(weights / "manifest.json")
    return str(weights)


def trace(directory: Path) -> list[str]:
    return (directory / "trace").read_text().splitlines()


def device_is_free(directory: Path) -> bool:
    with (directory / "device").open("a") as device:
        try:
            fcntl.flock(device, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.parametrize(
    ("release", "who"),
    [(release, who) for release in ("restart", "sleep") for who in ("sidecar", "engine")]
    + [("restart", "both")],
)
def test_figure_4_comes_out_the_same_whoever_is_killed_at_whichever_transition(
    release: str, who: str, room: Path, sidecars: Callable[[str, list[str]], Sidecars]
) -> None:
    phases = [*GOING_UP, "releasing", *(["asleep", "waking"] if release == "sleep" else [])]
    kills = [f"{who}:{phase}" for phase in phases]
    if who == "sidecar":
        kills += ["sidecar:launched", "sidecar:stopped"]
    sidecar = sidecars(release, kills)
    client = CheckpointEngineClient(sidecar.url, patience=60)
    for version in (1, 2):
        assert client.start().phase == "started"
        weights = publish(room, version)
        served = client.update(weights, version)
        assert (served.phase, served.version) == ("serving", version)
        assert client.drain().phase == "drained"
        assert client.start().phase == "serving"
        assert client.is_healthy()
        released = client.release()
        # A process that was killed while it slept is not started again: its memory is free.
        assert released.phase in ({"stopped"} if release == "restart" else {"asleep", "stopped"})
    assert client.stop().phase == "stopped"
    done = {path.name.removeprefix("killed:") for path in room.glob("killed:*")}
    # A sleeping engine that is killed is not woken, and a stopped one has no process to be killed.
    assert done >= {kill for kill in kills if not kill.endswith((":asleep", ":waking", ":stopped"))}
    lines = trace(room)
    assert "TWO AT ONCE" not in lines
    assert lines.count("start") >= 2 if release == "restart" else 1
    served_versions = [line for line in lines if line.startswith("serve")]
    assert served_versions == sorted(served_versions)
    assert process.marked(str(room.resolve())) == []
    assert device_is_free(room)


def test_a_new_sidecar_adopts_the_engine_that_serves(room: Path) -> None:
    weights = publish(room, 7)
    with CheckpointEngine(TinyEngine(room), room) as first:
        first.start()
        before = first.update(weights, 7)
        with pytest.raises(ConflictError, match="another checkpoint engine serves"):
            CheckpointEngine(TinyEngine(room), room)
    with CheckpointEngine(TinyEngine(room), room) as second:
        assert second.start() == before
        assert second.is_healthy()
        assert second.stop().memory is not None
    assert trace(room) == ["start", "serve 7"]


def test_memory_is_given_back(room: Path) -> None:
    with CheckpointEngine(TinyEngine(room), room, release="sleep") as engine:
        assert engine.start().process is not None
        asleep = engine.release()
        assert asleep.phase == "asleep"
        assert asleep.memory is not None
        assert asleep.memory.kind in ("resident", "device")
        assert asleep.memory.left <= asleep.memory.held - (80 << 20)
        assert engine.start().phase == "started"
        stopped = engine.stop()
        assert stopped.memory is not None
        assert stopped.memory.left == 0 < stopped.memory.held
        assert device_is_free(room)


def test_an_engine_whose_sleep_gives_nothing_back_is_stopped(room: Path) -> None:
    class Sleepless(TinyEngine):
        def sleep(self, url: str) -> None:
            self.drain(url)

    with CheckpointEngine(Sleepless(room), room, release="sleep") as engine:
        engine.start()
        released = engine.release()
        assert released.phase == "stopped"
        assert "asleep it still held" in (released.last_error or "")
        assert device_is_free(room)


def test_weights_that_are_not_there_are_refused_and_the_engine_lives(
    room: Path, engine: CheckpointEngine
) -> None:
    weights = publish(room, 1)
    with pytest.raises(InvalidInputError, match="update: the engine is stopped: expected `start`"):
        engine.update(weights, 1)
    engine.start()
    with pytest.raises(InvalidInputError, match="version 2 is not there, 1 is"):
        engine.update(weights, 2, published=2)
    state = engine.state()
    assert (state.phase, state.loaded) == ("started", None)
    assert "version 2" in (state.last_error or "")
    with pytest.raises(InvalidInputError, match="no version of weights is there"):
        engine.update(str(room), 1)
    served = engine.update(weights, 5)
    assert (served.phase, served.loaded, served.last_error) == ("serving", 5, None)
    assert served.published == 1
    assert served.incarnation == 1


def test_a_publisher_that_is_gone_leaves_an_engine_that_can_be_updated_later(
    room: Path, engine: CheckpointEngine
) -> None:
    weights = publish(room, 1)
    engine.start()
    served = engine.update(weights, 1)
    (room / "weights" / "manifest.json").unlink()
    assert served.process is not None
    os.kill(served.process.pid, signal.SIGKILL)
    while engine.state().goal != "started":
        threading.Event().wait(0.01)
    assert "manifest.json" in (engine.state().last_error or "")
    assert engine.update(publish(room, 2), 2).loaded == 2


def test_an_engine_that_ends_at_its_start_fails_with_its_last_words(room: Path) -> None:
    class Wrong(TinyEngine):
        def command(self, listening: int) -> list[str]:
            return [sys.executable, "-c", f"import sys; sys.exit('no such option: {listening}')"]

    with CheckpointEngine(Wrong(room), room) as engine:
        with pytest.raises(ProcessDiedError, match=r"(?s)ended with code 1 .*no such option: \d"):
            engine.start()
        assert engine.state().phase == "failed"
        with pytest.raises(ProcessDiedError, match="Expected `start` first"):
            engine.update("/weights", 1, published=1)
        assert engine.stop().phase == "stopped"


def test_an_engine_that_dies_again_and_again_is_given_up(room: Path) -> None:
    class Frail(TinyEngine):
        def is_healthy(self, url: str) -> bool:
            if not super().is_healthy(url):
                return False
            (pid,) = (each.pid for each in process.leaders(str(self.directory.resolve())))
            os.kill(pid, signal.SIGKILL)
            return True

    with CheckpointEngine(Frail(room), room) as engine:
        with contextlib.suppress(ProcessDiedError):  # told at once, or found once it had started
            engine._ask("start", lambda _: {"goal": "started"}, "started", "failed")
        while engine.state().phase != "failed":
            threading.Event().wait(0.01)
        assert engine.state().incarnation == 3
        assert "3 processes of it ended" in (engine.state().last_error or "")


def test_stop_ends_an_engine_that_hangs_in_a_call(room: Path) -> None:
    called = threading.Event()

    class Hanging(TinyEngine):
        def drain(self, url: str) -> None:
            (leader,) = process.leaders(str(self.directory.resolve()))
            os.kill(leader.pid, signal.SIGSTOP)
            called.set()
            super().drain(url)

    failures: list[Exception] = []

    def drain() -> None:
        try:
            engine.drain()
        except ProcessDiedError as error:
            failures.append(error)

    with CheckpointEngine(Hanging(room), room) as engine:
        engine.start()
        caller = threading.Thread(target=drain)
        caller.start()
        called.wait()
        assert engine.stop().phase == "stopped"
        caller.join()
        assert failures


def test_an_update_that_is_refused_leads_nowhere_once_stop_was_asked(room: Path) -> None:
    called, go_on = threading.Event(), threading.Event()

    class Slow(TinyEngine):
        def update(self, url: str, directory: str, version: int, published: int) -> None:
            called.set()
            go_on.wait()
            raise InvalidInputError(f"{url} has no {version}, {published} of {directory}")

    with (
        CheckpointEngine(Slow(room), room) as engine,
        ThreadPoolExecutor(2) as callers,
        contextlib.ExitStack() as at_end,
    ):
        at_end.callback(go_on.set)  # or what fails here would wait for the callers for ever
        engine.start()
        updated = callers.submit(engine.update, publish(room, 1), 1)
        called.wait()
        stopped = callers.submit(engine.stop)
        while engine.state().goal != "stopped":
            threading.Event().wait(0.01)
        go_on.set()
        assert stopped.result().phase == "stopped"
        with pytest.raises(ProcessDiedError, match="update: another call led it elsewhere"):
            updated.result()


def test_an_error_of_no_known_kind_reaches_who_called(room: Path) -> None:
    class Broken(TinyEngine):
        def drain(self, url: str) -> None:
            raise RuntimeError(f"{url} said something else")

    with CheckpointEngine(Broken(room), room) as engine:
        engine.start()
        with pytest.raises(RuntimeError, match="said something else"):
            engine.drain()
        assert "said something else" in (engine.state().last_error or "")
        assert engine.start().phase == "started"
        assert engine.stop().phase == "stopped"


def test_shared_memory_of_killed_processes_is_removed(room: Path) -> None:
    program = (
        "import time, multiprocessing.shared_memory as s\n"
        "print(s.SharedMemory(create=True, size=4096).name, flush=True)\n"
        "time.sleep(3600)\n"
    )
    mark, log = str(room.resolve()), room / "log"
    pid = process.launch(
        [sys.executable, "-c", program], {}, mark=mark, url="", lock=room / "lock", log=log
    )
    while not (log.exists() and (name := log.read_text().strip())):
        threading.Event().wait(0.01)
    segment = Path("/dev/shm") / name
    assert segment.exists()
    process.end(mark, grace_seconds=0)
    assert not segment.exists()
    assert process.exit_code(pid) is not None


def test_over_http_errors_keep_their_kind_and_words(
    room: Path, sidecars: Callable[[str, list[str]], Sidecars]
) -> None:
    sidecar = sidecars("restart", [])
    client = CheckpointEngineClient(sidecar.url)
    state = client.state()
    assert (state.phase, state.version, state.pid) == ("stopped", None, None)
    assert not client.is_healthy()
    with pytest.raises(InvalidInputError, match="drain: the engine is stopped: expected `start`"):
        client.drain()
    client.start()
    with pytest.raises(InvalidInputError, match="version = -1: expected a count"):
        client.update(None, -1)
    publish(room, 3)
    assert client.update(None, 3).directory == f"{room}/weights"
    with pytest.raises(InvalidInputError, match="/reboot: expected one of start, update"):
        client._call("POST", "reboot")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{sidecar.url}/update", data=b"{", timeout=60)
    with refused.value as answer:
        assert "the body: expected JSON" in json.loads(answer.read())["error"]["message"]
    sidecar.end()
    with pytest.raises(ProcessDiedError, match="k15 engine serve"):
        CheckpointEngineClient(sidecar.url, patience=0).state()
    with pytest.raises(InvalidInputError, match="expected http://HOST:PORT"):
        CheckpointEngineClient("127.0.0.1:80")


def test_a_state_file_that_is_not_ours_is_refused(room: Path) -> None:
    (room / "state.json").write_text('{"format": 1, "phase": "serving"}')
    with pytest.raises(CorruptionError, match=r"state\.json: not the state of a checkpoint engine"):
        CheckpointEngine(TinyEngine(room), room)
    state = State(phase="failed", last_error="it was")
    assert State.decode(state.encode(), where="here") == state
