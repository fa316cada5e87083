"""Partial rollouts against continuous batching that waits for the last response.

Both are the same code on the same model, store, engines and slots: `PartialRollout` with new
weights in each iteration, and 256 responses an iteration. One starts somewhat more and stops when
256 are finished: what is unfinished then waits in the store, and its prefix is computed again under
the new weights. The other generates every response to its end. Response lengths are forced:
log-normal, a function of the trajectory's id. Counted are finished responses a second, in steady
state: as many are begun as have ended, which may be more than 256 where several end in one step.

Both have two processors: as a fleet of two processes with half of the slots each, which is what
rolls out fastest there, and, in a row without a bar, as one process with two threads.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np

from bench.harness import Contender, Entry, compare
from k15core import Prompt, Store
from k15core.models.create import new_model
from k15core.models.lean import LeanModel
from k15core.models.runtime import configure
from k15core.models.weights import ModelWeights
from k15core.rollout.embedded import EmbeddedEngine, EmbeddedProcess
from k15core.rollout.fleet import Fleet
from k15core.rollout.partial import PartialRollout
from k15core.types import Chunk, Lease, RolloutEngine, WeightSource

NAME = "rollout.partial"
BAR = 1.6
PEER = "our own engine, waiting for the last response"
MEDIAN, SIGMA, CAP = 64, 1.0, 1024
SLOTS, PROMPTS, K, PROMPT_TOKENS = 64, 32, 8, 11
PROCESSES = 2
EXTRA = 8
"""Prompts begun beyond those of an iteration: as many streams are left at its end as there are
slots, so that none is ever free. With two processes 4 and 6 are slower; 10 and 12 are as fast, and
carry more over."""
ITERATIONS = 8
"""Iterations of a round: how long the last response is varies much from one to the next."""
WARMUP = 5
"""Iterations until the carried-over trajectories are as many as they will be."""

MODEL = {
    "model_type": "qwen3",
    "vocab_size": 80,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": PROMPT_TOKENS + CAP,
}


DRAWS = np.random.default_rng(0).lognormal(np.log(MEDIAN), SIGMA, 1 << 16)
LENGTHS = [int(draw) for draw in np.clip(np.rint(DRAWS), 1, CAP)]


def forced_length(trajectory_id: int) -> int:
    """Tokens of a response, whatever the model says."""
    return LENGTHS[trajectory_id % len(LENGTHS)]


class ForcedLengths:
    """An engine whose responses stop at their forced length. Whoever spreads streams over several
    does not know it."""

    def __init__(self, engine: RolloutEngine) -> None:
        self.engine, self.version = engine, engine.version
        self._left: dict[int, int] = {}

    def start(
        self,
        leases: Sequence[Lease],
        *,
        max_new_tokens: Sequence[int],
        temperature: float,
        seed: int,
    ) -> None:
        """See RolloutEngine."""
        left = [forced_length(lease.trajectory_id) - lease.response_length for lease in leases]
        budgets = [min(pair) for pair in zip(max_new_tokens, left, strict=True)]
        self._left.update(zip((lease.trajectory_id for lease in leases), left, strict=True))
        self.engine.start(leases, max_new_tokens=budgets, temperature=temperature, seed=seed)

    async def chunks(self) -> AsyncIterator[Chunk]:
        """See RolloutEngine: the forced end is a "stop"."""
        async for chunk in self.engine.chunks():
            self._left[chunk.trajectory_id] -= len(chunk.tokens)
            ended = self._left[chunk.trajectory_id] == 0
            yield replace(chunk, finish_reason="stop") if ended else chunk

    def stop(self, trajectory_ids: Sequence[int]) -> None:
        """See RolloutEngine."""
        self.engine.stop(trajectory_ids)

    def update_weights(self, source: WeightSource, version: int) -> None:
        """See RolloutEngine."""
        self.engine.update_weights(source, version)

    def acquire(self) -> None:
        """See RolloutEngine."""
        self.engine.acquire()

    def release(self) -> None:
        """See RolloutEngine."""
        self.engine.release()

    def close(self) -> None:
        """See RolloutEngine."""
        self.engine.close()


class Iterations:
    """Iterations of one kind of rollout, each of 256 new responses."""

    def __init__(self, processes: int, extra: int) -> None:
        self.extra = extra
        self.model = new_model(MODEL, seed=0, embedding_std=1.0, qk_norm_gain=2.0)
        self.engine, self.store, self.version = make_engine(self.model, processes), Store(), 0
        self.rollout = PartialRollout(
            self.store,
            self.engine,
            segment_budget=CAP,
            max_response_tokens=CAP,
            eos_token_ids=[],
            clock=lambda: 0.0,
        )
        self.draws = np.random.default_rng(0)

    def run(self) -> float:
        """One iteration; seconds a finished response."""
        self.version += 1
        missing = (PROMPTS + self.extra) * K - self.store.unfinished()
        for i in range(round(missing / K)):
            ids = self.draws.integers(0, 80, PROMPT_TOKENS).astype(np.int32)
            self.store.add_group(Prompt(i, ids, ""), K, version=self.version)
        finished: list[int] = []
        start = time.perf_counter()
        self.engine.update_weights(ModelWeights(self.model), self.version)
        asyncio.run(
            self.rollout.run(
                version=self.version,
                seed=self.version,
                on_finished=finished.append,
                enough=lambda: len(finished) >= PROMPTS * K,
            )
        )
        seconds = time.perf_counter() - start
        self.clear()
        return seconds / len(finished)

    def clear(self) -> None:
        """Drop the groups that are complete, as training would."""
        for group in self.store.pending_groups(self.version + 1):
            members = [self.store.trajectory(t) for t in self.store.group(group)["trajectory_ids"]]
            if all(member["finish_reason"] for member in members):
                self.store.drop_groups([group])


def make_engine(model: LeanModel, processes: int) -> Fleet | ForcedLengths:
    settings: dict[str, Any] = {
        "max_total_tokens": PROMPT_TOKENS + CAP,
        "slots": SLOTS // processes,
        "eos_token_ids": [],
        "repetition": {"min_covered": CAP},
    }
    if processes == 1:
        return ForcedLengths(EmbeddedEngine(model, **settings))
    return Fleet([ForcedLengths(EmbeddedProcess(model, **settings)) for _ in range(processes)])


def contender(iterations: Iterations) -> Contender:
    for _ in range(WARMUP if iterations.extra else 1):
        iterations.run()
    return lambda: statistics.fmean(iterations.run() for _ in range(ITERATIONS))


def rows(name: str, processes: int, bar: float | None) -> list[Entry]:
    """The claim with engines in so many processes."""
    partial, waiting = Iterations(processes, EXTRA), Iterations(processes, 0)
    with closing(partial.engine), closing(waiting.engine):
        return compare(
            name,
            contender(partial),
            {PEER: contender(waiting)},
            bars={PEER: bar},
            unit="responses/s",
            figure=lambda cost: 1 / cost,
        )


def run() -> list[Entry]:
    configure(threads=2)
    return [*rows(NAME, PROCESSES, BAR), *rows(f"{NAME}.one_process", 1, None)]
