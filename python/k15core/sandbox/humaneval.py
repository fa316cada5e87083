"""HumanEval's problems and completions in files, as programs to run.

Format: github.com/openai/human-eval; EvalPlus writes whole programs as `solution`. A file may be
compressed (.gz).
"""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Problem:
    """A function to write: `prompt` ends where its body is to begin."""

    task_id: str
    prompt: str
    test: str
    entry_point: str
    canonical_solution: str = ""

    def program(self, completion: str) -> str:
        """What is run for the text of a body: a program that ends well if it passes."""
        return self.checked(self.prompt + completion)

    def checked(self, solution: str) -> str:
        """What is run for a solution that repeats the prompt or does without it."""
        return f"{solution}\n{self.test}\ncheck({self.entry_point})\n"


def read_problems(path: str) -> dict[str, Problem]:
    """The problems of a file by task_id. InvalidInputError names the line that is none."""
    problems = {}
    for place, row in _rows(path):
        fields = ("task_id", "prompt", "test", "entry_point")
        values = {field: _text(row, place, field) for field in fields}
        solution = str(row.get("canonical_solution", ""))
        problems[values["task_id"]] = Problem(**values, canonical_solution=solution)
    return problems


def read_programs(path: str, problems: dict[str, Problem]) -> Iterator[tuple[str, str]]:
    """Pairs of a task_id and a program, one for each line of a file of completions."""
    for place, row in _rows(path):
        task_id = _text(row, place, "task_id")
        problem = problems.get(task_id)
        if problem is None:
            raise InvalidInputError(f"{place}: task_id = {task_id!r}: expected one of the problems")
        if "solution" in row:
            yield task_id, problem.checked(_text(row, place, "solution"))
        else:
            yield task_id, problem.program(_text(row, place, "completion"))


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The chance that one of `k` of `n` samples is correct: Chen et al. 2021, equation 1."""
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def _rows(path: str) -> Iterator[tuple[str, dict[str, object]]]:
    try:
        content = Path(path).read_bytes()
        text = (gzip.decompress(content) if path.endswith(".gz") else content).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path}: expected a file of JSON lines: {error}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InvalidInputError(f"{place}: expected a JSON object: {error}") from error
        if not isinstance(row, dict):
            raise InvalidInputError(f"{place}: expected a JSON object, not {line[:40]!r}")
        yield place, row


def _text(row: dict[str, object], place: str, field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise InvalidInputError(f"{place}: {field} = {value!r}: expected a string")
    return value
