"""metrics.jsonl: what a run writes about itself, one JSON object a line, and how it is read back.

The schema is docs/metrics.md. A line is written by one `write` call and is whole once a newline
ends it: what follows the last newline (a process that was killed while writing) is dropped.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from k15core.errors import InvalidInputError, StorageError
from k15core.report.schema import REQUIRED, Record, fault_of, number, plain
from k15core.report.tensorboard import ScalarFiles

if TYPE_CHECKING:
    from types import TracebackType


METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class Metrics:
    """A parsed metrics.jsonl, lines grouped by kind, in the order of the file.

    Where a resumed run wrote a step, an iteration, an evaluation or one of its transcripts again,
    the later line counts.
    """

    run_directory: Path
    run: Record
    sft: list[Record] = field(default_factory=list)
    iterations: list[Record] = field(default_factory=list)
    evaluations: list[Record] = field(default_factory=list)
    transcripts: list[Record] = field(default_factory=list)
    repetitions: list[Record] = field(default_factory=list)
    events: list[Record] = field(default_factory=list)

    def evaluated(self, label: str = "held_out") -> list[Record]:
        """The evaluations of one label, by iteration."""
        found = [record for record in self.evaluations if record["label"] == label]
        return sorted(found, key=lambda record: int(record["iteration"]))

    def seconds(self) -> float | None:
        """Wall-clock seconds of the run up to its last line; None where nobody measured."""
        every = (*self.sft, *self.iterations, *self.evaluations, *self.events)
        return max(
            (s for record in every if (s := number(record, "seconds")) is not None), default=None
        )


class MetricsWriter:
    """Appends lines to metrics.jsonl of a run directory, and scalars to tensorboard/ beside it.

    An existing file is continued: a torn last line is dropped. Every line gets `seconds`, the
    wall-clock seconds that the run has taken so far, by `clock`; time between a crash and the
    resume does not count. A context manager; `close` ends it.

    Raises StorageError where the operating system refuses to write; the file then ends in its last
    whole line.
    """

    def __init__(
        self,
        run_directory: str | Path,
        tensorboard: bool = True,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = Path(run_directory) / METRICS_FILE
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
            lines = _whole_lines(self.path)
            self._file.truncate(sum(map(len, lines)))
        except OSError as error:
            raise StorageError(
                f"{self.path}: cannot write metrics there: {error.strerror}"
            ) from None
        self._clock = clock
        self._start = clock() - _last_seconds(lines)
        self._scalars = ScalarFiles(self.path.parent / "tensorboard") if tensorboard else None

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def now(self) -> float:
        """Wall-clock seconds that the run has taken so far."""
        return self._clock() - self._start

    def write(self, kind: str, **fields: object) -> None:
        """Append one line of the given kind, flushed to the operating system before it returns.

        Numbers, strings, None, mappings, sequences, paths, numpy scalars and arrays are accepted; a
        number that is not finite is written as null. `seconds` is the writer's own: a field of that
        name is replaced.

        Raises InvalidInputError for a kind that does not exist, a required field that is missing or
        of a wrong type, and a value that JSON cannot hold.
        """
        record: Record = {"kind": kind}
        record |= {name: plain(name, value) for name, value in fields.items()}
        record["seconds"] = round(self.now(), 3)
        fault = fault_of(record)
        if fault:
            raise InvalidInputError(fault)
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
        line = text.encode("utf-8", "backslashreplace") + b"\n"  # a lone surrogate stays JSON
        end = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(28, f"only {written} of {len(line)} bytes could be written")
        except OSError as error:
            self._file.truncate(end)
            raise StorageError(f"{self.path}: cannot append a line: {error.strerror}") from None
        if self._scalars is not None:
            self._scalars.write(record)

    def rewind(self, iteration: int) -> None:
        """Drop what came after an iteration, so that a resumed run goes on from there.

        Keeps the lines up to and including `iteration`. SFT belongs to iteration 0 (a run resumed
        within it rewinds to 0: steps that are told again replace the earlier lines); −1 keeps only
        the description of the run. The file is replaced by a rename; the TensorBoard files are
        written anew from the lines that stay.
        """
        kept: list[bytes] = []
        records: list[Record] = []
        for place, line in enumerate(_whole_lines(self.path), 1):
            record = _parse(self.path, place, line)
            if record["kind"] == "run" or int(record.get("iteration", 0)) <= iteration:
                kept.append(line)
                records.append(record)
        self.close()
        fresh = self.path.with_suffix(".jsonl.new")
        try:
            with fresh.open("wb") as file:
                file.writelines(kept)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot rewind: {error.strerror}") from None
        self._start = self._clock() - _last_seconds(kept)
        if self._scalars is not None:
            self._scalars.erase()
            for record in records:
                self._scalars.write(record)

    def close(self) -> None:
        """Close the files. Nothing that `write` returned from is lost without it."""
        self._file.close()
        if self._scalars is not None:
            self._scalars.close()


def read_metrics(run_directory: str | Path) -> Metrics:
    """Read metrics.jsonl of a run directory, of a finished run or of one that is still going on.

    Raises InvalidInputError where there is no such directory or file, where it describes no run,
    and for a broken line, which is named by number.
    """
    directory = Path(run_directory)
    path = directory / METRICS_FILE
    if not directory.is_dir():
        raise InvalidInputError(f"{directory}: no such run directory")
    if not path.is_file():
        raise InvalidInputError(
            f"{directory}: holds no {METRICS_FILE}; expected the directory of a run of `k15 train`"
        )
    by_kind: dict[str, dict[object, Record]] = {kind: {} for kind in REQUIRED}
    for place, line in enumerate(_whole_lines(path), 1):
        record = _parse(path, place, line)
        by_kind[record["kind"]][_identity(record, place)] = record
    if not by_kind["run"]:
        raise InvalidInputError(f"{path}: has no line of kind 'run'; the run never began")
    groups = {kind: list(records.values()) for kind, records in by_kind.items()}
    return Metrics(
        run_directory=directory,
        run=groups["run"][-1],
        sft=groups["sft"],
        iterations=sorted(groups["iteration"], key=lambda record: int(record["iteration"])),
        evaluations=groups["evaluation"],
        transcripts=groups["transcript"],
        repetitions=groups["repetition"],
        events=groups["event"],
    )


def _identity(record: Record, place: int) -> object:
    """What two lines of one kind share if the later one replaces the earlier."""
    if record["kind"] == "sft":
        return record["stage"], record["step"]
    if record["kind"] == "iteration":
        return record["iteration"]
    if record["kind"] == "evaluation":
        return record["iteration"], record["label"]
    if record["kind"] == "transcript" and record["when"] != "during":
        return record["iteration"], record["when"], record.get("prompt_id", place)
    return place


def _whole_lines(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        return [line for line in file if line.endswith(b"\n")]


def _parse(path: Path, place: int, line: bytes) -> Record:
    try:
        record = json.loads(line)
    except ValueError:
        raise InvalidInputError(
            f"{path}, line {place}: not JSON; expected one object a line"
        ) from None
    fault = fault_of(record)
    if fault:
        raise InvalidInputError(f"{path}, line {place}: {fault}")
    return dict(record)


def _last_seconds(lines: Sequence[bytes]) -> float:
    for line in reversed(lines):
        try:
            seconds = number(json.loads(line), "seconds")
        except ValueError:
            continue
        if seconds is not None:
            return seconds
    return 0.0
