"""Rewards for mathematical expressions: equal if math-verify can show it.

math-verify bounds its work with alarms, which only a process's main thread may set, and which count
a busy machine against the answer. Here it runs in processes of its own, bounded in CPU time, so
that `score` works from any thread and event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import queue
import select
import signal
import subprocess
import sys
import weakref
from typing import TYPE_CHECKING

from k15core.errors import InvalidInputError, VerifierError
from k15core.rewards.rule import BoxedReward

if TYPE_CHECKING:
    from k15core.types import Prompt

_WALL_SECONDS_FOR_A_CPU_SECOND = 30  # a machine so busy, or a worker so stuck, is a fault


class MathReward:
    r"""1 if the response's answer equals the expected one as mathematics, else 0.

    The answer is the last `\boxed{…}`, or where nothing is boxed the last expression or number; a
    response with none scores 0. A boxed answer that is the expected text is right without asking
    math-verify. A response whose comparison takes more than `cpu_seconds` scores 0 and is counted
    in `too_expensive`. Raises VerifierError when the check itself failed, InvalidInputError when
    the expected answer cannot be read.

    `workers` processes check side by side; they start at the first score that needs one.
    """

    def __init__(self, *, cpu_seconds: float = 5.0, workers: int = 1) -> None:
        if not 0 < cpu_seconds <= 3600:
            raise InvalidInputError(f"cpu_seconds is {cpu_seconds}: expected more than 0, to 3600")
        if not 1 <= workers <= 1024:
            raise InvalidInputError(f"workers is {workers}: expected 1 to 1024")
        if importlib.util.find_spec("math_verify") is None:
            raise InvalidInputError(
                "the reward 'math' needs math-verify: pip install 'k15core[train]'"
            )
        self.too_expensive = 0
        self._cpu_seconds = cpu_seconds
        self._by_text = BoxedReward()
        all_workers = [_Worker() for _ in range(workers)]
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in all_workers:
            self._idle.put(worker)
        weakref.finalize(self, _close, all_workers)

    async def score(self, prompt: Prompt, response: str) -> float:
        """1 if the answers are equal, else 0."""
        if await self._by_text.score(prompt, response):
            return 1.0
        verdict = await asyncio.to_thread(self._ask, prompt.answer, response)
        if verdict == "unreadable":
            raise InvalidInputError(
                f"answer of prompt {prompt.prompt_id} is {prompt.answer!r}: expected mathematics"
            )
        self.too_expensive += verdict == "too_expensive"
        return float(verdict == "equal")

    def _ask(self, expected: str, response: str) -> str:
        worker = self._idle.get()
        try:
            return worker.ask(expected, response, self._cpu_seconds)
        finally:
            self._idle.put(worker)


class _Worker:
    """One checking process, started when it is needed and again after it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, expected: str, response: str, cpu_seconds: float) -> str:
        process = self._process = self._process or _start()
        assert process.stdin is not None
        assert process.stdout is not None
        job = {"expected": expected, "response": response, "cpu_seconds": cpu_seconds}
        line = ""
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            wall_seconds = 30 + _WALL_SECONDS_FOR_A_CPU_SECOND * cpu_seconds
            if not select.select([process.stdout], [], [], wall_seconds)[0]:
                self.close()
                raise VerifierError(f"math-verify did not answer within {wall_seconds:.0f} s")
            line = process.stdout.readline()
        if line:
            return str(json.loads(line)["verdict"])
        status = self.close()
        if status == -signal.SIGXCPU:
            return "too_expensive"
        raise VerifierError(f"the process that runs math-verify died with status {status}")

    def close(self) -> int | None:
        """End the process; its exit status, negative for a signal."""
        process, self._process = self._process, None
        if process is None:
            return None
        # What has died already keeps its status.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        process.kill()
        with contextlib.suppress(BrokenPipeError):
            process.communicate()
        return process.returncode


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "k15core.rewards.math_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # Sets of symbols are walked in hash order: the same verdicts in every run.
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )


def _close(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.close()
