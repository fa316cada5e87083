"""A checkpoint engine on another node: it fetches the weights that it is told to serve with.

The engine is tests/tiny_engine.py: what is proved is the way of the weights, not what vLLM does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

try:
    import mooncake.engine
except ImportError as missing:
    pytest.skip(f"Mooncake's engine does not load here ({missing})", allow_module_level=True)
assert mooncake.engine

import torch
from sidecar import TinyEngine

from k15core.deploy.checkpoint_engine import CheckpointEngine, CheckpointEngineClient, Service
from k15core.deploy.mooncake import WeightSender
from k15core.deploy.shared_weights import SharedWeights, WeightWriter
from k15core.errors import InvalidInputError, ProcessDiedError
from k15core.rollout.vllm.owners import SidecarServer

HOST = "127.0.0.1"

FETCHER = """
import sys
from k15core.deploy.mooncake import WeightReceiver

out = open(sys.argv[2], "w", buffering=1)  # the transfer engine writes to the standard output
with WeightReceiver(sys.argv[1], host="127.0.0.1") as receiver:
    for line in sys.stdin:
        try:
            print(receiver.fetch(line.strip()).version, file=out)
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=out)
"""


class Fetcher:
    """The other node's receiver, in a process of its own: two transfer engines share badly."""

    def __init__(self, room: Path) -> None:
        os.mkfifo(room / "said")
        self.process = subprocess.Popen(
            [sys.executable, "-c", FETCHER, str(room / "weights"), str(room / "said")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.said = (room / "said").open()

    def __call__(self, address: str) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{address}\n")
        self.process.stdin.flush()
        answer = self.said.readline().strip()
        if not answer.isdigit():
            raise ProcessDiedError(answer)
        return int(answer)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.said.close()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[CheckpointEngineClient]:
    room = tmp_path / "node"
    room.mkdir()
    fetcher = Fetcher(room)
    with CheckpointEngine(TinyEngine(room), room / "state") as engine:
        service = Service(engine, weights=str(room / "weights"), fetch=fetcher)
        thread = threading.Thread(target=service.serve)
        thread.start()
        yield CheckpointEngineClient(service.url)
        engine.stop()
        service.shutdown()
        thread.join()
    fetcher.close()


def weights_of(version: int) -> list[tuple[str, torch.Tensor]]:
    return [("a", torch.full((1000,), float(version))), ("b", torch.arange(version + 1))]


def test_an_engine_of_another_node_serves_what_it_has_fetched(
    client: CheckpointEngineClient, tmp_path: Path
) -> None:
    client.start()
    there = tmp_path / "node" / "weights"
    here = tmp_path / "here"
    with WeightWriter(here) as writer, WeightSender(here, host=HOST) as sender:
        for published in (1, 2, 3):
            writer.publish(weights_of(published), published)
            state = client.update_from(sender.serve(published), 10 + published)
            assert (state.phase, state.version) == ("serving", 10 + published)
            assert state.directory == str(there)
            with SharedWeights.open(there, version=published) as found:
                for (name, tensor), (other, expected) in zip(
                    found.tensors(), weights_of(published), strict=True
                ):
                    assert name == other
                    assert torch.equal(tensor, expected)


def test_an_engine_of_the_fleet_sends_what_it_is_handed(
    client: CheckpointEngineClient, tmp_path: Path
) -> None:
    owner = SidecarServer(client.url, seconds=60, transfer={"host": HOST})
    owner.acquire()
    with WeightWriter(tmp_path / "here") as writer:
        for published in (1, 2):
            writer.publish(weights_of(published), published)
            owner.update(tmp_path / "here", 20 + published, published)
            assert client.state().version == 20 + published
        owner.close()
    assert client.state().phase == "stopped"


def test_what_cannot_be_fetched_leaves_the_engine_with_what_it_has(
    client: CheckpointEngineClient, tmp_path: Path
) -> None:
    client.start()
    here = tmp_path / "here"
    with WeightWriter(here) as writer, WeightSender(here, host=HOST) as sender:
        writer.publish(weights_of(1), 1)
        client.update_from(sender.serve(1), 1)
        with pytest.raises(ProcessDiedError, match="expected what WeightSender"):
            client.update_from("nowhere", 2)
        with pytest.raises(InvalidInputError, match="without directory and published"):
            client._call(
                "POST", "update", {"address": sender.serve(1), "version": 2, "published": 1}
            )
    assert client.state().version == 1
