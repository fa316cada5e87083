"""The `crun` runner against `crun run` as it comes, and what else starts containers here.

The isolation is the same, the configuration is not: a peer makes fresh namespaces of every kind, a
cgroup with limits of memory and processes, a filter with the calls of our list, a tmpfs of the same
size, no capabilities. Of ours, net, uts and cgroup namespaces and the cgroup are pooled; it has an
init beside the program, which the peers have not. All run a static `true` on one processor.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.docker_daemon import docker_client
from bench.harness import Contender, Entry, PeerUnavailableError, compare
from bench.sandbox_setup import RATE, build, executing, need, one_processor, per_second
from k15core.errors import SandboxError
from k15core.sandbox import Limits, Sandbox

NAME = "sandbox.crun"
PLAIN, DOCKER = "plain crun run", "docker run"
BARS = {PLAIN: 1.5, "runc run": None, "bwrap": None, DOCKER: 25.0}
RUNS = 30
DOCKER_RUNS = 3
ROUNDS = 15
LIMITS = Limits(wall_seconds=20)
RULES = Path(__file__).parents[1] / "rust/sandbox/src/seccomp/rules.rs"

V1_VIEW = """
set -e
if grep -q ' cgroup ' /proc/mounts && grep -q ' cgroup2 ' /proc/mounts; then
  # crun 1.8 takes no host with both: it is shown the hierarchies of version 1 alone.
  mount -t tmpfs view "$1/view"
  grep ' cgroup ' /proc/mounts | cut -d' ' -f2 | while read -r path; do
    mkdir "$1/view/${path##*/}"
    mount --bind "$path" "$1/view/${path##*/}"
  done
  mount --rbind "$1/view" /sys/fs/cgroup
fi
shift
"""
"""Run in a mount namespace of its own; the first argument is a folder for it."""


def allowed_calls() -> list[str]:
    """The names in our list, without the calls that only a spawner may make."""
    text = re.sub(r"//.*", "", RULES.read_text())
    ours = text[text.index("pub const RULES") :].split("SYS_mount ")[0]
    return sorted({name.lower() for name in re.findall(r"SYS_(\w+)", ours)})


def bundle(folder: Path) -> Path:
    """A bundle of the runtimes' own kind, without anything that we have made ready for ours."""
    path = folder / "bundle"
    for name in ("bench", "usr", "proc", "dev", "tmp"):
        (path / "rootfs" / name).mkdir(parents=True)
    read_only = ["bind", "ro", "nosuid", "nodev"]
    size = ["nosuid", "nodev", "size=64m", "nr_inodes=4096", "mode=1777"]

    def mount(to: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
        return {"destination": to, "type": kind, "source": source, "options": options}

    namespaces = ("pid", "mount", "ipc", "uts", "network", "cgroup")
    config = {
        "ociVersion": "1.0.0",
        "process": {
            "terminal": False,
            "user": {"uid": 65533, "gid": 65534},
            "args": ["/bench/tiny"],
            "env": ["PATH=/usr/bin"],
            "cwd": "/tmp",
            "capabilities": {},
            "noNewPrivileges": True,
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 256, "hard": 256}],
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "sandbox",
        "mounts": [
            mount("/proc", "proc", "proc", ["nosuid", "nodev", "noexec"]),
            mount("/dev", "tmpfs", "tmpfs", ["nosuid", "size=64k", "mode=755"]),
            mount("/tmp", "tmpfs", "tmpfs", size),
            mount("/usr", "bind", "/usr", read_only),
            mount("/bench", "bind", str(folder / "bin"), read_only),
        ],
        "linux": {
            "cgroupsPath": f"/k15bench-{os.getpid()}",
            "namespaces": [{"type": kind} for kind in namespaces],
            "resources": {"memory": {"limit": 512 << 20}, "pids": {"limit": 64}},
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": allowed_calls(), "action": "SCMP_ACT_ALLOW"}],
            },
        },
    }
    (path / "config.json").write_text(json.dumps(config))
    return path


