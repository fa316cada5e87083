"""What an engine holds: of its processes for real, of GPUs by a stand-in for NVIDIA's library.

There is no GPU beside these tests: the stand-in has the calls that nvidia-ml-py documents.
"""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from k15core.deploy.checkpoint_engine.memory import Meter

Held = dict[int, list[tuple[int, int | None]]]
"""By device: processes with their bytes."""

HOLDS_MORE_WHEN_ASKED = """
import sys
print("little", flush=True)
sys.stdin.readline()
more = bytearray(b"x") * (32 << 20)
print("much", flush=True)
sys.stdin.readline()
"""


class Nvml(ModuleType):
    """Two GPUs, of which 1000 bytes each are in use by nobody that is listed."""

    class NVMLError(Exception):
        pass

    def __init__(self, held: Held) -> None:
        super().__init__("pynvml")
        self.held, self.open = held, 0

    def nvmlInit(self) -> None:  # noqa: N802
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.held)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetComputeRunningProcesses(  # noqa: N802
        self, device: int
    ) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=bytes_) for pid, bytes_ in self.held[device]]

    def nvmlDeviceGetMemoryInfo(self, device: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(used=1000 + sum(bytes_ or 0 for _, bytes_ in self.held[device]))


def test_resident_memory_is_that_of_the_processes_that_are_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    # A process of its own: pytest's may give memory of earlier tests back between two readings.
    with subprocess.Popen(
        [sys.executable, "-S", "-c", HOLDS_MORE_WHEN_ASKED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as held:
        assert held.stdin is not None
        assert held.stdout is not None
        assert held.stdout.readline() == b"little\n"
        meter = Meter([held.pid])
        assert meter.kind == "resident"
        before = meter.read([held.pid])
        held.stdin.write(b"\n")
        held.stdin.flush()
        assert held.stdout.readline() == b"much\n"
        assert meter.read([held.pid]) > before + (30 << 20)
        assert meter.read([]) == 0
    assert before > 0
    assert meter.read([held.pid]) == 0, "a process that has ended"


def test_a_machine_without_a_gpu_is_read_by_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml({})
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert Meter([1]).kind == "resident"
    assert nvml.open == 0


def test_on_gpus_our_processes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml({0: [(7, 500), (8, 40), (9, 1)], 1: [(7, 600), (8, None)]})
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    meter = Meter([7, 8])
    assert (meter.kind, meter.read([7, 8])) == ("device", 1140)
    nvml.held = {0: [(9, 1)], 1: []}
    assert meter.read([]) == 0
    assert nvml.open == 0


def test_where_our_numbers_mean_nothing_all_that_is_in_use_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvml = Nvml({0: [(70001, 500)], 1: [(70001, 600)]})
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    meter = Meter([7])
    assert (meter.kind, meter.read([7])) == ("device", 3100)
    nvml.held = {0: [], 1: []}
    assert meter.read([]) == 2000
