"""The embedded engine in processes of its own: the tokens of one in this process, whatever dies."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from families import SMALL
from generation import Story, run, stories

from k15core import Store
from k15core.errors import Error, InvalidInputError, ProcessDiedError
from k15core.models.create import new_model
from k15core.models.lean import LeanModel
from k15core.models.weights import ModelWeights, save_model
from k15core.rollout.embedded import EmbeddedEngine, EmbeddedFleet, EmbeddedProcess
from k15core.rollout.embedded.messages import Weights
from k15core.rollout.partial import PartialRollout
from k15core.types import Prompt

EOS = 1
CONFIG = {**SMALL, "model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 8}
SETTINGS = {
    "max_total_tokens": 120,
    "slots": 8,
    "eos_token_ids": [EOS],
    "chunk_tokens": 3,
    "repetition": {"min_repeats": 3, "min_covered": 9},
}


@pytest.fixture(scope="module")
def models() -> list[LeanModel]:
    return [new_model(CONFIG, seed=s, embedding_std=1.0, head_std=0.25) for s in (2, 3)]


@pytest.fixture(scope="module")
def running(models: list[LeanModel]) -> Iterator[EmbeddedProcess]:
    with closing(EmbeddedProcess(models[0], **SETTINGS)) as engine:
        yield engine


@pytest.fixture
def process(models: list[LeanModel], running: EmbeddedProcess) -> EmbeddedProcess:
    running.acquire()
    running.update_weights(ModelWeights(models[0]), 0)
    return running


def given(count: int = 16, length: int = 20) -> list[Story]:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, 97, int(n)).tolist() for n in rng.integers(1, length, count // 4)]
    return stories(prompts, k=4)


def told(engine: object, budget: int = 30, **options: object) -> list[Story]:
    told = given()
    run(engine, told, budget, seed=3, **options)
    return told


def same(ours: list[Story], theirs: list[Story]) -> None:
    """To the bit: both ran on this machine's processor."""
    for a, b in zip(ours, theirs, strict=True):
        assert (a.tokens, a.reason, a.loop) == (b.tokens, b.reason, b.loop)
        assert a.log_probs == b.log_probs


def test_its_tokens_are_those_of_the_engine_in_this_process(
    models: list[LeanModel], process: EmbeddedProcess
) -> None:
    here = EmbeddedEngine(models[0], **SETTINGS)
    expected = told(here)
    assert {story.reason for story in expected} >= {"stop", "length"}
    same(told(process), expected)
    same(told(process, temperature=0), told(here, temperature=0))
    for engine in (process, here):
        engine.update_weights(ModelWeights(models[1]), 7)
    assert process.version == 7
    same(told(process), told(here))


def test_a_loop_is_found_there(models: list[LeanModel], process: EmbeddedProcess) -> None:
    looping = told(process, 90, temperature=0)
    assert "repetition" in {story.reason for story in looping}
    same(looping, told(EmbeddedEngine(models[0], **SETTINGS), 90, temperature=0))


def test_a_directory_serves_as_well(models: list[LeanModel], tmp_path) -> None:
    save_model(models[0], tmp_path)
    with closing(EmbeddedProcess(tmp_path, **SETTINGS)) as process:
        same(told(process), told(EmbeddedEngine(models[0], **SETTINGS)))


def test_streams_stop_and_go_on(models: list[LeanModel], process: EmbeddedProcess) -> None:
    expected = told(EmbeddedEngine(models[0], **SETTINGS))
    ours = given()
    run(process, ours, 30, seed=3, stop_after=9)
    unfinished = [story for story in ours if story.reason is None]
    assert len(unfinished) > 4
    assert any(story.tokens for story in unfinished)
    run(process, unfinished, [30 - len(story.tokens) for story in unfinished], seed=3)
    for a, b in zip(ours, expected, strict=True):
        assert (a.tokens, a.reason) == (b.tokens, b.reason)


