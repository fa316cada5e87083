"""`k15 sandbox score`: programs in HumanEval's format, here and by a daemon."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from daemons import daemon
from sandboxes import need

from k15core.cli import main
from k15core.sandbox.humaneval import pass_at_k

PROBLEMS = [
    {
        "task_id": "T/0",
        "prompt": 'def twice(n):\n    """Twice n."""\n',
        "test": "def check(candidate):\n    assert candidate(3) == 6\n",
        "entry_point": "twice",
        "canonical_solution": "    return 2 * n\n",
    },
    {
        "task_id": "T/1",
        "prompt": "def first(items):\n",
        "test": "def check(candidate):\n    assert candidate([4, 5]) == 4\n",
        "entry_point": "first",
        "canonical_solution": "    return items[0]\n",
    },
]


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl.gz"
    path.write_bytes(gzip.compress(lines(PROBLEMS).encode()))
    return path


def lines(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_the_problems_own_solutions(problems: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need()
    assert main(["sandbox", "score", str(problems), "--slots", "2"]) == 0
    out = capsys.readouterr().out
    assert "2 programs for 2 problems" in out
    assert "ok 2\n" in out
    assert "pass@1 1.0000" in out


def test_completions_by_a_daemon(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need()
    completions, scored = tmp_path / "completions.jsonl", tmp_path / "scored.jsonl"
    rows = [
        {"task_id": "T/0", "completion": "    return n + n\n"},
        {"task_id": "T/0", "completion": "    return n\n"},
        {"task_id": "T/1", "solution": "def first(items):\n    return items[1]\n"},
        {"task_id": "T/1", "solution": "def first(items:\n"},
    ]
    completions.write_text(lines(rows))
    words = ["sandbox", "score", str(problems), "--completions", str(completions)]
    with daemon() as running:
        words += ["--url", running.url, "--k", "1", "--k", "2", "--out", str(scored)]
        assert main(words) == 0
    out = capsys.readouterr().out
    assert "nonzero_exit 3, ok 1" in out
    assert "pass@1 0.2500" in out
    assert "pass@2 0.5000" in out
    found = [json.loads(line) for line in scored.read_text().splitlines()]
    assert [row["passed"] for row in found] == [True, False, False, False]
    assert "AssertionError" in found[1]["stderr"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"task_id": "T/9", "completion": ""}, "task_id = 'T/9': expected one of the problems"),
        ({"task_id": "T/0"}, "completion = None: expected a string"),
        ({"task_id": "T/0", "completion": ""}, "--k = 5: expected 1 to 1"),
    ],
)
def test_files_that_make_no_sense(
    problems: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    row: dict[str, str],
    said: str,
) -> None:
    completions = tmp_path / "completions.jsonl"
    completions.write_text(lines([row]))
    words = ["sandbox", "score", str(problems), "--completions", str(completions), "--k", "5"]
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_pass_at_k_is_the_chance_of_a_draw_without_return() -> None:
    assert pass_at_k(4, 1, 1) == 0.25
    assert pass_at_k(4, 1, 2) == 0.5
    assert pass_at_k(4, 4, 2) == 1.0
    assert pass_at_k(4, 0, 4) == 0.0
