"""Shared weights against copies kept in plain memory, and writers killed at any instant."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from k15core.deploy.shared_weights import SharedWeights, WeightReader, WeightWriter
from k15core.deploy.shared_weights.manifest import ITEM_BYTES
from k15core.errors import CorruptionError, InvalidInputError, StorageError

Model = dict[str, torch.Tensor]
WAIT_SECONDS = 120.0

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


TENSORS, NUMBERS = 8, 40_000


def version_of_model(version: int) -> Iterator[tuple[str, torch.Tensor]]:
    """What the killed writer publishes: a function of the version."""
    for i in range(TENSORS):
        yield f"{i}", torch.arange(version + i, version + i + NUMBERS, dtype=torch.int32)


def assert_whole(weights: SharedWeights) -> None:
    found = dict(weights.tensors())
    assert len(found) == TENSORS
    for name, tensor in version_of_model(weights.version):
        assert torch.equal(found[name], tensor), f"{name} of version {weights.version}"


class Child:
    """A forked process that runs `work`; it takes seconds to import torch in a new one."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                work()
                status = 0
            except BaseException:  # noqa: BLE001 - the parent shows it
                traceback.print_exc()
            finally:
                os._exit(status)

    def kill(self) -> None:
        """End it. Raises if it has ended by itself."""
        os.kill(self.pid, signal.SIGKILL)  # of a zombie it is no error
        assert os.waitpid(self.pid, 0)[1] == signal.SIGKILL, "it had ended: see its traceback"

    def lives(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not reached():
        assert time.monotonic() < deadline, f"not reached in {WAIT_SECONDS:.0f} s"
        time.sleep(0.001)


def test_killed_writers_leave_whole_versions_to_readers_that_look_on(tmp_path: Path) -> None:
    numbers = memoryview(mmap.mmap(-1, 4096)).cast("Q")  # shared with the children
    started, done, reads, kinds = 0, 1, 2, 3
    directory = tmp_path / "weights"
    choose = random.Random(5)

    def write(dies_at: int | None) -> None:
        with WeightWriter(directory) as writer:
            while True:
                version = numbers[started] = numbers[done] + 1

                def tensors(version: int = version) -> Iterator[tuple[str, torch.Tensor]]:
                    for i, each in enumerate(version_of_model(version)):
                        if i == dies_at:
                            os.kill(os.getpid(), signal.SIGKILL)
                        yield each

                writer.publish(tensors(), version)
                numbers[done] = version

    def look_on() -> None:
        last = 0
        with WeightReader(directory) as reader:
            while True:
                with (
                    reader.open()
                    if numbers[reads] % 2
                    else SharedWeights.open(directory) as weights
                ):
                    assert last <= weights.version <= numbers[started]
                    assert_whole(weights)
                    numbers[kinds] += weights.version > last
                    last = weights.version
                numbers[reads] += 1

    with WeightWriter(directory) as first:
        numbers[started] = 1
        first.publish(version_of_model(1), 1)
        numbers[done] = 1
        first.close(unlink=False)
    reader = Child(look_on)
    try:
        for turn in range(40):
            before, seen = numbers[done], numbers[reads]
            dies_at = choose.randrange(TENSORS) if turn % 4 == 0 else None
            writer = Child(lambda dies_at=dies_at: write(dies_at))
            if dies_at is None:
                wait_until(lambda before=before: numbers[done] > before)
                time.sleep(choose.random() * 0.004)
                writer.kill()
            else:
                assert os.waitpid(writer.pid, 0)[1] == signal.SIGKILL
            with SharedWeights.open(directory) as weights:
                # What was acknowledged is there; what was not may be.
                assert numbers[done] <= weights.version <= numbers[started]
                assert_whole(weights)
                numbers[done] = weights.version
            wait_until(lambda seen=seen: numbers[reads] > seen or not reader.lives())
            assert reader.lives()
    finally:
        reader.kill()
    assert numbers[kinds] > 1
