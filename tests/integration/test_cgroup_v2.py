"""The sandbox in a cgroup of v2 where its own process lives, as in a container or a systemd unit.

These tests make groups below the root of v2, so they run where nobody else rules it: as root in a
machine without systemd, such as the one that `make test-v2` boots.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ordinary_user
import pytest
from sandboxes import need, registry, wait_until

TOP = Path("/sys/fs/cgroup")
CONTROLLERS = ("memory", "pids", "cpu")


@pytest.fixture
def group() -> Iterator[Path]:
    """A group of v2 with all controllers, as a container or a unit is given one."""
    if not (TOP / "cgroup.controllers").exists():
        pytest.skip("this host has not cgroup v2 alone: `make test-v2` boots a machine that has")
    if os.getuid() != 0 or (TOP / "cgroup.type").exists():
        pytest.skip(
            "groups below the root of cgroup v2 are made by root of a host, not a container"
        )
    if Path("/proc/self/cgroup").read_text() != "0::/\n":
        pytest.skip("the root of cgroup v2 is systemd's here: `make test-v2` boots another machine")
    need()
    for name in CONTROLLERS:
        (TOP / "cgroup.subtree_control").write_text(f"+{name}")
    directory = TOP / f"k15-test-{os.getpid()}"
    directory.mkdir()
    yield directory
    remove(directory)


def remove(directory: Path) -> None:
    if directory.exists():
        (directory / "cgroup.kill").write_text("1")
        for below in directory.glob("*/"):
            remove(below)
        assert wait_until(lambda: not processes(directory), seconds=10)
        directory.rmdir()


def processes(directory: Path) -> list[int]:
    return [int(line) for line in (directory / "cgroup.procs").read_text().split()]


def below(directory: Path) -> list[str]:
    return [path.name for path in directory.glob("*/")]


# What the process in the group has in scope.
SCOPE = """
import json, os, subprocess, sys, time
from k15core.errors import SandboxError
from k15core.sandbox import Limits, Sandbox, examine
told = {}
def sleeper():
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(["sleep", "1000"], stdout=nowhere, stderr=nowhere)
def own(pid="self"):
    return open(f"/proc/{pid}/cgroup").read().strip().removeprefix("0::")
def try_it(sandbox):
    few = Limits(memory_bytes=64 << 20, cpu_seconds=60, wall_seconds=120)
    programs = ["print(1)", "x = bytearray(1 << 30)"]
    results = [sandbox.run(source, language="python", limits=few) for source in programs]
    return [result.message or result.verdict for result in results]
"""
TELL = "\nprint(json.dumps(told))\n"
WORKS = ["ok", "memory_limit"]


def start(
    group: Path, source: str, *wrapper: str, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """A Python in `group` with `source`; the words of `wrapper` come before its command."""
    command = [*wrapper, sys.executable, "-c", SCOPE + source + TELL]
    enter = f'echo $$ > {group}/cgroup.procs && exec "$@"'
    return subprocess.Popen(
        ["sh", "-c", enter, "sh", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env=os.environ | (environment or {}),
    )


def told(process: subprocess.Popen[str]) -> dict[str, object]:
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    result: dict[str, object] = json.loads(stdout.splitlines()[-1])
    return result


def test_a_process_alone_in_its_group_moves_and_moves_back(group: Path) -> None:
    source = """
child = sleeper()
told["how"] = {each.name: each.how for each in examine().capabilities}["memory_bytes"]
told["before"] = own()
first, second = Sandbox(slots=1), Sandbox(slots=1)
told["inside"] = own() == own(child.pid) and own()
first.close()
told["shared"] = own()
told["verdicts"] = try_it(second)
second.close()
told["after"] = own() == own(child.pid) and own()
with Sandbox(slots=1) as third:
    told["again"] = try_it(third)
told["end"] = own()
child.kill()
child.wait()
"""
    said = told(start(group, source))
    name = f"/{group.name}"
    assert str(said["how"]).endswith(f"this process lives in a group of its own below {group}")
    assert said["before"] == said["after"] == said["end"] == name
    assert str(said["inside"]).startswith(f"{name}/k15core-")
    assert str(said["inside"]).endswith("-leaf")
    assert said["shared"] == said["inside"]
    assert said["verdicts"] == said["again"] == WORKS
    assert below(group) == []
    assert (group / "cgroup.subtree_control").read_text().split() == []


def test_others_in_the_group_are_left_alone(group: Path) -> None:
    other = subprocess.Popen(["sleep", "1000"])
    (group / "cgroup.procs").write_text(str(other.pid))
    source = """
try:
    Sandbox(slots=1)
except SandboxError as error:
    told["error"] = str(error)
with Sandbox(slots=1, allow_unenforced=["memory_bytes", "cpu_seconds"]) as sandbox:
    told["verdict"] = sandbox.run("print(1)", language="python").verdict