def test_streams_may_join_while_others_run(
    models: list[LeanModel], process: EmbeddedProcess
) -> None:
    expected = told(EmbeddedEngine(models[0], **SETTINGS))
    ours = given()
    options = {"temperature": 1.0, "seed": 3}

    async def drive() -> None:
        waiting = [ours[i : i + 4] for i in range(0, 16, 4)]
        process.start([s.lease() for s in waiting.pop()], max_new_tokens=[30] * 4, **options)
        async for chunk in process.chunks():
            ours[chunk.trajectory_id].add(chunk)
            if waiting:
                process.start(
                    [s.lease() for s in waiting.pop()], max_new_tokens=[30] * 4, **options
                )

    asyncio.run(drive())
    same(ours, expected)


def test_more_than_the_socket_holds_goes_both_ways(models: list[LeanModel]) -> None:
    """Neither waits for the other where both send at once."""
    settings = {**SETTINGS, "slots": 64, "chunk_tokens": 1, "max_total_tokens": 512}
    rng = np.random.default_rng(0)

    def lease(i: int) -> Story:
        return Story(i, rng.integers(2, 97, 380).tolist())

    async def drive() -> int:
        with closing(EmbeddedProcess(models[0], **settings)) as process:
            options = {"temperature": 1.0, "seed": 0}
            first = [lease(i) for i in range(64)]
            process.start([s.lease() for s in first], max_new_tokens=[120] * 64, **options)
            time.sleep(2)  # it samples more than it can send: nobody reads
            more = [lease(100 + i).lease() for i in range(300)]
            process.start(more, max_new_tokens=[1] * 300, **options)
            process.stop([stream.trajectory_id for stream in more])
            return sum([len(chunk.tokens) async for chunk in process.chunks()])

    assert asyncio.run(drive()) > 64


def test_what_does_not_fit_is_refused_and_nothing_starts(
    models: list[LeanModel], process: EmbeddedProcess
) -> None:
    with pytest.raises(InvalidInputError, match="trajectory 0: max_new_tokens = 0"):
        run(process, given()[:1], 0)
    with pytest.raises(InvalidInputError, match="expected at most max_total_tokens = 120"):
        run(process, given()[:2], 200)
    with pytest.raises(InvalidInputError, match="weights of version 3"):
        process.update_weights(ModelWeights(new_model({**CONFIG, "hidden_size": 32}, seed=0)), 3)
    assert process.version == 0
    same(told(process), told(EmbeddedEngine(models[0], **SETTINGS)))
    with pytest.raises(InvalidInputError, match="slots = 0"):
        EmbeddedProcess(models[0], **{**SETTINGS, "slots": 0})
    with pytest.raises(InvalidInputError, match="threads = 0"):
        EmbeddedProcess(models[0], threads=0, **SETTINGS)


def test_killed_it_is_started_again(models: list[LeanModel], process: EmbeddedProcess) -> None:
    expected = told(EmbeddedEngine(models[0], **SETTINGS))

    async def drive() -> None:
        leases = [story.lease() for story in given()]
        process.start(leases, max_new_tokens=[90] * 16, temperature=1.0, seed=3)
        async for _ in process.chunks():
            os.kill(process.process_id, signal.SIGKILL)

    before = process.process_id
    with pytest.raises(ProcessDiedError, match=f"process {before} ended with code -9"):
        asyncio.run(drive())
    with pytest.raises(ProcessDiedError):
        told(process)
    process.acquire()
    assert process.process_id != before
    process.update_weights(ModelWeights(models[0]), 1)
    for a, b in zip(told(process), expected, strict=True):
        assert (a.tokens, a.reason) == (b.tokens, b.reason)
    running = process.process_id
    process.acquire()
    assert process.process_id == running, "one that runs is left alone"
    process.close()
    process.close()
    with pytest.raises(ProcessDiedError, match="closed, expected acquire"):
        told(process)
    with pytest.raises(ProcessLookupError):
        os.kill(running, 0)


