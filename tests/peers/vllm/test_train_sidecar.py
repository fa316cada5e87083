"""A whole run as in figure 4: Megatron at TP 2, vLLM under the checkpoint engine; both are killed.

vLLM is killed in the middle of a rollout, the sidecar when it is to start vLLM: the run goes on, no
token is lost or there twice. Every start of vLLM takes half a minute, so the ranks of Megatron are
killed in test_train_killed.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm.version", reason="vLLM is not installed: make test-peers has it")
pytest.importorskip("megatron.core", reason="needs megatron-core, which `make test` installs")

from k15core.config import load_recipe
from k15core.controller.loop import run_recipe
from k15core.controller.phase_clock import PhaseClock
from k15core.controller.run_directory import RunDirectory
from k15core.deploy.checkpoint_engine import CheckpointEngineClient
from k15core.rollout.partial import PartialRollout

# On a busy machine it takes a while to start a process.
pytestmark = pytest.mark.timeout(1200)

RECIPE = Path(__file__).parents[3] / "recipes" / "doors_engines.yaml"
SETTINGS = [
    "task={kind: doors, pool: 64, held_out_per_difficulty: 1}",
    "sft={stages: [{name: textbook, steps: 30, batch: 8, learning_rate: 4e-3}]}",
    "algorithm.length_reward={starts_at: 1}",
    "rollout.segment_budget=12",
    "rollout.max_response_tokens=22",  # prompts have 11
    "train={iterations: 2, prompts: 4, responses: 4, mini_batches: 2, learning_rate: 1e-3}",
    "evaluation={every: 2, greedy: false, transcripts: 0}",
]


class Sidecar:
    """`k15 engine serve`, started again whenever it ends, as a container would be."""

    def __init__(self, model: Path, weights: Path) -> None:
        self._places = ["--model", str(model), "--weights", str(weights), "--release", "sleep"]
        self._port, self._over = 0, threading.Event()
        self._start()
        self.client = CheckpointEngineClient(self.url, patience=120)
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def _start(self) -> None:
        command = [sys.executable, "-m", "k15core.cli", "engine", "serve", *self._places]
        more = ["--listen", f"127.0.0.1:{self._port}", "--slots", "64", "--max-total-tokens", "33"]
        self.process = subprocess.Popen([*command, *more], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]
        self._port = int(self.url.rpartition(":")[2])

    def _watch(self) -> None:
        while not self._over.is_set():
            self.process.wait()
            if not self._over.is_set():
                self._start()

    def close(self) -> None:
        self._over.set()
        self.process.terminate()
        self._watcher.join()
        self.process.communicate()


class Killer:
    """Kills each process once, at its place in the run."""

    def __init__(self, sidecar: Sidecar) -> None:
        self.sidecar = sidecar
        self.done: list[str] = []

    def appended(self) -> None:
        """Told of every chunk that the store has acknowledged."""
        if self._is_time("vLLM"):
            pid = self.sidecar.client.state().pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)

    def phase(self, name: str) -> None:
        """Told of every phase that begins."""
        if name == "start" and self._is_time("sidecar"):
            self.sidecar.process.kill()

    def _is_time(self, what: str) -> bool:
        if what in self.done:
            return False
        self.done.append(what)
        return True


def test_whoever_dies_the_run_goes_on_and_no_token_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights"
    recipe = load_recipe(RECIPE, [*SETTINGS, f"deploy={{share_device: true, weights: {weights}}}"])
    directory = RunDirectory.create(tmp_path / "run", recipe)
    # The pod's model directory holds the configuration; the weights come with the first update.
    model = tmp_path / "model"
    make_config(directory, recipe, model)
    sidecar = Sidecar(model, weights / "trainer")
    killer = Killer(sidecar)
    engine = f"{{kind: vllm_server, slots: 64, checkpoint_engine: '{sidecar.url}'}}"
    recipe = load_recipe(
        RECIPE,
        [
            *SETTINGS,
            f"rollout.engine={engine}",
            f"deploy={{share_device: true, weights: {weights}}}",
        ],
    )
    stored: dict[int, list[int]] = defaultdict(list)
    append, phase = PartialRollout._append, PhaseClock.phase

    def told_append(self: PartialRollout, stream: Any, chunk: Any, report: Any) -> None:
        assert stream.length == len(stored[chunk.trajectory_id])
        append(self, stream, chunk, report)
        stored[chunk.trajectory_id] += chunk.tokens.tolist()
        killer.appended()

    @contextmanager
    def told_phase(self: PhaseClock, name: str) -> Iterator[None]:
        killer.phase(name)
        with phase(self, name):
            yield

    monkeypatch.setattr(PartialRollout, "_append", told_append)
    monkeypatch.setattr(PhaseClock, "phase", told_phase)
    try:
        run_recipe(recipe, directory)
        assert sidecar.client.state().phase == "stopped", "its engine ends with the run"
    finally:
        sidecar.close()
    assert killer.done == ["vLLM", "sidecar"]
    lines = [json.loads(line) for line in (directory.path / "metrics.jsonl").open()]
    iterations = [line["iteration"] for line in lines if line["kind"] == "iteration"]
    assert iterations == [1, 2]
    trained = [json.loads(line) for line in directory.rollouts_file.open()]
    assert trained
    for line in trained:
        count = sum(line["tokens_by_version"].values())
        assert count == len(stored[line["trajectory_id"]])


def make_config(directory: RunDirectory, recipe: Any, target: Path) -> None:
    """A directory with the policy's config.json alone."""
    from k15core.controller.parts import make_policy, make_task

    policy = make_policy(recipe, make_task(recipe), directory)
    target.mkdir()
    (target / "config.json").write_text((policy.directory / "config.json").read_text())