told["own"] = own()
"""
    said = told(start(group, source))
    error = str(said["error"])
    assert error.startswith("this host cannot enforce memory_bytes: ")
    assert f"there are 1 in {group}, sleep ({other.pid}) among them" in error
    assert "Delegate=yes" in error
    assert "others/cgroup.procs" in error
    assert (said["verdict"], said["own"]) == ("ok", f"/{group.name}")
    assert processes(group) == [other.pid]
    assert below(group) == []
    other.kill()
    other.wait()


def test_a_killed_process_leaves_the_group_as_it_was(group: Path) -> None:
    source = """
sandbox = Sandbox(slots=2, least_slots=2)
child = sleeper()
print(child.pid, flush=True)
sandbox.run("sleep 1000", language="bash", limits=Limits(wall_seconds=1000))
"""
    process = start(group, source)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert wait_until(lambda: len(below(group)) == 2, seconds=10)
    process.kill()
    process.communicate()
    # What the killed process had started lives on, where it was.
    assert wait_until(lambda: not below(group) and processes(group) == [child], seconds=20)
    assert (group / "cgroup.subtree_control").read_text().split() == []
    assert wait_until(lambda: not [*registry().glob(f"k15core-{process.pid}-*")], seconds=10)
    os.kill(child, signal.SIGKILL)


def test_a_forked_child_has_its_sandboxes_beside_its_parents(group: Path) -> None:
    source = """
first = Sandbox(slots=1)
pid = os.fork()
if pid == 0:
    with Sandbox(slots=1) as sandbox:
        works = try_it(sandbox) == ["ok", "memory_limit"]
    os._exit(7 if works else 8)
told["child"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
told["verdicts"] = try_it(first)
first.close()
told["end"] = own()
"""
    said = told(start(group, source))
    assert said == {"child": 7, "verdicts": WORKS, "end": f"/{group.name}"}
    assert below(group) == []


def test_a_unit_of_systemd_must_be_given_away(group: Path) -> None:
    source = """
try:
    with Sandbox(slots=1) as sandbox:
        told["inside"], told["verdicts"] = own(), try_it(sandbox)
except SandboxError as error:
    told["error"] = str(error)
"""
    for name in CONTROLLERS:
        (group / "cgroup.subtree_control").write_text(f"+{name}")
    unit = group / "some.scope"
    unit.mkdir()
    said = told(start(unit, source))
    assert f"{unit} is systemd's own, without Delegate=yes" in str(said["error"])
    os.setxattr(unit, "trusted.delegate", b"1")
    said = told(start(unit, source))
    assert said.get("verdicts") == WORKS, said
    assert str(said["inside"]).endswith("-leaf")
    # As with DelegateSubgroup=: nobody has to move.
    (unit / "main").mkdir()
    said = told(start(unit / "main", source))
    assert said.get("verdicts") == WORKS, said
    assert str(said["inside"]).endswith("/some.scope/main")
    assert below(unit) == ["main"]


def test_in_a_container_what_the_refusal_says_helps(group: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("unshare is missing: apt install util-linux")
    source = """
try:
    with Sandbox(slots=1) as sandbox:
        told["verdicts"], told["own"] = try_it(sandbox), own()
except SandboxError as error:
    told["error"] = str(error)
"""
    python = f"{sys.executable} -c '{SCOPE}{source}{TELL}'"
    # A shell is the container's first process, and lives where Python does.
    container = f"""
mount --bind {group} /sys/fs/cgroup
{python}
cd /sys/fs/cgroup && mkdir others
for p in $(cat cgroup.procs); do echo $p > others/cgroup.procs; done
{python}
true
"""
    enter = f'echo $$ > {group}/cgroup.procs && exec unshare --mount --cgroup sh -c "$1"'
    command = ["sh", "-c", enter, "sh", container]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert "there are 1 in /sys/fs/cgroup, sh (" in first.get("error", ""), first
    assert second == {"verdicts": WORKS, "own": "/others"}


def test_an_ordinary_user_with_a_group_of_its_own(group: Path) -> None:
    ordinary_user.need()
    for path in (group, *(group / f"cgroup.{name}" for name in ("procs", "subtree_control"))):
        os.chown(path, ordinary_user.USER, ordinary_user.USER)
    source = """
told["before"] = own()
with Sandbox(slots=1) as sandbox:
    told["inside"], told["verdicts"] = own(), try_it(sandbox)
told["user"], told["end"] = os.getuid(), own()
"""
    with ordinary_user.copy() as folder:
        environment = ordinary_user.environment(folder)
        words = [*ordinary_user.DROP, "env", "-C", str(folder), ordinary_user.python()]
        enter = f'echo $$ > {group}/cgroup.procs && exec "$@"'
        command = ["sh", "-c", enter, "sh", *words, "-c", SCOPE + source + TELL]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["user"] == ordinary_user.USER
    assert said["before"] == said["end"] == f"/{group.name}"
    assert said["inside"].endswith("-leaf")
    assert said["verdicts"] == WORKS
    assert below(group) == []
