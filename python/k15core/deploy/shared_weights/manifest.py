"""The manifest of a published version: which buffer holds it and where each tensor lies.

Needs no torch. What is read is untrusted until it is checked: every field is refused by name.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from k15core._core import checksum
from k15core.errors import CorruptionError, InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FORMAT = 1
FILE = "manifest.json"
BUFFERS = ("buffer-0", "buffer-1")
ALIGNMENT = 256
"""Tensors begin at multiples of it: enough for every vector unit and for copies by a device."""

_FILE = re.compile(
    rb'\{"checksum":(?P<checksum>\d{1,10}),"manifest":(?P<manifest>.*)\}\n', re.DOTALL
)

MAX_FILE_BYTES = 256 << 20
MAX_VERSION = 2**32 - 1
MAX_ELEMENTS = 2**56

ITEM_BYTES = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "uint16": 2,
    "int16": 2,
    "uint32": 4,
    "int32": 4,
    "uint64": 8,
    "int64": 8,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
}
"""Bytes an element of each dtype, by torch's name."""


@dataclass(frozen=True)
class Shard:
    """A tensor that is a piece of a larger one: the whole's shape, and where this piece begins."""

    shape: tuple[int, ...]
    start: tuple[int, ...]


@dataclass(frozen=True)
class TensorEntry:
    """One tensor: `bytes` bytes from `offset` of the buffer, row-major, with their CRC-32C.

    `dtype` is torch's name without "torch."; `shard` is None for a whole tensor.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int
    checksum: int
    shard: Shard | None = None


@dataclass(frozen=True)
class Manifest:
    """A published version: the buffer's file name, how many of its bytes are used, the tensors."""

    version: int
    buffer: str
    bytes: int
    tensors: tuple[TensorEntry, ...]


def encode(manifest: Manifest) -> bytes:
    """As JSON, with a checksum over it."""
    body = json.dumps({"format": FORMAT, **asdict(manifest)}, separators=(",", ":")).encode()
    return b'{"checksum":%d,"manifest":%b}\n' % (_checksum(body), body)


def decode(content: bytes, *, where: str) -> Manifest:
    """What `encode` wrote. Raises CorruptionError that names the field and `where` it was read."""
    parts = _FILE.fullmatch(content)
    if parts is None:
        raise CorruptionError(f"{where}: not a manifest, or only a part of one")
    body = parts["manifest"]
    if (found := _checksum(body)) != int(parts["checksum"]):
        raise CorruptionError(
            f"{where}: checksum is {int(parts['checksum'])}, that of it is {found}"
        )
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise CorruptionError(f"{where}: not a manifest ({error})") from error
    _keys(fields, ("format", "version", "buffer", "bytes", "tensors"), f"{where}: manifest")
    if fields["format"] != FORMAT:
        raise CorruptionError(f"{where}: format is {fields['format']!r}, expected {FORMAT}")
    used = _natural(fields["bytes"], f"{where}: bytes")
    version = _natural(fields["version"], f"{where}: version")
    if version > MAX_VERSION:
        raise CorruptionError(f"{where}: version is {version}, expected at most {MAX_VERSION}")
    if fields["buffer"] not in BUFFERS:
        raise CorruptionError(f"{where}: buffer is {fields['buffer']!r}, expected one of {BUFFERS}")
    if not isinstance(fields["tensors"], list):
        raise CorruptionError(f"{where}: tensors is not a list")
    entries = tuple(_entry(each, i, where) for i, each in enumerate(fields["tensors"]))
    _check_places(entries, used, where)
    return Manifest(version, fields["buffer"], used, entries)


