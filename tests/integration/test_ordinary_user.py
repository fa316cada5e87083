"""The sandbox without privileges: a user namespace, and whatever cgroups there are.

Run by root, one test here runs the attacks, the sandbox's own tests and the others of this file
again as an ordinary user, once with cgroups of that user and once without. Run by an ordinary user,
the others run directly.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import ordinary_user
import pytest

from k15core.errors import InvalidInputError, SandboxError, UnenforceableError
from k15core.sandbox import Limits, Sandbox, examine

ALLOWED = ("memory_bytes", "cpu_seconds")
SANDBOX_TESTS = ["tests/integration/test_sandbox.py", "tests/integration/test_ordinary_user.py"]


@pytest.mark.parametrize("delegated", [True, False], ids=["with-cgroups", "without-cgroups"])
def test_all_of_it_as_an_ordinary_user(delegated: bool) -> None:
    ordinary_user.need()
    if delegated and not ordinary_user.can_delegate():
        pytest.skip("cgroups can be given to a user by this test on hosts with cgroup v1 only")
    attacks = ["tests/attacks"] if delegated else []
    ended = ordinary_user.run("-rs", *SANDBOX_TESTS, *attacks, delegated=delegated)
    impossible = re.search(f"{IMPOSSIBLE}.*", ended.stdout)
    if impossible is not None:
        pytest.skip(impossible[0].removeprefix(IMPOSSIBLE))
    assert ended.returncode == 0, ended.stdout[-8000:]
    passed = int(ended.stdout.split(" passed")[0].split()[-1])
    assert passed >= (120 if delegated else 8), ended.stdout[-2000:]


IMPOSSIBLE = "this host has no sandboxes for ordinary users: "


@cache
def obstacle() -> str:
    """What of this host keeps ordinary users from sandboxes: a setting, or a filter on calls."""
    isolation = examine().capabilities[0]
    if not isolation.enforced:
        return f"{isolation.how}. {isolation.remedy}"
    try:
        Sandbox(slots=1, allow_unenforced=ALLOWED).close()
    except SandboxError as error:
        if "cannot make a user namespace" not in str(error):
            raise
        return str(error)
    return ""


def need_ordinary() -> None:
    if os.getuid() == 0:
        pytest.skip("run as an ordinary user by test_all_of_it_as_an_ordinary_user")
    if obstacle():
        pytest.skip(IMPOSSIBLE + obstacle())


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    need_ordinary()
    with Sandbox(slots=2, least_slots=2, allow_unenforced=ALLOWED) as sandbox:
        yield sandbox


def test_what_a_run_is(sandbox: Sandbox) -> None:
    source = """
import os
status = dict(line.split(":\\t") for line in open("/proc/self/status") if ":\\t" in line)
names = ("Uid", "Gid", "NoNewPrivs", "Seccomp", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NSpid")
for name in names:
    print(name, *status[name].split())
print(os.listdir("/proc"), os.uname().nodename)
"""
    result = sandbox.run(source, language="python")
    none = "0" * 16
    assert result.stdout.decode().splitlines() == [
        "Uid 65534 65534 65534 65534",
        "Gid 65534 65534 65534 65534",
        "NoNewPrivs 1",
        "Seccomp 2",
        f"CapPrm {none}",
        f"CapEff {none}",
        f"CapBnd {none}",
        f"CapAmb {none}",
        "NSpid 2",
        "['self', 'thread-self', '2'] sandbox",
    ], result


LIMITS_OF_ITS_OWN = """
import resource
names = ["CPU", "FSIZE", "STACK", "NOFILE", "CORE", "MEMLOCK", "NPROC", "NICE", "RTPRIO"]
each = {name: getattr(resource, "RLIMIT_" + name) for name in names}
print([resource.getrlimit(number)[1] for number in each.values()])
for name, number in each.items():
    soft, hard = resource.getrlimit(number)
    for pid, limits in [(0, (soft, hard + 1)), (1, (0, 0))]:
        try:
            resource.prlimit(pid, number, limits)
            print("BREACH:", name, "of", pid)
        except (ValueError, PermissionError):
            pass
"""


def test_limits_are_not_raised_and_those_of_init_not_touched(sandbox: Sandbox) -> None:
    first = sandbox.run(LIMITS_OF_ITS_OWN, language="python")
    assert (first.verdict, first.stdout.count(b"\n")) == ("ok", 1), first
    # Its init is of the same user: a limit of its processor time would end it, and the run.
    lower = """
import os, resource
for name in ("CPU", "FSIZE", "STACK", "NOFILE", "NPROC"):
    try:
        resource.prlimit(1, getattr(resource, "RLIMIT_" + name), (0, 0))
    except PermissionError:
        print("held")
for _ in range(200):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)  # an orphan: init's
        os._exit(0)
    os.wait()
