"""The teacher of the doors task: it misreads doors, and answers in three styles.

At once is `! b .`; by steps is a counter and a door a step, `2 a>f 1 f>g ! g .`; careful reads
each door twice, `2 a>e ? a>f`, and goes by the second reading. Reading twice pays, but the teacher
seldom does it: that is what reinforcement learning can find.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from k15core.tasks.doors_ring import MAX_STEPS, ROOMS

if TYPE_CHECKING:
    import random

    from k15core.tasks.doors_ring import Ring

Style = Literal["at once", "steps", "careful"]
STYLES: tuple[Style, ...] = ("at once", "steps", "careful")

MISREADING = 0.12  # of a first reading, whatever the style
SECOND_READING_RIGHT = 0.98  # of a misread door; else the misreading is repeated
STYLE_CHANGE = 0.08  # after each step but the last; the new style may be the old one


@dataclass(frozen=True)
class Stage:
    """What one stage of supervised fine-tuning shows: shares of STYLES, and steps to draw from."""

    styles: tuple[float, float, float]
    steps: tuple[int, ...]


STAGES = {
    "textbook": Stage((0.10, 0.60, 0.30), tuple(range(1, MAX_STEPS + 1))),
    "mixed": Stage((0.58, 0.28, 0.14), (1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 5, 6, 7)),
}


def respond(rng: random.Random, ring: Ring, stage: Stage) -> str:
    """A response of the teacher to one problem, ending in ` .`.

    An answer at once is right for the room from which it is given, which a misread door on the way
    may have made the wrong one.
    """
    room, words = ring.start, []
    style = _style(rng, stage)
    for left in range(ring.steps, 0, -1):
        if style == "at once":
            room = ring.walk(room, left)
            break
        right = ring.doors[room]
        reached = right
        if rng.random() < MISREADING:
            reached = rng.choice([other for other in ROOMS if other not in (room, right)])
        words += [str(left), f"{room}>{reached}"]
        if style == "careful":
            if rng.random() < SECOND_READING_RIGHT:
                reached = right
            words += ["?", f"{room}>{reached}"]
        room = reached
        if left > 1 and rng.random() < STYLE_CHANGE:
            style = _style(rng, stage)
    return " ".join([*words, "!", room, "."])


def _style(rng: random.Random, stage: Stage) -> Style:
    return rng.choices(STYLES, stage.styles)[0]
