"""What a churned store takes of the machine, and whether it grew."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path

from k15core import Store

MIB = 1 << 20
SETTLED = 0.25
"""The share of the work after which nothing may grow any more."""
GROWTH = 64 * MIB
"""By how much the floor of this process's own memory may rise from there to the end."""
DESCRIPTORS = 16
"""Descriptors besides those of what the process had open before and the store's files."""

UNITS = {"anonymous": MIB, "resident": MIB, "mapped": MIB, "disk": MIB, "allocated": MIB}


@dataclass(frozen=True)
class Figures:
    """One look. Bytes, but for the counts."""

    progress: float
    anonymous: int
    """Resident memory of the process's own, which is where a leak shows."""
    resident: int
    mapped: int
    """Files of the store that the process has mapped, in its directory or removed from it."""
    disk: int
    """Blocks that the directory's files take."""
    allocated: int
    """The same by the store's own account."""
    files: int
    descriptors: int
    live: float
    """The share of what is written in the log that is still needed."""


def look(store: Store, directory: Path, progress: float) -> Figures:
    status = Path("/proc/self/status").read_text()
    stats = store.stats()
    files = list(directory.iterdir())
    return Figures(
        progress=progress,
        anonymous=kib(status, "RssAnon"),
        resident=kib(status, "VmRSS"),
        mapped=mapped(directory),
        disk=sum(size_on_disk(path) for path in files),
        allocated=stats["bytes_allocated"],
        files=len(files),
        descriptors=descriptors(),
        live=stats["bytes_live"] / stats["bytes_written"],
    )


def kib(status: str, name: str) -> int:
    return int(status.partition(f"{name}:")[2].split()[0]) << 10


def mapped(directory: Path) -> int:
    total = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if f" {directory}/" in line:
            start, stop = line.split(" ", 1)[0].split("-")
            total += int(stop, 16) - int(start, 16)
    return total


def size_on_disk(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:  # renamed or removed since the directory was read
        return 0


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - iterdir would count its own


@dataclass
class Record:
    """All looks of a run."""

    capacity: int
    file_bytes: int
    descriptors_before: int
    looks: list[Figures] = field(default_factory=list)
    fullest: float = 0.0
    """The largest share of the capacity that was still needed."""
    refused_at: list[float] = field(default_factory=list)
    """The least and the largest share of the capacity that was needed when there was no room."""

    def add(self, figures: Figures, bytes_live: int) -> None:
        self.looks.append(figures)
        self.fullest = max(self.fullest, bytes_live / self.capacity)

    def refused(self, bytes_live: int) -> None:
        share = bytes_live / self.capacity
        least, most = self.refused_at or (share, share)
        self.refused_at = [min(least, share), max(most, share)]

    def peak(self, name: str) -> float:
        return max((getattr(one, name) for one in self.looks), default=0)

    def floor(self, name: str, start: float, stop: float) -> float | None:
        found = [getattr(one, name) for one in self.looks if start <= one.progress <= stop]
        return min(found, default=None)

    def faults(self) -> list[str]:
        """What grew, or exceeded its bound, in words."""
        most_files = self.capacity // self.file_bytes
        bounds = {
            # The directory itself and its lock take a page or two.
            "disk": self.capacity + MIB,
            "allocated": self.capacity,
            # A file that leaves the log stays mapped until the last look at it ends.
            "mapped": self.capacity + 2 * self.file_bytes,
            "files": most_files + 2,
            "descriptors": self.descriptors_before + most_files + DESCRIPTORS,
        }
        found = [
            f"{name} rose to {self.peak(name):,.0f}, expected at most {bound:,}"
            for name, bound in bounds.items()
            if self.peak(name) > bound
        ]
        early, late = self.floor("anonymous", SETTLED, 0.5), self.floor("anonymous", 0.75, 2)
        if early is not None and late is not None and late > early + GROWTH:
            found.append(f"memory grew from {early:,} to {late:,} bytes")
        return found

    def table(self) -> str:
        lines = [f"{'':14}{'settled':>12}{'peak':>12}{'last':>12}"]
        settled = next((one for one in self.looks if one.progress >= SETTLED), self.looks[0])
        names = [one.name for one in fields(Figures) if one.name not in ("progress", "live")]
        lines += [self.row(name, settled) for name in names]
        least, last = min(one.live for one in self.looks), self.looks[-1].live
        lines.append(f"  needed of what is written: at least {least:.2f}, at the end {last:.2f}")
        lines.append(f"  needed of the capacity: at most {self.fullest:.2f}")
        if self.refused_at:
            least, most = self.refused_at
            lines.append(f"  needed of it when there was no room: {least:.2f} to {most:.2f}")
        return "\n".join(lines)

    def row(self, name: str, settled: Figures) -> str:
        values = [getattr(settled, name), self.peak(name), getattr(self.looks[-1], name)]
        unit = UNITS.get(name)
        shown = [f"{value / unit:,.0f} MiB" if unit else f"{value:,}" for value in values]
        return f"  {name:12}" + "".join(f"{value:>12}" for value in shown)
