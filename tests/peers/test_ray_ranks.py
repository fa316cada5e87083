"""Megatron's ranks as actors of a Ray cluster: the numbers of ranks that the trainer starts."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs ray, which `make test-peers` installs")
pytest.importorskip("megatron.core", reason="needs megatron-core, which `make test` installs")

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
import torch

from k15core.algorithms import MirrorDescent
from k15core.deploy.ray import RayRanks
from k15core.errors import InvalidInputError, ProcessDiedError
from k15core.models.create import new_model
from k15core.models.weights import save_model
from k15core.tasks.doors import DoorsTask
from k15core.trainer.megatron import MegatronTrainer

# On a busy machine it takes a while to start a process.
pytestmark = pytest.mark.timeout(900)

SHAPE = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, object_store_memory=256 << 20, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    task = DoorsTask(pool=8, seed=0)
    directory = tmp_path_factory.mktemp("model")
    shape = {**SHAPE, "vocab_size": task.tokenizer.vocabulary_size, "eos_token_id": 1}
    save_model(new_model(shape, seed=0), directory)
    return directory


@pytest.fixture
def trainer(model: Path, tmp_path: Path) -> Iterator[Callable[[str], MegatronTrainer]]:
    opened: list[MegatronTrainer] = []

    def make(placement: str) -> MegatronTrainer:
        made = MegatronTrainer(
            model,
            MirrorDescent(tau=0.1),
            learning_rate=1e-3,
            weights=tmp_path / placement,
            tensor_parallel=2,
            placement=placement,
        )
        opened.append(made)
        return made

    yield make
    for each in opened:
        each.close()


def taught(trainer: MegatronTrainer, steps: range) -> list[float]:
    """The losses of some supervised steps."""
    task = DoorsTask(pool=8, seed=0)
    return [
        trainer.imitate(
            task.demonstrations("textbook", step, 4), learning_rate=1e-3, weight_decay=0.0
        )["loss"]
        for step in steps
    ]


def test_ray_places_the_ranks_and_the_numbers_are_the_same(
    trainer: Callable[[str], MegatronTrainer],
) -> None:
    ours, theirs = trainer("local"), trainer("ray")
    assert taught(ours, range(3)) == taught(theirs, range(3))
    expected = dict(ours.weights().tensors())
    with theirs.weights() as found:
        for name, tensor in found.tensors():
            assert torch.equal(tensor, expected[name]), name


def test_a_rank_that_dies_is_told_and_started_again(
    trainer: Callable[[str], MegatronTrainer], tmp_path: Path
) -> None:
    made = trainer("ray")
    taught(made, range(2))
    (tmp_path / "saved").mkdir()
    made.save(str(tmp_path / "saved"))
    undisturbed = taught(made, range(2, 4))
    os.kill(made.pids[1], signal.SIGKILL)
    with pytest.raises(ProcessDiedError, match="rank 1 of 2"):
        taught(made, range(4, 5))
    with pytest.raises(ProcessDiedError):
        made.reset_optimizer()
    made.load(str(tmp_path / "saved"))
    assert taught(made, range(2, 4)) == undisturbed


def test_a_cluster_without_room_says_so() -> None:
    with pytest.raises(InvalidInputError, match=r"no room for 3 ranks of \{'CPU': 1.0\}"):
        RayRanks(3, worker="k15core.trainer.megatron.worker:Worker", patience=2.0)
