"""Some hundred runs of the soak, against every runner; `make soak` makes 100,000."""

from __future__ import annotations

import shutil

import pytest
from sandboxes import RUNNERS, need
from soak.__main__ import MOST_KILLS, soak
from soak.endings import ENDINGS


@pytest.mark.parametrize("runner", RUNNERS)
def test_no_verdict_is_lost_when_slots_are_killed(runner: str) -> None:
    need(runner)
    if shutil.which("gcc") is None:
        pytest.skip("the soak's program is compiled: apt install gcc libc6-dev")
    done = soak(1200, runner=runner, slots=4, seed=1, tell=lambda _: None, least_kills=3)
    assert done.faults() == []
    assert sum(done.kills.values()) >= 3
    assert done.runs == sum(done.endings.values()) >= 1200


def test_no_verdict_is_lost_when_long_runs_lose_slot_after_slot() -> None:
    need("direct")
    if shutil.which("gcc") is None:
        pytest.skip("the soak's program is compiled: apt install gcc libc6-dev")
    endings = [ending for ending in ENDINGS if ending.name == "memory"]
    done = soak(
        10,
        runner="direct",
        slots=2,
        seed=1,
        tell=lambda _: None,
        least_kills=10,
        kill_every=0.001,
        endings=endings,
    )
    assert done.faults() == []
    assert done.met[MOST_KILLS] > 0, "a run that met as many kills as it may"
