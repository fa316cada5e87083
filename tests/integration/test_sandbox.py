"""The sandbox end to end, on the real kernel."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sandboxes import (
    RUNNERS,
    alive,
    children,
    groups,
    need,
    registry,
    run_processes,
    spawners,
    wait_until,
)
from slowness import SLOW, slowed

from k15core.errors import InvalidInputError, SandboxError
from k15core.sandbox import Limits, Sandbox, Submission


@pytest.fixture(scope="module", params=RUNNERS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    need(request.param)
    with Sandbox(slots=2, runner=request.param) as sandbox:
        yield sandbox


@pytest.mark.parametrize(
    ("language", "source", "verdict"),
    [
        ("python", "print(input()[::-1])", "ok"),
        ("python", "raise SystemExit(3)", "nonzero_exit"),
        ("python", "while True: pass", "cpu_limit"),
        ("python", "import time; time.sleep(60)", "wall_limit"),
        ("python", "x = bytearray(1 << 30)", "memory_limit"),
        ("python", "print('x' * (1 << 20))", "output_limit"),
        ("bash", "kill -SEGV $$", "signalled"),
        ("c", '#include <stdio.h>\nint main(void) { puts("1"); }', "ok"),
        ("c", "int main(void) { return missing; }", "compile_error"),
    ],
)
def test_each_ending_has_its_verdict(
    sandbox: Sandbox, language: str, source: str, verdict: str
) -> None:
    # On a busy machine a run may wait for a processor longer than it may use one, and be slow too.
    limits = Limits(
        cpu_seconds=0.3 if verdict == "cpu_limit" else 10,
        wall_seconds=1.5 if verdict == "wall_limit" else 30,
        memory_bytes=64 << 20,
        output_bytes=1000,
    )
    result = sandbox.run(source, language=language, stdin=b"abc\n", limits=slowed(limits))
    assert result.verdict == verdict, result
    assert (result.exit_code == 0) == (verdict == "ok")
    assert result.message == ("compiling ended with nonzero_exit" if "error" in verdict else "")


def test_input_output_and_files(sandbox: Sandbox) -> None:
    source = """
import pathlib, sys
sys.stderr.write(sys.stdin.read().upper())
text = pathlib.Path("in/a.txt").read_text()
pathlib.Path("in/b.txt").write_text(text * 2)
print(sys.argv[1:])
"""
    result = sandbox.run(
        source,
        language="python",
        stdin=b"x" * 300_000,
        files={"in/a.txt": b"12", "big": b"y" * 200_000},
        fetch=["in/b.txt", "big", "none"],
        arguments=["one", "two words"],
    )
    assert result.stdout == b"['one', 'two words']\n", result
    assert result.stderr == b"X" * 300_000
    assert result.files == {"in/b.txt": b"1212", "big": b"y" * 200_000}
    assert result.refused_files == {"none": "there is no such file"}


def test_a_run_is_measured(sandbox: Sandbox) -> None:
    source = "import time\nx = bytearray(50 << 20)\nwhile time.process_time() < 0.3: pass\n"
    result = sandbox.run(source, language="python")
    assert result.verdict == "ok"
    assert 0.3 <= result.cpu_seconds < 1 * SLOW
    assert result.wall_seconds >= 0.3
    assert 50 << 20 < result.peak_memory < 100 << 20


def test_many_at_once_are_in_order(sandbox: Sandbox) -> None:
    jobs = [Submission(source=f"echo {i}", language="bash") for i in range(50)]
    results = sandbox.run_many(jobs)
    assert [int(result.stdout) for result in results] == list(range(50))
    assert sandbox.open_slots == 2


def test_async_runs_overlap(sandbox: Sandbox) -> None:
    async def both() -> list[bytes]:
        runs = [sandbox.run_async(f"sleep 0.2; echo {i}", language="bash") for i in range(4)]
        return [result.stdout for result in await asyncio.gather(*runs)]

    assert asyncio.run(both()) == [b"0\n", b"1\n", b"2\n", b"3\n"]


def test_nothing_of_a_run_is_visible_to_the_next(sandbox: Sandbox) -> None:
    leave = """
import os, socket
os.system("ipcmk -M 4096 -S 2 >/dev/null; touch /tmp/f /dev/shm/g; sleep 100 &")
socket.socket(socket.AF_UNIX).bind("\\0name")
os.environ["SECRET"] = "1"
"""
    look = """
