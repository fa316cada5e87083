"""Processes of the tests of metadata, started by a nursery and killed.

What they have done so far stands in a mapped file of numbers: a kill loses none of it.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from k15core.deploy.metadata import FileMetadata


def numbers(path: str | Path) -> memoryview:
    """The numbers in a file, shared by all who map it."""
    with Path(path).open("a+b") as file:
        file.truncate(4096)
        return memoryview(mmap.mmap(file.fileno(), 4096)).cast("Q")


def count_up(path: str, counts: str, me: str) -> None:
    """Count in the metadata, and beside it how often that was acknowledged."""
    count = numbers(counts)
    with FileMetadata(path) as metadata:
        while True:
            item = metadata.get("count")
            now, revision = (int(item.value), item.revision) if item else (0, 0)
            put = metadata.compare_and_put("count", b"%d" % (now + 1), revision=revision)
            count[int(me)] += put is not None
