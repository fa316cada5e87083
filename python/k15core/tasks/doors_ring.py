"""Problems of the doors task: eight rooms on one ring, a number of steps, a room to start from.

A prompt reads `d>e a>f h>d b>a c>b g>h e>c f>g | 7 a`: the door out of each room in any order, the
number of steps and the start. The answer is the room reached after that many doors.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

ROOMS = "abcdefgh"
MAX_STEPS = 7  # eight steps lead back to the start: a rule that needs no walking
PROMPT_TOKENS = len(ROOMS) + 3
_HELD_OUT_ONE_IN = 10


@dataclass(frozen=True)
class Ring:
    """One problem. `doors` maps each room to the next, in the order of the prompt."""

    doors: dict[str, str]
    steps: int
    start: str

    @property
    def text(self) -> str:
        """The prompt."""
        doors = " ".join(f"{room}>{after}" for room, after in self.doors.items())
        return f"{doors} | {self.steps} {self.start}"

    @property
    def answer(self) -> str:
        """The room reached from the start."""
        return self.walk(self.start, self.steps)

    @property
    def key(self) -> str:
        """What makes two problems the same, however their doors are shuffled."""
        return "".join(self.doors[room] for room in ROOMS) + f"{self.steps}{self.start}"

    @property
    def held_out(self) -> bool:
        """Whether the problem is kept from training: a tenth of all, by a hash of the key."""
        digest = hashlib.blake2b(self.key.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % _HELD_OUT_ONE_IN == 0

    def walk(self, room: str, steps: int) -> str:
        """The room reached from `room` through `steps` doors."""
        for _ in range(steps):
            room = self.doors[room]
        return room


def parse(text: str) -> Ring:
    """The problem that a prompt states; the inverse of `Ring.text`."""
    doors, question = text.split(" | ")
    steps, start = question.split()
    return Ring(dict(door.split(">") for door in doors.split()), int(steps), start)


def draw(rng: random.Random, steps: int, *, held_out: bool) -> Ring:
    """A random problem of `steps` steps, from the held-out tenth or from the rest."""
    while True:
        around = rng.sample(ROOMS, len(ROOMS))
        after = dict(zip(around, around[1:] + around[:1], strict=True))
        doors = {room: after[room] for room in rng.sample(ROOMS, len(ROOMS))}
        ring = Ring(doors, steps, rng.choice(ROOMS))
        if ring.held_out == held_out:
            return ring
