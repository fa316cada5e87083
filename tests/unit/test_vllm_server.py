"""The handle on a server process, over a stand-in that answers like vLLM's control paths.

What vLLM itself does is tested in tests/peers/vllm.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from k15core.deploy.vllm.control import VllmControl
from k15core.deploy.vllm.group import end_group, members
from k15core.deploy.vllm.program import VllmProgram
from k15core.deploy.vllm.server import VllmServer
from k15core.errors import InvalidInputError, ProcessDiedError
from k15core.rollout.vllm.owners import OwnServer

DEADLINE = 60.0

# A program in the place of the interpreter: it gets `-m k15core.deploy.vllm.launch SOCKET …`.
STAND_IN = """#!{python}
import os, socket, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
if {ends}:
    sys.exit("no such model")
from k15core.deploy.vllm.launch import end_group_at_eof
if int(sys.argv[4]) >= 0:
    end_group_at_eof(int(sys.argv[4]))
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
from multiprocessing.shared_memory import SharedMemory
memory = SharedMemory(create=True, size=64)  # starts a process that removes it at the end
class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        body = '{{"weight_version": "' + str(int(memory.name[4:], 16)) + '"}}'
        self.send_response(200); self.end_headers(); self.wfile.write(body.encode())
server = HTTPServer(("127.0.0.1", 0), Answer, bind_and_activate=False)
server.socket = socket.socket(fileno=int(sys.argv[3]))
server.server_activate()
server.serve_forever()
"""


def stand_in(folder: Path, *, ends: bool = False) -> str:
    path = folder / f"python-{ends}"
    path.write_text(STAND_IN.format(python=sys.executable, ends=ends))
    path.chmod(0o755)
    return str(path)


def server(folder: Path, **settings: object) -> VllmServer:
    program = stand_in(folder, ends=bool(settings.pop("ends", False)))
    return VllmServer(VllmProgram({}, python=program), log=folder / "vllm.log", **settings)


def shared_memory(running: VllmServer) -> Path:
    """What the stand-in has in shared memory: its answers name it, as a number."""
    return Path("/dev/shm") / f"psm_{running.version():08x}"


def wait_until(done: object) -> None:
    deadline = time.monotonic() + DEADLINE
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_server_is_started_found_again_and_ended_with_its_children(tmp_path: Path) -> None:
    ours = server(tmp_path)
    process = ours.start()
    assert ours.start() == process
    ours.wait_healthy(seconds=DEADLINE)
    assert len(members(process.pid)) == 3
    other = server(tmp_path)
    assert other.adopt(process)
    assert other.is_healthy()
    ours.stop(seconds=DEADLINE)
    assert not members(process.pid)
    assert not other.is_alive()
    assert not other.adopt(process)
    ours.stop()
    ours.kill()


def test_a_killed_server_leaves_nothing_and_starts_again(tmp_path: Path) -> None:
    ours = server(tmp_path)
    first = ours.start()
    ours.wait_healthy(seconds=DEADLINE)
    shared = shared_memory(ours)
    assert shared.exists()
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: not ours.is_alive())
    with pytest.raises(ProcessDiedError, match="does not answer GET /weight_info"):
        ours.version()
    second = ours.start()
    assert second.pid != first.pid
    assert not members(first.pid)
    assert not shared.exists()
    ours.wait_healthy(seconds=DEADLINE)
    shared = shared_memory(ours)
    assert shared.exists()
    ours.kill()
    assert not members(second.pid)
    assert not shared.exists()


def test_a_server_that_is_about_to_end_is_started_again(tmp_path: Path) -> None:
    """A killed process of many threads is silent for a while before it has ended."""
    program = VllmProgram({}, python=stand_in(tmp_path))
    owner = OwnServer(
        program, program, release="sleep", log=tmp_path / "vllm.log", seconds=DEADLINE
    )
    owner.acquire()
    first = owner.server.process
    assert first is not None
    assert owner.acquire().url == first.url
    os.kill(first.pid, signal.SIGSTOP)
    end = threading.Timer(0.5, os.kill, (first.pid, signal.SIGKILL))
    end.start()
    try:
        owner.acquire()
        assert owner.server.is_healthy()
        assert owner.server.process != first
        assert not members(first.pid)
    finally:
        end.join()
        owner.close()


@pytest.mark.parametrize("outlives", [False, True])
def test_a_server_ends_with_its_owner_unless_it_shall_outlive_it(
    tmp_path: Path, outlives: bool
) -> None:
    program = stand_in(tmp_path)
    script = (
        "import sys, threading; from k15core.deploy.vllm.server import VllmServer\n"
        "from k15core.deploy.vllm.program import VllmProgram\n"
        f"program = VllmProgram({{}}, python={program!r})\n"
        f"s = VllmServer(program, log={str(tmp_path / 'log')!r}, outlives={outlives})\n"
        "t = threading.Thread(target=s.start); t.start(); t.join()\n"  # the thread is not the owner
        f"s.wait_healthy(seconds={DEADLINE}); p = s.process\n"
        "print(p.pid, p.url, flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdin is not None
    assert owner.stdout is not None
    pid, url = owner.stdout.readline().split()
    assert VllmControl(url).is_healthy(seconds=DEADLINE)
    owner.kill()
    owner.wait()
    owner.stdin.close()
    owner.stdout.close()
    try:
        if outlives:
            assert VllmControl(url).is_healthy(seconds=DEADLINE)
            assert len(members(int(pid))) == 3
        else:
            wait_until(lambda: not members(int(pid)))
    finally:
        end_group(int(pid))


def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    ours = server(tmp_path, ends=True)
    ours.start()
    with pytest.raises(ProcessDiedError, match=r"ended while it started.*no such model"):
        ours.wait_healthy(seconds=DEADLINE)
    assert not ours.is_alive()
    ours.kill()
    program = VllmProgram({}, python=str(tmp_path / "absent"))
    absent = VllmServer(program, log=tmp_path / "log")
    with pytest.raises(InvalidInputError, match="absent"):
        absent.start()
    elsewhere = server(tmp_path, host="192.0.2.1")
    with pytest.raises(InvalidInputError, match=r"host = '192\.0\.2\.1'"):
        elsewhere.start()
    with pytest.raises(ProcessDiedError, match="was not started"):
        elsewhere.version()
    with pytest.raises(InvalidInputError, match="expected http://HOST:PORT"):
        VllmControl("localhost:3")


def test_the_programs_environment_and_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    program = VllmProgram(
        {"max_model_len": 9}, extra=("--seed", "1"), environment={"A": "b"}, python="py"
    )
    wanted = program.environment()
    assert "OMP_NUM_THREADS" not in wanted
    assert (wanted["A"], wanted["VLLM_SERVER_DEV_MODE"]) == ("b", "1")
    assert wanted["PYTHONPATH"].endswith(f"python{os.pathsep}/elsewhere")
    words = program.command(7)
    assert words[:5] == ["py", "-m", "k15core.deploy.vllm.launch", "7", "-1"]
    assert words[-4:] == ["--max-model-len", "9", "--seed", "1"]
