"""Rewards for programs: what the response wrote is run in the sandbox.

What is known of a problem is the answer of its prompt, a JSON object (in a prompt file the object
itself):

    {"cases": [{"stdin": "1 2\\n", "stdout": "3\\n"}, ...]}    programs that read and print
    {"tests": "assert add(1, 2) == 3"}                      code that is appended and must end well

`language` in it says another language than the reward's, `before` is code that goes ahead of the
response's (imports, a signature).
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from k15core.errors import InvalidInputError, SandboxError, VerifierError
from k15core.rewards.extract import last_code_block
from k15core.sandbox import Client, Limits, Sandbox, Submission

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from k15core.types import Prompt, RunResult

CHECKERS = ("exact", "tokens", "floats")


class CodeReward:
    """1 if the response's program passes every test, else 0; with `partial_credit` the share.

    The program is the response's last fenced block, or all of a response without fences; one whose
    last block was never closed has none and scores 0, as do a program that does not compile, fails
    or takes too long. Without partial credit a program that fails its first case is not run on the
    others.

    `checker` compares what is printed: "exact" but for blanks at the ends of lines and of the text,
    "tokens" word by word, "floats" word by word with numbers equal to a relative or absolute
    `tolerance`.

    Programs run in a sandbox of this process with `slots` at once, or in the daemon at `url`
    (`token` as its settings want), which is asked again for `patience` seconds while it is busy.
    Each has `wall_seconds` and `memory_bytes`. Where the sandbox fails or cannot be reached nothing
    is known of the program: VerifierError, never a score.
    """

    def __init__(
        self,
        *,
        language: str = "python",
        partial_credit: bool = False,
        checker: str = "tokens",
        tolerance: float = 1e-6,
        wall_seconds: float = 10.0,
        memory_bytes: int = 512 << 20,
        slots: int | None = None,
        url: str | None = None,
        token: str | None = None,
        patience: float = 300.0,
    ) -> None:
        if checker not in CHECKERS:
            raise InvalidInputError(f"checker is {checker!r}: expected one of {CHECKERS}")
        if not 0 <= tolerance < 1:
            raise InvalidInputError(f"tolerance is {tolerance}: expected 0 to 1")
        self._language = language
        self._partial_credit = partial_credit
        self._checker = checker
        self._tolerance = tolerance
        # The clock counts: several threads may be busy until then.
        self._limits = Limits(
            wall_seconds=wall_seconds, cpu_seconds=4 * wall_seconds, memory_bytes=memory_bytes
        )
        self._sandbox: Sandbox | Client
        if url is None:
            self._sandbox = Sandbox(slots=slots)
        else:
            self._sandbox = Client(url, token=token, patience=patience)
        missing = self._sandbox.languages().get(language, f"expected one of those of {url}")
        if missing:
            raise InvalidInputError(f"language is {language!r}: {missing}")

    async def score(self, prompt: Prompt, response: str) -> float:
        """The share of tests that pass, or whether all do. InvalidInputError for a bad answer."""
        problem = _problem(prompt)
        program = last_code_block(response)
        if program is None:
            return 0.0
        language = problem.get("language", self._language)
        source = f"{problem.get('before', '')}{program}\n{problem.get('tests', '')}\n"
        cases = problem.get("cases", [{"stdin": "", "stdout": None}])
        jobs = [
            Submission(
                source=source,
                language=language,
                stdin=case["stdin"].encode(),
                limits=self._limits,
            )
            for case in cases
        ]
        # A program that is wrong mostly fails at once; and compiles once for all that follow.
        passed = await self._passed(jobs[:1], cases[:1])
        if len(jobs) > 1 and (self._partial_credit or all(passed)):
            passed += await self._passed(jobs[1:], cases[1:])
        if self._partial_credit:
            return sum(passed) / len(jobs)
        return float(all(passed))

    async def _passed(
        self, jobs: Sequence[Submission], cases: Sequence[dict[str, Any]]
    ) -> list[bool]:
        try:
            results = await self._sandbox.run_many_async(jobs)
        except SandboxError as error:
            raise VerifierError(str(error)) from error
        return [self._passes(*pair) for pair in zip(results, cases, strict=True)]

    def _passes(self, result: RunResult, case: dict[str, Any]) -> bool:
        if result.verdict == "sandbox_error":
            raise VerifierError(result.message)
        if result.verdict != "ok":
            return False
        expected = case["stdout"]
        if expected is None:
            return True
        printed = result.stdout.decode(errors="replace")
        if self._checker == "exact":
            return _lines(printed) == _lines(expected)
        words, wanted = printed.split(), expected.split()
        if len(words) != len(wanted):
            return False
        return all(map(self._is_equal, words, wanted))

    def _is_equal(self, word: str, wanted: str) -> bool:
        if word == wanted or self._checker == "tokens":
            return word == wanted
        try:
            a, b = float(word), float(wanted)
        except ValueError:
            return False
        return math.isclose(a, b, rel_tol=self._tolerance, abs_tol=self._tolerance)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _problem(prompt: Prompt) -> dict[str, Any]:
    """The answer of a prompt, checked."""
    place = f"answer of prompt {prompt.prompt_id}"
    try:
        problem = json.loads(prompt.answer)
    except ValueError as error:
        raise InvalidInputError(f"{place} is no JSON: {error}") from error
    expected = "expected an object with cases or tests"
    if not isinstance(problem, dict) or ("cases" in problem) == ("tests" in problem):
        raise InvalidInputError(f"{place} is {prompt.answer[:80]!r}: {expected}, one of the two")
    unknown = set(problem) - {"cases", "tests", "language", "before"}
    if unknown:
        raise InvalidInputError(f"{place} has {sorted(unknown)}: {expected}, language, before")
    for name in ("tests", "language", "before"):
        if not isinstance(problem.get(name, ""), str):
            raise InvalidInputError(f"{place}: {name} is {problem[name]!r}: expected a string")
    cases = problem.get("cases", [None])
    if not isinstance(cases, list) or not cases:
        raise InvalidInputError(f"{place}: cases is {cases!r}: expected a list of at least one")
    for number, case in enumerate(problem.get("cases", [])):
        names = set(case) if isinstance(case, dict) else set()
        if names != {"stdin", "stdout"} or not all(isinstance(case[n], str) for n in names):
            message = f"{place}: case {number} is {str(case)[:80]}: expected strings stdin, stdout"
            raise InvalidInputError(message)
    return problem
