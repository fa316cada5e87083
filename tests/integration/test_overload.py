"""Ten times what a daemon can bear, for a moment."""

from __future__ import annotations

import asyncio
from pathlib import Path

from daemons import client_of, daemon
from overload import SLEEP, await_idle, descriptors, flood, waited_longer
from sandboxes import wait_until

SETTINGS = """
log_requests = false
[queue]
start_within_seconds = 1.0
[sandbox]
slots = 4
"""
BUCKET = 1.024
"""The bucket of the metrics that ends where a second has passed."""


def test_ten_times_the_load_is_answered_in_time_or_at_once(tmp_path: Path) -> None:
    with daemon(settings=SETTINGS, home=tmp_path) as it, client_of(it) as client:
        asyncio.run(flood(it, 4 / SLEEP, 0.5, clients=1))
        await_idle(it)
        before = descriptors(it), it.gauge('slots{state="open"}')
        load = asyncio.run(flood(it, 40 / SLEEP, 3, clients=3))
        assert load.wrong == []
        assert set(load.answers) == {"200", "504"}, load.answers
        assert sum(load.answers.values()) == load.sent
        # Nothing started late; few were held and refused after all: nobody can always know.
        assert waited_longer(it, BUCKET) == 0
        assert load.held_in_vain(0.9) < len(load.refused_after) / 4
        await_idle(it)
        assert client.run("print(1)", language="python").stdout == b"1\n"
        client.close()
        assert it.gauge('slots{state="open"}') == before[1]
        assert wait_until(lambda: descriptors(it) <= before[0], seconds=20)
