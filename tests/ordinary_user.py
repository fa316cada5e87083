"""Running tests as an ordinary user, from tests that are run by root.

`run` makes a copy of the package and of the tests that this user can read, finds a Python that it
can run, and if asked to gives it a cgroup of its own in every v1 hierarchy that the sandbox uses.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
USER = 64321
"""A number that no account has. What it owns on this host is what the tests make."""
DROP = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--inh-caps=-all")
PACKAGES = ("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments")
CONTROLLERS = ("memory", "pids", "cpu", "cpuacct")


def need() -> None:
    """Skip the test, saying why, where no test can be run as another user."""
    if os.getuid() != 0:
        pytest.skip("run as root: these tests are then run again as another user")
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is missing: apt install util-linux")
    if not python():
        pytest.skip(f"an ordinary user cannot run {sys.executable}: apt install python3 (>= 3.11)")


def run(*words: str, delegated: bool) -> subprocess.CompletedProcess[str]:
    """`pytest WORDS` as the user, in a folder like the repository's."""
    with copy() as folder, _groups(delegated) as groups:
        enter = "".join(f"echo $$ > {group}/cgroup.procs; " for group in groups)
        command = [*DROP, python(), "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
        return subprocess.run(
            ["sh", "-ec", f'{enter}cd {folder}; exec "$@"', "sh", *command],
            env=environment(folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=240,
        )


def can_delegate() -> bool:
    """Whether cgroups (v1) can be made for the user here."""
    return len(_own_groups()) == len(CONTROLLERS)


def environment(folder: Path) -> dict[str, str]:
    """What the user's Python is started with in a copy."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(folder),
        "PYTHONPATH": f"{folder / 'python'}:{folder / 'site'}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }


@cache
def python() -> str:
    """A Python that the user can run; empty if there is none."""
    check = "import sys, sqlite3, asyncio; sys.exit(sys.version_info < (3, 11))"
    for python in (sys.executable, os.path.realpath(sys.executable), "/usr/bin/python3"):
        # From a shell: setpriv itself still has root's way with files when it starts a program.
        command = [*DROP, "sh", "-c", 'exec "$@"', "sh", python, "-c", check]
        if subprocess.run(command, capture_output=True, check=False, cwd="/").returncode == 0:
            return python
    return ""


@contextmanager
def copy() -> Iterator[Path]:
    """A folder with the package and the tests. In the end the user's registry is removed too."""
    registry = Path(f"/tmp/k15core-{USER}")
    with (
        ExitStack() as last,
        tempfile.TemporaryDirectory(prefix="k15-user-") as name,
    ):
        last.callback(shutil.rmtree, registry, ignore_errors=True)
        folder = Path(name)
        shutil.copytree(ROOT / "python", folder / "python")
        shutil.copytree(ROOT / "tests", folder / "tests")
        for package in PACKAGES:
            found = importlib.util.find_spec(package)
            origin = Path(found.origin) if found is not None and found.origin else folder
            if origin.name == "__init__.py":
                shutil.copytree(origin.parent, folder / "site" / package)
            elif origin.is_file():
                shutil.copy(origin, folder / "site")
        (folder / "pytest.ini").write_text("[pytest]\npythonpath = tests\nfilterwarnings = error\n")
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
        yield folder


def _own_groups() -> list[Path]:
    """The directory of this process's own group in each v1 hierarchy that the sandbox uses."""
    paths = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        paths |= dict.fromkeys(names.split(","), path.lstrip("/"))
    roots = {name: Path("/sys/fs/cgroup") / name for name in CONTROLLERS}
    found = [roots[name] / paths.get(name, "") for name in CONTROLLERS]
    return [path for path in found if (path / "cgroup.procs").exists()]


@contextmanager
def _groups(delegated: bool) -> Iterator[list[Path]]:
    """Groups that the user may make others in, if asked for."""
    groups = {path / f"k15-test-{os.getpid()}" for path in _own_groups()} if delegated else set()
    for group in groups:
        group.mkdir(exist_ok=True)
        for path in (group, group / "cgroup.procs", group / "tasks"):
            os.chown(path, USER, USER)
    try:
        yield sorted(groups)
    finally:
        for group in groups:
            _remove(group)


def _remove(group: Path) -> None:
    """Remove a group once the last that was killed in it is gone."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
