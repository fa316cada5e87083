"""A run in which a worker process dies goes on, and ends as one in which none did.

The embedded engine and the torch trainer have no processes; here they are made to lose everything
and to raise ProcessDiedError at a chosen call, as engines and trainers do whose processes were
killed (tests/peers/vllm kills real ones).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from k15core.config import load_recipe
from k15core.controller.loop import run_recipe
from k15core.controller.run_directory import RunDirectory
from k15core.errors import ProcessDiedError
from k15core.rollout.embedded import EmbeddedEngine
from k15core.trainer.torch import TorchTrainer
from k15core.types import Chunk

RECIPE = Path(__file__).parents[2] / "recipes" / "doors.yaml"
SETTINGS = [
    "threads=1",
    "task={kind: doors, pool: 64, held_out_per_difficulty: 1}",
    "sft={stages: [{name: textbook, steps: 30, batch: 8, learning_rate: 4e-3, warmup_steps: 2}]}",
    "sampling={rule: priority}",
    "rollout={engine: {kind: embedded, slots: 32, chunk_tokens: 2}, segment_budget: 8,"
    " max_response_tokens: 14}",
    "train={iterations: 3, prompts: 4, responses: 4, mini_batches: 2, learning_rate: 1e-3}",
    "algorithm.length_reward.starts_at=1",
    "evaluation={every: 2, greedy: false, transcripts: 0}",
]


def run(folder: Path, name: str, *settings: str) -> tuple[str, bytes, list[dict[str, Any]]]:
    """What came of a run: the trained trajectories, the model, the lines that it wrote."""
    recipe = load_recipe(RECIPE, [*SETTINGS, *settings, f"name={name}"])
    directory = RunDirectory.create(folder / name, recipe)
    run_recipe(recipe, directory)
    model = (directory.model / "model.safetensors").read_bytes()
    lines = (directory.path / "metrics.jsonl").read_text().splitlines()
    return directory.rollouts_file.read_text(), model, [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    rollouts, model, _ = run(tmp_path_factory.mktemp("runs"), "undisturbed")
    assert rollouts.count("\n") >= 16
    return rollouts, model


def dies(patch: pytest.MonkeyPatch, owner: type, method: str, at: int) -> list[str]:
    """Make the call number `at` of a method raise; the list is no longer empty once it has."""
    works: Callable[..., Any] = getattr(owner, method)
    calls, died = 0, []

    def counted(self: Any, *given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            died.append(method)
            raise ProcessDiedError(f"{owner.__name__} died in {method}")
        return works(self, *given, **named)

    patch.setattr(owner, method, counted)
    return died


@pytest.mark.parametrize(
    ("owner", "method", "at", "share_device"),
    [
        (TorchTrainer, "imitate", 4, False),
        (TorchTrainer, "log_probs", 2, False),
        (TorchTrainer, "step", 3, True),
        (TorchTrainer, "weights", 3, True),
        (TorchTrainer, "save", 4, False),
        (TorchTrainer, "offload", 2, True),
        (EmbeddedEngine, "update_weights", 2, False),
        (EmbeddedEngine, "start", 3, True),
        (EmbeddedEngine, "acquire", 2, True),
    ],
)
def test_whatever_dies_the_run_ends_as_if_nothing_had(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: tuple[str, bytes],
    owner: type,
    method: str,
    at: int,
    share_device: bool,
) -> None:
    died = dies(monkeypatch, owner, method, at)
    *outcome, lines = run(tmp_path, "killed", f"deploy.share_device={share_device}")
    assert died == [method]
    assert tuple(outcome) == undisturbed
    events = [line["text"] for line in lines if line["kind"] == "event"]
    assert any(f"since {owner.__name__} died in {method}" in text for text in events)


def test_an_engine_that_dies_in_the_middle_of_a_rollout_loses_and_repeats_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: tuple[str, bytes]
) -> None:
    works, handed_out, died = EmbeddedEngine.chunks, 0, []

    async def chunks(self: EmbeddedEngine) -> AsyncIterator[Chunk]:
        nonlocal handed_out
        async for chunk in works(self):
            yield chunk
            handed_out += 1
            if handed_out in (40, 75):
                self.stop(list(self._ids))
                self._ready.clear()
                died.append(handed_out)
                raise ProcessDiedError("EmbeddedEngine died in chunks")

    monkeypatch.setattr(EmbeddedEngine, "chunks", chunks)
    *outcome, _ = run(tmp_path, "killed")
    assert died == [40, 75]
    assert tuple(outcome) == undisturbed


def test_a_process_that_always_dies_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def step(*_: Any, **__: Any) -> None:
        tried.append(1)
        raise ProcessDiedError("TorchTrainer died in step")

    monkeypatch.setattr(TorchTrainer, "step", step)
    with pytest.raises(ProcessDiedError, match="died in step"):
        run(tmp_path, "killed", "deploy.restarts=2")
    assert len(tried) == 3


def test_phases_of_a_shared_device_follow_one_another_as_in_figure_4(tmp_path: Path) -> None:
    *_, lines = run(tmp_path, "shared", "deploy.share_device=true")
    last = next(line for line in reversed(lines) if line["kind"] == "iteration")
    names = [name for name, _, _ in last["timeline"]]
    switch = ["stop", "reload", "train", "checkpoint", "publish", "offload", "start", "update"]
    assert names == ["rollout", *switch, "evaluate"]
    begins = [begin for _, begin, _ in last["timeline"]]
    assert begins == sorted(begins)
    assert set(last["phase_seconds"]) == {*names, "reward"}
