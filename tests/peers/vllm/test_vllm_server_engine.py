"""The rollout over a vLLM server: one real server for all tests of this file."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vllm.version")

from generation import Story, run, stories
from vllm_parts import EOS, LOOPING, REPETITION, Policies, check_same_greedy, prompts_of

from k15core import Store
from k15core.deploy.shared_weights import SharedWeights, WeightWriter
from k15core.deploy.vllm.group import members
from k15core.errors import InvalidInputError, ProcessDiedError
from k15core.rollout.embedded import EmbeddedEngine
from k15core.rollout.partial import PartialRollout
from k15core.rollout.vllm import VllmServerEngine
from k15core.types import Prompt

pytestmark = pytest.mark.timeout(1200)  # a busy machine starts vLLM in minutes

SETTINGS = {
    "max_total_tokens": 256,
    "eos_token_ids": [EOS],
    "slots": 16,
    "repetition": REPETITION,
    "chunk_tokens": 5,
}


class Bench:
    def __init__(self, root: Path) -> None:
        self.policies = Policies("llama-gqa-tied", root)
        self.engine = VllmServerEngine(
            self.policies.directories[0], log=root / "vllm.log", **SETTINGS
        )
        self.server = self.engine._owner.server
        self.version = 0

    def use(self, weights: int) -> int:
        self.version += 1
        self.engine.update_weights(self.policies.source(weights), self.version)
        return self.version

    def embedded(self, weights: int) -> EmbeddedEngine:
        return EmbeddedEngine(self.policies.directories[weights], **SETTINGS)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("policies"))
    try:
        yield made
    finally:
        process = made.server.process
        made.engine.close()
        made.engine.close()
    assert process is None or not members(process.pid)
    assert not list(Path("/dev/shm").glob("k15core-vllm*"))


def test_it_starts_with_the_directorys_weights(bench: Bench) -> None:
    assert bench.server.version() == 0
    told = stories([[3, 4]])
    run(bench.engine, told, 20)
    assert bench.policies.check_log_probs(told[0], 1.0, {0: 0})


def test_greedy_tokens_are_those_of_the_embedded_engine(bench: Bench) -> None:
    prompts = prompts_of(40)  # more than may be open at once
    reasons = set()
    for weights in (0, 1, LOOPING):
        version = bench.use(weights)
        ours, theirs = stories(prompts), stories(prompts)
        run(bench.engine, ours, 60, temperature=0)
        run(bench.embedded(weights), theirs, 60, temperature=0)
        for a, b in zip(ours, theirs, strict=True):
            check_same_greedy(a, b, bench.policies.models[weights])
            bench.policies.check_log_probs(a, 0, {version: weights})
        reasons |= {story.reason for story in ours}
    assert reasons == {"stop", "length", "repetition"}


def test_log_probs_are_those_of_each_segments_own_weights(bench: Bench) -> None:
    told = stories(prompts_of(10, seed=1), k=2)
    weights: dict[int, int] = {}
    for index in (0, 1, 0):
        weights[bench.use(index)] = index
        left = [story for story in told if not story.ended]
        run(bench.engine, left, 40, temperature=0.7, seed=5, stop_after=4 * len(left))
    assert sum(bench.policies.check_log_probs(s, 0.7, weights) for s in told) > 500
    assert sum(len(set(s.versions)) == 3 for s in told) > 5


def test_stopping_and_resuming_loses_and_duplicates_no_token(bench: Bench) -> None:
    bench.use(0)
    prompts = prompts_of(20, seed=2)
    whole, parts = stories(prompts), stories(prompts)
    run(bench.engine, whole, 60, temperature=0)
    for stop_after in (3, 17, 40, 10**9):
        left = [s for s in parts if not s.ended and len(s.tokens) < 60]
        run(
            bench.engine, left, [60 - len(s.tokens) for s in left], temperature=0,
            stop_after=stop_after,
        )  # fmt: skip
    for a, b in zip(parts, whole, strict=True):
        check_same_greedy(a, b, bench.policies.models[0])


def test_noise_is_that_of_seed_trajectory_and_tokens_so_far(bench: Bench) -> None:
    bench.use(0)

    def told(seed: int) -> list[list[int]]:
        given = stories([[7, 8, 9]], k=8)
        for budget in (10, 10):
            run(bench.engine, [s for s in given if not s.ended], budget, seed=seed)
        return [s.tokens for s in given]

    reference = told(3)
    assert told(3) == reference
    assert told(4) != reference
    assert len({tuple(tokens) for tokens in reference}) == 8


def test_a_loop_that_began_before_a_resume_is_seen(bench: Bench) -> None:
    bench.use(LOOPING)
    whole = stories(prompts_of(8, seed=3))
    run(bench.engine, whole, 150, temperature=0)
    looping = [s for s in whole if s.reason == "repetition"]
    assert looping
    for story in looping:
        assert story.loop is not None
        resumed = Story(story.trajectory_id, story.prompt)
        cut = len(story.tokens) - story.loop.covered // 2
        run(bench.engine, [resumed], cut, temperature=0)
        run(bench.engine, [resumed], 150, temperature=0)
        check_same_greedy(resumed, story, bench.policies.models[LOOPING])


def test_partial_rollouts_over_a_store_cross_versions(bench: Bench, tmp_path: Path) -> None:
    store = Store()
    for i, prompt in enumerate(prompts_of(4, seed=4)):
        store.add_group(Prompt(i, np.array(prompt, np.int32), "x"), 4)
    rollout = PartialRollout(
        store,
        bench.engine,
        segment_budget=30,
        max_response_tokens=80,
        eos_token_ids=[EOS],
        clock=lambda: 0.0,
    )
    weights: dict[int, int] = {}
    writer = WeightWriter(tmp_path / "weights")
    while store.unfinished():
        index = bench.version % 2
        bench.version += 1
        writer.publish(bench.policies.source(index).tensors(), len(weights))
        with SharedWeights.open(tmp_path / "weights") as source:
            bench.engine.update_weights(source, bench.version)
        weights[bench.version] = index
        asyncio.run(rollout.run(version=bench.version, seed=3))
    writer.close()
    assert len(weights) == 3
    ids = [t for g in store.pending_groups(9) for t in store.group(g)["trajectory_ids"]]
    assert len(ids) == 16
    for i in ids:
        held = store.trajectory(i)
        story = Story(
            i,
            store.group(held["group_id"])["prompt"].input_ids.tolist(),
            held["tokens"].tolist(),
            held["log_probs"].tolist(),
            held["versions"].tolist(),
        )
        bench.policies.check_log_probs(story, 1.0, weights)
        assert all(count <= 30 for count in Counter(story.versions).values())


def test_a_server_that_is_drained_lets_its_streams_go(bench: Bench) -> None:
    version = bench.use(0)
    told = stories(prompts_of(6, seed=5))

    async def drive() -> None:
        bench.engine.start(
            [s.lease() for s in told], max_new_tokens=[180] * 6, temperature=1.0, seed=0
        )
        seen = 0
        async for chunk in bench.engine.chunks():
            told[chunk.trajectory_id].add(chunk)
            seen += 1
            if seen == 6:
                await asyncio.to_thread(bench.server.drain)

    asyncio.run(drive())
    assert any(s.reason is None and s.tokens for s in told)
    with pytest.raises(InvalidInputError, match="is published"):
        bench.server.update_weights(bench.engine._publisher._home(), 99, published=12345)
    with pytest.raises(InvalidInputError, match="version None"):
        run(bench.engine, told, 5)
    weights = {version: 0, bench.use(1): 1}
    left = [s for s in told if not s.ended]
    run(bench.engine, left, 20)
    for story in told:
        bench.policies.check_log_probs(story, 1.0, weights)


def test_after_a_release_new_weights_must_come(bench: Bench) -> None:
    bench.engine.release()
    bench.engine.release()
    bench.engine.acquire()
    with pytest.raises(InvalidInputError, match="version None"):
        run(bench.engine, stories([[3]]), 4)
    version = bench.use(1)
    told = stories([[3, 4]])
    run(bench.engine, told, 20)
    bench.policies.check_log_probs(told[0], 1.0, {version: 1})


def test_a_killed_server_is_told_and_the_rollout_goes_on_with_the_next(bench: Bench) -> None:
    """The last test: it starts a second server, which leaves memory and disk as they were."""
    store = Store()
    for i, prompt in enumerate(prompts_of(4, seed=6)):
        store.add_group(Prompt(i, np.array(prompt, np.int32), "x"), 4)
    rollout = PartialRollout(
        store,
        bench.engine,
        segment_budget=100,
        max_response_tokens=100,
        eos_token_ids=[EOS],
        lease_seconds=10.0,
        clock=lambda: now,
    )
    now = 0.0
    version = bench.use(0)
    first = bench.server.process
    assert first is not None
    plain_chunks = bench.engine.chunks

    async def chunks() -> object:
        seen = 0
        async for chunk in plain_chunks():
            yield chunk
            seen += 1
            if seen == 20:
                os.kill(first.pid, signal.SIGKILL)

    bench.engine.chunks = chunks
    with pytest.raises(ProcessDiedError, match="vLLM at"):
        asyncio.run(rollout.run(version=version, seed=3))
    del bench.engine.chunks
    with pytest.raises(ProcessDiedError, match="does not answer"):
        run(bench.engine, stories([[3]]), 4)
    kept = store.lease(99, now=20.0, duration=10.0)
    assert sum(lease.response_length for lease in kept) > 50
    before = {lease.trajectory_id: lease.input_ids.tolist() for lease in kept}

    bench.engine.acquire()
    assert bench.server.process != first
    assert not members(first.pid)
    with pytest.raises(InvalidInputError, match="version None"):
        run(bench.engine, stories([[3]]), 4)
    weights = {version: 0, bench.use(1): 1}
    now = 40.0
    asyncio.run(rollout.run(version=bench.version, seed=3))
    assert store.unfinished() == 0
    for i, ids in before.items():
        held = store.trajectory(i)
        prompt = store.group(held["group_id"])["prompt"].input_ids.tolist()
        assert (prompt + held["tokens"].tolist())[: len(ids)] == ids
        story = Story(
            i, prompt, held["tokens"].tolist(), held["log_probs"].tolist(),
            held["versions"].tolist(),
        )  # fmt: skip
        bench.policies.check_log_probs(story, 1.0, weights)