def test_it_ends_with_the_process_that_started_it() -> None:
    """Killed, so that nobody says goodbye."""
    program = f"""
import sys, time
sys.path[:0] = {sys.path!r}
from k15core.models.create import new_model
from k15core.rollout.embedded import EmbeddedProcess
process = EmbeddedProcess(new_model({CONFIG!r}, seed=0), max_total_tokens=64)
print(process.process_id, flush=True)
time.sleep(600)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert _alive(child)
        parent.kill()
    until = time.monotonic() + 30
    while _alive(child):
        assert time.monotonic() < until, f"process {child} outlives its parent"
        time.sleep(0.05)


def _alive(process_id: int) -> bool:
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_a_fleet_has_the_tokens_of_one_engine_and_a_death_costs_none(
    models: list[LeanModel],
) -> None:
    one = EmbeddedEngine(models[0], **SETTINGS)
    expected = told(one)
    with closing(EmbeddedFleet(models[0], processes=3, **SETTINGS)) as fleet:
        slots = [engine._settings["slots"] for engine in fleet.engines]
        assert slots == [3, 3, 2]
        same(told(fleet), expected)

        ours = given()

        async def drive() -> None:
            leases = [story.lease() for story in ours]
            fleet.start(leases, max_new_tokens=[30] * 16, temperature=1.0, seed=3)
            dying, handed_out = fleet.engines[0], 0
            async for chunk in fleet.chunks():
                ours[chunk.trajectory_id].add(chunk)
                given = fleet._streams.get(chunk.trajectory_id)
                handed_out += given is not None and given.engine is dying
                if handed_out == 3:
                    os.kill(dying.process_id, signal.SIGKILL)

        asyncio.run(drive())
        for a, b in zip(ours, expected, strict=True):
            assert (a.tokens, a.reason) == (b.tokens, b.reason)
        assert fleet.lost == (fleet.engines[0],)
        fleet.update_weights(ModelWeights(models[1]), 1)
        one.update_weights(ModelWeights(models[1]), 1)
        assert fleet.lost == ()
        same(told(fleet), told(one))


def test_settings_of_a_fleet_are_checked(models: list[LeanModel]) -> None:
    for processes in (0, 9):
        with pytest.raises(InvalidInputError, match=f"processes = {processes}: expected 1 to"):
            EmbeddedFleet(models[0], processes=processes, **SETTINGS)
    with pytest.raises(InvalidInputError, match="repetition = "):
        EmbeddedFleet(models[0], **{**SETTINGS, "repetition": {"unknown": 1}})


def test_partial_rollouts_over_processes_are_those_of_one_engine(models: list[LeanModel]) -> None:
    """Whose chunk comes first differs; what lies in the store does not."""

    def rolled_out(engine: EmbeddedEngine | EmbeddedFleet) -> list[object]:
        store = Store()
        for i in range(6):
            store.add_group(Prompt(i, np.arange(3, 6 + i, dtype=np.int32), "x"), 4)
        rollout = PartialRollout(
            store, engine, segment_budget=9, max_response_tokens=30, eos_token_ids=[EOS],
            clock=lambda: 0.0,
        )  # fmt: skip
        version = 0
        while store.unfinished():
            engine.update_weights(ModelWeights(models[version % 2]), version)
            asyncio.run(rollout.run(version=version, seed=1))
            version += 1
        members = [t for g in store.pending_groups(9) for t in store.group(g)["trajectory_ids"]]
        return [
            (t, found["finish_reason"], found["tokens"].tolist(), found["log_probs"].tolist())
            for t in sorted(members)
            for found in [store.trajectory(t)]
        ]

    with closing(EmbeddedFleet(models[0], **SETTINGS)) as fleet:
        assert rolled_out(fleet) == rolled_out(EmbeddedEngine(models[0], **SETTINGS))


def test_a_fault_that_is_no_refusal_is_told(
    models: list[LeanModel], process: EmbeddedProcess
) -> None:
    with pytest.raises(Error, match="SafetensorError"):
        process._call("update_weights", Weights(b"no weights at all"), 1)
    with pytest.raises(Error, match="AttributeError"):
        process._call("dance")
    same(told(process), told(EmbeddedEngine(models[0], **SETTINGS)))
