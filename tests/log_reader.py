"""The on-disk format of docs/store-format.md, read and damaged without the code that writes it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

DATA = 128
HEADER = 32
KINDS = [
    "Base",
    "Group",
    "Append",
    "Claim",
    "Finish",
    "Abort",
    "Reward",
    "Use",
    "Evict",
    "Drop",
    "Mark",
    "Rewind",
    "MovedGroup",
    "MovedAppend",
    "MovedEnd",
    "MovedAbort",
    "Column",
    "MovedColumn",
]


def _table() -> list[int]:
    table = []
    for byte in range(256):
        entry = byte
        for _ in range(8):
            entry = entry >> 1 ^ (0x82F63B78 if entry & 1 else 0)
        table.append(entry)
    return table


TABLE = _table()


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


@dataclass(frozen=True)
class Record:
    path: Path
    offset: int
    kind: str
    number: int
    subject: int
    payload: bytes

    @property
    def end(self) -> int:
        return self.offset + HEADER + (len(self.payload) + 7) // 8 * 8


def word(offset: int) -> bytes:
    low = struct.pack("<I", offset)
    return low + struct.pack("<I", crc32c(low))


def committed(path: Path) -> int:
    with path.open("rb") as file:
        head = file.read(DATA)
    end: int = struct.unpack_from("<I", head, 64)[0]
    assert head[64:72] == word(end)
    return end


def records(path: Path) -> list[Record]:
    data, end = path.read_bytes(), committed(path)
    magic, form, checksum, _, size, _ = struct.unpack_from("<8sIIQQQ", data)
    assert (magic, form, size) == (b"k15store", 2, len(data))
    assert checksum == crc32c(data[:12] + data[16:64])
    found, at = [], DATA
    while at < end:
        header_crc, payload_crc, length, kind = struct.unpack_from("<IIIB", data, at)
        number, subject = struct.unpack_from("<QQ", data, at + 16)
        payload = data[at + HEADER : at + HEADER + length]
        record = Record(path, at, KINDS[kind - 1], number, subject, payload)
        assert header_crc == crc32c(data[at + 8 : at + HEADER])
        assert payload_crc == crc32c(data[at + HEADER : record.end])
        found.append(record)
        at = record.end
    return found


def log_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.log"))


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def flip(path: Path, offset: int, bit: int) -> None:
    byte = path.read_bytes()[offset]
    overwrite(path, offset, bytes([byte ^ 1 << bit]))


def pretend_reboot(directory: Path, *, synced: bool) -> None:
    """Make the log look written before the machine went down, with the disk in step or not."""
    for path in log_files(directory):
        for record in records(path):
            if record.kind == "Base":
                payload = bytes(16) + record.payload[16:]
                padded = payload.ljust(record.end - record.offset - HEADER, b"\0")
                overwrite(path, record.offset + HEADER, padded)
                overwrite(path, record.offset + 4, struct.pack("<I", crc32c(padded)))
        overwrite(path, 72, word(committed(path) if synced else 0))
