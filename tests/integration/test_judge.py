"""The checker of a batch that is a program: real judges, broken ones, hostile ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from daemons import Daemon, daemon

DIVISOR = """
import sys
read = lambda path: open(path, errors='replace').read().split()
n = int(read(sys.argv[1])[0])
said, wanted = read(sys.argv[2]), read(sys.argv[3])
if len(said) != 1 or not said[0].isdigit():
    print("expected one number", file=sys.stderr)
    sys.exit(2)
if not (1 < int(said[0]) < n and n % int(said[0]) == 0):
    print(f"{said[0]} does not divide {n}", file=sys.stderr)
    sys.exit(1)
open("score", "w").write(str(1.0 if said == wanted else 0.5))
"""
"""Any divisor is right; the least is worth more."""
DIVISOR_CPP = """
#include <cstdio>
#include <fstream>
int main(int argc, char **argv) {
  long long n, said;
  std::ifstream input(argv[1]), output(argv[2]);
  input >> n;
  if (!(output >> said)) return 2;
  return said > 1 && said < n && n % said == 0 ? 0 : 1;
}
"""


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    with daemon("--slots", "2") as found:
        yield found


def batch(
    running: Daemon, source: str, cases: list[tuple[str, str]], *, judge: str, **checker: object
) -> list[dict[str, Any]]:
    body = {
        "submission": {"source": source, "language": "python"},
        "cases": [{"stdin": stdin, "expected": expected} for stdin, expected in cases],
        "checker": {"kind": "program", "source": judge} | checker,
    }
    status, text = running.ask("POST", "/v1/batch", body)
    assert status == 200, text
    lines = [json.loads(line) for line in text.splitlines()]
    return sorted(lines[:-1], key=lambda line: line["case"])


LEAST = "n = int(input())\nprint(next(d for d in range(2, n) if n % d == 0))"
LARGEST = "n = int(input())\nprint(next(d for d in range(n - 1, 1, -1) if n % d == 0))"
CASES = [(f"{n}\n", f"{least}\n") for n, least in [(15, 3), (21, 3), (49, 7), (91, 7), (1001, 7)]]


@pytest.mark.parametrize("language", ["python", "cpp"])
def test_a_judge_accepts_every_right_answer(running: Daemon, language: str) -> None:
    if missing := running.ask("GET", "/v1/languages")[1][language]:
        pytest.skip(f"{language}: {missing}")
    judge = DIVISOR if language == "python" else DIVISOR_CPP
    for source, passed, score in [
        (LEAST, True, 1.0),
        (LARGEST, True, 0.5),
        ("print(2)", False, None),
        ("print('no number')", False, None),
        ("pass", False, None),
    ]:
        lines = batch(running, source, CASES, judge=judge, language=language)
        assert {line["passed"] for line in lines} == {passed}, lines
        if language == "python" and passed:
            assert {line["checker"]["score"] for line in lines[:2]} == {score}


def test_what_is_wrong_is_said(running: Daemon) -> None:
    (line,) = batch(running, "print(4)", CASES[:1], judge=DIVISOR, language="python")
    assert line["stdout"] == "4\n"
    assert line["checker"] == {
        "verdict": "nonzero_exit",
        "exit_code": 1,
        "score": None,
        "message": "4 does not divide 15",
    }


def test_a_program_that_fails_is_not_judged(running: Daemon) -> None:
    (line,) = batch(running, "exit(3)", CASES[:1], judge="", language="python")
    assert line["passed"] is False
    assert "checker" not in line


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import sys; sys.exit(3)", ""),
        ("import os; os.kill(os.getpid(), 11)", ""),
        ("while True: pass", ""),
        ("print('x' * 10**8)", ""),
        ("import os\nwhile True: os.fork()", ""),
        ("x = bytearray(10**10)\nimport sys; sys.exit(9)", ""),
        ("open('score', 'w').write('2')", "score"),
        ("import os; os.symlink('/etc/passwd', 'score'); raise SystemExit(5)", ""),
        ("import os; os.remove('output'); os.kill(1, 9); raise SystemExit(4)", ""),
    ],
)
def test_a_judge_that_fails_is_never_a_wrong_answer(
    running: Daemon, source: str, says: str
) -> None:
    limits = {"wall_seconds": 1, "cpu_seconds": 1, "output_bytes": 1 << 20}
    for line in batch(
        running, LEAST, CASES[:2], judge=source, language="python", limits=limits, rejects=[43]
    ):
        assert line["passed"] is None, line
        assert line["verdict"] == "ok"
        assert says in line["checker"]["message"]
    assert running.ask("POST", "/run_code", {"code": "", "language": "python"})[0] == 200


def test_a_judge_that_does_not_compile(running: Daemon) -> None:
    if running.ask("GET", "/v1/languages")[1]["cpp"]:
        pytest.skip("C++ is compiled: apt install g++")
    (line,) = batch(running, LEAST, CASES[:1], judge="int main() { no }", language="cpp")
    assert line["passed"] is None
    assert line["checker"]["verdict"] == "compile_error"


def test_an_output_cannot_speak_for_the_judge(running: Daemon) -> None:
    """What a program leaves behind or prints is data: nothing of it runs, and nothing stays."""
    hostile = [
        "open('score', 'w').write('1'); open('answer', 'w').write('0'); print(0)",
        "import os; os.write(1, bytes(range(256)) * 999)",
        "print('9' * 4000)",
        "print('exit 0; $(true) `true`')",
    ]
    for source in hostile:
        (line,) = batch(running, source, CASES[:1], judge=DIVISOR, language="python")
        assert line["passed"] is False, (source, line)
        assert line["checker"]["score"] is None


def test_other_codes_than_testlibs(running: Daemon) -> None:
    for code, passed in [(42, True), (43, False), (0, None), (1, None)]:
        (line,) = batch(
            running,
            LEAST,
            CASES[:1],
            judge=f"raise SystemExit({code})",
            language="python",
            accepts=42,
            rejects=[43],
        )
        assert line["passed"] is passed


@pytest.mark.parametrize(
    ("checker", "message"),
    [
        ({"source": ""}, "missing field `language`"),
        ({"source": "", "language": "cobol"}, 'checker.language = "cobol"'),
        ({"source": "", "language": "python", "rejects": [0]}, "checker.rejects = [0]"),
        ({"source": "", "language": "python", "limits": {"wall_seconds": 1e9}}, "wall_seconds"),
        ({"source": "", "language": "python", "more": 1}, "`more`"),
    ],
)
def test_a_judge_that_makes_no_sense(
    running: Daemon, checker: dict[str, object], message: str
) -> None:
    body = {
        "submission": {"source": "", "language": "python"},
        "cases": [{}],
        "checker": {"kind": "program"} | checker,
    }
    status, found = running.ask("POST", "/v1/batch", body)
    assert status == 400
    assert message in found["error"]["message"]
