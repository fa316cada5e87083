"""The process that compares mathematical expressions: `python -m k15core.rewards.math_worker`.

Reads a JSON object {"expected", "response", "cpu_seconds"} a line on standard input, and answers
each with {"verdict": …} on standard output: "equal", "different", "no_answer", "unreadable" (the
expected answer, not the response) or "too_expensive". Work is bounded in CPU time, so that a busy
machine changes no verdict: first by a timer that interrupts Python code, then, for a single long
call into C, by the kernel, which ends the process with SIGXCPU.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
import time
from typing import TYPE_CHECKING, NoReturn

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from typing import TextIO

GRACE = 2  # CPU seconds between the timer and the kernel's limit, whose unit is the second
_MEMORY = 4 << 30  # of address space; a tower of powers asks for more than any machine has
_TARGETS = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())


class _SpentError(BaseException):
    """The CPU time is used up. Not an Exception, so that no handler on the way swallows it."""


def _spent(*_: object) -> NoReturn:
    raise _SpentError


def compare(expected: str, response: str) -> str:
    """The verdict on a response, without any bound on the work."""
    if "$" not in expected and "\\boxed" not in expected:
        expected = f"\\boxed{{{expected}}}"
    gold = parse(expected, _TARGETS, parsing_timeout=None)
    if not gold:
        return "unreadable"
    answer = parse(response, _TARGETS, parsing_timeout=None)
    if not answer:
        return "no_answer"
    return "equal" if verify(gold, answer, timeout_seconds=None) else "different"


def bounded(expected: str, response: str, cpu_seconds: float) -> str:
    """The verdict on a response, "too_expensive" if it took more than `cpu_seconds`."""
    limit = int(time.process_time() + cpu_seconds) + GRACE
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    signal.setitimer(signal.ITIMER_VIRTUAL, cpu_seconds)
    try:
        return compare(expected, response)
    except (_SpentError, MemoryError, RecursionError):
        return "too_expensive"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def main() -> None:
    """Answer until standard input ends."""
    # Answers go to a copy of standard output: what a library prints must not end up among them.
    answers: TextIO = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGVTALRM, _spent)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        answers.write(json.dumps({"verdict": bounded(**json.loads(line))}) + "\n")


if __name__ == "__main__":
    main()