import os, socket
print(os.listdir("/tmp"), os.getuid(), os.environ.get("SECRET"))
print([name for name in os.listdir("/proc") if name.isdigit()], flush=True)
os.system("ipcs -ms | grep -c 0x")
socket.socket(socket.AF_UNIX).bind("\\0name")
"""
    seen = set()
    for _ in range(3):
        assert sandbox.run(leave, language="python").verdict == "ok"
        result = sandbox.run(look, language="python")
        assert result.verdict == "ok", result
        first, second, shared = result.stdout.decode().splitlines()
        assert first.startswith("['main.py'] ")
        assert first.endswith(" None")
        assert second == "['2']"
        assert shared == "0"
        seen.add(first)
    # Each run has a user of its own, unless the one who runs the sandbox is the only user there is.
    assert len(seen) == (3 if os.getuid() == 0 else 1)


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        ({"language": "cobol"}, 'language = "cobol": expected one of'),
        ({"language": "bash", "files": {"../x": b""}}, 'files = "../x": expected a path'),
        ({"language": "bash", "fetch": ["/etc/passwd"]}, 'fetch = "/etc/passwd"'),
        ({"language": "bash", "limits": Limits(processes=0)}, "processes = 0: expected between"),
        ({"language": "bash", "limits": Limits(cpus=-1)}, "cpus = -1: expected between"),
        ({"language": "bash", "arguments": ["a\0b"]}, "arguments = "),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(
    sandbox: Sandbox, arguments: dict[str, Any], start: str
) -> None:
    with pytest.raises(InvalidInputError) as refused:
        sandbox.run("", **arguments)
    assert str(refused.value).startswith(start)


def test_a_killed_spawner_costs_no_verdict(sandbox: Sandbox) -> None:
    for _ in range(5):
        sandbox.run("", language="bash")
        for pid in spawners():
            os.kill(pid, signal.SIGKILL)
        result = sandbox.run("echo here", language="bash")
        assert (result.verdict, result.stdout) == ("ok", b"here\n")


def test_a_spawner_killed_in_the_middle_of_a_run_costs_no_verdict(sandbox: Sandbox) -> None:
    async def kill_in_the_middle() -> list[bytes]:
        source = f"sleep {0.5 * SLOW}; echo here"
        runs = [sandbox.run_async(source, language="bash") for _ in range(2)]
        tasks = [asyncio.ensure_future(run) for run in runs]
        await asyncio.sleep(0.2 * SLOW)
        for pid in spawners():
            os.kill(pid, signal.SIGKILL)
        return [(await task).stdout for task in tasks]

    assert asyncio.run(kill_in_the_middle()) == [b"here\n"] * 2


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_slot_ends_with_its_guard_and_what_runs_in_it_too(runner: str) -> None:
    need(runner)
    others = spawners()
    with Sandbox(slots=1, runner=runner) as sandbox, ThreadPoolExecutor(1) as thread:
        run = thread.submit(sandbox.run, f"sleep {SLOW}; echo here", language="bash")
        time.sleep(0.5 * SLOW)
        guards = spawners() - others
        below = [pid for guard in guards for pid in children(guard)]
        running = run_processes()
        assert below
        assert running
        for guard in guards:
            os.kill(guard, signal.SIGKILL)

        def gone() -> bool:
            return not any(map(alive, below)) and not set(running) & set(run_processes())

        assert wait_until(gone, seconds=5), (below, run_processes())
        assert run.result().stdout == b"here\n"


@pytest.mark.parametrize("runner", RUNNERS)
def test_closing_leaves_nothing(runner: str) -> None:
    need(runner)
    kept = (spawners(), groups())

    def fail(sandbox: Sandbox) -> None:
        with sandbox:
            sandbox.run("sleep 100 & echo 1", language="bash")
            raise ZeroDivisionError

    sandbox = Sandbox(slots=1, runner=runner)
    with pytest.raises(ZeroDivisionError):
        fail(sandbox)
    assert (spawners(), groups()) == kept
    with pytest.raises(SandboxError):
        sandbox.run("", language="bash")
    sandbox.close()


def test_closing_twice_leaves_the_next_sandbox_alone() -> None:
    need()
    first = Sandbox(slots=1)
    first.close()
    with Sandbox(slots=1) as second:
        made = (spawners(), groups())
        first.close()
        del first
        assert (spawners(), groups()) == made
        assert second.run("echo here", language="bash").stdout == b"here\n"
        assert (spawners(), groups()) == made


def test_a_forked_child_cannot_use_its_parents_sandbox(sandbox: Sandbox) -> None:
    sandbox.run("", language="bash")
    before = spawners()
    pid = os.fork()
    if pid == 0:
        try:
            sandbox.run("", language="bash")
        except SandboxError:
            sandbox.close()
            os._exit(7)
        os._exit(8)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert spawners() == before
    assert sandbox.run("", language="bash").verdict == "ok"


KILLED = """
import sys, threading
from k15core.sandbox import Limits, Sandbox
sandbox = Sandbox(slots=2, least_slots=2, runner=sys.argv[1])
limits = Limits(wall_seconds=60)
for _ in range(2):
    run = lambda: sandbox.run("sleep 60 & sleep 60", language="bash", limits=limits)
    threading.Thread(target=run).start()
print("ready", flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_killed_parent_leaves_nothing(runner: str) -> None:
    need(runner)
    command = [sys.executable, "-c", KILLED, runner]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        pattern = f"k15core-{parent.pid}-*"
        time.sleep(0.5 * SLOW)
        assert groups(parent.pid) or not groups()
        assert run_processes(parent.pid)
        parent.kill()

    def left() -> list[object]:
        return [*groups(parent.pid), *registry().glob(pattern), *run_processes(parent.pid)]

    assert wait_until(lambda: not left(), seconds=20), left()
