"""One node of the tests of Mooncake: python mooncake_node.py send|receive DIRECTORY HOST

send: reads versions, publishes each and answers with its address; `die` ends it at once. receive:
reads addresses, fetches each and answers with its version, or with the error's name and message.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from k15core.deploy.mooncake import WeightReceiver, WeightSender
from k15core.deploy.shared_weights import SharedWeights, WeightWriter
from k15core.errors import Error


def model_of(version: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Larger with each version, so that buffers grow, and never the same."""
    yield "small", torch.full((3,), version, dtype=torch.bfloat16)
    yield "empty", torch.empty(0, 4)
    for i in range(3):
        yield f"large.{i}", torch.arange(version, version + 2_000_000 * (version + 1)) * (i + 1)


def send(directory: str, host: str) -> None:
    with WeightWriter(directory) as writer, WeightSender(directory, host=host) as sender:
        for line in sys.stdin:
            if line == "die\n":
                os.kill(os.getpid(), signal.SIGKILL)
            writer.publish(model_of(int(line)), int(line))
            say(sender.serve(int(line)))


def receive(directory: str, host: str) -> None:
    with WeightReceiver(directory, host=host) as receiver:
        for line in sys.stdin:
            try:
                manifest = receiver.fetch(line.strip())
            except Error as error:
                say(f"{type(error).__name__}: {error}")
                continue
            with SharedWeights.open(directory, version=manifest.version) as weights:
                found = dict(weights.tensors())
                wanted = dict(model_of(manifest.version))
                assert list(found) == list(wanted)
                assert all(torch.equal(found[name], wanted[name]) for name in wanted)
            say(f"{manifest.version} {manifest.buffer}")


def say(text: str) -> None:
    """On a file of its own: the engine writes to the standard output."""
    with Path(sys.argv[2], "..", f"{sys.argv[1]}.said").open("a") as file:
        file.write(text + "\n")


if __name__ == "__main__":
    {"send": send, "receive": receive}[sys.argv[1]](sys.argv[2], sys.argv[3])
