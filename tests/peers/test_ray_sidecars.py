"""Checkpoint engines that Ray keeps: found in a file, started again, more and fewer of them.

What a sidecar does with vLLM is proved in tests/peers/vllm; here none is asked to start it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from nursery import wait_until

pytest.importorskip("ray", reason="needs ray, which `make test-peers` installs")
try:
    import mooncake.engine
except ImportError as missing:
    pytest.skip(f"Mooncake's engine does not load here ({missing})", allow_module_level=True)
assert mooncake.engine

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from families import reference, save

from k15core.deploy.checkpoint_engine import CheckpointEngineClient, EngineState
from k15core.deploy.ray import RaySidecars
from k15core.errors import ProcessDiedError

# On a busy machine it takes a while to start a process.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, object_store_memory=256 << 20, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture
def sidecars(tmp_path: Path) -> Iterator[RaySidecars]:
    model = save(reference("llama-gqa-tied", 0), tmp_path / "model")
    made = RaySidecars(
        2,
        ["--model", str(model), "--max-total-tokens", "64"],
        members=tmp_path / "members",
        weights=tmp_path / "weights",
        cpus=0.5,
    )
    yield made
    made.close()


def states(sidecars: RaySidecars, file: Path, count: int) -> list[EngineState]:
    """What the members of the file say, once there are so many that answer."""
    found: list[EngineState] = []

    def all_answer() -> bool:
        found.clear()
        try:
            for url in sidecars.refresh():
                found.append(CheckpointEngineClient(url, patience=0).state())  # noqa: PERF401
        except ProcessDiedError:  # it was killed, and its last thread has not ended yet
            return False
        return len(found) == count

    wait_until(all_answer)
    assert len(set(file.read_text().split())) == count
    return found


def test_sidecars_are_placed_started_again_and_scaled(
    sidecars: RaySidecars, tmp_path: Path
) -> None:
    file = tmp_path / "members"
    first = states(sidecars, file, 2)
    assert [state.phase for state in first] == ["stopped", "stopped"]
    urls = file.read_text()

    os.kill(first[0].sidecar_pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(first[0].sidecar_pid))
    again = states(sidecars, file, 2)
    assert file.read_text() == urls, "at the same address"
    assert again[0].sidecar_pid != first[0].sidecar_pid
    assert again[1].sidecar_pid == first[1].sidecar_pid

    actor = ray.get(sidecars._actors[1].__ray_call__.remote(lambda _: os.getpid()))
    os.kill(actor, signal.SIGKILL)
    wait_until(lambda: not is_alive(again[1].sidecar_pid))
    third = states(sidecars, file, 2)
    assert third[0].sidecar_pid == again[0].sidecar_pid
    assert third[1].sidecar_pid != again[1].sidecar_pid

    sidecars.scale(1)
    assert [each.sidecar_pid for each in states(sidecars, file, 1)] == [third[0].sidecar_pid]
    wait_until(lambda: not is_alive(third[1].sidecar_pid))
    sidecars.scale(2)
    assert len(states(sidecars, file, 2)) == 2
    last = [each.sidecar_pid for each in states(sidecars, file, 2)]
    sidecars.close()
    wait_until(lambda: not any(map(is_alive, last)))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
