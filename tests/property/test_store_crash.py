"""kill -9 at random instants: what was acknowledged is there, once, whole."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import store_writer
from store_writer import OPTIONS, log_probs_of, tokens_of

from k15core import Store
from k15core.errors import InvalidInputError

KILLS = {"never": 14, "batch": 20, "always": 6}
LINES = 40
"""Acknowledged calls in a life, on average: an amount of work, not of time."""


class Acknowledged:
    """What the writers of one directory said, over all their lives."""

    def __init__(self) -> None:
        self.prompts: dict[int, int] = {}
        self.lengths: dict[int, int] = defaultdict(int)
        self.finished: set[int] = set()
        self.rewards: dict[int, float] = {}
        self.used: set[int] = set()
        self.mark = 0

    def hear(self, said: str) -> None:
        for line in said.splitlines():
            name, *rest = line.split()
            words = [int(word) for word in rest]
            if name == "group":
                self.prompts[words[0]] = self.prompts[words[0] + 1] = words[1]
            elif name == "append":
                self.lengths[words[0]] = words[1]
            elif name == "finish":
                self.finished.add(words[0])
            elif name == "reward":
                self.rewards[words[0]] = words[1]
            elif name == "use":
                self.used.update(words)
            elif name == "mark":
                self.mark = words[0]

    def check(self, store: Store) -> int:
        """Compare with what is stored; the number of trajectories that could be."""
        checked = 0
        complete = store.complete_groups()
        for who, prompt_length in self.prompts.items():
            try:
                view = store.trajectory(who)
            except InvalidInputError:
                # Used up, and let go of: by a use that was acknowledged, or by the one in flight.
                assert who in self.used or who in self.rewards
                continue
            checked += 1
            length = len(view["tokens"])
            assert len(view["prompt_tokens"]) == prompt_length
            # At most the one call that was in flight is there beyond what was acknowledged.
            assert length - self.lengths[who] in (0, 1, 10, 1000, 30000)
            np.testing.assert_array_equal(view["tokens"], tokens_of(who, 0, length))
            np.testing.assert_array_equal(view["log_probs"], log_probs_of(view["tokens"]))
            self.lengths[who] = length
            if who in self.finished:
                assert view["finish_reason"] == "stop"
            if who in self.rewards:
                assert view["reward"] == self.rewards[who]
            if who in self.used:
                assert view["group_id"] not in complete
        return checked


@pytest.mark.parametrize("sync", KILLS)
def test_a_killed_writer_loses_nothing(sync: str, tmp_path: Path) -> None:
    rng = random.Random(sync)
    acknowledged = Acknowledged()
    checked = torn = 0
    for life in range(KILLS[sync]):
        command = [sys.executable, store_writer.__file__, str(tmp_path), str(life), sync]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "open\n"
            lines = [writer.stdout.readline() for _ in range(rng.randint(0, 2 * LINES))]
            time.sleep(rng.uniform(0, 0.01))
            writer.kill()
            acknowledged.hear("".join([*lines, *writer.stdout]))
        with Store(tmp_path, **OPTIONS) as store:
            checked += acknowledged.check(store)
            torn += store.recovery_report()["torn"] is not None
            if rng.random() < 0.2 and acknowledged.mark:
                store.rewind(acknowledged.mark)
                acknowledged.used.clear()
    assert checked > 0
    print(f"sync={sync}: {checked} trajectories checked, {torn} torn tails")