def looped(folder: Path, command: list[str], runs: int) -> Contender:
    """Seconds a run of a command in a shell's loop, in a mount namespace of its own."""
    script = V1_VIEW + f'i=0; while [ $i -lt {runs} ]; do "$@" </dev/null; i=$((i+1)); done'
    whole = ["unshare", "--mount", "sh", "-c", script, "loop", str(folder), *command]

    def once() -> float:
        (folder / "view").mkdir(exist_ok=True)
        start = time.perf_counter()
        try:
            subprocess.run(whole, check=True, capture_output=True)
        except subprocess.CalledProcessError as error:
            raise PeerUnavailableError(error.stderr.decode().strip()) from error
        return (time.perf_counter() - start) / runs

    return once


def runtime(program: str, folder: Path) -> Contender:
    state = folder / f"state-{program}"
    flags = ["--cgroup-manager=cgroupfs"] if program == "crun" else []
    at = ["--bundle", str(folder / "bundle"), f"k15bench-{os.getpid()}"]
    return looped(folder, [need(program), "--root", str(state), *flags, "run", *at], RUNS)


def bubblewrap(folder: Path) -> Contender:
    bind = ["--ro-bind", "/usr", "/usr", "--ro-bind", str(folder / "bin"), "/bench"]
    rest = ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    walls = ["--unshare-all", "--cap-drop", "ALL", "--die-with-parent", "--new-session"]
    return looped(folder, [need("bwrap"), *walls, *bind, *rest, "/bench/tiny"], RUNS)


@contextmanager
def docker(folder: Path) -> Iterator[Contender | PeerUnavailableError]:
    """`docker run --rm --network none` of an image that holds the program and nothing else."""
    image = f"k15bench:{os.getpid()}"
    limits = ["--memory", "512m", "--pids-limit", "64", "--read-only", "--cap-drop", "ALL"]
    with ExitStack() as stack:
        try:
            client = stack.enter_context(docker_client(folder / "docker"))
        except PeerUnavailableError as error:
            yield error
            return
        archive = subprocess.run(
            ["tar", "--create", "--directory", folder / "bin", "tiny"],
            check=True,
            capture_output=True,
        )
        subprocess.run(
            [*client, "import", "-", image], input=archive.stdout, check=True, capture_output=True
        )
        command = [*client, "run", "--rm", "--network", "none", *limits, image, "/tiny"]
        try:
            yield able(looped(folder, command, DOCKER_RUNS))
        finally:
            subprocess.run([*client, "rmi", "--force", image], check=False, capture_output=True)


def able(make: Contender) -> Contender | PeerUnavailableError:
    """The contender if it runs at all."""
    try:
        make()
    except PeerUnavailableError as error:
        return error
    return make


def run() -> list[Entry]:
    peers: dict[str, Contender | PeerUnavailableError] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = build(Path(scratch))
        folder.chmod(0o755)
        bundle(folder)
        make: dict[str, Callable[[], Contender]] = {
            PLAIN: lambda: runtime("crun", folder),
            "runc run": lambda: runtime("runc", folder),
            "bwrap": lambda: bubblewrap(folder),
        }
        with one_processor(), docker(folder) as containers:
            for name, each in make.items():
                try:
                    peers[name] = able(each())
                except PeerUnavailableError as error:
                    peers[name] = error
            peers[DOCKER] = containers
            try:
                sandbox = Sandbox(runner="crun", slots=1, binds={"/bench": folder / "bin"})
            except SandboxError as error:
                return [
                    Entry(NAME, None, None, peer, RATE, None, bar, ok=False, reason=str(error))
                    for peer, bar in BARS.items()
                ]
            with sandbox:
                return compare(
                    NAME,
                    executing(sandbox, "/bench/tiny", RUNS, LIMITS),
                    peers,
                    bars=BARS,
                    unit=RATE,
                    figure=per_second,
                    rounds=ROUNDS,
                )
