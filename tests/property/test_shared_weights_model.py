"""Shared weights against copies kept in plain memory, and writers killed at any instant."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from nursery import Nursery, nursery, wait_until
from weights_processes import (
    DONE,
    KINDS,
    READS,
    STARTED,
    TENSORS,
    assert_whole,
    model_of,
    numbers,
)

from k15core.deploy.shared_weights import SharedWeights, WeightReader, WeightWriter
from k15core.deploy.shared_weights.manifest import ITEM_BYTES
from k15core.errors import CorruptionError, InvalidInputError, StorageError

Model = dict[str, torch.Tensor]

shapes = st.lists(st.integers(0, 9), max_size=4).map(tuple)


@st.composite
def models(draw: st.DrawFn) -> Model:
    """Tensors of any dtype, shape and order of axes, with random bits."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    model = {}
    for i in range(draw(st.integers(0, 5))):
        dtype, shape = draw(st.sampled_from(sorted(ITEM_BYTES))), draw(shapes)
        size = (torch.Size(shape).numel() * ITEM_BYTES[dtype],)
        top = 2 if dtype == "bool" else 256
        bits = torch.randint(0, top, size, generator=generator).to(torch.uint8)
        tensor = bits.view(getattr(torch, dtype)).view(shape)
        model[f"{i}"] = tensor.permute(draw(st.permutations(range(len(shape)))))
    return model


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def assert_same(weights: SharedWeights, model: Model) -> None:
    found = dict(weights.tensors())
    assert list(found) == list(model)
    for name, tensor in model.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(as_bytes(found[name]), as_bytes(tensor))


class SharedWeightsMachine(RuleBasedStateMachine):
    """A writer and readers that come and go; every reader sees the version that it opened."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="k15core-test-"))
        self.directory = self.home / "weights"
        self.writer = WeightWriter(self.directory, wait_seconds=0.0)
        self.stays = WeightReader(self.directory)
        self.published: list[Model] = []
        self.open: list[tuple[SharedWeights, int]] = []

    def _buffer_is_held(self) -> bool:
        """Versions have alternated, failures left out: that before the last is in the way."""
        return any(version == len(self.published) - 2 for _, version in self.open)

    @rule(model=models())
    def publish(self, model: Model) -> None:
        version = len(self.published)
        if self._buffer_is_held():
            with pytest.raises(StorageError, match="still reads"):
                self.writer.publish(model.items(), version)
            return
        self.writer.publish(model.items(), version)
        self.published.append(model)

    @rule(model=models(), after=st.integers(0, 5))
    def fail(self, model: Model, after: int) -> None:
        def broken() -> Iterator[tuple[str, torch.Tensor]]:
            yield from list(model.items())[:after]
            raise ZeroDivisionError

        with pytest.raises((ZeroDivisionError, StorageError)):
            self.writer.publish(broken(), 77)

    @rule(stays=st.booleans())
    def read(self, stays: bool) -> None:
        if not self.published:
            with pytest.raises(InvalidInputError, match="no version"):
                SharedWeights.open(self.directory)
            return
        version = len(self.published) - 1
        opener: Callable[..., SharedWeights] = (
            self.stays.open if stays else lambda **o: SharedWeights.open(self.directory, **o)
        )
        self.open.append((opener(version=version), version))

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 99))
    def close(self, which: int) -> None:
        weights, _ = self.open.pop(which % len(self.open))
        weights.close()

    @rule()
    def restart(self) -> None:
        self.writer.close(unlink=False)
        self.writer = WeightWriter(self.directory, wait_seconds=0.0)

    @rule()
    def compare(self) -> None:
        for weights, version in self.open:
            assert weights.version == version
            assert_same(weights, self.published[version])
            weights.verify()

    def teardown(self) -> None:
        self.compare()
        self.writer.close()
        shutil.rmtree(self.home)


SharedWeightsMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=20, deadline=None
)
TestSharedWeights = SharedWeightsMachine.TestCase


@settings(max_examples=30, deadline=None)
@given(
    model=models().filter(lambda model: any(each.numel() for each in model.values())), at=st.data()
)
def test_any_flipped_bit_is_found_and_named(model: Model, at: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder, WeightWriter(folder) as writer:
        manifest = writer.publish(model.items(), 1)
        entry = at.draw(st.sampled_from([each for each in manifest.tensors if each.bytes]))
        place = entry.offset + at.draw(st.integers(0, entry.bytes - 1))
        with (Path(folder) / manifest.buffer).open("r+b") as file:
            file.seek(place)
            (byte,) = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ 1 << at.draw(st.integers(0, 7))]))
        with pytest.raises(CorruptionError, match=f": {entry.name} of version 1"):
            SharedWeights.open(folder)


@pytest.fixture(scope="module")
def mother() -> Iterator[Nursery]:
    with nursery("weights_processes") as made:
        yield made


def test_a_dead_reader_holds_nothing(tmp_path: Path, mother: Nursery) -> None:
    said = tmp_path / "said"
    with WeightWriter(tmp_path / "weights", wait_seconds=0.0) as writer:
        writer.publish(model_of(0), 0)
        reader = mother.start(said, "weights_processes", "hold", writer.directory)
        wait_until(lambda: said.exists() and said.read_text() == "0\n")
        writer.publish(model_of(1), 1)
        with pytest.raises(StorageError, match=f"process {reader} .* still reads buffer-0"):
            writer.publish(model_of(2), 2)
        mother.kill(reader)
        writer.publish(model_of(2), 2)


def test_killed_writers_leave_whole_versions_to_readers_that_look_on(
    tmp_path: Path, mother: Nursery
) -> None:
    directory, counts, said = tmp_path / "weights", tmp_path / "counts", tmp_path / "said"
    count, choose = numbers(counts), random.Random(5)

    def start(function: str, *words: object) -> int:
        return mother.start(said, "weights_processes", function, directory, counts, *words)

    with WeightWriter(directory) as first:
        count[STARTED] = 1
        first.publish(model_of(1), 1)
        count[DONE] = 1
        first.close(unlink=False)
    reader = start("look_on")
    for turn in range(40):
        before, seen = count[DONE], count[READS]
        dies_by_itself = turn % 4 == 0
        writer = start("write", choose.randrange(TENSORS) if dies_by_itself else "never")
        if dies_by_itself:
            wait_until(lambda writer=writer: not_running(writer))
        else:
            wait_until(lambda before=before: count[DONE] > before)
            time.sleep(choose.random() * 0.004)
        mother.kill(writer)
        with SharedWeights.open(directory) as weights:
            # What was acknowledged is there; what was not may be.
            assert count[DONE] <= weights.version <= count[STARTED]
            assert_whole(weights)
            count[DONE] = weights.version
        wait_until(lambda seen=seen: count[READS] > seen or not_running(reader))
        assert not not_running(reader), "the reader found something wrong: see its traceback"
    mother.kill(reader)
    assert count[KINDS] > 1


def not_running(child: int) -> bool:
    """Whether a child of the nursery has ended; it stays a zombie until it is asked for."""
    return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
