"""Megatron's ranks, and the controller, killed in phase after phase: the run ends as one in peace.

The embedded engine rolls out, whose tokens are a function of the weights: so the outcome can be
compared bit for bit.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# vLLM is not asked for, but with it runs what takes minutes.
pytest.importorskip("vllm.version", reason="vLLM is not installed: make test-peers has it")

from k15core.config import load_recipe
from k15core.controller.loop import Loop, run_recipe
from k15core.controller.phase_clock import PhaseClock
from k15core.controller.run_directory import RunDirectory
from k15core.trainer.megatron import MegatronTrainer

# On a busy machine it takes a while to start a process.
pytestmark = pytest.mark.timeout(1200)

RECIPE = Path(__file__).parents[3] / "recipes" / "doors_engines.yaml"
SETTINGS = [
    "task={kind: doors, pool: 64, held_out_per_difficulty: 1}",
    "sft={stages: [{name: textbook, steps: 30, batch: 8, learning_rate: 4e-3}]}",
    "algorithm.length_reward={starts_at: 1}",
    "rollout={engine: {kind: embedded, slots: 32}, segment_budget: 12, max_response_tokens: 22}",
    "train={iterations: 4, prompts: 4, responses: 4, mini_batches: 2, learning_rate: 1e-3}",
    "evaluation={every: 4, greedy: false, transcripts: 0}",
    "deploy={share_device: true, restarts: 3}",
]
KILLS = [
    (1, "rollout"),
    (1, "stop"),
    (1, "reload"),
    (2, "train"),
    (2, "step"),  # between two steps of the training phase
    (2, "checkpoint"),
    (3, "publish"),
    (3, "offload"),
    (3, "start"),
    (4, "update"),
    (4, "evaluate"),
]
"""Iteration and phase at whose beginning a rank is killed, one after the other."""


CONTROLLER_KILLS = [(1, "rollout"), (2, "train"), (2, "publish"), (3, "offload"), (4, "update")]
"""The same of the controller, which is gone on with by --resume."""

CONTROLLER = """
import os, signal, sys
from contextlib import contextmanager
from k15core.cli import main
from k15core.controller.loop import Loop
from k15core.controller.phase_clock import PhaseClock

phase, iterate, now = PhaseClock.phase, Loop.iterate, [0]

@contextmanager
def told_phase(self, name):
    if sys.argv[1:3] == [str(now[0]), name]:
        os.kill(os.getpid(), signal.SIGKILL)
    with phase(self, name):
        yield

def told_iterate(self):
    now[0] = self.progress.iteration
    iterate(self)

PhaseClock.phase, Loop.iterate = told_phase, told_iterate
sys.exit(main(sys.argv[3:]))
"""


def run(folder: Path, name: str) -> tuple[str, bytes, list[dict[str, Any]]]:
    """The trained trajectories, the model, the lines of metrics.jsonl."""
    recipe = load_recipe(RECIPE, [*SETTINGS, f"name={name}"])
    directory = RunDirectory.create(folder / name, recipe)
    run_recipe(recipe, directory)
    return outcome_of(directory)


def outcome_of(directory: RunDirectory) -> tuple[str, bytes, list[dict[str, Any]]]:
    lines = (directory.path / "metrics.jsonl").read_text().splitlines()
    model = (directory.model / "model.safetensors").read_bytes()
    return directory.rollouts_file.read_text(), model, [json.loads(line) for line in lines]


class Killer:
    """Kills a rank of the trainer at the places of KILLS, each once, the ranks in turn."""

    def __init__(self) -> None:
        self.left = list(KILLS)
        self.trainer: MegatronTrainer | None = None
        self.iteration = 0

    def at(self, place: str) -> None:
        if (self.iteration, place) in self.left:
            self.left.remove((self.iteration, place))
            assert self.trainer is not None
            os.kill(self.trainer.pids[len(self.left) % 2], signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    *outcome, _ = run(tmp_path_factory.mktemp("runs"), "undisturbed")
    assert outcome[0].count("\n") >= 16
    return outcome


def test_ranks_killed_in_every_phase_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: list[Any]
) -> None:
    killer = Killer()
    phase, step, iterate = PhaseClock.phase, MegatronTrainer.step, Loop.iterate

    @contextmanager
    def told_phase(self: PhaseClock, name: str) -> Iterator[None]:
        killer.at(name)
        with phase(self, name):
            yield

    def told_step(self: MegatronTrainer, *given: Any, **named: Any) -> dict[str, float]:
        metrics = step(self, *given, **named)
        killer.at("step")
        return metrics

    def told_iterate(self: Loop) -> None:
        killer.trainer, killer.iteration = self.parts.trainer, self.progress.iteration
        iterate(self)

    monkeypatch.setattr(PhaseClock, "phase", told_phase)
    monkeypatch.setattr(MegatronTrainer, "step", told_step)
    monkeypatch.setattr(Loop, "iterate", told_iterate)
    *outcome, lines = run(tmp_path, "killed")
    assert killer.left == []
    assert outcome == undisturbed
    events = [line["text"] for line in lines if line["kind"] == "event"]
    assert any("ended by signal 9" in text for text in events)


def test_a_controller_killed_in_phase_after_phase_changes_nothing(
    tmp_path: Path, undisturbed: list[Any]
) -> None:
    changes = [word for setting in SETTINGS for word in ("--set", setting)]
    words = ["train", str(RECIPE), "--runs", str(tmp_path), "--name", "killed", *changes]
    for iteration, place in [*CONTROLLER_KILLS, (0, "")]:
        ended = subprocess.run(
            [sys.executable, "-c", CONTROLLER, str(iteration), place, *words],
            check=False,
            capture_output=True,
            text=True,
        )
        expected = -signal.SIGKILL if iteration else 0
        assert ended.returncode == expected, f"{place}: {ended.stdout} {ended.stderr}"
        words = ["train", "--resume", str(tmp_path / "killed")]
    *outcome, _ = outcome_of(RunDirectory(tmp_path / "killed"))
    assert outcome == undisturbed
