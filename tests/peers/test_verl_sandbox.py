"""verl's own client of SandboxFusion, unmodified, against our daemon."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import Daemon, daemon
from soak.daemon import verl

NEEDS = "needs verl, which `make test-peers` installs into an environment of its own"
pytest.importorskip("verl", reason=NEEDS)

from verl.utils.reward_score.sandbox_fusion import compute_score
from verl.utils.reward_score.sandbox_fusion.utils import call_sandbox_api, check_correctness

ADD = "a, b = map(int, input().split())\nprint(a + b)"
CASES = {"inputs": [f"{i} {i}\n" for i in range(32)], "outputs": [f"{2 * i}\n" for i in range(32)]}


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    with daemon("--slots", "2") as found:
        yield found


def check(running: Daemon, code: str, cases: dict[str, object] = CASES, **options: object) -> set:
    results, _ = check_correctness(f"{running.url}/run_code", cases, code, **options)
    assert len(results) == len(cases["inputs"])
    return set(results)


def test_the_api(running: Daemon) -> None:
    found, error = call_sandbox_api(f"{running.url}/run_code", ADD, "2 3", 10, 10, 1024, "python")
    assert error is None
    assert found["status"] == "Success"
    assert found["run_result"]["stdout"] == "5\n"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (ADD, True),
        (ADD.replace("+", "-") + "\nprint(1)", False),
        ("raise ValueError", -2),
        ("import time; time.sleep(60)", -3),
        ("x = (", -2),
    ],
)
def test_each_verdict_is_scored_as_it_should(running: Daemon, code: str, expected: object) -> None:
    cases = {name: values[:3] for name, values in CASES.items()}
    assert check(running, code, cases, timeout=2) == {expected}


def test_a_compiler_that_fails(running: Daemon) -> None:
    if running.ask("GET", "/v1/languages")[1]["cpp"]:
        pytest.skip("C++ is compiled: apt install g++")
    assert check(running, "int main() { return x; }", language="cpp") == {-4}


def test_a_function_with_asserted_arguments(running: Daemon) -> None:
    cases = {"fn_name": "add", "inputs": ["[1]\n[2]"], "outputs": ["3"]}
    code = "def add(a, b):\n    return a[0] + b[0]"
    assert check(running, code, cases) == {True}


def test_a_score(running: Daemon) -> None:
    answer = f"Here it is:\n```python\n{ADD}\n```"
    score, _ = compute_score(f"{running.url}/run_code", None, 1024, answer, CASES)
    assert score == 1.0


def test_right_programs_are_scored_right_when_many_wait_for_one_slot(tmp_path: Path) -> None:
    # It keeps 32 requests under way: each waits for the 31 before it.
    code = f"import time; time.sleep(0.1)\n{ADD}"
    cases = {name: values * 2 for name, values in CASES.items()}
    with daemon(settings="[sandbox]\nslots = 1", home=tmp_path) as busy:
        results, _ = check_correctness(f"{busy.url}/run_code", cases, code, timeout=10)
    assert results == [True] * 64


def test_twice_the_requests_that_it_can_hold_and_no_right_program_is_scored_as_wrong(
    tmp_path: Path,
) -> None:
    assert verl(sys.executable, 20, tmp_path) == []
