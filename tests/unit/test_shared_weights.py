"""Weights in shared memory: what is published is what readers find, and what is refused."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from k15core.deploy.shared_weights import (
    Manifest,
    Shard,
    SharedWeights,
    TensorEntry,
    WeightDirectory,
    WeightReader,
    WeightWriter,
    remove_leftovers,
)
from k15core.deploy.shared_weights.directory import start_time
from k15core.deploy.shared_weights.manifest import ITEM_BYTES, decode, encode
from k15core.errors import ConflictError, CorruptionError, InvalidInputError, StorageError

MODEL = {"embed.weight": torch.arange(12.0).view(3, 4), "norm.weight": torch.ones(5)}


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[WeightWriter]:
    with WeightWriter(tmp_path / "weights", wait_seconds=0.0) as made:
        yield made


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def read(directory: Path, **options: bool) -> dict[str, torch.Tensor]:
    with SharedWeights.open(directory, **options) as weights:
        return dict(weights.tensors())


def test_what_was_published_can_still_give_its_memory_back(writer: WeightWriter) -> None:
    given = torch.ones(100)
    writer.publish([("a", given)], 1)
    given.untyped_storage().resize_(0)  # as Megatron's buffers when they are offloaded


def test_every_dtype_and_shape_comes_back(writer: WeightWriter) -> None:
    generator = torch.Generator().manual_seed(0)
    given = {}
    for name, size in ITEM_BYTES.items():
        dtype = getattr(torch, name)
        for shape in [(), (0,), (0, 3), (1,), (3, 5, 7)]:
            count = torch.Size(shape).numel()
            bits = torch.randint(
                0, 2 if name == "bool" else 256, (count * size,), generator=generator
            )
            given[f"{name}{shape}"] = bits.to(torch.uint8).view(dtype).view(shape)
    writer.publish(given.items(), 3)
    found = read(writer.directory)
    assert list(found) == list(given)
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(
            found[name].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8)
        )


def test_strided_and_trained_tensors_are_copied_as_they_look(writer: WeightWriter) -> None:
    given = {"t": MODEL["embed.weight"].t(), "grad": torch.ones(3, requires_grad=True)}
    given["expanded"] = torch.tensor([1.0]).expand(4)
    writer.publish(given.items(), 0)
    for name, tensor in read(writer.directory).items():
        assert torch.equal(tensor, given[name])


def test_versions_go_round_two_buffers(writer: WeightWriter) -> None:
    buffers = []
    for version in range(4):
        tensors = {name: tensor + version for name, tensor in MODEL.items()}
        buffers.append(writer.publish(tensors.items(), version).buffer)
        with SharedWeights.open(writer.directory, version=version) as weights:
            assert all(torch.equal(tensors[name], value) for name, value in weights.tensors())
    assert buffers == ["buffer-0", "buffer-1"] * 2
    with pytest.raises(InvalidInputError, match="version 3 is published, expected 2"):
        SharedWeights.open(writer.directory, version=2)


def test_views_are_of_the_shared_memory_and_writing_to_one_is_private(writer: WeightWriter) -> None:
    writer.publish(MODEL.items(), 0)
    with SharedWeights.open(writer.directory) as weights, SharedWeights.open(writer.directory) as o:
        view = dict(weights.tensors())["norm.weight"]
        assert view.data_ptr() == dict(weights.tensors())["norm.weight"].data_ptr()
        view.zero_()
        assert torch.equal(dict(o.tensors())["norm.weight"], MODEL["norm.weight"])
        with pytest.raises(CorruptionError, match=r"norm\.weight of version 0"):
            weights.verify()
        o.verify()


def test_a_buffer_is_held_until_its_last_view_is_gone(writer: WeightWriter) -> None:
    writer.publish(MODEL.items(), 0)
    with SharedWeights.open(writer.directory) as weights:
        view = dict(weights.tensors())["norm.weight"]
    writer.publish(MODEL.items(), 1)
    with pytest.raises(StorageError, match=rf"process {os.getpid()} .*this one.* buffer-0.* 2 is"):
        writer.publish(MODEL.items(), 2)
    assert torch.equal(view, MODEL["norm.weight"])
    assert torch.equal(read(writer.directory)["norm.weight"], MODEL["norm.weight"])
    del view
    writer.publish(MODEL.items(), 2)


def test_a_reader_that_stays_holds_only_what_it_has_open(writer: WeightWriter) -> None:
    with WeightReader(writer.directory) as reader:
        for version in range(6):
            grown = {**MODEL, "more": torch.full((version * 3_000_000,), float(version))}
            manifest = writer.publish(grown.items(), version)
            with reader.open(version=version) as weights:
                assert all(torch.equal(grown[name], value) for name, value in weights.tensors())
        place = writer.directory / manifest.buffer
        with place.open("r+b") as file:
            file.seek(manifest.bytes - 1)
            file.write(b"\x01")
        with pytest.raises(CorruptionError, match="more of version 5"):
            reader.open()
        writer.publish(MODEL.items(), 6)
        writer.publish(MODEL.items(), 7)
        assert len(list(reader.open().tensors())) == len(MODEL)


def test_what_fails_half_way_leaves_the_last_version(writer: WeightWriter) -> None:
    writer.publish(MODEL.items(), 0)

    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        yield "embed.weight", torch.zeros(3, 4)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        writer.publish(broken(), 1)
    for wrong in (
        [("a", torch.ones(1)), ("a", torch.ones(1))],
        [("", torch.ones(1))],
        [("a", torch.ones(1, dtype=torch.complex64))],
        [("a", torch.ones(1).to_sparse())],
        [("a", torch.ones(1, device="meta"))],
        [("a", torch.ones(2), Shard((3,), (2,)))],
    ):
        with pytest.raises(InvalidInputError, match="tensor"):
            writer.publish(wrong, 1)  # type: ignore[arg-type]
    for version in (-1, 2**32, True):
        with pytest.raises(InvalidInputError, match="version"):
            writer.publish(MODEL.items(), version)
    assert writer.manifest is not None
    assert writer.manifest.version == 0
    assert torch.equal(read(writer.directory)["embed.weight"], MODEL["embed.weight"])


def test_one_writer_a_directory_and_the_next_goes_on(tmp_path: Path) -> None:
    first = WeightWriter(tmp_path)
    first.publish(MODEL.items(), 0)
    with pytest.raises(ConflictError, match=f"process {os.getpid()}"):
        WeightWriter(tmp_path)
    first.close(unlink=False)
    with WeightWriter(tmp_path) as second:
        assert second.manifest == first.manifest
        with SharedWeights.open(tmp_path) as weights:
            assert second.publish(MODEL.items(), 1).buffer == "buffer-1"
            assert weights.version == 0
            weights.verify()
    assert not tmp_path.exists()
    with pytest.raises(InvalidInputError, match="no version is published"):
        SharedWeights.open(tmp_path)
    with pytest.raises(InvalidInputError, match="closed"):
        second.publish(MODEL.items(), 2)


def test_shards_are_kept_apart_from_whole_tensors(writer: WeightWriter) -> None:
    whole = MODEL["embed.weight"]
    halves = [("embed.weight", whole[:, :2], Shard((3, 4), (0, 0)))]
    halves.append(("embed.weight", whole[:, 2:], Shard((3, 4), (0, 2))))
    writer.publish(halves, 0)
    with SharedWeights.open(writer.directory) as weights:
        found = torch.zeros(3, 4)
        for entry, tensor in weights.entries():
            assert entry.shard is not None
            begin = entry.shard.start[1]
            found[:, begin : begin + tensor.shape[1]] = tensor
        assert torch.equal(found, whole)
        with pytest.raises(InvalidInputError, match=r"embed\.weight is a shard"):
            list(weights.tensors())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small tmpfs")
def test_missing_memory_is_told_before_it_is_written(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "k15core", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this root may not mount a tmpfs")
    try:
        with WeightWriter(tmp_path / "weights") as writer:
            tensors = [("a", torch.ones(1 << 20)), ("b", torch.ones(1 << 20))]
            writer.publish(tensors, 0)
            with pytest.raises(
                StorageError, match=r"has 0, and (\d+) are free: (\d+) bytes"
            ) as caught:
                writer.publish(iter(tensors), 1)
            assert caught.value.errno == errno.ENOSPC
            needed, free, missing = map(
                int, re.findall(r"(\d+) (?:bytes|are f)", f"{caught.value}")
            )
            assert missing == needed - free
            assert SharedWeights.open(tmp_path / "weights").version == 0
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_flipped_byte_is_found_and_named(writer: WeightWriter) -> None:
    manifest = writer.publish(MODEL.items(), 7)
    place = manifest.tensors[1].offset + 6
    with (writer.directory / manifest.buffer).open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 0x10]))
    with pytest.raises(CorruptionError, match=r"norm\.weight of version 7 in buffer-0"):
        SharedWeights.open(writer.directory)
    read(writer.directory, verify=False)


ENTRY = TensorEntry("a", "float32", (2, 3), 256, 24, 5)
OTHER = TensorEntry("b", "uint8", (9,), 512, 9, 6, Shard((9,), (0,)))
GOOD = Manifest(4, "buffer-1", 521, (ENTRY, OTHER))


def changed(**fields: object) -> Manifest:
    return Manifest(**{**vars(GOOD), **fields})  # type: ignore[arg-type]


def with_entry(**fields: object) -> Manifest:
    return changed(tensors=(TensorEntry(**{**vars(ENTRY), **fields}), OTHER))  # type: ignore[arg-type]


def test_a_manifest_comes_back() -> None:
    assert decode(encode(GOOD), where="here") == GOOD


@pytest.mark.parametrize(
    ("forged", "named"),
    [
        (changed(version=-1), "version is -1"),
        (changed(version=2**32), "version is 4294967296"),
        (changed(version=True), "version is True"),
        (changed(buffer="../../etc/passwd"), "buffer is '../../etc/passwd'"),
        (changed(bytes=520), "b ends at 521, beyond its 520"),
        (changed(bytes="many"), "bytes is 'many'"),
        (changed(tensors=(ENTRY, ENTRY)), "a is there twice"),
        (with_entry(name=""), r"tensors\[0\]: name"),
        (with_entry(dtype="object"), "dtype is 'object'"),
        (with_entry(dtype=["float32"]), "dtype is"),
        (with_entry(shape=(2, -3)), "shape is -3"),
        (with_entry(shape=(0, 2**70), bytes=0), "shape is"),
        (with_entry(shape=(2, 4)), "bytes is 24, expected 32"),
        (with_entry(offset=128), "offset is 128"),
        (with_entry(offset=512), "overlaps"),
        (with_entry(offset=2**80), "beyond"),
        (with_entry(checksum=None), "checksum is None"),
        (with_entry(shard=Shard((2, 3), (1, 0))), "shard"),
        (with_entry(shard=Shard((2,), (0,))), "shard"),
    ],
)
def test_a_forged_manifest_is_refused_by_name(forged: Manifest, named: str) -> None:
    with pytest.raises(CorruptionError, match=rf"here: .*{named}"):
        decode(encode(forged), where="here")


def test_a_torn_manifest_is_refused(writer: WeightWriter) -> None:
    writer.publish(MODEL.items(), 0)
    path = writer.directory / "manifest.json"
    content = path.read_bytes()
    for cut in range(len(content) - 1):  # the last byte is a newline
        with pytest.raises(CorruptionError, match="manifest"):
            decode(content[:cut], where="manifest")
    for hostile in (b"[" * 100_000, b"9" * 100_000, b"\xff\xfe", b"null", b'{"checksum":1}'):
        path.write_bytes(hostile)
        with pytest.raises(CorruptionError, match=str(path)):
            SharedWeights.open(writer.directory)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CorruptionError, match="not an ordinary file"):
        SharedWeights.open(writer.directory)
    path.unlink()
    path.write_bytes(encode(Manifest(0, "buffer-0", 1 << 40, ())))
    with pytest.raises(CorruptionError, match=r"buffer-0: .* bytes, though"):
        SharedWeights.open(writer.directory)


def test_directories_of_dead_runs_are_removed_and_of_live_ones_not(tmp_path: Path) -> None:
    dead = subprocess.run(["true"], check=True)
    assert dead.returncode == 0
    gone = tmp_path / "k15core-demo-4194304-1"  # beyond the largest pid
    read_by_someone, written, foreign = (
        tmp_path / f"k15core-{name}-4194304-1" for name in ("read", "written", "..")
    )
    for each in (gone, read_by_someone):
        with WeightWriter(each / "trainer") as made:
            made.publish(MODEL.items(), 0)
            made.close(unlink=False)
    foreign.symlink_to(tmp_path)
    (tmp_path / "k15core-notes").mkdir()
    reader = SharedWeights.open(read_by_someone / "trainer")
    with WeightWriter(written / "trainer"), WeightDirectory("demo", root=tmp_path) as mine:
        assert mine.path.name == f"k15core-demo-{os.getpid()}-{start_time(os.getpid())}"
        assert not gone.exists()
        assert remove_leftovers(tmp_path) == []
        with pytest.raises(ConflictError, match="already"):
            WeightDirectory("demo", root=tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
            [path.name for path in (mine.path, read_by_someone, written, foreign)]
            + ["k15core-notes"]
        )
    assert not mine.path.exists()
    reader.close()
    assert remove_leftovers(tmp_path) == [read_by_someone, written]
    with pytest.raises(InvalidInputError, match="name 'a/b'"):
        WeightDirectory("a/b", root=tmp_path)
