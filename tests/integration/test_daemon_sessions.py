"""Sessions of the daemon: what lives over steps, what does not, and how they end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from daemons import Daemon, client_of, daemon
from sandboxes import groups, need, wait_until

from k15core.errors import InvalidInputError, SandboxError
from k15core.sandbox import Client, Limits, Session

PACKAGE = {
    "calc/__init__.py": b"from calc.add import add\n",
    "calc/add.py": b"def add(a, b):\n    return a - b\n",
    "test_calc.py": b"from calc import add\n\nassert add(2, 3) == 5, add(2, 3)\nprint('passed')\n",
}


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    with daemon("--slots", "2") as found:
        yield found


@pytest.fixture
def client(running: Daemon) -> Iterator[Client]:
    with client_of(running) as found:
        yield found


@pytest.fixture
def session(client: Client) -> Iterator[Session]:
    with client.session(limits=Limits(wall_seconds=60, disk_bytes=4 << 20)) as found:
        yield found


def test_a_repository_is_tested_edited_and_tested_again(session: Session) -> None:
    session.write(PACKAGE)
    failed = session.execute("python3 test_calc.py")
    assert (failed.verdict, failed.exit_code) == ("nonzero_exit", 1)
    assert b"AssertionError: -1" in failed.stderr
    edited = session.execute(["sed", "-i", "s/a - b/a + b/", "calc/add.py"])
    assert edited.verdict == "ok"
    assert session.read("calc/add.py") == b"def add(a, b):\n    return a + b\n"
    passed = session.execute(["python3", "test_calc.py"], fetch=["calc/add.py"])
    assert (passed.verdict, passed.stdout) == ("ok", b"passed\n")
    assert b"a + b" in passed.files["calc/add.py"]
    session.write({}, delete=["calc"])
    assert session.execute("python3 test_calc.py").verdict == "nonzero_exit"
    assert [each.path for each in session.files()] == ["test_calc.py"]


def test_permissions_times_and_links_stay(session: Session) -> None:
    session.write({"in/plain": b"\xff\x00" * 40_000}, executables={"tool": b"#!/bin/sh\necho $0"})
    made = session.execute(
        "./tool; mkdir -p a/b; ln -s ../../in/plain a/b/link; chmod 640 in/plain; chmod 700 a;"
        " touch -d @1234567890.5 in/plain; touch -d @987654321 in a; mkfifo pipe; umask 0; : > open"
    )
    assert (made.verdict, made.stdout) == ("ok", b"./tool\n")
    seen = session.execute("stat -c '%n %a %.Y' in/plain in a open; cmp in/plain a/b/link; ls")
    lines = seen.stdout.decode().split("\n")
    assert lines[:2] == ["in/plain 640 1234567890.500000000", "in 755 987654321.000000000"]
    assert lines[2] == "a 700 987654321.000000000"
    assert lines[3].startswith("open 666 ")
    assert lines[4:-1] == ["a", "in", "open", "tool"], "a pipe does not stay"
    found = {each.path: each for each in session.files()}
    assert (found["a/b/link"].kind, found["a/b/link"].target) == ("link", "../../in/plain")
    assert (found["in/plain"].bytes, found["in/plain"].mode) == (80_000, "640")
    assert session.read("in/plain") == b"\xff\x00" * 40_000


def test_sources_find_what_commands_have_left(session: Session, running: Daemon) -> None:
    session.execute("echo 41 > number")
    source = "n = int(open('number').read()) + 1; open('number', 'w').write(str(n)); print(n)"
    assert session.run(source, language="python").stdout == b"42\n"
    assert session.read("main.py") == source.encode()
    assert session.execute("cat; cat number", stdin=b"now ").stdout == b"now 42"
    if not running.ask("GET", "/v1/languages")[1]["c"]:
        session.write({"number.h": b"#define NUMBER 7\n"})
        source = '#include <stdio.h>\n#include "number.h"\nint main() { printf("%d", NUMBER); }'
        assert session.run(source, language="c").stdout == b"7"
        session.write({"number.h": b"#define NUMBER 8\n"})
        assert session.run(source, language="c").stdout == b"8"


@pytest.mark.parametrize("path", ["passwd", "etc/passwd", "up/etc/passwd", "proc", "deep/in/hosts"])
def test_links_are_not_followed_out(session: Session, path: str) -> None:
    session.execute(
        "ln -s /etc/passwd passwd; ln -s /etc etc; ln -s / up; ln -s /proc/1/environ proc;"
        " mkdir deep; ln -s /etc deep/in"
    )
    with pytest.raises(InvalidInputError, match="path: "):
        session.read(path)
    if "/" in path:
        with pytest.raises(InvalidInputError, match="only directories"):
            session.write({path: b"mine"})
    else:
        session.write({path: b"mine"})
        assert session.read(path) == b"mine"
    assert b"root:" in session.execute("cat /etc/passwd").stdout


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a/../../x", "", ".", "a//b", "a\0", "x" * 300, "a/" * 70 + "b"]
)
def test_paths_that_leave_the_work_directory(session: Session, path: str) -> None:
    with pytest.raises(InvalidInputError):
        session.write({"first": b"", path: b""})
    with pytest.raises(InvalidInputError):
        session.read(path)
    with pytest.raises(InvalidInputError):
        session.write({}, delete=[path])
    assert session.files() == []


def test_no_process_of_a_step_lives_in_the_next(session: Session) -> None:
    source = "setsid sh -c 'trap \"\" HUP TERM; while :; do date >> alive; sleep 0.01; done' &"
    started = session.execute(f"{source} sleep 0.2; wc -l < alive")
    assert int(started.stdout) > 0
    before = session.read("alive")
    seen = session.execute("ls -d /proc/[0-9]* | wc -l; sleep 0.2")
    assert int(seen.stdout) <= 4, "init, the shell, ls and wc"
    assert session.read("alive") == before


def test_a_disk_that_is_full_and_one_that_is_more_than_full(session: Session) -> None:
    session.write({"kept": b"here"})
    full = session.execute("dd if=/dev/zero of=large bs=64k; stat -c %s large")
    assert b"No space left" in full.stderr
    length = int(full.stdout)
    assert 3 << 20 < length <= 4 << 20
    assert session.execute("stat -c %s large").stdout == full.stdout, "what fits comes back"
    with pytest.raises(InvalidInputError, match="disk_bytes = 4194304"):
        session.write({"more": b"x" * (4 << 20)})
    session.write({}, delete=["large"])
    # Files that are longer than the disk together: names of one file, and holes.
    for command in (
        "truncate -s 4M a; truncate -s 4M b",
        "head -c 3M /dev/zero > a; ln a b; ln a c",
        "d=.; for i in $(seq 70); do d=$d/d; mkdir $d; done",
    ):
        lost = session.execute(command)
        assert lost.verdict == "ok"
        assert "as it was before" in lost.message
        assert [each.path for each in session.files()] == ["kept"]
    source = (
        "import os\ntry:\n  for i in range(10**6): os.symlink('x', f'f{i}')\nexcept OSError: pass"
    )
    assert session.run(f"{source}\nprint(len(os.listdir()))", language="python").stdout == b"4095\n"
    assert session.execute("ls | wc -l").stdout == b"4095\n"


def test_a_step_has_its_limits(session: Session) -> None:
    slow = session.execute("echo before > x; sleep 99", limits=Limits(wall_seconds=0.5))
    assert slow.verdict == "wall_limit"
    assert session.read("x") == b"before\n", "what it has done stays"
    assert session.execute("exit 3").exit_code == 3
    assert session.execute(["no-such-program"]).exit_code == 127
    with pytest.raises(InvalidInputError, match="the session's"):
        session.execute("true", limits=Limits(disk_bytes=1 << 20))


def test_one_step_at_a_time_and_one_that_is_left(running: Daemon, client: Client) -> None:
    session = client.session()
    session.write({"x": b"1"})
    connection = running.connect()
    body = json.dumps({"command": "echo 2 > x; sleep 99", "limits": {"wall_seconds": 120}})
    connection.request("POST", f"{session._path}/run", body)
    running.wait_until_gauge('slots{state="busy"}', 1)
    for change in (lambda: session.execute("true"), lambda: session.write({"x": b"3"})):
        with pytest.raises(InvalidInputError, match="under way"):
            change()
    assert session.read("x") == b"1"
    connection.close()
    running.wait_until_gauge('slots{state="busy"}', 0)
    assert wait_until(lambda: session.execute("cat x").stdout == b"1", seconds=60)
    # Closing ends the step too.
    connection = running.connect()
    connection.request("POST", f"{session._path}/run", body)
    running.wait_until_gauge('slots{state="busy"}', 1)
    session.close()
    assert connection.getresponse().status == 410
    running.wait_until_gauge('slots{state="busy"}', 0)
    with pytest.raises(SandboxError, match="410"):
        session.files()
    connection.close()


def test_sessions_know_nothing_of_each_other(client: Client) -> None:
    def work(number: int) -> bytes:
        with client.session() as session:
            session.write({"own": b"%d" % number})
            for _ in range(3):
                session.execute("cat own own > more; mv more own")
            return session.read("own")

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(work, range(6)))
    assert found == [b"%d" % number * 8 for number in range(6)]


def test_their_number_and_their_time_are_bounded(tmp_path: Path) -> None:
    settings = "[sessions]\nmost = 2\nlife_seconds = 600\n[sandbox]\nslots = 1"
    with daemon(settings=settings, home=tmp_path) as it, client_of(it, patience=0) as client:
        with client.session() as first, client.session(lease_seconds=0):
            assert 0 < first.renew() <= 600
            # The second has ended already: nobody can use it, and it takes no place.
            with client.session(), pytest.raises(SandboxError, match="no room"):
                client.session()
        it.wait_until_gauge("sessions", 0)
        it.wait_until_gauge("session_bytes", 0)
        assert it.gauge('sessions_ended_total{reason="expired"}') == 1
        assert it.gauge('sessions_ended_total{reason="closed"}') == 2
        # Nobody asks for it again: it is swept.
        client.session(lease_seconds=0)
        it.wait_until_gauge("sessions", 0)
        with pytest.raises(InvalidInputError, match="lease_seconds = 601"):
            client.session(lease_seconds=601)
        with pytest.raises(InvalidInputError, match="wall_seconds"):
            client.session(limits=Limits(wall_seconds=1e6))


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("", {"lease": 1}, 400),
        ("", {"lease_seconds": -1}, 400),
        ("/0123456789abcdef0123456789abcdef/run", {"command": "true"}, 410),
        ("/x/files", {"files": {}}, 410),
        ("/x/renew", {}, 410),
        ("/ID/run", {"command": "true", "source": "", "language": "python"}, 400),
        ("/ID/run", {"source": ""}, 400),
        ("/ID/run", {"command": []}, 400),
        ("/ID/run", {"command": 1}, 400),
        ("/ID/run", {"source": "", "language": "x"}, 400),
        ("/ID/files", {"files": {"a": 1}}, 400),
        ("/ID/files", {"delete": ["a"]}, 400),
    ],
)
def test_requests_that_make_no_sense(
    running: Daemon, session: Session, path: str, body: object, status: int
) -> None:
    identifier = session._path.rsplit("/", 1)[1]
    found = running.ask("POST", f"/v1/sessions{path.replace('ID', identifier)}", body)
    assert found[0] == status, found
    assert found[1]["error"]["message"]
    assert identifier not in json.dumps(running.log)


def test_a_daemon_that_is_killed_takes_its_sessions_along() -> None:
    with daemon("--slots", "1") as it, client_of(it, patience=0) as client:
        with client.session() as session:
            session.write({"x": b"1"})
            connection = it.connect()
            connection.request("POST", f"{session._path}/run", '{"command": "sleep 99"}')
            it.wait_until_gauge('slots{state="busy"}', 1)
            it.kill()
            connection.close()
            with pytest.raises(SandboxError):
                session.read("x")
        assert wait_until(lambda: not groups(it.process.pid), seconds=60)


@pytest.mark.parametrize(
    ("runner", "writable"), [("warm", "false"), ("crun", "false"), ("direct", "true")]
)
def test_every_runner_has_sessions(runner: str, writable: str, tmp_path: Path) -> None:
    need(runner)
    if writable == "true" and os.geteuid() != 0:
        pytest.skip("a root that can be written to needs root")
    settings = f"[sandbox]\nslots = 1\nrunner = '{runner}'\nwritable_root = {writable}"
    with (
        daemon(settings=settings, home=tmp_path) as it,
        client_of(it) as client,
        client.session() as session,
    ):
        session.write(PACKAGE)
        session.execute("sed -i 's/a - b/a + b/' calc/add.py; mkdir -m 700 -p own/deep; ln -s x y")
        passed = session.run("import test_calc, os; print(os.readlink('y'))", language="python")
        assert (passed.verdict, passed.stdout) == ("ok", b"passed\nx\n")
        assert [each.path for each in session.files()][-3:] == ["own/deep", "test_calc.py", "y"]
