"""Programs of responses, run for their reward."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from daemons import Daemon, daemon
from multipl_e import SHARED
from sandboxes import need

from k15core import Prompt
from k15core.errors import InvalidInputError, VerifierError
from k15core.rewards import make_reward
from k15core.rewards.code import CodeReward

ADD = {"cases": [{"stdin": f"{i} {i}\n", "stdout": f"{2 * i}\n"} for i in range(4)]}
RIGHT = "print(sum(map(int, input().split())))"
HALF = "a, b = map(int, input().split())\nprint(a + b if a < 2 else 0)"


def prompt(problem: object) -> Prompt:
    text = problem if isinstance(problem, str) else json.dumps(problem)
    return Prompt(7, np.zeros(1, np.int32), text)


def fenced(code: str, language: str = "python") -> str:
    return f"Let us see.\n```{language}\n{code}\n```\nThat is it."


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    with daemon("--slots", "2") as found:
        yield found


@pytest.fixture(params=["in process", "daemon"])
def url(request: pytest.FixtureRequest) -> str | None:
    if request.param == "daemon":
        return str(request.getfixturevalue("running").url)
    need()
    return None


@pytest.mark.parametrize(
    ("response", "whole", "share"),
    [
        (fenced(RIGHT), 1, 1),
        (RIGHT, 1, 1),
        (fenced("print(0)") + fenced(RIGHT), 1, 1),
        (fenced(RIGHT) + fenced("print('no')"), 0, 0),
        (fenced(RIGHT) + "\n```python\nprint(", 0, 0),
        (fenced(HALF), 0, 0.5),
        (fenced("while True: pass"), 0, 0),
        (fenced("exit(1)"), 0, 0),
        (fenced("x = ("), 0, 0),
        ("", 0, 0),
    ],
)
async def test_programs_get_what_they_deserve(
    url: str | None, response: str, whole: float, share: float
) -> None:
    for partial_credit, expected in ((False, whole), (True, share)):
        reward = CodeReward(url=url, slots=2, wall_seconds=2.5, partial_credit=partial_credit)
        assert await reward.score(prompt(ADD), response) == expected


async def test_tests_that_are_appended() -> None:
    need()
    reward = make_reward("code", slots=1)
    problem = prompt({"before": "import math\n", "tests": "assert f(4) == 2"})
    assert await reward.score(problem, fenced("def f(x): return math.isqrt(x)")) == 1
    assert await reward.score(problem, fenced("def f(x): return x")) == 0


async def test_another_language() -> None:
    need()
    reward = CodeReward(language="bash", slots=1)
    assert await reward.score(prompt(ADD), fenced("read a b; echo $((a + b))", "bash")) == 1
    assert await reward.score(prompt(ADD | {"language": "python"}), RIGHT) == 1


@pytest.mark.parametrize(
    ("checker", "printed", "expected"),
    [
        ("exact", "1 2 \n3\n\n", 1),
        ("exact", "1  2\n3\n", 0),
        ("tokens", "1\n2 3", 1),
        ("tokens", "1 2.0 3", 0),
        ("floats", "1 2.0000000001 3", 1),
        ("floats", "1 2.1 3", 0),
        ("floats", "1 2 3 4", 0),
        ("floats", "1 two 3", 0),
    ],
)
async def test_what_counts_as_equal(checker: str, printed: str, expected: float) -> None:
    need()
    reward = CodeReward(checker=checker, slots=1)
    problem = prompt({"cases": [{"stdin": "", "stdout": "1 2\n3\n"}]})
    assert await reward.score(problem, f"print({printed!r}, end='')") == expected


async def test_a_fault_of_the_sandbox_is_no_score() -> None:
    with daemon("--slots", "1") as short_lived:
        reward = CodeReward(url=short_lived.url, patience=0.1)
        short_lived.kill()
        with pytest.raises(VerifierError, match="refused"):
            await reward.score(prompt(ADD), RIGHT)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("no json", "answer of prompt 7 is no JSON"),
        ("{}", "expected an object with cases or tests"),
        ({"cases": []}, "expected a list of at least one"),
        ({"cases": [{"stdin": 1, "stdout": ""}]}, "case 0 is"),
        ({"tests": "", "more": 1}, "has \\['more'\\]"),
        ({"tests": 1}, "tests is 1"),
    ],
)
async def test_a_problem_that_makes_no_sense(problem: object, message: str) -> None:
    need()
    with pytest.raises(InvalidInputError, match=message):
        await CodeReward(slots=1).score(prompt(problem), RIGHT)


def test_settings_that_make_no_sense() -> None:
    need()
    with pytest.raises(InvalidInputError, match="language is 'cobol'"):
        CodeReward(language="cobol")
    with pytest.raises(InvalidInputError, match="checker is 'x'"):
        CodeReward(checker="x")


async def test_humaneval_as_responses(running: Daemon) -> None:
    path = SHARED / "humaneval" / "humaneval-python.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there: set K15_SHARED_DATA to the folder of data sets")
    reward = CodeReward(url=running.url, wall_seconds=60)
    for line in path.read_text().splitlines()[::4]:
        row = json.loads(line)
        check = f"{row['test']}\ncheck({row['entry_point']})"
        whole = row["prompt"] + row["canonical_solution"]
        assert await reward.score(prompt({"tests": check}), fenced(whole)) == 1, row["task_id"]
        wrong = row["prompt"] + "    return ('neither', 'this', 'nor', 'that')\n"
        assert await reward.score(prompt({"tests": check}), fenced(wrong)) == 0, row["task_id"]
