"""A run that is killed with SIGKILL, again and again, ends as one that was never killed.

Prompts, groups, token budgets, sampled tokens, weights and sampler state are compared with those of
an undisturbed run of the same recipe and seed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from k15core import Store
from k15core.controller.run_directory import RunDirectory

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

ROOT = Path(__file__).parents[2]
KILLS = 20
SETTINGS = [
    "threads=1",
    "task={kind: doors, pool: 128, held_out_per_difficulty: 2}",
    "sft={stages: [{name: textbook, steps: 12, batch: 8, learning_rate: 4e-3, warmup_steps: 2}]}",
    "sampling={rule: priority}",
    "rollout={engine: {kind: embedded, slots: 32, chunk_tokens: 2}, segment_budget: 5,"
    " max_response_tokens: 24, max_versions: 3}",
    "algorithm.length_reward.starts_at=4",
    "train={iterations: 7, prompts: 6, responses: 4, mini_batches: 2, learning_rate: 1e-3}",
    "evaluation={every: 3}",
    "checkpoint={sft_every: 5}",
]
SECONDS_AND_RATES = {"seconds", "phase_seconds", "timeline", "tokens_per_second"}
# What a resumed iteration counts from its resume on: how its work was split between processes.
PER_PROCESS = {
    "tokens",
    "tokens_saved",
    "resumed",
    "stopped_by",
    "repeats_stopped",
    "ended_by_span",
}


def command(arguments: list[str], log: str, kill_at: int | None) -> None:
    """Body of a child: the command line, its output in a file.

    With `kill_at` it sends itself SIGKILL once so many chunks of tokens were acknowledged: kills by
    the clock alone would seldom fall into the short rollouts of so small a model.
    """
    from k15core.cli import main
    from k15core.rollout.partial import PartialRollout

    append, seen = PartialRollout._append, 0

    def counted(*given: Any) -> None:
        nonlocal seen
        append(*given)
        seen += 1
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    PartialRollout._append = counted  # type: ignore[method-assign]
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.exit(main(arguments))


class Runs:
    """Starts runs in children of a fork server that has imported torch once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.context: ForkServerContext = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["k15core.controller.loop"])

    def start(self, name: str, *settings: str) -> list[str]:
        changes = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
        recipe = str(ROOT / "recipes" / "doors.yaml")
        return ["train", recipe, "--runs", str(self.folder), "--name", name, *changes]

    def resume(self, name: str) -> list[str]:
        return ["train", "--resume", str(self.folder / name)]

    def go(
        self, arguments: list[str], kill_after: float | None = None, kill_at: int | None = None
    ) -> bool:
        """Run; True if it ended by itself, False if it was killed (in seconds, or chunks)."""
        log = self.folder / "log.txt"
        child = self.context.Process(target=command, args=(arguments, str(log), kill_at))
        child.start()
        child.join(kill_after)
        if child.exitcode is None:
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            child.join()
        assert child.exitcode in (0, -signal.SIGKILL), log.read_text()
        return child.exitcode == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


def everything(store: Store) -> dict[int, dict[str, Any]]:
    """All trajectories of the groups that are not used up, as lists."""
    found = {}
    for group_id in store.pending_groups(1 << 30):
        for trajectory_id in store.group(group_id)["trajectory_ids"]:
            trajectory = store.trajectory(trajectory_id)
            names = ("prompt_id", "finish_reason", "tokens", "log_probs", "versions")
            found[trajectory_id] = {name: trajectory[name] for name in names}
            for name in ("tokens", "log_probs", "versions"):
                found[trajectory_id][name] = found[trajectory_id][name].tolist()
    return found


def outcome(run: RunDirectory) -> dict[str, Any]:
    """What must not depend on whether a run was killed."""
    manifest = run.manifest()
    assert manifest is not None
    checkpoint = run.checkpoints / manifest["checkpoint"]
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    told = {
        (line["kind"], line.get("label"), line["iteration"]): {
            key: value for key, value in line.items() if key not in SECONDS_AND_RATES | PER_PROCESS
        }
        for line in lines
        if line["kind"] in ("iteration", "evaluation")
    }
    with Store(str(run.store)) as store:
        unfinished = everything(store)
    return {
        "rollouts": run.rollouts_file.read_text(),
        "weights": (checkpoint / "model.safetensors").read_bytes(),
        "sampler": (checkpoint / "sampler.bin").read_bytes(),
        "unfinished": unfinished,
        "told": told,
    }


def check_nothing_acknowledged_is_lost(run: RunDirectory) -> None:
    """What the store holds after a kill, it holds after the rewind that a resume begins with."""
    manifest = run.manifest()
    if manifest is None:
        return
    with Store(str(run.store)) as store:
        before = everything(store)
        store.rewind(manifest["store_mark"])
        after = everything(store)
    for trajectory_id, trajectory in before.items():
        assert after[trajectory_id] == trajectory


@pytest.fixture(scope="module")
def undisturbed(runs: Runs) -> dict[str, Any]:
    assert runs.go(runs.start("undisturbed"))
    return outcome(RunDirectory(runs.folder / "undisturbed"))


def test_engines_in_processes_of_their_own_change_nothing(
    runs: Runs, undisturbed: dict[str, Any]
) -> None:
    """Nor does a kill of the controller, with which they end."""
    fleet = "rollout.engine={kind: embedded_fleet, processes: 2, slots: 32, chunk_tokens: 2}"
    assert not runs.go(runs.start("fleet", fleet), kill_at=60)
    assert runs.go(runs.resume("fleet"))
    assert outcome(RunDirectory(runs.folder / "fleet")) == undisturbed


def test_twenty_kills_change_nothing(runs: Runs, undisturbed: dict[str, Any]) -> None:
    assert undisturbed["unfinished"], "the recipe should leave partial rollouts at its end"
    assert len({json.loads(x)["iteration"] for x in undisturbed["rollouts"].splitlines()}) >= 3

    rng = random.Random(20)
    kills = attempt = 0

    def moment() -> dict[str, Any]:
        if kills >= KILLS:
            return {}
        if rng.random() < 0.5:
            return {"kill_after": rng.uniform(0.2, 3.0)}
        return {"kill_at": rng.randrange(1, 60)}

    while kills < KILLS:
        attempt += 1
        run = RunDirectory(runs.folder / f"killed-{attempt}")
        ended = runs.go(runs.start(run.path.name), **moment())
        while not ended:
            kills += 1
            if not run.recipe_file.exists():
                break
            check_nothing_acknowledged_is_lost(run)
            ended = runs.go(runs.resume(run.path.name), **moment())
        else:
            assert outcome(run) == undisturbed
