"""Weights from node to node by Mooncake over TCP: between processes, and network namespaces."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from nursery import wait_until

try:
    import mooncake.engine
except ImportError as missing:
    pytest.skip(
        f"Mooncake's engine does not load here ({missing}); pip install "
        "mooncake-transfer-engine-non-cuda, and on Debian or Ubuntu: sudo apt install libibverbs1 "
        "librdmacm1 libnuma1",
        allow_module_level=True,
    )
assert mooncake.engine

from k15core.deploy.mooncake import WeightReceiver
from k15core.errors import InvalidInputError, StorageError

NODE = Path(__file__).with_name("mooncake_node.py")


class Node:
    """A process on one node, which answers each line."""

    def __init__(self, role: str, home: Path, host: str, prefix: list[str]) -> None:
        self.said = home / f"{role}.said"
        self.lines = 0
        command = [*prefix, sys.executable, str(NODE), role, str(home / role), host]
        (home / role).mkdir()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=(home / f"{role}.out").open("w"),
            stderr=(home / f"{role}.err").open("w"),
            text=True,
        )

    def ask(self, line: object) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        self.lines += 1
        wait_until(lambda: len(self.heard()) >= self.lines or self.process.poll() is not None)
        assert len(self.heard()) == self.lines, self.said.with_suffix(".err").read_text()[-3000:]
        return self.heard()[-1]

    def heard(self) -> list[str]:
        text = self.said.read_text() if self.said.exists() else ""
        return text[: text.rfind("\n") + 1].splitlines()


@contextmanager
def nodes(home: Path, hosts: list[str], prefixes: list[list[str]]) -> Iterator[list[Node]]:
    made: list[Node] = []
    try:
        for role, host, prefix in zip(("send", "receive"), hosts, prefixes, strict=True):
            made.append(Node(role, home, host, prefix))
        yield made
    finally:
        for node in made:
            node.process.kill()
            node.process.wait()


def exchange(sender: Node, receiver: Node) -> None:
    old = ""
    for version in range(4):
        address = sender.ask(version)
        assert receiver.ask(address) == f"{version} buffer-{version % 2}"
        old = old or address
    # The address of a version that is no more: its memory holds another, and that is found.
    assert receiver.ask(old).split(":")[0] in ("CorruptionError", "DisconnectedError")
    assert receiver.ask(address) == f"3 buffer-{version % 2 ^ 1}"
    assert sender.process.stdin is not None
    sender.process.stdin.write("die\n")
    sender.process.stdin.flush()
    sender.process.wait()
    assert receiver.ask(address).startswith("DisconnectedError: ")


def test_versions_go_from_process_to_process(tmp_path: Path) -> None:
    local = "127.0.0.1"
    with nodes(tmp_path, [local, local], [[], []]) as (sender, receiver):
        exchange(sender, receiver)


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    """Two network namespaces with a wire between them."""
    names = [f"k15-{os.getpid()}-{i}" for i in range(2)]
    wires = [f"k15{os.getpid() % 10**6}{end}" for end in "ab"]
    commands = [["ip", "netns", "add", name] for name in names]
    commands += [["ip", "link", "add", wires[0], "type", "veth", "peer", "name", wires[1]]]
    for i, (name, wire) in enumerate(zip(names, wires, strict=True), start=1):
        inside = ["ip", "-n", name]
        commands += [
            ["ip", "link", "set", wire, "netns", name],
            [*inside, "address", "add", f"10.215.0.{i}/24", "dev", wire],
            [*inside, "link", "set", wire, "up"],
            [*inside, "link", "set", "lo", "up"],
        ]
    try:
        for command in commands:
            try:
                subprocess.run(command, check=True, capture_output=True, text=True)
            except (OSError, subprocess.CalledProcessError) as error:
                said = getattr(error, "stderr", error)
                pytest.skip(f"network namespaces cannot be made here: {said}")
        yield names
    finally:
        for name in names:
            with suppress(OSError):
                subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def test_versions_go_from_network_to_network(tmp_path: Path, namespaces: list[str]) -> None:
    prefixes = [["ip", "netns", "exec", name] for name in namespaces]
    with nodes(tmp_path, ["10.215.0.1", "10.215.0.2"], prefixes) as (sender, receiver):
        exchange(sender, receiver)


def test_wrong_addresses_and_hosts_are_refused(tmp_path: Path) -> None:
    with WeightReceiver(tmp_path / "weights", host="127.0.0.1") as receiver:
        for wrong in ("", "host", "host:1", "host:1/xyz-1/1", "host:1/1-99999999999/1"):
            with pytest.raises(InvalidInputError, match="address"):
                receiver.fetch(wrong)


def test_rdma_without_a_device_is_refused(tmp_path: Path) -> None:
    if any(Path("/sys/class/infiniband").glob("*")):
        pytest.skip("there are RDMA devices here")
    options = {"host": "127.0.0.1", "protocol": "rdma"}
    for device in ("", "mlx5_0"):
        with pytest.raises(StorageError, match=rf"here are \[\], expected {device or 'any'}"):
            WeightReceiver(tmp_path / "weights", device=device, **options)
