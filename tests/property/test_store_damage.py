"""Flipped bits and truncations at every kind of record are found and named; torn tails are cut."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from log_reader import (
    HEADER,
    KINDS,
    Record,
    committed,
    crc32c,
    flip,
    log_files,
    overwrite,
    pretend_reboot,
    records,
    word,
)
from store_every_kind import OPTIONS, write_every_kind

from k15core import Store
from k15core._core import repair_store, verify_store
from k15core.errors import CorruptionError


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("written")
    write_every_kind(directory)
    return directory


def by_kind(directory: Path) -> dict[str, Record]:
    """The last record of each kind."""
    found = [record for path in log_files(directory) for record in records(path)]
    return {record.kind: record for record in found}


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def refused(directory: Path) -> str:
    before = contents(directory)
    with pytest.raises(CorruptionError) as caught:
        Store(directory, **OPTIONS)
    assert contents(directory) == before, "a damaged store must not be touched"
    return str(caught.value)


def test_the_log_has_every_kind(written: Path) -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert set(by_kind(written)) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bits_are_named(kind: str, copy: Path) -> None:
    record = by_kind(copy)[kind]
    rng = random.Random(kind)
    places = [0, 4, 8, 12, 13, 16, 24, record.end - record.offset - 1]
    if record.payload:
        places += [HEADER, HEADER + rng.randrange(len(record.payload))]
    for place in places:
        at, bit = record.offset + place, rng.randrange(8)
        flip(record.path, at, bit)
        message = refused(copy)
        assert f"{record.path}: offset {record.offset}: record {record.number}" in message
        if kind in ("Append", "MovedAppend", "Column", "MovedColumn") and (
            place == 4 or place >= HEADER
        ):
            assert f"trajectory {record.subject} " in message
        flip(record.path, at, bit)
    Store(copy, **OPTIONS).close()


@pytest.mark.parametrize("kind", KINDS)
def test_truncations_are_named(kind: str, copy: Path) -> None:
    record = by_kind(copy)[kind]
    for at in (record.offset, record.offset + 7, record.end - 1):
        whole = record.path.read_bytes()
        record.path.write_bytes(whole[:at])
        assert f"{record.path}: {at} bytes long, but its header says 4096" in refused(copy)
        record.path.write_bytes(whole)


@pytest.mark.parametrize("at", [0, 8, 12, 16, 24, 32, 40, 63, 64, 68, 72, 76, 80, 127])
def test_damage_of_the_file_header_is_named(at: int, copy: Path) -> None:
    path = log_files(copy)[1]
    flip(path, at, 3)
    assert str(path) in refused(copy)


def test_missing_and_foreign_files_are_named(copy: Path) -> None:
    first, second, third, *_ = log_files(copy)
    whole = second.read_bytes()
    second.unlink()
    assert f"{third}: file " in refused(copy)
    second.write_bytes(first.read_bytes())
    assert str(second) in refused(copy)
    second.write_bytes(b"")
    assert refused(copy) == f"{second}: the file is empty"
    second.write_bytes(b"x" * 200)
    assert "not a log file of a k15core store" in refused(copy)
    second.write_bytes(whole)
    Store(copy, **OPTIONS).close()


def test_another_format_is_refused(copy: Path) -> None:
    path = log_files(copy)[0]
    head = bytearray(path.read_bytes()[:128])
    head[8] = 3
    head[12:16] = crc32c(bytes(head[:12] + head[16:64])).to_bytes(4, "little")
    overwrite(path, 0, bytes(head))
    assert "written in format 3; this version of k15core reads formats 1 to 2" in refused(copy)


@pytest.mark.parametrize("at", [16, 32])
def test_numbers_that_nothing_can_follow_are_named(at: int, copy: Path) -> None:
    path, *others = log_files(copy)
    for other in others:
        other.unlink()
    head = bytearray(path.read_bytes()[:128])
    head[at : at + 8] = b"\xff" * 8
    head[12:16] = crc32c(bytes(head[:12] + head[16:64])).to_bytes(4, "little")
    overwrite(path, 0, bytes(head))
    if at == 16:
        path = path.rename(copy / f"{2**64 - 1}.log")
    what = f"offset {at}: {2**64 - 1}: expected less than {2**62}"
    assert refused(copy) == f"{path}: {what}"
    assert any(what in damage["what"] for damage in verify_store(copy)["damages"])
    repair_store(copy)
    Store(copy, **OPTIONS).close()


def tail(directory: Path) -> tuple[Path, list[Record]]:
    path = log_files(directory)[-1]
    return path, records(path)


@pytest.mark.parametrize("place", [0, HEADER, "end"])
def test_a_tail_that_the_disk_never_had_is_cut_and_reported(place: int | str, copy: Path) -> None:
    pretend_reboot(copy, synced=False)
    path, found = tail(copy)
    record = found[-2]
    flip(path, record.end - 1 if place == "end" else record.offset + int(place), 0)
    with Store(copy, **OPTIONS) as store:
        torn = store.recovery_report()["torn"]
        assert torn is not None
        assert (torn["file"], torn["offset"]) == (str(path), record.offset)
        assert torn["bytes"] == found[-1].end - record.offset
    assert [r for r in records(path) if r.number < record.number] == found[:-2]
    with Store(copy, **OPTIONS) as store:
        assert store.recovery_report()["torn"] is None


def test_files_behind_a_torn_one_are_cut_with_it(copy: Path) -> None:
    pretend_reboot(copy, synced=False)
    path = log_files(copy)[-3]
    record = records(path)[2]
    flip(path, record.offset, 0)
    with Store(copy, **OPTIONS) as store:
        torn = store.recovery_report()["torn"]
        assert torn is not None
        assert torn["offset"] == record.offset
        assert log_files(copy)[-1] == path


def test_damage_below_what_was_synced_is_never_taken_for_a_torn_tail(copy: Path) -> None:
    pretend_reboot(copy, synced=True)
    path, found = tail(copy)
    flip(path, found[-1].offset + 4, 0)
    assert f"{path}: offset {found[-1].offset}" in refused(copy)


@pytest.mark.parametrize("whole", [True, False])
def test_a_record_that_was_interrupted(whole: bool, copy: Path) -> None:
    path, found = tail(copy)
    last = found[-1]
    overwrite(path, 64, word(last.offset))
    if not whole:
        flip(path, last.end - 1, 0)
    with Store(copy, **OPTIONS) as store:
        report = store.recovery_report()
    if whole:
        assert report["torn"] is None
        assert last in records(path)
    else:
        torn = report["torn"]
        assert torn is not None
        assert (torn["offset"], torn["bytes"]) == (last.offset, last.end - last.offset)
        assert last not in records(path)
    assert committed(path) > last.offset
