"""What a sandbox leaves on disk: nothing, however it ends.

The programs here run in a mount namespace in which all places for temporary files are new and
empty, so that what lies there afterwards is theirs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sandboxes import RUNNERS, need

PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/var/cache")

SCOPE = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from k15core.errors import Error
from k15core.sandbox import Limits, Sandbox
RUNNER = sys.argv[1]
def left():
    places = ["/tmp", "/var/tmp", "/dev/shm", "/run", "/var/cache", os.environ["HOME"]]
    return sorted({str(path) for place in places for path in Path(place).rglob("*")})
def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
def janitors(pid):
    words = {each: Path(f"/proc/{each}/cmdline").read_bytes() for each in children(pid)}
    return [each for each in words if b"clean" in words[each]]
def work(sandbox):
    source = "import os; os.system('touch /tmp/a /dev/shm/b; ls /tmp; sleep 100 &')"
    return sandbox.run(source, language="python", files={"x": b"1" * 100000}).verdict
def wait(condition):
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
told = {}
"""
TELL = "\nprint(json.dumps(told))\n"

OPEN = """
with Sandbox(slots=2, least_slots=2, runner=RUNNER) as sandbox:
    work(sandbox)
    print("ready", flush=True)
    time.sleep(1000)
"""


def run(source: str, runner: str, *more: str) -> dict[str, object]:
    """What a Python with SCOPE and `source` tells, in a namespace with nothing in its places."""
    need(runner)
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("looking at all that is left takes root and util-linux's unshare")
    hidden = [place for place in PLACES if Path(__file__).is_relative_to(place)]
    if hidden:
        pytest.skip(f"the checkout lies in {hidden[0]}, which is hidden here: have it elsewhere")
    places = f"for p in {' '.join(PLACES)}; do mount -t tmpfs tmpfs $p; done"
    places += "; rm -rf /run/mount"  # mount's own
    command = ["unshare", "--mount", "sh", "-ec", f'{places}; exec "$@"', "sh"]
    command += [sys.executable, "-c", SCOPE + source + TELL, runner, *more]
    environment = os.environ | {"HOME": "/tmp"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_closed_sandbox_leaves_no_file(runner: str) -> None:
    source = """
with Sandbox(slots=2, runner=RUNNER) as sandbox:
    told["verdict"] = work(sandbox)
    told["during"] = len(left()) > 0
told["after"] = left()
try:
    with Sandbox(slots=2, runner=RUNNER) as sandbox:
        work(sandbox)
        raise ZeroDivisionError
except ZeroDivisionError:
    told["after an exception"] = left()
told["children"] = children(os.getpid())
"""
    assert run(source, runner) == {
        "verdict": "ok",
        "during": True,
        "after": [],
        "after an exception": [],
        "children": [],
    }


def test_a_sandbox_that_does_not_open_leaves_no_file() -> None:
    source = """
for number, options in enumerate([{"runner": "none"}, {"slots": 0}, {"limits": Limits(cpus=-1)},
                                  {"runner": "warm", "warm_modules": ["no_such_module"]}]):
    try:
        Sandbox(**options)
    except Error as error:
        told[str(number)] = [left(), children(os.getpid())]
"""
    assert run(source, "warm") == {str(number): [[], []] for number in range(4)}


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_killed_process_leaves_no_file(runner: str) -> None:
    source = """
def start():
    command = [sys.executable, "-c", sys.argv[2], RUNNER]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process
process = start()
told["during"] = len(left()) > 0
process.kill()
process.wait()
wait(lambda: not left())
told["its janitor has cleaned"] = left()
process = start()
for janitor in janitors(process.pid):
    os.kill(janitor, signal.SIGKILL)
process.kill()
process.wait()
told["without a janitor"] = len(left())
with Sandbox(slots=1, runner=RUNNER) as sandbox:
    told["verdict"] = work(sandbox)
told["the next has cleaned"] = left()
"""
    assert run(source, runner, SCOPE + OPEN) == {
        "during": True,
        "its janitor has cleaned": [],
        "without a janitor": 2,
        "verdict": "ok",
        "the next has cleaned": [],
    }
