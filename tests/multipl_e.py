"""Programs of MultiPL-E: HumanEval's problems in eleven languages, with tests in each.

The data set has no reference solutions, but answers of a language model that nobody has verified.
`Problem.program` puts an answer before the problem's tests as one source for the sandbox;
`Problem.wrong_program` does the same with a body that only returns, so that the tests must fail.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SHARED = Path(os.environ.get("K15_SHARED_DATA", Path(__file__).parents[1] / "../shared/data"))
FOLDER = SHARED / "multipl_e"

LANGUAGES = {
    "cpp": "cpp",
    "go": "go",
    "java": "java",
    "js": "javascript",
    "lua": "lua",
    "php": "php",
    "pl": "perl",
    "rb": "ruby",
    "rs": "rust",
    "sh": "bash",
    "ts": "typescript",
}
"""The data set's name of each language and the sandbox's."""

SOLVED = {
    "cpp": (0, 1, 2, 3, 4),
    "go": (0, 2, 3, 4, 6, 7, 8, 9),
    "java": (0, 1, 2, 3, 4, 5),
    "js": (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11),
    "lua": (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11),
    "php": (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11),
    "pl": (0, 2, 3, 4, 6, 7, 8, 9, 10),
    "rb": (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11),
    "rs": (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11),
    "sh": (3, 11, 12, 13, 19, 24, 27, 31),
    "ts": (0, 1, 2, 3, 4, 5),
}
"""Problems, by number, to which the data set's answer is right."""

HARNESS = {
    "lua": ("lua-unit", 'require("luaunit")'),
    "perl": ("libtest-deep-perl", "use Test::Deep;"),
    "ruby": ("ruby-test-unit", 'require "test/unit/version"'),
}
"""What a language's tests are written with where it does not come with it: package, a program."""


@dataclass(frozen=True)
class Problem:
    name: str
    language: str
    prompt: str
    tests: str
    answer: str

    def program(self) -> str:
        """The answer with the tests."""
        return JOIN.get(self.language, _append)(self.answer, self.tests)

    def wrong_program(self) -> str:
        """A body that does nothing of use, with the tests."""
        return JOIN.get(self.language, _append)(_useless(self), self.tests)


def solved_problems(kind: str) -> list[Problem]:
    """The problems of a language, by the data set's name of it, that have a right answer."""
    return [each for each in problems(kind) if int(each.name.split("_")[1]) in SOLVED[kind]]


def problems(kind: str) -> list[Problem]:
    """All problems of a language, by the data set's name of it."""
    found = []
    with (FOLDER / f"humaneval-{kind}.jsonl").open() as lines:
        for line in lines:
            row = json.loads(line)
            fenced = re.search(r"```\w*\n(.*?)```", row["gpt_solution"], re.DOTALL)
            answer = fenced[1] if fenced else row["gpt_solution"]
            found.append(Problem(row["name"], LANGUAGES[kind], row["prompt"], row["tests"], answer))
    return found


def _append(answer: str, tests: str) -> str:
    return f"{answer}\n{tests}"


def _after_function(answer: str, tests: str) -> str:
    """The tests start by closing the function that the prompt opens: an answer has closed it."""
    return f"{_without_main(answer)}\n{tests.lstrip().removeprefix('}')}"


def _without_main(answer: str) -> str:
    """Some answers bring a `main` of their own, always as their last function."""
    start = r"^\s*(?:int main\(|fn main\(|func main\(|public static void main)"
    return re.split(start, answer, flags=re.MULTILINE)[0]


def _java(answer: str, tests: str) -> str:
    """The answer is a whole class: the tests' `main` goes before its last brace."""
    body = _without_main(answer)
    if body == answer:
        body = answer[: answer.rindex("}")]
    return _after_function(body, tests).replace("class Problem", "class Main", 1)


def _go(answer: str, tests: str) -> str:
    """The tests are for `go test`: a `main` calls them as that would."""
    source = _append(_without_main(answer), tests)
    source = re.sub(r"^package \w+", "package main", source, count=1, flags=re.M)
    test = re.search(r"func (Test\w+)", tests)
    assert test is not None
    return source + (
        "\nfunc main() {\n\ttesting.Main(func(string, string) (bool, error) { return true, nil },\n"
        f'\t\t[]testing.InternalTest{{{{"{test[1]}", {test[1]}}}}}, nil, nil)\n}}\n'
    )


def _php(answer: str, tests: str) -> str:
    return f"{answer.rstrip().removesuffix('?>')}\n{tests}"


JOIN: dict[str, Callable[[str, str], str]] = {
    "cpp": _after_function,
    "rust": _after_function,
    "bash": _after_function,
    "java": _java,
    "go": _go,
    "php": _php,
}


def _useless(problem: Problem) -> str:
    """The prompt with a body that compiles and is wrong for every input."""
    bodies = {
        "cpp": "std::abort(); }",
        "rust": "todo!() }",
        "bash": "return 1\n}",
        "java": 'throw new RuntimeException("wrong"); } }',
        "go": 'panic(fmt.Sprint("wrong")) }',
        "php": "}",
        "javascript": "}",
        "typescript": 'throw new Error("wrong") }',
        "lua": "end",
        "perl": "}",
        "ruby": "end",
    }
    return f"{problem.prompt}\n{bodies[problem.language]}\n"
