"""Driving an engine in tests: leases, runs with stops and resumes, and what came of each stream."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from k15core.rollout.embedded import EmbeddedEngine
from k15core.types import Chunk, Lease, Loop

ENDED = ("stop", "repetition")


@dataclass
class Story:
    """One trajectory as a store would hold it."""

    trajectory_id: int
    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    reason: str | None = None
    loop: Loop | None = None

    def lease(self) -> Lease:
        ids = np.array(self.prompt + self.tokens, np.int32)
        versions = np.array([0] * len(self.prompt) + self.versions, np.uint32)
        return Lease(self.trajectory_id, 1, 0.0, ids, len(self.prompt), versions)

    def add(self, chunk: Chunk) -> None:
        assert self.reason is None
        assert len(chunk.tokens) == len(chunk.log_probs)
        self.tokens += chunk.tokens.tolist()
        self.log_probs += chunk.log_probs.tolist()
        self.versions += [chunk.version] * len(chunk.tokens)
        self.reason, self.loop = chunk.finish_reason, chunk.loop

    @property
    def ended(self) -> bool:
        return self.reason in ENDED

    @property
    def told(self) -> tuple[list[int], list[float]]:
        return self.tokens, self.log_probs


def stories(prompts: Sequence[Sequence[int]], k: int = 1, first: int = 0) -> list[Story]:
    ids = range(first, first + k * len(prompts))
    return [Story(i, list(prompts[(i - first) // k])) for i in ids]


def run(
    engine: EmbeddedEngine,
    given: Sequence[Story],
    budget: int | Sequence[int],
    *,
    temperature: float = 1.0,
    seed: int = 0,
    stop_after: int | None = None,
) -> int:
    """Generate for the given stories; after `stop_after` chunks all are let go. Chunks seen."""

    async def drive() -> int:
        budgets = [budget] * len(given) if isinstance(budget, int) else budget
        by_id = {story.trajectory_id: story for story in given}
        for story in given:
            story.reason = None
        engine.start(
            [story.lease() for story in given],
            max_new_tokens=budgets,
            temperature=temperature,
            seed=seed,
        )
        seen = 0
        async for chunk in engine.chunks():
            by_id[chunk.trajectory_id].add(chunk)
            seen += 1
            if seen == stop_after:
                engine.stop(list(by_id))
        return seen

    return asyncio.run(drive())
