"""Metadata in a file: its history, its leases, what is no such file, and killed writers."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from metadata_processes import numbers
from nursery import nursery, wait_until

from k15core.deploy.metadata import FileMetadata
from k15core.deploy.metadata import file as file_module
from k15core.errors import CorruptionError, InvalidInputError, StorageError


def test_a_file_keeps_a_bounded_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_module, "EVENTS_KEPT", 5)
    with FileMetadata(tmp_path / "m") as metadata:
        for i in range(9):
            metadata.put("a", b"%d" % i)
        assert len(metadata.watch("", after=4, seconds=0)) == 5
        with pytest.raises(InvalidInputError, match="kept from revision 5 on"):
            metadata.watch("", after=3, seconds=0)


def test_leases_do_not_outlive_the_boot(tmp_path: Path) -> None:
    with FileMetadata(tmp_path / "m") as metadata:
        metadata.put("a", b"", lease=metadata.lease(1000))
        metadata.put("b", b"")
        metadata._database.execute("UPDATE about SET boot = 'another'")
    with FileMetadata(tmp_path / "m") as metadata:
        assert [item.key for item in metadata.items("")[0]] == ["b"]


def test_another_file_is_not_taken_for_metadata(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("not a database" * 100)
    with pytest.raises(CorruptionError, match=str(tmp_path / "m")):
        FileMetadata(tmp_path / "m")
    with FileMetadata(tmp_path / "n") as metadata:
        metadata._database.execute("UPDATE about SET format = 9")
    with pytest.raises(CorruptionError, match="format 9"):
        FileMetadata(tmp_path / "n")
    with pytest.raises(StorageError, match="closed"):
        metadata.get("a")


def test_killed_writers_halve_nothing(tmp_path: Path) -> None:
    path, counts, said, writers = tmp_path / "m", tmp_path / "counts", tmp_path / "said", 2
    count, choose, kills = numbers(counts), random.Random(3), 0
    with nursery("metadata_processes") as mother:

        def start(me: int) -> int:
            return mother.start(said, "metadata_processes", "count_up", path, counts, me)

        children = [start(me) for me in range(writers)]
        for kills in range(1, 17):
            me = kills % writers
            before = count[me]
            wait_until(lambda me=me, before=before: count[me] >= before + 3)
            time.sleep(0.002 * choose.random())
            mother.kill(children[me])
            children[me] = start(me)
        for child in children:
            mother.kill(child)
    with FileMetadata(path) as metadata:
        item = metadata.get("count")
        assert item is not None
        # What was acknowledged is there; each killed writer may have had one more.
        acknowledged = sum(count[:writers])
        assert acknowledged <= int(item.value) <= acknowledged + kills + writers
        events = metadata.watch("", after=metadata.items("")[1] - 20, seconds=0)
        assert [int(event.value or b"") for event in events] == list(
            range(int(item.value) - 19, int(item.value) + 1)
        )
        assert metadata._database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
