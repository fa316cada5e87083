"""Worker processes of the Megatron trainer that die, fail, or lose their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from megatron_work import megatron, needs_megatron, weights_of, work

from k15core.deploy.shared_weights import WeightWriter
from k15core.errors import ConflictError, ProcessDiedError
from k15core.models.weights import DirectoryWeights
from k15core.trainer.megatron import Workers

Processes = Callable[[int], Workers]
SECONDS = 120.0
"""For what takes no time on a machine that is not loaded."""


def gone(pid: int) -> bool:
    """Whether a process is no more, or a zombie that nobody waits for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_refused_publication_leaves_the_ranks_alive(
    models: dict[str, Path], processes: Processes, tmp_path: Path
) -> None:
    """Rank 0 cannot write; the other goes through what it has to send all the same."""
    shared = tmp_path / "weights"
    one = megatron(models["qwen3"], "qwen3", shared, processes(2), tensor_parallel=2)
    with WeightWriter(shared), pytest.raises(ConflictError, match="writes to it"):
        one.weights()
    found = weights_of(one)
    for name, tensor in DirectoryWeights(models["qwen3"]).tensors():
        np.testing.assert_array_equal(found[name], tensor.numpy(), err_msg=name)
    one.close()


def test_a_killed_rank_is_told_and_a_checkpoint_brings_all_back(
    models: dict[str, Path], processes: Processes, tmp_path: Path
) -> None:
    batch, advantages, old = work()
    shared = tmp_path / "weights"
    settings = {"tensor_parallel": 2, "weight_decay": 0.1}
    one = megatron(models["llama"], "llama", shared, processes(2), **settings)
    one.step(batch, advantages, old, responses=6)
    one.save(str(tmp_path / "checkpoint"))
    one.step(batch, advantages, old, responses=6)
    wanted = weights_of(one)

    # Stopped, it keeps the other rank waiting in the middle of a step; then it is killed.
    first, second = processes(2).pids
    os.kill(second, signal.SIGSTOP)
    killer = threading.Timer(0.3, os.kill, (second, signal.SIGKILL))
    killer.start()
    with pytest.raises(ProcessDiedError, match=r"rank 1 of 2 ended by signal 9 \(Killed\)"):
        one.step(batch, -advantages, old, responses=6)
    killer.join()
    assert gone(first)
    assert gone(second)
    with pytest.raises(ProcessDiedError, match="rank 1 of 2 ended"):
        one.weights()

    one.load(str(tmp_path / "checkpoint"))
    assert one.steps == 1
    one.step(batch, advantages, old, responses=6)
    found = weights_of(one)
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
    mine = one._workers.pids
    one.close()
    one.close()
    assert all(gone(pid) for pid in mine)
    assert not shared.exists()


def test_what_a_worker_fails_with_is_told_in_its_words(
    models: dict[str, Path], processes: Processes, tmp_path: Path
) -> None:
    workers = processes(1)
    with pytest.raises(ProcessDiedError, match=r"rank 0 of 1 failed: TypeError.*no_such_option"):
        megatron(
            models["llama"], "llama", tmp_path / "w", workers, transformer={"no_such_option": 1}
        )
    assert all(gone(pid) for pid in workers.pids)
    with pytest.raises(ProcessDiedError, match="no_such_option"):
        workers.call("publish", 1)


def test_workers_end_with_their_parent_which_never_imports_megatron(tmp_path: Path) -> None:
    needs_megatron()
    program = (
        "import os, sys\n"
        "from k15core.trainer.megatron import MegatronTrainer, Workers\n"
        "workers = Workers(1)\n"
        "print(*workers.pids, 'megatron' in sys.modules, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert out.returncode == -signal.SIGKILL, out.stderr
    pid, imported = out.stdout.split()
    assert imported == "False"
    deadline = time.monotonic() + SECONDS
    while not gone(int(pid)):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)
