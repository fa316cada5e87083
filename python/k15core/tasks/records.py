"""Reads prompt files: one JSON object a line, with every line checked."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Record:
    """One problem as the file states it. `response` is a demonstration, where there is one."""

    prompt: str
    answer: str
    tags: tuple[str, ...]
    difficulty: float | None
    response: str | None


@dataclass(frozen=True)
class Fields:
    """Which fields of a line hold what, and how answer and response are cut out of theirs.

    An answer that is an object or a list counts as its JSON text.
    `answer_pattern` is searched in the answer field, its last match counts, and its first group
    (the whole match where it has none) is the answer. What matches `response_remove` is cut from
    the response. A line may lack tags and difficulty, nothing else; one without a difficulty has
    the number of matches of `difficulty_pattern` in its answer field, where that is set.
    """

    prompt: str = "prompt"
    answer: str = "answer"
    tags: str = "tags"
    difficulty: str = "difficulty"
    response: str | None = None
    answer_pattern: re.Pattern[str] | None = None
    response_remove: re.Pattern[str] | None = None
    difficulty_pattern: re.Pattern[str] | None = None

    def record(self, line: str) -> Record:
        """The record that a line holds. Raises ValueError with what was expected of it."""
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"not JSON ({error}): expected one object a line") from None
        if not isinstance(row, dict):
            raise ValueError(f"a JSON {type(row).__name__}: expected an object")
        response = None
        if self.response is not None:
            response = _text(row, self.response)
            if self.response_remove is not None:
                response = self.response_remove.sub("", response)
        return Record(
            prompt=_text(row, self.prompt),
            answer=self._answer(row),  # before the difficulty, which may count in its field
            tags=_tags(row, self.tags),
            difficulty=self._difficulty(row),
            response=response,
        )

    def _difficulty(self, row: Mapping[str, Any]) -> float | None:
        value = row.get(self.difficulty)
        if value is None:
            if self.difficulty_pattern is None:
                return None
            return float(len(self.difficulty_pattern.findall(str(row[self.answer]))))
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise ValueError(f"field {self.difficulty!r} is {_short(value)}: expected a number")
        return float(value)

    def _answer(self, row: Mapping[str, Any]) -> str:
        value = row.get(self.answer)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if isinstance(value, dict | list):
            answer = json.dumps(value, ensure_ascii=False)
        else:
            answer = str(value) if number else _text(row, self.answer)
        if self.answer_pattern is None:
            return answer
        found = list(self.answer_pattern.finditer(answer))
        if not found:
            raise ValueError(
                f"field {self.answer!r} is {_short(answer)}: expected a match of the "
                f"answer_pattern {self.answer_pattern.pattern!r}"
            )
        return str(found[-1].group(1 if self.answer_pattern.groups else 0)).strip()


def read_records(
    path: str | Path, fields: Fields, *, skip_broken: bool = False
) -> tuple[list[Record], list[str]]:
    """The records of a file in order, and a message for each line that was skipped.

    A broken line raises InvalidInputError with file, number and what was expected; with
    `skip_broken` it is left out and named in the second list. Blank lines are nothing.
    """
    path = Path(path)
    if not path.is_file():
        raise InvalidInputError(f"prompt file {path} does not exist")
    records: list[Record] = []
    skipped: list[str] = []
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            if not raw.strip():
                continue
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                records.append(fields.record(line))
            except ValueError as error:  # a UnicodeDecodeError is one
                message = f"{path} line {number}: {error}"
                if not skip_broken:
                    raise InvalidInputError(message) from None
                skipped.append(message)
    return records, skipped


def pattern(name: str, text: str | None) -> re.Pattern[str] | None:
    """A compiled setting; InvalidInputError names the setting if it is no regular expression."""
    if text is None:
        return None
    try:
        return re.compile(text)
    except re.error as error:
        raise InvalidInputError(f"{name} is {text!r}: not a regular expression ({error})") from None


def _text(row: Mapping[str, Any], field: str) -> str:
    if field not in row:
        has = ", ".join(map(str, row)) or "nothing"
        raise ValueError(f"field {field!r} is missing: expected text (the line has {has})")
    value = row[field]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"field {field!r} is {_short(value)}: expected text")
    return value


def _tags(row: Mapping[str, Any], field: str) -> tuple[str, ...]:
    value = row.get(field)
    value = [] if value is None else value
    if not isinstance(value, list) or not all(isinstance(tag, str) for tag in value):
        raise ValueError(f"field {field!r} is {_short(value)}: expected a list of texts")
    return tuple(value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
