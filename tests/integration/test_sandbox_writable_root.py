"""Roots that a run can write to: through an overlay, within its disk's size, renewed each run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from oci_images import Layout, archive, shell
from sandboxes import need, spawners

from k15core.errors import InvalidInputError
from k15core.sandbox import Limits, Sandbox

RUNNERS = ("direct", "crun")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    layout = Layout(tmp_path_factory.mktemp("images") / "layout")
    files = {"app/code": b"old\n", "app/secret": b"s\n", "etc/settings": b"1\n", "app/d/e": b""}
    lower = archive(shell() | files, {"app/code": 0o644, "app/secret": 0o600})
    layout.image([lower, archive({"app/layered": b"2\n"})])
    return f"oci:{layout.path}"


@pytest.fixture(scope="module", params=RUNNERS)
def sandbox(
    request: pytest.FixtureRequest, image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sandbox]:
    need(request.param)
    cache = tmp_path_factory.mktemp("cache")
    with Sandbox(
        slots=1, runner=request.param, root=image, image_cache=cache, writable_root=True
    ) as sandbox:
        yield sandbox


def test_a_run_changes_its_image_and_the_next_finds_it_as_it_was(sandbox: Sandbox) -> None:
    change = """
set -e
cat /app/code /app/secret /app/layered /etc/settings
echo new > /app/code; echo 2 > /etc/settings; rm /app/layered; echo x > /app/added
rm /app/d/e; rm /bin/rm
echo top > /top; echo 5 > /etc/added
echo "$(cat /app/code /top /etc/settings) " /app/* /app/d/*
"""
    expected = "old\ns\n2\n1\nnew\ntop\n2  /app/added /app/code /app/d /app/secret /app/d/*\n"
    for _ in range(3):
        result = sandbox.run(change, language="bash")
        assert result.stdout.decode() == expected, result
        assert result.verdict == "ok", result


def test_modes_and_owners_can_be_set_on_its_own_files(sandbox: Sandbox) -> None:
    source = """
cat /app/code > /app/own
chmod 4750 /app/own && touch -d @1000 /app/own && stat -c '%a %Y %u' /app/own; echo "$UID"
"""
    result = sandbox.run(source, language="bash")
    mode, time, user, me = result.stdout.split()
    assert (mode, time, user) == (b"4750", b"1000", me), result


def test_files_go_in_and_out_and_tmp_is_what_it_was(sandbox: Sandbox) -> None:
    source = "cat in/file big > out; echo $PWD; stat -c %a /tmp; echo *"
    files = {"in/file": b"12", "big": b"y" * 200_000}
    result = sandbox.run(source, language="bash", files=files, fetch=["out"])
    assert result.stdout == b"/tmp\n1777\nbig in main.sh out\n", result
    assert result.files == {"out": b"12" + files["big"]}


def test_what_is_written_anywhere_is_bounded(sandbox: Sandbox) -> None:
    limits = Limits(disk_bytes=1 << 20, disk_files=64)
    source = "for i in 1 2 3 4; do head -c 500000 /dev/zero > /app/f$i || echo full; done"
    result = sandbox.run(source, language="bash", limits=limits)
    assert b"full\n" in result.stdout, result
    assert b"No space left" in result.stderr
    source = "for i in {1..100}; do : > /app/d/$i || break; done; echo $i"
    result = sandbox.run(source, language="bash", limits=limits)
    assert 30 < int(result.stdout) < 64, result


def test_devices_proc_and_the_walls_are_as_ever(sandbox: Sandbox) -> None:
    source = """
echo x > /dev/null && head -c 1 /dev/zero | stat -c %s /dev/stdin > /dev/null
: > /dev/new || echo dev
: > /proc/self/oom_score_adj || echo proc
echo $$ /proc/[0-9]*
"""
    result = sandbox.run(source, language="bash")
    assert result.stdout == b"dev\nproc\n2 /proc/2\n", result


def test_the_slot_stays(sandbox: Sandbox) -> None:
    sandbox.run("", language="bash")
    before = spawners()
    for _ in range(20):
        assert sandbox.run("echo 1 > /app/code", language="bash").verdict == "ok"
    assert spawners() == before


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_hosts_root_grows_at_the_top_only(runner: str) -> None:
    need(runner)
    with Sandbox(slots=1, runner=runner, writable_root=True) as sandbox:
        source = """
import os, pathlib
os.mkdir("/workspace"); pathlib.Path("/workspace/file").write_text("1")
for path in ["/usr/x", "/usr/bin/python3", "/etc/passwd", "/bin/sh"]:
    try:
        open(path, "a")
    except OSError:
        print("held", path)
"""
        result = sandbox.run(source, language="python")
        expected = ["held /usr/x", "held /usr/bin/python3", "held /etc/passwd", "held /bin/sh"]
        assert result.stdout.decode().splitlines() == expected, result
    assert not Path("/workspace").exists()


def test_a_directory_with_binds(tmp_path: Path) -> None:
    need()
    for path, content in shell().items():
        target = tmp_path / "root" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        assert isinstance(content, bytes)
        target.write_bytes(content)
        target.chmod(0o755)
    (tmp_path / "more").mkdir()
    (tmp_path / "more/file").write_text("bound\n")
    binds = {"/opt/more": tmp_path / "more"}
    with Sandbox(slots=1, root=tmp_path / "root", binds=binds, writable_root=True) as sandbox:
        source = "cat /opt/more/file; : > /opt/more/x || echo held; : > /x && echo made"
        result = sandbox.run(source, language="bash")
        assert result.stdout == b"bound\nheld\nmade\n", result
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == ["bin", "lib", "lib64"]


def test_the_warm_runner_has_none() -> None:
    need("warm")
    with pytest.raises(InvalidInputError, match="writable_root = true: expected false"):
        Sandbox(slots=1, runner="warm", writable_root=True)
