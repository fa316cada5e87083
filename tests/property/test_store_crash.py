"""kill -9 at random instants: what was acknowledged is there, once, whole."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from nursery import Ear, Nursery, nursery, wait_until
from store_writer import OPTIONS, PIECES, log_probs_of, tokens_of

from k15core import Store
from k15core.errors import InvalidInputError

KILLS = {"never": 180, "batch": 260, "always": 60}
LINES = 10
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
        self.mark = 0
        for line in said.splitlines():
            name, *rest = line.split()
            words = [int(word) for word in rest]
            if name == "group":
                self.prompts[words[0]] = self.prompts[words[0] + 1] = words[1]
            elif name == "append":
                self.lengths[words[0]] = max(self.lengths[words[0]], words[1])
            elif name == "finish":
                self.finished.add(words[0])
            elif name == "reward":
                self.rewards[words[0]] = words[1]
            elif name == "use":
                self.used.update(words)
            elif name == "mark":
                self.mark = words[0]

    def check(self, store: Store, most_in_flight: int = 1) -> int:
        """Compare with what is stored; the number of trajectories that could be.

        A response may be longer than what was acknowledged by what was in flight when writers died.
        """
        checked = 0
        complete = store.complete_groups()
        for who, prompt_length in list(self.prompts.items()):
            try:
                view = store.trajectory(who)
            except InvalidInputError:
                # Used up, and let go of. The use may have been in flight, and in another thread the
                # reward that came before it.
                assert who in self.used or who in self.finished or most_in_flight > 1
                self.forget(who)
                continue
            checked += 1
            length = len(view["tokens"])
            assert len(view["prompt_tokens"]) == prompt_length
            assert self.lengths[who] <= length <= self.lengths[who] + most_in_flight * max(PIECES)
            if most_in_flight == 1:
                assert length - self.lengths[who] in (0, *PIECES)
            assert np.array_equal(view["tokens"], tokens_of(who, 0, length)), who
            assert np.array_equal(view["log_probs"], log_probs_of(view["tokens"])), who
            self.lengths[who] = length
            if who in self.finished:
                assert view["finish_reason"] == "stop"
            if who in self.rewards:
                assert view["reward"] == self.rewards[who]
            if who in self.used:
                assert view["group_id"] not in complete
        return checked

    def forget(self, who: int) -> None:
        del self.prompts[who]
        self.lengths.pop(who, None)
        self.rewards.pop(who, None)
        self.finished.discard(who)


def live(mother: Nursery, home: Path, name: str, sync: str, rng: random.Random) -> str:
    """Let writers work on a store and kill them at some instant; what they said."""
    said, ear = home / f"{name}.said", Ear(home)
    child = mother.start(said, "store_writer", "write", home / "store", name, sync)
    if rng.random() < 0.1:  # as likely as not while it opens the store
        time.sleep(rng.uniform(0, 0.03))
        lines = 0
    else:
        lines = rng.randint(1, 2 * LINES)
    wait_until(lambda: lines == 0 or (said.exists() and said.read_bytes().count(b"\n") >= lines))
    time.sleep(rng.uniform(0, 0.005))
    mother.kill(child)
    heard = ear.news(said) if said.exists() else ""
    said.unlink(missing_ok=True)
    return heard


@pytest.mark.parametrize("sync", KILLS)
def test_killed_writers_lose_nothing(sync: str, tmp_path: Path) -> None:
    rng = random.Random(sync)
    acknowledged = Acknowledged()
    checked = torn = lines = 0
    with nursery("store_writer") as mother:
        for life in range(KILLS[sync]):
            said = live(mother, tmp_path, f"{sync}-{life}", sync, rng)
            lines += said.count("\n")
            acknowledged.hear(said)
            with Store(tmp_path / "store", sync="never", **OPTIONS) as store:
                checked += acknowledged.check(store)
                torn += store.recovery_report()["torn"] is not None
                if rng.random() < 0.05 and acknowledged.mark:
                    store.rewind(acknowledged.mark)
                    acknowledged.used.clear()
    assert checked > 0
    print(f"sync={sync}: {lines} acknowledged calls, {checked} checks, {torn} torn tails")
