"""Published versions onto a device: by ranges of the buffer, whole, and held meanwhile."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from k15core.deploy.shared_weights import Shard, WeightWriter
from k15core.deploy.shared_weights.cuda import DeviceReader, buckets
from k15core.deploy.shared_weights.manifest import Manifest
from k15core.errors import CorruptionError, InvalidInputError, StorageError

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    ),
]


def model_of(version: int) -> dict[str, torch.Tensor]:
    """Grows with each version."""
    generator = torch.Generator().manual_seed(version)
    shapes: list[tuple[int, ...]] = [(7,), (300, 5), (0, 2), (1,), (64, 64 * (version + 1)), (33,)]
    types = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.float32, torch.uint8]
    made = {}
    for i, (shape, dtype) in enumerate(zip(shapes, types, strict=True)):
        made[f"{i}"] = torch.randint(0, 100, shape, generator=generator).to(dtype)
    return made


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bucket_bytes", [1, 4000, 1 << 20])
def test_what_is_published_arrives(tmp_path: Path, device: str, bucket_bytes: int) -> None:
    with (
        WeightWriter(tmp_path / "weights", wait_seconds=0.0) as writer,
        DeviceReader(writer.directory, device, bucket_bytes=bucket_bytes) as reader,
    ):
        for version in range(5):
            given = model_of(version * 40)
            writer.publish(given.items(), version)
            with reader.open(version=version) as weights:
                kept = list(weights.tensors())
            assert [name for name, _ in kept] == list(given)
            for name, tensor in kept:
                assert tensor.device.type == device
                assert tensor.dtype == given[name].dtype
                assert torch.equal(tensor.cpu(), given[name])


@pytest.mark.parametrize("size", [1, 256, 1000, 20_000, 1 << 30])
def test_buckets_are_ranges_that_hold_each_tensor_once(tmp_path: Path, size: int) -> None:
    with WeightWriter(tmp_path / "weights") as writer:
        manifest = writer.publish(model_of(0).items(), 0)
    cut = list(buckets(manifest, size))
    assert [entry for bucket in cut for entry in bucket.entries] == list(manifest.tensors)
    for bucket in cut:
        assert bucket.start == bucket.entries[0].offset
        assert bucket.end == bucket.entries[-1].offset + bucket.entries[-1].bytes
        assert bucket.end - bucket.start <= size or len(bucket.entries) == 1
    for one, next_one in itertools.pairwise(cut):  # none could have been larger
        first = next_one.entries[0]
        assert first.offset + first.bytes - one.start > size
    assert list(buckets(Manifest(0, "buffer-0", 0, ()), size)) == []


def test_a_version_is_held_until_it_is_closed(tmp_path: Path) -> None:
    with (
        WeightWriter(tmp_path / "weights", wait_seconds=0.0) as writer,
        DeviceReader(writer.directory, "cpu", bucket_bytes=1) as reader,
    ):
        writer.publish(model_of(0).items(), 0)
        with reader.open() as weights:
            arriving = weights.tensors()
            next(arriving)
            writer.publish(model_of(1).items(), 1)
            with pytest.raises(StorageError, match="still reads buffer-0"):
                writer.publish(model_of(2).items(), 2)
            assert len(list(arriving)) == len(model_of(0)) - 1
        writer.publish(model_of(2).items(), 2)
        with reader.open() as weights:
            assert torch.equal(dict(weights.tensors())["4"], model_of(2)["4"])


def test_what_does_not_arrive_is_told(tmp_path: Path) -> None:
    with (
        WeightWriter(tmp_path / "weights", wait_seconds=0.0) as writer,
        DeviceReader(writer.directory, "cpu") as reader,
    ):
        with pytest.raises(InvalidInputError, match="no version"):
            reader.open()
        manifest = writer.publish([("a", torch.ones(4))], 0)
        with (writer.directory / manifest.buffer).open("r+b") as file:
            file.write(b"\x01")
        with pytest.raises(CorruptionError, match="a of version 0"):
            reader.open()
        writer.publish([("a", torch.ones(4), Shard((8,), (4,)))], 1)
        with reader.open() as weights, pytest.raises(InvalidInputError, match="a is a shard"):
            next(weights.tensors())
        writer.publish([("a", torch.ones(4))], 2)
    with pytest.raises(InvalidInputError, match="bucket_bytes 0"):
        DeviceReader(tmp_path, "cpu", bucket_bytes=0)
