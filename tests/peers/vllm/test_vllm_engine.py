"""vLLM in process: the embedded engine's greedy tokens, log-probs of each segment's own weights."""

from __future__ import annotations

import asyncio
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
from k15core.errors import InvalidInputError
from k15core.rollout.embedded import EmbeddedEngine
from k15core.rollout.partial import PartialRollout
from k15core.rollout.vllm import VllmEngine
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
    def __init__(self, family: str, root: Path) -> None:
        self.policies = Policies(family, root)
        # The first of the families starts without weights on disk.
        dummy = family == "qwen3"
        if dummy:
            (self.policies.directories[0] / "model.safetensors").rename(root / "model.safetensors")
        self.vllm = VllmEngine(
            self.policies.directories[0],
            load="dummy" if dummy else "directory",
            engine_args={"max_num_batched_tokens": 256},  # the prompts of a step seldom all fit
            **SETTINGS,
        )
        if dummy:
            with pytest.raises(InvalidInputError, match="expected update_weights"):
                run(self.vllm, stories([[3]]), 4)
            (root / "model.safetensors").rename(self.policies.directories[0] / "model.safetensors")
        self.version = 0

    def use(self, weights: int) -> int:
        """Hand the engine a set of weights under a new version."""
        self.version += 1
        self.vllm.update_weights(self.policies.source(weights), self.version)
        return self.version

    def embedded(self, weights: int) -> EmbeddedEngine:
        return EmbeddedEngine(self.policies.directories[weights], **SETTINGS)