def read_file(directory: Path) -> bytes | None:
    """The bytes of a directory's manifest, None where no version is published.

    Raises CorruptionError where it cannot be one.
    """
    path = directory / FILE
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with os.fdopen(file, "rb") as stream:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise CorruptionError(f"{path}: not an ordinary file")
        if status.st_size > MAX_FILE_BYTES:
            raise CorruptionError(
                f"{path}: {status.st_size} bytes, expected at most {MAX_FILE_BYTES}"
            )
        return stream.read()


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of a directory, None where no version is published.

    Raises CorruptionError where it is not one.
    """
    content = read_file(directory)
    return None if content is None else decode(content, where=str(directory / FILE))


def check(memory: NDArray[np.uint8], manifest: Manifest, *, where: str) -> None:
    """Hold the bytes of a buffer against the checksums.

    Raises CorruptionError that names the first tensor that differs.
    """
    for entry in manifest.tensors:
        found = checksum(memory[entry.offset : entry.offset + entry.bytes])
        if found != entry.checksum:
            raise CorruptionError(
                f"{where}: {entry.name} of version {manifest.version} in {manifest.buffer} has "
                f"checksum {found:#010x}, published was {entry.checksum:#010x}"
            )


def expected_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """How many bytes a tensor takes. Raises InvalidInputError for a dtype that is not kept."""
    if dtype not in ITEM_BYTES:
        raise InvalidInputError(f"dtype {dtype}: expected one of {', '.join(ITEM_BYTES)}")
    return math.prod(shape) * ITEM_BYTES[dtype]


def aligned(offset: int) -> int:
    """The first place for a tensor at or after `offset`."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _checksum(content: bytes) -> int:
    return checksum(np.frombuffer(content, np.uint8))


def _keys(value: Any, keys: tuple[str, ...], where: str) -> None:
    if not isinstance(value, dict) or set(value) != set(keys):
        raise CorruptionError(f"{where}: expected an object of {', '.join(keys)}")


def _natural(value: Any, where: str) -> int:
    if type(value) is not int or value < 0:
        raise CorruptionError(f"{where} is {value!r}, expected a whole number, at least 0")
    return value


def _naturals(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > 64:
        raise CorruptionError(f"{where} is {value!r}, expected a list of at most 64 whole numbers")
    return tuple(_natural(each, where) for each in value)


def _entry(value: Any, index: int, where: str) -> TensorEntry:
    place = f"{where}: tensors[{index}]"
    keys = ("name", "dtype", "shape", "offset", "bytes", "checksum", "shard")
    _keys(value, keys, place)
    name = value["name"]
    if not isinstance(name, str) or not name:
        raise CorruptionError(f"{place}: name is {name!r}, expected some text")
    place = f"{place} ({name!r})"
    shape = _naturals(value["shape"], f"{place}: shape")
    if math.prod(max(length, 1) for length in shape) > MAX_ELEMENTS:
        raise CorruptionError(f"{place}: shape is {shape}, beyond {MAX_ELEMENTS} elements")
    dtype = value["dtype"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CorruptionError(
            f"{place}: dtype is {dtype!r}, expected one of {', '.join(ITEM_BYTES)}"
        )
    size = _natural(value["bytes"], f"{place}: bytes")
    if size != (wanted := expected_bytes(dtype, shape)):
        raise CorruptionError(f"{place}: bytes is {size}, expected {wanted} for its shape")
    offset = _natural(value["offset"], f"{place}: offset")
    if offset % ALIGNMENT:
        raise CorruptionError(f"{place}: offset is {offset}, expected a multiple of {ALIGNMENT}")
    crc = _natural(value["checksum"], f"{place}: checksum")
    return TensorEntry(name, dtype, shape, offset, size, crc, _shard(value["shard"], shape, place))


def _shard(value: Any, shape: tuple[int, ...], place: str) -> Shard | None:
    if value is None:
        return None
    _keys(value, ("shape", "start"), f"{place}: shard")
    shard = Shard(
        _naturals(value["shape"], f"{place}: shard.shape"),
        _naturals(value["start"], f"{place}: shard.start"),
    )
    if not fits(shard, shape):
        raise CorruptionError(f"{place}: shard {shard} does not contain a piece of shape {shape}")
    return shard


def fits(shard: Shard, shape: tuple[int, ...]) -> bool:
    """Whether a piece of this shape lies within the whole tensor."""
    return len(shard.shape) == len(shard.start) == len(shape) and all(
        start + length <= whole
        for start, length, whole in zip(shard.start, shape, shard.shape, strict=True)
    )


def _check_places(entries: tuple[TensorEntry, ...], used: int, where: str) -> None:
    seen = set()
    for entry in entries:
        key = (entry.name, entry.shard)
        if key in seen:
            raise CorruptionError(f"{where}: {entry.name} is there twice")
        seen.add(key)
    end, before = 0, ""
    for entry in sorted(entries, key=lambda each: (each.offset, each.bytes)):
        if entry.offset < end and entry.bytes:
            raise CorruptionError(f"{where}: {entry.name} overlaps {before}")
        end, before = max(end, entry.offset + entry.bytes), entry.name
    if end > used:
        raise CorruptionError(f"{where}: {before} ends at {end}, beyond its {used} bytes")
