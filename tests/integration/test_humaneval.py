"""All problems of HumanEval in the sandbox: right solutions are ok, wrong ones are not."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from daemons import client_of, daemon
from multipl_e import SHARED
from sandboxes import RUNNERS, need

from k15core.sandbox import Client, Limits, Sandbox, Submission

PROBLEMS = SHARED / "humaneval" / "humaneval-python.jsonl"
LIMITS = Limits(wall_seconds=60, cpu_seconds=30)
WRONG = "    return ('neither', 'this', 'nor', 'that')\n"


def problems() -> list[dict[str, str]]:
    if not PROBLEMS.is_file():
        pytest.skip(f"{PROBLEMS} is not there: set K15_SHARED_DATA to the folder of data sets")
    return [json.loads(line) for line in PROBLEMS.read_text().splitlines()]


@pytest.fixture(scope="module", params=[*RUNNERS, "daemon"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox | Client]:
    if request.param == "daemon":
        with daemon("--slots", "4") as running, client_of(running) as client:
            yield client
        return
    need(request.param)
    with Sandbox(runner=request.param, slots=4) as sandbox:
        yield sandbox


@pytest.mark.parametrize("right", [True, False], ids=["canonical", "wrong"])
def test_solutions_have_the_verdicts_that_they_deserve(
    sandbox: Sandbox | Client, right: bool
) -> None:
    every = problems()
    assert len(every) == 164
    jobs = []
    for each in every:
        body = each["canonical_solution"] if right else WRONG
        source = f"{each['prompt']}{body}\n{each['test']}\ncheck({each['entry_point']})\n"
        jobs.append(Submission(source=source, language="python", limits=LIMITS))
    results = sandbox.run_many(jobs)
    failed = {
        each["task_id"]: (result.verdict, result.stderr[-200:])
        for each, result in zip(every, results, strict=True)
        if (result.verdict == "ok") != right
    }
    assert not failed
    # A wrong one ends by itself: the sandbox has not failed, and no limit was in the way.
    ended = {result.verdict for result in results}
    assert ended == ({"ok"} if right else {"nonzero_exit"})
