"""TransferQueue over a k15core store: its own end-to-end tests, `kill -9`, checkpoints."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import files
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

NEEDS = "needs TransferQueue, which `make test-peers` installs into an environment of its own"
pytest.importorskip("transfer_queue", reason=NEEDS)

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import psutil
import ray
import torch
import transfer_queue as tq
from omegaconf import OmegaConf
from tensordict import TensorDict

from k15core.errors import InvalidInputError
from k15core.integrations.transfer_queue import K15StorageClient, initialize_k15_store

# Each process of a Ray cluster imports torch first; on a busy machine that takes a while.
pytestmark = pytest.mark.timeout(900)
HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "transfer_queue.md"
PARTITION = "train"


@pytest.mark.parametrize("name", ["test_kv_interface_e2e", "test_e2e_lifecycle_consistency"])
def test_transfer_queues_own_tests(tmp_path: Path, name: str) -> None:
    (path,) = [path for path in files("TransferQueue") or [] if path.stem == name]
    copy = shutil.copy(path.locate(), tmp_path)  # out of the package `tests`, which others use too
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(tmp_path)),
            *("-p", "transfer_queue_backend", "-p", "no:cacheprovider", str(copy)),
        ],
        env={
            **os.environ,
            "TQ_TEST_BACKEND": "K15Store",
            "K15_TEST_DIRECTORY": str(tmp_path / "queue"),
            "PYTHONPATH": f"{HERE.parents[1] / 'python'}:{HERE}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0, done.stdout[-4000:]
    assert found is not None
    assert int(found[1]) >= {"test_kv_interface_e2e": 56}.get(name, 8)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, object_store_memory=256 << 20, include_dashboard=False)
    yield
    ray.shutdown()


def start(directory: Path, **options: Any) -> None:
    backend = {"storage_backend": "K15Store", "K15Store": {"directory": str(directory), **options}}
    tq.init(OmegaConf.create({"controller": {"polling_mode": True}, "backend": backend}))


@pytest.fixture
def queue(cluster: None, tmp_path: Path) -> Iterator[Path]:  # noqa: ARG001
    start(tmp_path / "queue", capacity_bytes=64 << 20)
    yield tmp_path / "queue"
    tq.close()


def owner(directory: Path) -> psutil.Process:
    """The process that has a file of the directory open."""
    for process in psutil.process_iter():
        try:
            if any(Path(file.path).parent == directory for file in process.open_files()):
                return process
        except psutil.Error:
            continue
    raise AssertionError(f"nobody has {directory} open")


def rows(*numbers: int) -> TensorDict:
    tokens = torch.nested.as_nested_tensor(
        [torch.arange(i, i * i + 1) for i in numbers], layout=torch.jagged
    )
    scores = torch.tensor([[i / 3.0] for i in numbers])
    return TensorDict({"tokens": tokens, "scores": scores}, batch_size=len(numbers))


def put(*numbers: int) -> None:
    tags: list[dict[str, Any]] = [{} for _ in numbers]
    tq.kv_batch_put(
        keys=[f"k{i}" for i in numbers], partition_id=PARTITION, fields=rows(*numbers), tags=tags
    )


def check(*numbers: int) -> None:
    found = tq.kv_batch_get(keys=[f"k{i}" for i in numbers], partition_id=PARTITION)
    wanted = rows(*numbers)
    for name in ("tokens", "scores"):
        for a, b in zip(list(found[name]), list(wanted[name]), strict=True):
            assert torch.equal(a, b), name


def test_kill_between_put_and_get_loses_nothing(queue: Path) -> None:
    put(*range(1, 20))
    first = owner(queue)
    assert first.pid != os.getpid()
    first.send_signal(signal.SIGKILL)
    check(*range(1, 20))
    assert owner(queue).pid != first.pid
    put(5, 30)
    tq.kv_clear(keys=["k7"], partition_id=PARTITION)
    owner(queue).send_signal(signal.SIGKILL)
    check(1, 5, 30, 19)


def test_kills_while_others_put_and_get(queue: Path) -> None:
    done = threading.Event()
    killed = []

    def kill() -> None:
        while not done.wait(0.5):
            with suppress(AssertionError):  # nobody yet: it is being started
                process = owner(queue)
                process.send_signal(signal.SIGKILL)
                killed.append(process.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        for first in cycle(range(1, 160, 4)):  # until there were enough, however fast this is
            put(*range(first, first + 4))
            check(*range(max(1, first - 8), first + 4))
            if len(set(killed)) >= 4:
                break
    finally:
        done.set()
        killer.join()
    check(*range(1, first + 4))


@pytest.mark.usefixtures("cluster")
def test_a_checkpoint_is_loaded_by_the_next_run(tmp_path: Path) -> None:
    start(tmp_path / "queue")
    put(1, 2, 3)
    tq.save_checkpoint(tmp_path / "checkpoint")
    put(2, 9)
    tq.kv_clear(keys=["k1"], partition_id=PARTITION)
    tq.close()
    with pytest.raises(InvalidInputError, match=r"holds \d+ values.*existing"):
        start(tmp_path / "queue")
    tq.close()
    start(tmp_path / "queue", existing="keep")
    tq.load_checkpoint(tmp_path / "checkpoint")
    check(1, 2, 3)
    tq.close()
    start(tmp_path / "queue", existing="clear")
    assert tq.kv_list(partition_id=PARTITION).get(PARTITION, {}) == {}
    put(1)
    check(1)
    tq.close()


@pytest.mark.usefixtures("cluster")
def test_a_cluster_may_have_several(tmp_path: Path) -> None:
    owners, clients = [], []
    for name, options in (("a", {}), ("b", {}), ("c", {"actor": "mine"})):
        settings = {"directory": str(tmp_path / name), **options}
        conf = OmegaConf.create({"backend": {"K15Store": settings}}, flags={"allow_objects": True})
        owners.append(initialize_k15_store(conf))
        clients.append(K15StorageClient(dict(conf.backend["K15Store"])))
    for place, client in enumerate(clients):
        client.put(["key"], [torch.tensor([place])])
    assert [client.get(["key"])[0].item() for client in clients] == [0, 1, 2]
    assert ray.get_actor("mine", namespace="transfer_queue") is not None
    owners.clear()


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"directory": ""}, "directory = : expected a directory"),
        ({"existing": "maybe"}, "existing = maybe: expected keep or clear"),
        ({"capacity": 5}, "has capacity: expected only"),
    ],
)
def test_bad_settings(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        start(options.pop("directory", tmp_path / "queue"), **options)
    tq.close()


@pytest.mark.usefixtures("cluster")
def test_the_pages_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    assert names["found"]["prompts"][0].tolist() == [1, 2, 3]
    tq.close()