raise SystemExit(3)
"""
    result = sandbox.run(lower, language="python")
    assert (result.verdict, result.exit_code, result.stdout) == ("nonzero_exit", 3, b"held\n" * 5)
    for _ in range(4):
        assert sandbox.run(LIMITS_OF_ITS_OWN, language="python").stdout == first.stdout


def test_a_run_that_takes_its_output_back_lacks_it_and_harms_no_other(sandbox: Sandbox) -> None:
    source = """
import os
mine = os.open("/proc/self/fd/1", os.O_RDONLY | os.O_NONBLOCK)
os.write(1, b"x" * 1000)
try:
    taken = len(os.read(mine, 1000))
except BlockingIOError:
    taken = 0  # it has been read already
os.write(2, str(taken).encode())
os.set_blocking(mine, True)
feed = os.open("/proc/self/fd/0", os.O_WRONLY | os.O_NONBLOCK)
os.write(feed, b"more")
if os.fork() == 0:
    os.read(mine, 1)  # waits for what comes next, for ever
os.write(2, b" " + os.read(0, 100))
"""
    result = sandbox.run(source, language="python", stdin=b"input ")
    taken, _, rest = result.stderr.partition(b" ")
    assert (result.verdict, rest) == ("ok", b"input more"), result
    assert int(taken) + len(result.stdout) == 1000
    assert sandbox.run("cat; echo 2", language="bash", stdin=b"1 ").stdout == b"1 2\n"


def test_no_process_of_the_same_user_can_be_reached(sandbox: Sandbox) -> None:
    pids = [
        int(path.name)
        for path in Path("/proc").glob("[0-9]*")
        if path.exists() and path.stat().st_uid in (os.getuid(), 0)
    ]
    assert os.getpid() in pids
    source = """
import os, resource, sys, time
for pid in map(int, sys.argv[1:]):
    if pid in (1, 2):
        continue
    try:
        os.kill(pid, 9)
        print("BREACH: killed", pid)
    except ProcessLookupError:
        pass
    if os.path.exists(f"/proc/{pid}"):
        print("BREACH: sees", pid)
# Init is of this user, so that the kernel lets these through; they must change nothing.
for number in (9, 19, 2, 15):
    os.kill(1, number)
try:
    resource.prlimit(1, resource.RLIMIT_CPU, (0, 0))
    print("BREACH: init's limits")
except OSError:
    pass
for name in ("mem", "environ", "maps", "fd", "root"):
    try:
        path = f"/proc/1/{name}"
        print("BREACH:", os.listdir(path) if name == "fd" else open(path, "rb").read(1))
    except OSError:
        pass
time.sleep(0.1)
print("alive")
"""
    slow = threading.Thread(target=lambda: sandbox.run("sleep 1", language="bash"))
    slow.start()
    time.sleep(0.2)
    result = sandbox.run(source, language="python", arguments=[str(pid) for pid in pids])
    slow.join()
    assert (result.verdict, result.stdout) == ("ok", b"alive\n"), result


def test_what_a_run_does_to_its_own_directory_is_not_there_for_the_next(sandbox: Sandbox) -> None:
    for _ in range(4):
        look = "stat -c '%a %u' /tmp; chmod 700 /tmp; touch -d @1 /tmp"
        assert sandbox.run(look, language="bash").stdout == b"1777 65534\n"


def test_processes_are_limited(sandbox: Sandbox) -> None:
    source = """
import os, time
made = 0
try:
    while made < 100:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
except OSError:
    pass
