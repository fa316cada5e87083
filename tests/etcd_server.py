"""A real etcd for tests, from Debian's etcd-server."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

WAIT_SECONDS = 120.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(data: Path, log: Path) -> tuple[subprocess.Popen[bytes], int] | None:
    """An etcd that answers, and its port; None if it ended: another may have taken the port."""
    port, peers = free_port(), free_port()
    client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peers}"
    command = ["etcd", "--data-dir", str(data), "--unsafe-no-fsync"]
    command += ["--listen-client-urls", client, "--advertise-client-urls", client]
    command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
    command += ["--initial-cluster", f"default={peer}", "--logger", "zap"]
    command += ["--heartbeat-interval", "50", "--election-timeout", "500"]
    with log.open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
    deadline = time.monotonic() + WAIT_SECONDS
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"{client}/health", timeout=5) as answer:
                if b'"true"' in answer.read():
                    return process, port
        except OSError:
            pass
        if time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise AssertionError(f"etcd does not answer: {log.read_text()[-2000:]}")
        time.sleep(0.02)
    return None


@contextmanager
def etcd(home: Path) -> Iterator[int]:
    """The port of an etcd that runs meanwhile. Skips the test where there is none."""
    if shutil.which("etcd") is None:
        pytest.skip("no etcd here; Debian and Ubuntu: sudo apt install etcd-server")
    for attempt in range(10):
        started = start(home / f"etcd-{attempt}", home / "etcd.log")
        if started is not None:
            break
    else:
        raise AssertionError(f"etcd ended: {(home / 'etcd.log').read_text()[-2000:]}")
    process, port = started
    try:
        yield port
    finally:
        process.kill()
        process.wait()
