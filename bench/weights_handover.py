"""Handing 1 GB of weights over in shared memory: publish, verify, views without a copy.

What counts are the second and later versions, in buffers that are used again, against one memcpy of
the same bytes into warm memory. Beside it, without a bar: a reader that starts anew for every
version, the first version of a new directory (whose memory the system has to find and clear), and
what a safetensors file in the same place costs.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.harness import ROUNDS, Contender, Entry, PeerUnavailableError, compare
from k15core.deploy.shared_weights import SharedWeights, WeightDirectory, WeightReader, WeightWriter

TITLE = "one memcpy of the same bytes"
HIDDEN, INTERMEDIATE, KEY_VALUE, LAYERS, VOCABULARY = 896, 4864, 128, 24, 151_936


def model() -> dict[str, Tensor]:
    """The shapes of Qwen2.5-0.5B in bfloat16, 0.99 GB, with random bits."""
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        for part in ("q_proj", "o_proj"):
            shapes[f"{name}.self_attn.{part}.weight"] = (HIDDEN, HIDDEN)
        for part in ("k_proj", "v_proj"):
            shapes[f"{name}.self_attn.{part}.weight"] = (KEY_VALUE, HIDDEN)
        for part in ("gate_proj", "up_proj"):
            shapes[f"{name}.mlp.{part}.weight"] = (INTERMEDIATE, HIDDEN)
        shapes[f"{name}.mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, shape in shapes.items():
        bits = torch.randint(-(2**15), 2**15, shape, dtype=torch.int16, generator=generator)
        made[name] = bits.view(torch.bfloat16)
    return made


def memcpy(tensors: dict[str, Tensor]) -> Contender:
    """One copy of as many bytes, from and to memory that is there."""
    size = sum(tensor.nbytes for tensor in tensors.values())
    source, target = torch.ones(size, dtype=torch.uint8), torch.ones(size, dtype=torch.uint8)

    def once() -> float:
        start = time.perf_counter()
        ctypes.memmove(target.data_ptr(), source.data_ptr(), size)
        return time.perf_counter() - start

    return once


def safetensors_file(tensors: dict[str, Tensor], directory: Path) -> Contender:
    """The same by a file, which is written over and loaded."""

    def once() -> float:
        start = time.perf_counter()
        save_file(tensors, directory / "model.safetensors")
        found = load_file(directory / "model.safetensors")
        seconds = time.perf_counter() - start
        assert len(found) == len(tensors)
        return seconds

    return once


def first_version(tensors: dict[str, Tensor], directory: Path) -> Contender:
    """A new directory every time."""
    turns = itertools.count()

    def once() -> float:
        with WeightWriter(directory / f"{next(turns)}") as writer:
            start = time.perf_counter()
            writer.publish(tensors.items(), 0)
            with SharedWeights.open(writer.directory) as weights:
                assert len(list(weights.tensors())) == len(tensors)
            return time.perf_counter() - start

    return once


def measured(
    ours: Contender,
    peers: Mapping[str, Contender | PeerUnavailableError],
    size: int,
    *,
    rounds: int = ROUNDS,
) -> list[Entry]:
    """The rows against some peers."""
    return compare(
        "weights.handover",
        ours,
        peers,
        bars={TITLE: 0.4},
        unit="GB/s",
        figure=lambda seconds: size / seconds / 1e9,
        warmup=2,
        rounds=rounds,
    )


def run() -> list[Entry]:
    needed, free = 6 << 30, shutil.disk_usage("/dev/shm").free
    if free < needed or os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < needed:
        reason = f"needs {needed >> 30} GiB of memory, as much of it in /dev/shm"
        return measured(lambda: 0.0, {TITLE: PeerUnavailableError(reason)}, 0, rounds=0)
    tensors = model()
    size = sum(tensor.nbytes for tensor in tensors.values())
    versions = itertools.count()
    with WeightDirectory("bench") as place, WeightWriter(place.path / "weights") as writer:
        reader = WeightReader(writer.directory)

        def ours() -> float:
            version = next(versions)
            start = time.perf_counter()
            writer.publish(tensors.items(), version)
            with reader.open(version=version) as weights:
                assert len(list(weights.tensors())) == len(tensors)
            return time.perf_counter() - start

        def anew() -> float:
            version = next(versions)
            start = time.perf_counter()
            writer.publish(tensors.items(), version)
            with SharedWeights.open(writer.directory, version=version) as weights:
                assert len(list(weights.tensors())) == len(tensors)
            return time.perf_counter() - start

        # What has a bar by itself: beside what takes and frees gigabytes it would vary with that.
        entries = measured(ours, {TITLE: memcpy(tensors)}, size, rounds=15)
        peers: dict[str, Contender | PeerUnavailableError] = {
            "a reader that starts anew": anew,
            "the first version of a new directory": first_version(tensors, place.path),
            "save_file and load_file of safetensors": safetensors_file(tensors, place.path),
        }
        entries += measured(ours, peers, size)
        reader.close()
        return entries
