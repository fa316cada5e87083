"""The doors task: problems, split, teacher and behaviour counts, against independent walks."""

import itertools
import math
import random
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k15core.errors import InvalidInputError
from k15core.rewards import make_reward
from k15core.tasks import make_task
from k15core.tasks.doors import DoorsTask
from k15core.tasks.doors_ring import PROMPT_TOKENS, ROOMS, Ring, draw, parse
from k15core.tasks.doors_teacher import STAGES, respond

TASK = DoorsTask(seed=3, pool=700, held_out_per_difficulty=80)
PROMPTS = [*TASK.prompts, *TASK.held_out]
prompts = st.sampled_from(PROMPTS)
stages = st.sampled_from(sorted(STAGES))
seeds = st.integers(0, 2**32)


def text_of(prompt) -> str:
    return TASK.tokenizer.decode(prompt.input_ids.tolist())


def walk(text: str) -> str:
    """The answer, from the prompt's characters alone."""
    doors, question = text.split("|")
    steps, room = question.split()
    for _ in range(int(steps)):
        at = doors.index(f"{room}>")
        room = doors[at + 2]
    return room


@pytest.mark.parametrize("prompt", PROMPTS[::97], ids=lambda prompt: str(prompt.prompt_id))
def test_prompts_are_as_specified(prompt) -> None:
    text = text_of(prompt)
    assert len(prompt.input_ids) == PROMPT_TOKENS == 11
    assert prompt.input_ids.dtype == np.int32
    ring = parse(text)
    assert sorted(ring.doors) == sorted(ring.doors.values()) == list(ROOMS)
    assert {ring.walk("a", n) for n in range(8)} == set(ROOMS), "all rooms are on one ring"
    assert ring.steps == prompt.difficulty
    assert ring.text == text


def test_answers_are_right_by_an_independent_walk() -> None:
    for prompt in PROMPTS:
        assert prompt.answer == walk(text_of(prompt))


def test_ids_and_difficulties() -> None:
    assert [prompt.prompt_id for prompt in PROMPTS] == list(range(700 + 560))
    assert Counter(p.difficulty for p in TASK.prompts) == dict.fromkeys(range(1, 8), 100)
    assert Counter(p.difficulty for p in TASK.held_out) == dict.fromkeys(range(1, 8), 80)


def test_training_and_held_out_problems_are_disjoint_and_unique() -> None:
    keys = [parse(text_of(prompt)).key for prompt in PROMPTS]
    assert len(set(keys)) == len(keys)
    shown = {
        parse(TASK.tokenizer.decode(d.input_ids[: d.prompt_length].tolist())).key
        for stage in STAGES
        for step in range(200)
        for d in TASK.demonstrations(stage, step, 8)
    }
    assert not shown & {parse(text_of(prompt)).key for prompt in TASK.held_out}


@given(seeds, st.integers(1, 7), st.booleans())
def test_the_split_does_not_see_the_order_of_the_doors(seed: int, steps: int, side: bool) -> None:
    rng = random.Random(seed)
    ring = draw(rng, steps, held_out=side)
    doors = list(ring.doors.items())
    rng.shuffle(doors)
    assert Ring(dict(doors), ring.steps, ring.start).held_out == side


def test_a_tenth_is_held_out() -> None:
    rng = random.Random(0)
    rings = [draw(rng, steps, held_out=False) for steps in range(1, 8) for _ in range(600)]
    turned = [Ring(r.doors, 1 + r.steps % 7, r.start) for r in rings]  # no longer filtered
    share = sum(ring.held_out for ring in turned) / len(turned)
    assert abs(share - 0.1) < 4 * math.sqrt(0.09 / len(turned))


def test_the_pool_depends_on_the_seed_and_the_held_out_prompts_do_not() -> None:
    same, other = (DoorsTask(seed=s, pool=70, held_out_per_difficulty=5) for s in (3, 4))
    assert [text_of(p) for p in same.prompts] == [text_of(p) for p in TASK.prompts[:70]]
    assert [text_of(p) for p in other.prompts] != [text_of(p) for p in same.prompts]
    assert [text_of(p) for p in other.held_out] == [text_of(p) for p in same.held_out]


