"""How much memory an engine holds: on its device where a driver tells, else on the host.

The NVML part follows NVIDIA's documentation of nvidia-ml-py and was reasoned, not run: there was no
GPU beside it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal


class Meter:
    """Reads what the processes of an engine hold, before and after a release, by one measure.

    `kind` is "device" where NVML shows a GPU, else "resident". In a container NVML may name
    processes by the host's numbers, which mean nothing inside: where it lists none of ours, what is
    in use on the GPUs is read instead. Its fall is what a release gave back, whoever else holds
    some.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = frozenset(pids)
        self.kind: Literal["device", "resident"] = "resident"
        self._counts_all = False
        with _nvml() as nvml:
            if nvml is not None:
                self.kind = "device"
                self._counts_all = not any(_entries(nvml, self._pids))

    def read(self, pids: Sequence[int]) -> int:
        """Bytes held now; `pids` are the processes that are left."""
        if self.kind == "resident":
            return sum(_resident_bytes(pid) for pid in pids)
        with _nvml() as nvml:
            if nvml is None:  # the driver went away, and with it what was held
                return 0
            if self._counts_all:
                infos = (nvml.nvmlDeviceGetMemoryInfo(device) for device in _devices(nvml))
                return sum(int(info.used) for info in infos)
            return sum(_entries(nvml, self._pids))


@contextlib.contextmanager
def _nvml() -> Iterator[Any | None]:
    """The library, initialised, if it is here and shows a GPU."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml if pynvml.nvmlDeviceGetCount() > 0 else None
    finally:
        pynvml.nvmlShutdown()


def _devices(nvml: Any) -> Iterator[Any]:
    return (nvml.nvmlDeviceGetHandleByIndex(at) for at in range(nvml.nvmlDeviceGetCount()))


def _entries(nvml: Any, pids: frozenset[int]) -> Iterator[int]:
    """Bytes by process and device, of those that are ours."""
    for device in _devices(nvml):
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(device):
            if process.pid in pids and process.usedGpuMemory is not None:
                yield int(process.usedGpuMemory)


def _resident_bytes(pid: int) -> int:
    """Memory of a process, what it shares with others by its share of it; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
