"""What is the crun runner's own: what it leaves on the host, and what its runtime's death does."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandboxes import children, need, spawners, wait_until

from k15core.sandbox import Limits, Sandbox


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    need("crun")
    with Sandbox(slots=1, runner="crun") as sandbox:
        yield sandbox


def runtimes() -> list[int]:
    """The live runtimes of this process's spawners: each is a pair, the inner one starts runs."""
    found = [below for pid in spawners() for inner in children(pid) for below in children(inner)]
    return [pid for pid in found if Path(f"/proc/{pid}/comm").read_text() != "k15-spawner\n"]


def on_the_host() -> dict[str, list[str]]:
    """What crun might leave: mounts in this process's namespace, states, copies of itself."""
    return {
        "mounts": Path("/proc/self/mountinfo").read_text().splitlines(),
        "states": sorted(str(path) for path in Path("/run").glob("crun/*")),
        "copies": sorted(str(path) for path in Path("/tmp").glob("crun*")),
    }


def test_nothing_of_it_is_on_the_host_not_even_while_it_runs(sandbox: Sandbox) -> None:
    before = on_the_host()
    run = threading.Thread(target=lambda: sandbox.run("sleep 0.5", language="bash"))
    run.start()
    assert wait_until(runtimes, seconds=10)
    assert on_the_host() == before
    run.join()
    assert on_the_host() == before


def test_a_killed_runtime_takes_its_container_along_and_not_the_slot(sandbox: Sandbox) -> None:
    sandbox.run("", language="bash")
    before = spawners()
    results = []
    limits = Limits(wall_seconds=20)
    run = threading.Thread(
        target=lambda: results.append(sandbox.run("sleep 15", language="bash", limits=limits))
    )
    run.start()
    wait_until(lambda: any(map(children, runtimes())), seconds=10)
    time.sleep(0.2)
    for pid in runtimes():
        os.kill(pid, signal.SIGKILL)
    run.join()
    assert results[0].verdict == "sandbox_error", results
    assert results[0].message == "the run's init was killed from outside"
    assert results[0].wall_seconds < 10
    assert spawners() == before
    assert sandbox.run("echo here", language="bash").stdout == b"here\n"


def test_what_the_runtime_uses_is_not_the_programs(sandbox: Sandbox) -> None:
    used = [sandbox.execute(["/usr/bin/true"]).cpu_seconds for _ in range(5)]
    assert min(used) < 0.003, used


def test_init_is_nobody_that_a_program_can_reach(sandbox: Sandbox) -> None:
    source = """
import os, signal
for name in ("exec", "signal", "limit", "read"):
    try:
        match name:
            case "exec": os.execv("/.k15-init", ["init"])
            case "signal": os.kill(1, signal.SIGTERM)
            case "limit":
                import resource
                resource.prlimit(1, resource.RLIMIT_CPU, (0, 0))
            case "read": open("/.k15-init")
    except PermissionError:
        print("held", name)
"""
    result = sandbox.run(source, language="python")
    assert result.stdout == b"held exec\nheld signal\nheld limit\nheld read\n", result


def test_a_program_that_is_not_there_is_told_as_such(sandbox: Sandbox) -> None:
    result = sandbox.execute(["/no/such/program"])
    assert result.verdict == "sandbox_error"
    assert result.message.startswith("starting the program failed for /no/such/program: No such")