@pytest.fixture(scope="module", params=["qwen3", "qwen2-gqa", "llama-gqa-tied"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    made = Bench(request.param, tmp_path_factory.mktemp("policies"))
    yield made
    made.vllm.close()
    made.vllm.close()
    assert not list(Path("/dev/shm").glob("k15core-vllm*"))


def test_greedy_tokens_are_those_of_the_embedded_engine(bench: Bench) -> None:
    prompts = prompts_of(20)
    reasons = set()
    for weights in (0, 1, LOOPING):
        version = bench.use(weights)
        ours, theirs = stories(prompts), stories(prompts)
        run(bench.vllm, ours, 90, temperature=0)
        run(bench.embedded(weights), theirs, 90, temperature=0)
        for a, b in zip(ours, theirs, strict=True):
            check_same_greedy(a, b, bench.policies.models[weights])
            bench.policies.check_log_probs(a, 0, {version: weights})
        reasons |= {story.reason for story in ours}
    assert reasons == {"stop", "length", "repetition"}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_each_segments_own_weights(bench: Bench, temperature: float) -> None:
    told = stories(prompts_of(12, seed=1), k=2)
    weights: dict[int, int] = {}
    for index in (0, 1, 0):
        weights[bench.use(index)] = index
        left = [story for story in told if not story.ended]
        run(bench.vllm, left, 60, temperature=temperature, seed=5, stop_after=6 * len(left))
    compared = sum(bench.policies.check_log_probs(s, temperature, weights) for s in told)
    assert compared > 1000
    assert sum(len(set(s.versions)) == 3 for s in told) > 5


def test_stopping_and_resuming_loses_and_duplicates_no_token(bench: Bench) -> None:
    bench.use(0)
    prompts = prompts_of(20, seed=2)
    whole, parts = stories(prompts), stories(prompts)
    run(bench.vllm, whole, 90, temperature=0)
    handed: Counter[int] = Counter()
    step = bench.vllm._vllm.step

    def counted() -> list:
        outputs = step()
        for request, tokens, *_ in outputs:
            handed[int(request)] += len(tokens)
        return outputs

    bench.vllm._vllm.step = counted
    try:
        for stop_after in (3, 17, 40, 41, 60, 10**9):
            left = [s for s in parts if not s.ended and len(s.tokens) < 90]
            budgets = [90 - len(s.tokens) for s in left]
            run(bench.vllm, left, budgets, temperature=0, stop_after=stop_after)
    finally:
        bench.vllm._vllm.step = step
    for a, b in zip(parts, whole, strict=True):
        check_same_greedy(a, b, bench.policies.models[0])
        assert handed[a.trajectory_id] == len(a.tokens)


def test_a_resumed_prefix_is_cached_until_new_weights_come(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached: list[int] = []
    step = bench.vllm._vllm._engine.step

    def told() -> list:
        outputs = step()
        cached.extend(output.num_cached_tokens or 0 for output in outputs)
        return outputs

    bench.use(0)
    prompt = prompts_of(1, seed=9, longest=60)[0]
    given = stories([[n, *prompt] for n in range(2, 26)])
    run(bench.vllm, given, 90)
    story = next(s for s in given if s.reason == "length")
    monkeypatch.setattr(bench.vllm._vllm._engine, "step", told)
    run(bench.vllm, [story], 5)
    length = len(story.prompt) + 90
    assert max(cached) >= length // 32 * 32 - 32, "all but the last block"
    cached.clear()
    bench.use(1)
    run(bench.vllm, [story], 5)
    assert max(cached) == 0


def test_noise_is_a_function_of_seed_trajectory_and_tokens_so_far(bench: Bench) -> None:
    bench.use(0)
    prompt = [[7, 8, 9]]

    def told(seed: int, first: int, cuts: list[int]) -> list[list[int]]:
        given = stories(prompt, k=8, first=first)
        for budget in cuts:
            run(bench.vllm, [s for s in given if not s.ended], budget, seed=seed)
        return [s.tokens for s in given]

    reference = told(3, 0, [20, 20])
    assert told(3, 0, [20, 20]) == reference
    assert told(4, 0, [20, 20]) != reference
    assert told(3, 100, [20, 20]) != reference
    assert len({tuple(tokens) for tokens in reference}) == 8
    assert [t[:20] for t in told(3, 0, [40])] == [t[:20] for t in reference]


def test_a_loop_that_began_before_a_resume_is_seen(bench: Bench) -> None:
    bench.use(LOOPING)
    prompts = prompts_of(20, seed=3)
    whole = stories(prompts)
    run(bench.vllm, whole, 150, temperature=0)
    looping = [s for s in whole if s.reason == "repetition"]
    assert looping
    for story in looping:
        assert story.loop is not None
        cut = len(story.tokens) - story.loop.covered // 2
        resumed = Story(story.trajectory_id, story.prompt)
        run(bench.vllm, [resumed], cut, temperature=0)
        assert resumed.reason == "length"
        run(bench.vllm, [resumed], 150, temperature=0)
        check_same_greedy(resumed, story, bench.policies.models[LOOPING])
    # A response that loops already when it is resumed ends at once.
    again = Story(0, looping[0].prompt, list(looping[0].tokens), [], [0] * len(looping[0].tokens))
    run(bench.vllm, [again], 20, temperature=0)
    assert again.reason == "repetition"
    assert again.tokens == looping[0].tokens


def test_partial_rollouts_over_a_store_cross_versions(bench: Bench) -> None:
    store = Store()
    for i, prompt in enumerate(prompts_of(4, seed=4)):
        store.add_group(Prompt(i, np.array(prompt, np.int32), "x"), 4)
    first = bench.version + 1
    weights: dict[int, int] = {}
    rollout = PartialRollout(
        store,
        bench.vllm,
        segment_budget=30,
        max_response_tokens=100,
        eos_token_ids=[EOS],
        max_versions=3,
        clock=lambda: 0.0,
    )
    finished: list[int] = []
    while store.unfinished():
        index = bench.version % 2
        version = bench.use(index)
        weights[version] = index
        asyncio.run(rollout.run(version=version, seed=3, on_finished=finished.append))
    assert len(weights) == 3 + 1  # three may be spanned; the fourth ends what is left
    assert sorted(finished) == sorted(set(finished))
    ids = [t for g in store.pending_groups(9) for t in store.group(g)["trajectory_ids"]]
    assert len(ids) == len(finished) == 16
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
        assert max(story.versions) - min(story.versions) < 3
        assert min(story.versions) == first
        assert all(count <= 30 for count in Counter(story.versions).values())


def test_shared_weights_are_read_where_they_lie(bench: Bench, tmp_path: Path) -> None:
    writer = WeightWriter(tmp_path / "weights")
    writer.publish(bench.policies.source(1).tensors(), 7)
    bench.version += 1
    with SharedWeights.open(tmp_path / "weights") as source:
        bench.vllm.update_weights(source, bench.version)
    writer.close()
    story = stories([[5, 6, 7]])
    run(bench.vllm, story, 30)
    assert set(story[0].versions) == {bench.version}
    bench.policies.check_log_probs(story[0], 1.0, {bench.version: 1})


def test_what_does_not_fit_is_refused_and_the_old_weights_stay(bench: Bench) -> None:
    class Wrong:
        def __init__(self, drop: str, extra: dict) -> None:
            self.drop, self.extra = drop, extra

        def tensors(self) -> Iterator:
            for name, tensor in bench.policies.source(1).tensors():
                if name != self.drop:
                    yield name, tensor
            yield from self.extra.items()

    version = bench.use(0)
    for source, message in (
        (Wrong("model.norm.weight", {}), "no parameter model.norm.weight"),
        (Wrong("", {"odd.weight": np.zeros(3)}), "odd.weight is not one of"),
        (Wrong("model.norm.weight", {"model.norm.weight": np.zeros(3)}), "has shape"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            bench.vllm.update_weights(source, 99)
    with pytest.raises(InvalidInputError, match=r"temperature = 0\.001"):
        run(bench.vllm, stories([[3]]), 4, temperature=0.001)
    told = stories([[3, 4]])
    run(bench.vllm, told, 20)
    bench.policies.check_log_probs(told[0], 1.0, {version: 0})

    async def update_while_running() -> None:
        bench.vllm.start(
            [s.lease() for s in stories([[3]])], max_new_tokens=[50], temperature=1.0, seed=0
        )
        with pytest.raises(InvalidInputError, match="expected one that does not run"):
            bench.vllm.start(
                [s.lease() for s in stories([[3]])], max_new_tokens=[50], temperature=1.0, seed=0
            )
        with pytest.raises(InvalidInputError, match="expected none to run"):
            bench.vllm.update_weights(bench.policies.source(1), 99)
        with pytest.raises(InvalidInputError, match="expected none to run"):
            bench.vllm.release()
        bench.vllm.stop([0, 77])

    asyncio.run(update_while_running())


def test_after_a_release_new_weights_must_come(bench: Bench) -> None:
    bench.use(0)
    bench.vllm.release()
    bench.vllm.release()
    bench.vllm.acquire()
    with pytest.raises(InvalidInputError, match="expected update_weights"):
        run(bench.vllm, stories([[3]]), 4)
    version = bench.use(1)
    told = stories([[3, 4]])
    run(bench.vllm, told, 20)
    bench.policies.check_log_probs(told[0], 1.0, {version: 1})
