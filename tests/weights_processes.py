"""Processes of the tests of shared weights, started by a nursery and killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import torch
from metadata_processes import numbers

from k15core.deploy.shared_weights import SharedWeights, WeightReader, WeightWriter

TENSORS, ELEMENTS = 8, 40_000
STARTED, DONE, READS, KINDS = range(4)


def model_of(version: int) -> Iterator[tuple[str, torch.Tensor]]:
    """What `write` publishes: a function of the version."""
    for i in range(TENSORS):
        yield f"{i}", torch.arange(version + i, version + i + ELEMENTS, dtype=torch.int32)


def assert_whole(weights: SharedWeights) -> None:
    found = dict(weights.tensors())
    assert len(found) == TENSORS
    for name, tensor in model_of(weights.version):
        assert torch.equal(found[name], tensor), f"{name} of version {weights.version}"


def write(directory: str, counts: str, dies_at: str) -> None:
    """Publish one version after the other; be killed before tensor `dies_at` of the first."""
    count = numbers(counts)
    with WeightWriter(directory) as writer:
        while True:
            version = count[STARTED] = count[DONE] + 1

            def tensors(version: int = version) -> Iterator[tuple[str, torch.Tensor]]:
                for name, tensor in model_of(version):
                    if name == dies_at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    yield name, tensor

            writer.publish(tensors(), version)
            count[DONE] = version


def look_on(directory: str, counts: str) -> None:
    """Read whatever is published again and again, and check it."""
    count, last = numbers(counts), 0
    with WeightReader(directory) as reader:
        while True:
            stays = count[READS] % 2
            with reader.open() if stays else SharedWeights.open(directory) as weights:
                assert last <= weights.version <= count[STARTED]
                assert_whole(weights)
                count[KINDS] += weights.version > last
                last = weights.version
            count[READS] += 1


def hold(directory: str) -> None:
    """Hold what is published until killed."""
    weights = SharedWeights.open(directory)
    print(weights.version, flush=True)
    signal.pause()