print(made)
"""
    result = sandbox.run(source, language="python", limits=Limits(processes=12))
    assert (result.verdict, result.stdout) == ("ok", b"11\n"), result
    # The runs of the other slot are counted apart.
    assert sandbox.run("echo 1 | cat", language="bash", limits=Limits(processes=4)).verdict == "ok"


def test_what_cannot_be_enforced_is_refused_with_the_way_to_get_it() -> None:
    need_ordinary()
    found = {each.name: each for each in examine().capabilities}
    assert found["isolation"].how.startswith("a user namespace")
    if found["memory_bytes"].enforced:
        with Sandbox(slots=1) as sandbox:
            limits = Limits(memory_bytes=32 << 20)
            result = sandbox.run("x = bytearray(1 << 28)", language="python", limits=limits)
            assert result.verdict == "memory_limit"
        return
    with pytest.raises(UnenforceableError, match=r"this host cannot enforce memory_bytes: .*Deleg"):
        Sandbox(slots=1)
    with pytest.raises(UnenforceableError, match=r"this host cannot enforce cpu_seconds"):
        Sandbox(slots=1, allow_unenforced=["memory_bytes"])
    with Sandbox(slots=1, allow_unenforced=ALLOWED) as sandbox:
        with pytest.raises(UnenforceableError, match=r"this host cannot enforce cpus: .*Delegate"):
            sandbox.run("", language="bash", limits=Limits(cpus=0.5))
        assert sandbox.run("echo 1", language="bash").stdout == b"1\n"
        spin = "while True: pass"
        # Each process's own clock is still a limit; it looks in whole seconds.
        limits = Limits(cpu_seconds=0.5, wall_seconds=20)
        assert sandbox.run(spin, language="python", limits=limits).verdict == "cpu_limit"


def test_what_needs_root_says_so() -> None:
    need_ordinary()
    with pytest.raises(SandboxError, match="root, which every runner but direct needs, is missing"):
        Sandbox(slots=1, runner="crun", allow_unenforced=ALLOWED)


NESTED = """
import json
from k15core.sandbox import Sandbox, examine
isolation = examine().capabilities[0]
try:
    with Sandbox(slots=1, allow_unenforced=["memory_bytes", "cpu_seconds"]) as sandbox:
        result = sandbox.run("id -u", language="bash")
        said = [result.verdict, result.stdout.decode(), result.message]
except Exception as error:
    said = [type(error).__name__, str(error), ""]
print(json.dumps([isolation.enforced, said]))
"""


def in_user_namespace(before: str) -> tuple[bool, list[str]]:
    """What NESTED says as root of another user namespace, after the shell command `before`."""
    need_ordinary()
    if shutil.which("unshare") is None:
        pytest.skip("unshare is missing: apt install util-linux")
    command = ["unshare", "-Ur", "sh", "-ec", f'{before}; exec "$@"', "sh", sys.executable, "-c"]
    ended = subprocess.run([*command, NESTED], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended
    enforced, said = json.loads(ended.stdout)
    return enforced, said


def test_root_of_a_user_namespace_is_an_ordinary_user() -> None:
    of_root = Path("/tmp/k15core-0")
    was_there = of_root.exists()
    assert in_user_namespace("true") == (True, ["ok", "65534\n", ""])
    # It is entered under the user's own name: root of another namespace could not share root's.
    assert of_root.exists() == was_there


def test_where_user_namespaces_are_off_it_names_the_setting() -> None:
    off = "echo 0 > /proc/sys/user/max_user_namespaces"
    enforced, (kind, said, _) = in_user_namespace(off)
    assert (enforced, kind) == (False, "UnenforceableError")
    assert "sysctl -w user.max_user_namespaces=10000" in said


def test_leftovers_are_entered_where_only_this_user_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_ordinary()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with Sandbox(slots=1, allow_unenforced=ALLOWED):
        folder = tmp_path / "k15core"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert [path.name.split("-")[1] for path in folder.iterdir()] == [str(os.getpid())]
    assert not folder.exists()
    folder.mkdir()
    folder.chmod(0o770)
    with pytest.raises(InvalidInputError, match="a directory that only this user can write to"):
        Sandbox(slots=1, allow_unenforced=ALLOWED)
