"""code_contests through /v1/batch: a right program passes all cases, a wrong one does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from daemons import Daemon, daemon
from multipl_e import SHARED

PROBLEMS = SHARED / "oj" / "code_contests-20.jsonl"


@dataclass(frozen=True)
class Programs:
    right: str
    wrong: str
    checker: dict[str, object] = field(default_factory=lambda: {"kind": "tokens"})


DIVISOR_JUDGE = """
import sys
words = open(sys.argv[1]).read().split()
pairs = [(int(a), int(b)) for a, b in zip(words[1::2], words[2::2])]
said = open(sys.argv[2]).read().split()
wanted = open(sys.argv[3]).read().split()
try:
    (number,) = map(int, said)
except ValueError:
    sys.exit(43)
if number == -1:
    sys.exit(42 if wanted == ["-1"] else 43)
is_right = number > 1 and all(a % number == 0 or b % number == 0 for a, b in pairs)
sys.exit(42 if is_right else 43)
"""
"""Any weakened common divisor is right."""

PROGRAMS = {
    "digjump": Programs(
        right="""
from collections import deque
s = input().strip()
places = {}
for i, c in enumerate(s):
    places.setdefault(c, []).append(i)
far = {0: 0}
queue = deque([0])
while queue:
    i = queue.popleft()
    for j in [i - 1, i + 1, *places.pop(s[i], [])]:
        if 0 <= j < len(s) and j not in far:
            far[j] = far[i] + 1
            queue.append(j)
print(far[len(s) - 1])
""",
        wrong="s = input().strip()\nprint(min(len(s) - 1, 2 * len(set(s)) - 1))",
    ),
    "1025_B. Weakened Common Divisor": Programs(
        right="""
import sys
from math import gcd
words = list(map(int, sys.stdin.buffer.read().split()))
pairs = list(zip(words[1::2], words[2::2]))
common = 0
for a, b in pairs:
    common = gcd(common, a * b)
if common == 1:
    print(-1)
else:
    # The largest, where the expected answers have others: each step keeps what one of a pair has.
    for a, b in pairs:
        common = gcd(common, a) if gcd(common, a) > 1 else gcd(common, b)
    print(common)
""",
        wrong="""
import sys
from math import gcd
words = list(map(int, sys.stdin.buffer.read().split()))
common = 0
for a, b in zip(words[1::2], words[2::2]):
    common = gcd(common, a * b)
print(common if common > 1 else -1)
""",
        checker={
            "kind": "program",
            "language": "python",
            "source": DIVISOR_JUDGE,
            "accepts": 42,
            "rejects": [43],
        },
    ),
    "1045_D. Interstellar battle": Programs(
        right="""
import sys
words = iter(sys.stdin.buffer.read().split())
n = int(next(words))
fall = [float(next(words)) for _ in range(n)]
near = [[] for _ in range(n)]
for _ in range(n - 1):
    a, b = int(next(words)), int(next(words))
    near[a].append(b)
    near[b].append(a)
parent, order = [-1] * n, [0]
for at in order:
    for other in near[at]:
        if other != parent[at]:
            parent[other] = at
            order.append(other)
stay = [1 - p for p in fall]
below = [0.0] * n
pairs = 0.0
for at in order[1:]:
    below[parent[at]] += stay[at]
    pairs += stay[at] * stay[parent[at]]
alone = sum(stay)
for _ in range(int(next(words))):
    at, p = int(next(words)), 1 - float(next(words))
    more = p - stay[at]
    up = parent[at]
    alone += more
    pairs += more * (below[at] + (stay[up] if up >= 0 else 0.0))
    if up >= 0:
        below[up] += more
    stay[at] = p
    print(f"{alone - pairs:.7f}")
""",
        wrong="""
import sys
words = sys.stdin.read().split()
n = int(words[0])
fall = list(map(float, words[1:n + 1]))
rest = words[n + 1 + 2 * (n - 1) + 1:]
for at, p in zip(rest[::2], rest[1::2]):
    fall[int(at)] = float(p)
    print(n - sum(fall))
""",
        checker={"kind": "floats", "tolerance": 1e-4},
    ),
    "1139_C. Edgy Trees": Programs(
        right="""
import sys
words = list(map(int, sys.stdin.buffer.read().split()))
n, k = words[:2]
root = list(range(n + 1))
def find(a):
    while root[a] != a:
        root[a] = root[root[a]]
        a = root[a]
    return a
for i in range(2, len(words) - 2, 3):
    a, b, is_black = words[i:i + 3]
    if not is_black:
        root[find(a)] = find(b)
size = {}
for a in range(1, n + 1):
    size[find(a)] = size.get(find(a), 0) + 1
mod = 10 ** 9 + 7
print((pow(n, k, mod) - sum(pow(s, k, mod) for s in size.values())) % mod)
""",
        wrong="""
n, k = map(int, input().split())
black = sum(input().split()[2] == "1" for _ in range(n - 1))
print((n ** k - (n - black) ** k) % (10 ** 9 + 7))
""",
    ),
    "12_B. Correct Solution?": Programs(
        right="""
n, m = input().strip(), input().strip()
digits = sorted(n)
first = next((i for i, d in enumerate(digits) if d != "0"), 0)
least = digits[first] + "".join(digits[:first] + digits[first + 1:])
print("OK" if least == m else "WRONG_ANSWER")
""",
        wrong="""
n, m = input().strip(), input().strip()
print("OK" if int("".join(sorted(n))) == int(m) else "WRONG_ANSWER")
""",
    ),
}


@pytest.fixture(scope="module")
def problems() -> dict[str, list[dict[str, Any]]]:
    """The cases of each problem, by its name."""
    if not PROBLEMS.is_file():
        pytest.skip(f"{PROBLEMS} is not there: set K15_SHARED_DATA to the folder of data sets")
    found = {}
    for line in PROBLEMS.read_text().splitlines():
        row = json.loads(line)
        tests = json.loads(row["test"]) if isinstance(row["test"], str) else row["test"]
        found[json.loads(row["labels"])["name"]] = [
            {"stdin": case["input"]["stdin"], "expected": case["output"]["stdout"]}
            for case in tests
        ]
    return found


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    with daemon("--slots", "4") as found:
        yield found


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_right_program_passes_every_case_and_the_wrong_one_does_not(
    running: Daemon, problems: dict[str, list[dict[str, Any]]], name: str
) -> None:
    programs, cases = PROGRAMS[name], problems[name]
    for source, stops in [(programs.right, False), (programs.wrong, True)]:
        body = {
            "submission": {"source": source, "language": "python"},
            "cases": cases,
            "checker": programs.checker,
            "stop_at_first_failure": stops,
        }
        status, text = running.ask("POST", "/v1/batch", body)
        assert status == 200, text
        *lines, total = map(json.loads, text.splitlines())
        assert all(line["passed"] is not None for line in lines)
        if stops:
            assert total["passed"] < total["run"] <= len(cases)
        else:
            failed = [line for line in lines if not line["passed"]]
            assert not failed, failed[:2]
            assert total["passed"] == total["run"] == len(cases) > 40
    if programs.checker["kind"] != "program":
        return
    # That the judge is needed: word by word the right program would have failed.
    body |= {"checker": {"kind": "tokens"}, "submission": {"source": programs.right} | LANGUAGE}
    assert json.loads(running.ask("POST", "/v1/batch", body)[1].splitlines()[-1])["passed"] < len(
        cases
    )


LANGUAGE = {"language": "python"}
