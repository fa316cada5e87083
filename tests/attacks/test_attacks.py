"""Every attack against every runner, and what must hold after each."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from attacks import cases_escapes, cases_resources
from attacks.frame import Attack
from sandboxes import RUNNERS, need, run_processes, spawners

from k15core.sandbox import Sandbox

ATTACKS = [*cases_resources.CASES, *cases_escapes.CASES]


@pytest.fixture(scope="module", params=RUNNERS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    need(request.param)
    with Sandbox(slots=1, runner=request.param) as sandbox:
        yield sandbox


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name.replace(" ", "-"))
def test_attack(sandbox: Sandbox, attack: Attack) -> None:
    if sandbox.runner in attack.not_with:
        pytest.skip(attack.not_with[sandbox.runner])
    sandbox.run("", language="bash")  # so that there is a slot
    before = spawners()
    result = sandbox.run(
        attack.source,
        language=attack.language,
        files=attack.files,
        fetch=attack.fetch,
        limits=attack.limits,
    )
    assert result.verdict in attack.verdicts, result
    assert b"BREACH" not in result.stdout + result.stderr, result.stdout.decode()
    assert attack.says in result.stdout, result
    assert attack.holds is None or attack.holds(result), result
    # The slot has survived, and the next run finds nothing of this one.
    assert spawners() == before
    after = sandbox.run("ls -A /tmp; echo fine", language="bash")
    assert after.stdout == b"main.sh\nfine\n", after
    deadline = time.monotonic() + 5
    while run_processes() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert run_processes() == []


def test_names_are_unlike() -> None:
    names = [attack.name for attack in ATTACKS]
    assert len(set(names)) == len(names)