@settings(max_examples=50)
@given(stages, st.integers(0, 10_000), st.integers(1, 12))
def test_demonstrations_are_a_function_of_seed_stage_and_step(stage, step, n) -> None:
    def shown(task: DoorsTask, stage: str, step: int, n: int) -> list[list[int]]:
        return [d.input_ids.tolist() for d in task.demonstrations(stage, step, n)]

    here = shown(TASK, stage, step, n)
    TASK.demonstrations(stage, step + 1, 3)  # what was asked before does not matter
    twin = DoorsTask(seed=3, pool=7, held_out_per_difficulty=1)
    assert shown(twin, stage, step, n) == here
    assert shown(TASK, stage, step, n + 1)[:n] == here
    elsewhere = DoorsTask(seed=4, pool=7, held_out_per_difficulty=1)
    assert shown(elsewhere, stage, step, 12) != shown(TASK, stage, step, 12)
    assert shown(TASK, stage, step + 1, 12) != shown(TASK, stage, step, 12)


class Step(NamedTuple):
    style: str
    distance: int  # from the room to the one first read, along the alphabet
    wrong: bool
    right_again: bool


def read(prompt: str, response: str) -> list[Step]:
    """The steps of a response, held to the grammar and to the teacher's rules on the way."""
    doors, question = prompt.split("|")
    counter, room = question.split()
    left, words, steps = int(counter), response.split(), []
    while words[0] != "!":
        counter, first, *words = words
        assert (counter, first[:2]) == (str(left), f"{room}>")
        again = first
        if careful := words[0] == "?":
            _, again, *words = words
            assert again[:2] == f"{room}>"
        distance = (ROOMS.index(first[2]) - ROOMS.index(room)) % len(ROOMS)
        style = "careful" if careful else "steps"
        steps.append(Step(style, distance, first not in doors, again in doors))
        room, left = again[2], left - 1
    assert words[1:] == [walk(f"{doors}| {left} {room}"), "."], "an answer is right from its room"
    if left:
        steps.append(Step("at once", 0, False, True))
    return steps


@given(stages, st.integers(0, 10_000))
def test_the_teacher_follows_its_own_readings(stage: str, step: int) -> None:
    for demonstration in TASK.demonstrations(stage, step, 8):
        ids, cut = demonstration.input_ids.tolist(), demonstration.prompt_length
        assert cut == PROMPT_TOKENS
        assert [i in TASK.tokenizer.eos_token_ids for i in ids] == [False] * (len(ids) - 1) + [True]
        response = TASK.tokenizer.decode(ids[cut:]) + " ."
        assert read(TASK.tokenizer.decode(ids[:cut]), response)


def deviation(hits: int, of: int, rate: float) -> float:
    """Standard deviations between a count and what a binomial of this rate would give."""
    return abs(hits - of * rate) / math.sqrt(of * rate * (1 - rate))


