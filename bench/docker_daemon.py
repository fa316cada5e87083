"""A docker daemon for the bench: the one that runs, or a private one where root can start it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.harness import PeerUnavailableError
from bench.sandbox_setup import need

SECONDS_TO_START = 60.0
SECONDS_TO_END = 30.0


@contextmanager
def docker_client(folder: Path) -> Iterator[list[str]]:
    """The words that `docker` commands begin with. A private daemon keeps all it has in `folder`.

    Raises PeerUnavailableError where no daemon answers and none can be started.
    """
    client = [need("docker")]
    refused = refusal(client)
    if not refused:
        yield client
        return
    if os.geteuid() != 0:
        raise PeerUnavailableError(f"the client is here, its daemon is not: {refused}")
    with private_daemon(folder) as address:
        yield [*client, "--host", address]


@contextmanager
def private_daemon(folder: Path) -> Iterator[str]:
    """The address of a daemon that lives as long as the context, without any network."""
    folder.mkdir()
    log, address = folder / "log", f"unix://{folder}/socket"
    group = f"k15bench-docker-{os.getpid()}"
    command = [
        # It ends with the bench, however that ends.
        *(need("setpriv"), "--pdeathsig", "TERM", need("dockerd")),
        *("--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"),
        *(f"--data-root={folder}/data", f"--exec-root={folder}/state", f"--pidfile={folder}/pid"),
        *(f"--cgroup-parent=/{group}", "--storage-driver=overlay2", f"--host={address}"),
    ]
    with log.open("wb") as said:
        daemon = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
        )
    try:
        wait_for(daemon, address, log)
        yield address
    finally:
        end(daemon)
        unmount_below(folder)
        remove_groups(group)


def wait_for(daemon: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while refused := refusal([need("docker"), "--host", address]):
        if daemon.poll() is not None:
            raise PeerUnavailableError(f"dockerd ended: {last_line(log.read_text())}")
        if time.monotonic() > deadline:
            raise PeerUnavailableError(
                f"dockerd did not answer in {SECONDS_TO_START:.0f} s: {refused}; its last words:"
                f" {last_line(log.read_text())}"
            )
        time.sleep(0.2)


def refusal(client: list[str]) -> str:
    """Why no daemon answers this client; empty if one does."""
    asked = subprocess.run([*client, "info"], capture_output=True, text=True, check=False)
    if asked.returncode == 0:
        return ""
    return last_line(asked.stderr) or f"docker info ended with {asked.returncode}"


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def end(daemon: subprocess.Popen[bytes]) -> None:
    """End it, and with it the containers and the containerd that it has started."""
    daemon.terminate()
    try:
        daemon.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        daemon.kill()  # its containerd asked the kernel to be killed with it
        daemon.wait()


def unmount_below(folder: Path) -> None:
    """Unmount what a daemon has left, the last mount first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed(points):
        if Path(point).is_relative_to(folder):
            subprocess.run(["umount", "--lazy", point], check=False)


def remove_groups(name: str) -> None:
    for path in [Path("/sys/fs/cgroup") / name, *Path("/sys/fs/cgroup").glob(f"*/{name}")]:
        if path.is_dir():
            path.rmdir()
