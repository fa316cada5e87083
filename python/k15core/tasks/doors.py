"""The demo task, doors: generated problems with difficulty labels, a teacher, behaviour counts.

A word is a token, a door such as `a>f` included; every prompt has 11 tokens. The reward is a rule:
the response ends in `! ANSWER .` (the kind "ending" of rewards/).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np

from k15core.errors import InvalidInputError
from k15core.tasks.doors_ring import MAX_STEPS, ROOMS, Ring, draw, parse
from k15core.tasks.doors_teacher import STAGES, respond
from k15core.tasks.tokenizer import WordTokenizer
from k15core.types import Demonstration, Prompt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from k15core.types import Tokenizer

_HELD_OUT_SEED = "doors/held-out"


class DoorsTask:
    """`pool` training prompts of all difficulties alike, and held-out ones that no run trains on.

    The pool is a function of `seed`; the held-out prompts are the same for every seed, so that runs
    can be compared. Ids count from 0 through the pool and on through the held-out prompts.
    """

    tokenizer: Tokenizer
    prompts: Sequence[Prompt]
    held_out: Sequence[Prompt]

    def __init__(
        self, *, seed: int = 0, pool: int = 4096, held_out_per_difficulty: int = 80
    ) -> None:
        _check("pool", pool, 20_000)
        _check("held_out_per_difficulty", held_out_per_difficulty, 2_000)
        self.tokenizer = WordTokenizer(_words(), eos=".")
        self._seed = seed
        training = _unique(random.Random(f"{seed}/pool"), pool, held_out=False)
        testing = _unique(
            random.Random(_HELD_OUT_SEED), MAX_STEPS * held_out_per_difficulty, held_out=True
        )
        self.prompts = [self._prompt(i, ring) for i, ring in enumerate(training)]
        self.held_out = [self._prompt(i, ring) for i, ring in enumerate(testing, start=pool)]

    def demonstrations(self, stage: str, step: int, n: int) -> list[Demonstration]:
        """The teacher's answers to n fresh training problems; stages "textbook" and "mixed".

        A pure function of (task seed, stage, step): the first m of n are the m of a smaller call.
        """
        if stage not in STAGES:
            raise InvalidInputError(f"stage is {stage!r}: expected one of {', '.join(STAGES)}")
        rng = random.Random(f"{self._seed}/{stage}/{step}")
        shown = []
        for _ in range(n):
            ring = draw(rng, rng.choice(STAGES[stage].steps), held_out=False)
            prompt = self.tokenizer.encode(ring.text)
            response = self.tokenizer.encode(respond(rng, ring, STAGES[stage]))
            shown.append(Demonstration(np.array(prompt + response, np.int32), len(prompt)))
        return shown

    def behaviour(self, prompt: Prompt, response: str) -> Mapping[str, tuple[float, float]]:
        """What a response does, as counts (numerator, denominator) to be summed over responses.

        "at_once": answers without a step, of responses; "steps_checked": steps read twice, of
        steps; "misread": wrong first readings, of steps; "caught": of those, the ones whose second
        reading is right.
        """
        doors = parse(self.tokenizer.decode(prompt.input_ids.tolist())).doors
        steps = checked = misread = caught = 0
        words = response.split()
        at = 0
        while at + 1 < len(words) and words[at].isdigit() and ">" in words[at + 1]:
            steps += 1
            wrong = not _right(words[at + 1], doors)
            misread += wrong
            at += 2
            if at + 1 < len(words) and words[at] == "?" and ">" in words[at + 1]:
                checked += 1
                caught += wrong and _right(words[at + 1], doors)
                at += 2
        return {
            "at_once": (float(words[:1] == ["!"]), 1.0),
            "steps_checked": (float(checked), float(steps)),
            "misread": (float(misread), float(steps)),
            "caught": (float(caught), float(misread)),
        }

    def forced_prefix(self, prompt: Prompt) -> str | None:
        """The first step's counter: the policy must then step, but nothing is read for it."""
        return str(parse(self.tokenizer.decode(prompt.input_ids.tolist())).steps)

    def _prompt(self, prompt_id: int, ring: Ring) -> Prompt:
        return Prompt(
            prompt_id=prompt_id,
            input_ids=np.array(self.tokenizer.encode(ring.text), np.int32),
            answer=ring.answer,
            tags=("doors",),
            difficulty=float(ring.steps),
        )


def _words() -> list[str]:
    counters = [str(i) for i in range(1, MAX_STEPS + 1)]
    doors = [f"{a}>{b}" for a in ROOMS for b in ROOMS if a != b]
    return [".", "|", "!", "?", *ROOMS, *counters, *doors]


def _unique(rng: random.Random, n: int, *, held_out: bool) -> list[Ring]:
    """n different problems, the difficulties taking turns."""
    found: dict[str, Ring] = {}
    while len(found) < n:
        ring = draw(rng, 1 + len(found) % MAX_STEPS, held_out=held_out)
        found.setdefault(ring.key, ring)
    return list(found.values())


def _right(door: str, doors: Mapping[str, str]) -> bool:
    room, _, reached = door.partition(">")
    return doors.get(room) == reached


def _check(name: str, value: int, most: int) -> None:
    if not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidInputError(f"{name} is {value!r}: expected a whole number from 1 to {most}")
