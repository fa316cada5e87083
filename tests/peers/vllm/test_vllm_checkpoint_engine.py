"""The checkpoint engine with vLLM itself: Figure 4's phases, and each of its processes killed.

Every transition is killed in tests/integration/test_checkpoint_engine.py, over a server that starts
in a moment; here those are whose outcome depends on vLLM.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("vllm.version")

from generation import Story, run, stories
from vllm_parts import EOS, REPETITION, Policies, check_same_greedy, prompts_of

from k15core.deploy.checkpoint_engine import CheckpointEngineClient, process
from k15core.deploy.shared_weights import SharedWeights
from k15core.errors import InvalidInputError, ProcessDiedError
from k15core.rollout.embedded import EmbeddedEngine
from k15core.rollout.vllm import VllmServerEngine

SETTINGS = {
    "max_total_tokens": 256,
    "eos_token_ids": [EOS],
    "slots": 16,
    "repetition": REPETITION,
    "chunk_tokens": 5,
}

PUBLISHER = """
import sys, time
from k15core.deploy.shared_weights import WeightWriter
from k15core.models.weights import DirectoryWeights

tensors = list(DirectoryWeights(sys.argv[2]).tensors())
writer = WeightWriter(sys.argv[1])
writer.publish(tensors, 1)

def half():
    yield from tensors[: len(tensors) // 2]
    print("in the middle", flush=True)
    time.sleep(3600)

writer.publish(half(), 2)
"""


class Pod:
    """A sidecar that is started again by hand, and what it is called by."""

    def __init__(self, root: Path) -> None:
        self.policies = Policies("llama-gqa-tied", root / "policies")
        self.weights, self.state = root / "weights", root / "engine"
        self.port = 0
        self.serving = self.serve()
        self.client = CheckpointEngineClient(self.url, patience=120)

    def serve(self) -> subprocess.Popen[str]:
        places = ["--model", self.policies.directories[0], "--weights", self.weights]
        more = ["--state", str(self.state), "--listen", f"127.0.0.1:{self.port}"]
        more += ["--slots", "16", "--max-total-tokens", "256"]
        serving = subprocess.Popen(
            [sys.executable, "-m", "k15core.cli", "engine", "serve", *map(str, places), *more],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert serving.stdout is not None
        self.url = serving.stdout.readline().split()[-1]
        self.port = int(self.url.rpartition(":")[2])
        return serving

    def kill_sidecar(self) -> None:
        self.serving.kill()
        self.serving.communicate()

    def greedy(self, engine: VllmServerEngine | EmbeddedEngine) -> list[Story]:
        told = stories(prompts_of(6))
        run(engine, told, 40, temperature=0)
        return told

    def check(self, engine: VllmServerEngine, weights: int) -> None:
        """Hold what it samples to the embedded engine's tokens under the same weights."""
        theirs = EmbeddedEngine(self.policies.directories[weights], **SETTINGS)
        for a, b in zip(self.greedy(engine), self.greedy(theirs), strict=True):
            check_same_greedy(a, b, self.policies.models[weights])


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    made = Pod(tmp_path)
    try:
        yield made
    finally:
        made.kill_sidecar()
        process.end(str(made.state.resolve()), grace_seconds=0)


def test_figure_4_with_each_of_its_processes_killed(pod: Pod) -> None:
    client = pod.client
    # The sidecar, while vLLM starts.
    with ThreadPoolExecutor(1) as caller:
        started = caller.submit(client.start)
        while (starting := client.state()).pid is None:
            time.sleep(0.01)
        pod.kill_sidecar()
        pod.serving = pod.serve()
        assert started.result().pid == starting.pid
    engine = VllmServerEngine(
        pod.policies.directories[0], load="dummy", checkpoint_engine=pod.url, **SETTINGS
    )
    assert client.state().incarnation == 1
    engine.update_weights(pod.policies.source(0), 1)
    pod.check(engine, 0)
    # The sidecar, while vLLM serves: nobody notices.
    pod.kill_sidecar()
    pod.check(engine, 0)
    pod.serving = pod.serve()
    assert (client.state().pid, client.state().version) == (starting.pid, 1)
    # Who publishes, in the middle of a version: the one before is whole.
    pod.weights.mkdir()
    words = [sys.executable, "-c", PUBLISHER, pod.weights, pod.policies.directories[1]]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as publisher:
        assert publisher.stdout is not None
        assert publisher.stdout.readline() == b"in the middle\n"
        publisher.kill()
    with pytest.raises(InvalidInputError, match="version"):
        client.update(None, 2, published=2)
    assert client.state().phase in ("started", "serving")
    with SharedWeights.open(pod.weights) as weights:
        engine.update_weights(weights, 2)
        pod.check(engine, 1)
        # vLLM, while it serves: it is started again, and has the weights that it had.
        os.kill(starting.pid, signal.SIGKILL)
        with pytest.raises(ProcessDiedError):
            pod.greedy(engine)
        engine.acquire()
        state = client.state()
        assert (state.phase, state.version, state.incarnation) == ("serving", 2, 2)
        engine.update_weights(weights, 3)
        pod.check(engine, 1)
    # The end of the iteration: memory is given back.
    engine.release()
    state = client.state()
    assert (state.phase, state.pid) == ("stopped", None)
    assert state.memory is not None
    assert state.memory["left"] == 0 < state.memory["held"]
    assert process.marked(str(pod.state.resolve())) == []
    engine.close()
    pod.serving.send_signal(signal.SIGTERM)
    assert pod.serving.wait() == 0
