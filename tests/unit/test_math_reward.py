"""The math reward: expressions, hostile answers, faults of the verifier, real outputs."""

import asyncio
import importlib.util
import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from k15core.errors import InvalidInputError, VerifierError
from k15core.rewards import make_reward
from k15core.rewards.math import MathReward
from k15core.types import Prompt

HERE = Path(__file__).parents[1] / "data"
SHARED = Path(os.environ.get("K15_SHARED_DATA", Path(__file__).parents[2] / "../shared/data"))


def prompt(answer: str) -> Prompt:
    return Prompt(7, np.zeros(0, np.int32), answer)


@pytest.fixture(scope="module")
def reward():
    return make_reward("math", cpu_seconds=1.0)


@pytest.mark.parametrize(
    ("answer", "response", "score"),
    [
        (r"\frac{1}{2}", "so it is 0.5", 1),
        ("x^2-1", r"$(x-1)(x+1)$", 1),
        (r"\boxed{2\sqrt{3}}", r"\boxed{\sqrt{12}}", 1),
        (r"(-\infty, 2)", r"\boxed{(-\infty,2)}", 1),
        ("10{,}000", r"\boxed{10000}", 1),
        ("18", r"first $18$, then \boxed{19}", 0),
        ("x+1", r"\boxed{x-1}", 0),
        ("18", "", 0),
        ("18", "I do not know", 0),
        ("18", r"\boxed{}", 0),
    ],
)
async def test_scores(reward, answer, response, score) -> None:
    assert await reward.score(prompt(answer), response) == score


@pytest.mark.parametrize("hostile", ["9^{9^{9^9}}", "(10^{8})!", "(" * 5000])
async def test_a_hostile_answer_costs_bounded_work_and_is_wrong(reward, hostile: str) -> None:
    before = reward.too_expensive
    assert await reward.score(prompt("18"), rf"\boxed{{{hostile}}}") == 0
    assert reward.too_expensive == before + 1
    assert await reward.score(prompt("1/2"), "it is 0.5") == 1, "the next one is checked as ever"


async def test_an_expected_answer_that_cannot_be_read_is_refused(reward) -> None:
    with pytest.raises(InvalidInputError, match="answer of prompt 7 is '': expected mathematics"):
        await reward.score(prompt(""), r"\boxed{1}")


async def test_a_fault_of_the_verifier_is_no_wrong_answer(reward) -> None:
    assert await reward.score(prompt("1/2"), "it is 0.5") == 1
    os.kill(reward._idle.queue[0]._process.pid, signal.SIGKILL)
    with pytest.raises(VerifierError, match="died with status -9"):
        await reward.score(prompt("1/2"), "it is 0.5")
    assert await reward.score(prompt("1/2"), "it is 0.5") == 1


def test_any_thread_and_event_loop_may_score() -> None:
    reward = make_reward("math", workers=2)
    scores: list[float] = []

    def work(n: int) -> None:
        async def several() -> list[float]:
            return await asyncio.gather(
                *(reward.score(prompt(str(n)), rf"\boxed{{{n}.0 + {i % 2}}}") for i in range(4))
            )

        scores.extend(asyncio.run(several()))

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(scores) == [0.0] * 6 + [1.0] * 6


def test_the_processes_end_with_the_reward() -> None:
    reward = MathReward()
    assert asyncio.run(reward.score(prompt("1/2"), "0.5")) == 1
    pid = reward._idle.queue[0]._process.pid
    del reward
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_bad_settings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInputError, match="cpu_seconds is 0: expected more than 0"):
        make_reward("math", cpu_seconds=0)
    with pytest.raises(InvalidInputError, match="workers is 0: expected 1 to 1024"):
        make_reward("math", workers=0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InvalidInputError, match="needs math-verify: pip install"):
        make_reward("math")


WHOLE = SHARED / "math/math_cot_100.jsonl"
MISSING = pytest.mark.skipif(not WHOLE.is_file(), reason="math_cot_100.jsonl is not in shared data")


@pytest.mark.parametrize("file", [HERE / "math_cot.jsonl", pytest.param(WHOLE, marks=MISSING)])
async def test_agreement_with_the_scores_of_real_math_responses(reward, file: Path) -> None:
    apart = []
    for line in file.read_text().splitlines():
        row = json.loads(line)
        for response, score in zip(row["response"], row["score"], strict=True):
            if await reward.score(prompt(row["gt"]), response) != score:
                apart.append((row["gt"], row["question"][-60:], score))
    # One of 800: the data call a boxed 10000 wrong where they expect 10{,}000. Here it is right.
    assert {(gt, score) for gt, _, score in apart} <= {("10{,}000", False)}
    assert len(apart) <= 1
