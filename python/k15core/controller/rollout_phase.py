"""The rollout phase: open new groups, roll out what is unfinished, score what finishes."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from k15core.controller.parts import Parts
    from k15core.rollout.partial import RolloutReport

SCORES_AT_ONCE = 64


def open_groups(parts: Parts, iteration: int, version: int) -> int:
    """Open the iteration's new groups; returns how many prompts are new.

    Consumes prompts of the sampler. New prompts = prompts wanted - groups pending. What a run that
    was killed in this iteration had opened already is counted, not opened again: the sampler's draw
    is a function of (its state, the seed), so the missing ones are the rest of the same list.
    The sampler counts iterations from 0, the run from 1.
    """
    wanted = parts.recipe.train.prompts
    pending = len(parts.store.pending_groups(version))
    new = max(0, math.ceil(wanted * (1 + parts.recipe.rollout.over_provision)) - pending)
    if new:
        prompt_ids = parts.sampler.sample(
            new, seed=parts.seed("prompts", iteration), iteration=iteration - 1
        )
        already = len(parts.store.groups_of_version(version))
        for prompt_id in prompt_ids[already:].tolist():
            parts.store.add_group(
                parts.prompts[prompt_id], parts.recipe.train.responses, version=version
            )
    return new


async def roll_out(parts: Parts, version: int) -> tuple[RolloutReport, float]:
    """Roll out under policy `version`; returns the report and the seconds of waiting for scores.

    Consumes unfinished trajectories, produces scored ones. Scores are computed while other streams
    still run; the phase ends when the engine has no stream left (or, over-provisioned, when enough
    groups are complete) and every finished trajectory has its score.
    """
    slots = asyncio.Semaphore(SCORES_AT_ONCE)
    scoring: dict[int, asyncio.Task[None]] = {}
    groups = _Completion(parts, version)

    async def score(trajectory_id: int) -> None:
        async with slots:
            trajectory = parts.store.trajectory(trajectory_id)
            text = parts.task.tokenizer.decode(trajectory["tokens"].tolist())
            reward = await parts.reward.score(parts.prompts[trajectory["prompt_id"]], text)
            parts.store.set_reward(trajectory_id, reward)

    def on_finished(trajectory_id: int) -> None:
        scoring[trajectory_id] = asyncio.create_task(score(trajectory_id))
        groups.finished(trajectory_id)

    def on_dropped(trajectory_id: int) -> None:
        # Told before anything was awaited, so that no score of it has begun.
        if task := scoring.pop(trajectory_id, None):
            task.cancel()

    for trajectory_id in groups.unscored:
        on_finished(trajectory_id)
    report = await parts.rollout.run(
        version=version,
        seed=parts.seed("rollout"),
        on_finished=on_finished,
        on_dropped=on_dropped,
        enough=groups.enough,
    )
    start = perf_counter()
    await asyncio.gather(*scoring.values())
    return report, perf_counter() - start


class _Completion:
    """Which groups wait for how many members; what a killed run left finished but unscored."""

    def __init__(self, parts: Parts, version: int) -> None:
        self.unscored: list[int] = []
        self._wanted = parts.recipe.train.prompts
        self._over_provisioned = parts.recipe.rollout.over_provision > 0
        self._group_of: dict[int, int] = {}
        self._waiting: Counter[int] = Counter()
        for group_id in parts.store.pending_groups(version + 1):
            for trajectory_id in parts.store.group(group_id)["trajectory_ids"]:
                state = parts.store.trajectory(trajectory_id)["state"]
                if state == "finished":
                    self.unscored.append(trajectory_id)
                if state != "scored":
                    self._group_of[trajectory_id] = group_id
                    self._waiting[group_id] += 1
        self._complete = 0

    def finished(self, trajectory_id: int) -> None:
        group_id = self._group_of[trajectory_id]
        self._waiting[group_id] -= 1
        self._complete += self._waiting[group_id] == 0

    def enough(self) -> bool:
        return self._over_provisioned and self._complete >= self._wanted