@pytest.mark.parametrize(
    ("stage", "share"),
    [
        ("textbook", {"at once": 0.10, "steps": 0.60, "careful": 0.30}),
        ("mixed", {"at once": 0.58, "steps": 0.28, "careful": 0.14}),
    ],
)
def test_the_teachers_rates_are_the_specified_ones(stage: str, share: dict[str, float]) -> None:
    n = 12_000
    rng = random.Random(f"rates/{stage}")
    rings = [draw(rng, rng.choice(STAGES[stage].steps), held_out=False) for _ in range(n)]
    responses = [read(ring.text, respond(rng, ring, STAGES[stage])) for ring in rings]
    steps = [step for response in responses for step in response if step.style != "at once"]
    wrong = [step for step in steps if step.wrong]

    first = Counter(response[0].style for response in responses)
    chi_square = sum((first[s] - n * p) ** 2 / (n * p) for s, p in share.items())
    assert chi_square < 13.8, "two degrees of freedom, one in a thousand"
    assert deviation(len(wrong), len(steps), 0.12) < 3.3
    checked = [step for step in wrong if step.style == "careful"]
    assert deviation(sum(step.right_again for step in checked), len(checked), 0.98) < 3.3
    assert all(step.right_again for step in steps if not step.wrong)

    read_as = Counter(step.distance for step in wrong)
    assert set(read_as) == set(range(1, 8)), "any other room"
    even = len(wrong) / 7
    assert sum((count - even) ** 2 / even for count in read_as.values()) < 22.5, "six degrees"

    turns = Counter((a.style, b.style) for r in responses for a, b in itertools.pairwise(r))
    for before in ("steps", "careful"):
        of = sum(count for (style, _), count in turns.items() if style == before)
        for style in share:
            rate = 0.08 * share[style] + 0.92 * (style == before)
            assert deviation(turns[before, style], of, rate) < 3.5, (before, style)
    drawn = Counter(STAGES[stage].steps)
    for level, count in Counter(ring.steps for ring in rings).items():
        assert deviation(count, n, drawn[level] / drawn.total()) < 3.5


@pytest.mark.parametrize(
    ("response", "at_once", "checked", "misread", "caught"),
    [
        ("! c", (1, 1), (0, 0), (0, 0), (0, 0)),
        ("3 a>b 2 b>c 1 c>d ! d", (0, 1), (0, 3), (0, 3), (0, 0)),
        ("3 a>c ? a>b 2 b>c ? b>c 1 c>h ! h", (0, 1), (2, 3), (2, 3), (1, 2)),
        ("3 a>c ? a>d 2", (0, 1), (1, 1), (1, 1), (0, 1)),
        ("3 a>b ?", (0, 1), (0, 1), (0, 1), (0, 0)),
        ("", (0, 1), (0, 0), (0, 0), (0, 0)),
        ("? a>b a> 3 3 a>b", (0, 1), (0, 0), (0, 0), (0, 0)),
    ],
)
def test_behaviour_counts(response, at_once, checked, misread, caught) -> None:
    ring = Ring(dict(zip(ROOMS, ROOMS[1:] + "a", strict=True)), 3, "a")
    counts = TASK.behaviour(TASK._prompt(0, ring), response)
    assert counts == {
        "at_once": at_once,
        "steps_checked": checked,
        "misread": misread,
        "caught": caught,
    }


@given(prompts)
def test_the_forced_prefix_is_the_first_counter(prompt) -> None:
    prefix = TASK.forced_prefix(prompt)
    assert prefix == text_of(prompt).split()[9]
    assert len(TASK.tokenizer.encode(prefix)) == 1


@given(prompts, st.sampled_from(ROOMS), st.sampled_from(["", "2 a>b ", "! "]), st.booleans())
async def test_the_reward_is_one_iff_the_room_is_right(prompt, room, before, stop) -> None:
    reward = make_reward("ending")
    response = f"{before}! {room}" + " ." * stop
    assert await reward.score(prompt, response) == float(room == walk(text_of(prompt)))
    for cut in (f"{before}!", f"{before}", f"{room}", f"{response} 1"):
        assert await reward.score(prompt, cut) == 0.0


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"pool": 0}, "pool is 0"),
        ({"pool": "many"}, "pool is 'many'"),
        ({"held_out_per_difficulty": 10_000}, "held_out_per_difficulty is 10000"),
        ({"rooms": 9}, "task 'doors' has no setting 'rooms': it has seed, pool"),
    ],
)
def test_bad_settings_are_named(settings_, message) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make_task("doors", **settings_)


def test_an_unknown_stage_is_named() -> None:
    with pytest.raises(InvalidInputError, match="stage is 'third': expected one of textbook"):
        TASK.demonstrations("third", 0, 1)
