"""A small model, a trainer over it, and batches to train on, for the trainer's tests."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from packed import packed

from k15core.algorithms import MirrorDescent, ReST
from k15core.models.create import new_model
from k15core.models.lean import LeanModel
from k15core.trainer.torch import TorchTrainer
from k15core.types import PackedBatch

SHAPE = {"layers": 2, "heads": 2, "kv": 1, "theta": 1e4}
VOCAB = 11
Work = Callable[[], tuple[PackedBatch, np.ndarray, np.ndarray]]
LENGTHS = [(3, 5), (2, 1), (4, 9), (1, 4), (2, 7), (3, 3)]


def model(seed: int = 0) -> LeanModel:
    config = {
        "model_type": "qwen3",
        "vocab_size": VOCAB,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": SHAPE["layers"],
        "num_attention_heads": SHAPE["heads"],
        "num_key_value_heads": SHAPE["kv"],
        "head_dim": 4,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": SHAPE["theta"],
        "tie_word_embeddings": False,
    }
    return new_model(config, seed=seed, embedding_std=1.0, head_std=0.5, qk_norm_gain=1.5)


def trainer(
    net: LeanModel | None = None, *, tau: float = 0.3, rest: bool = False, **kwargs: object
) -> TorchTrainer:
    algorithm = ReST() if rest else MirrorDescent(tau)
    settings = {"learning_rate": 1e-2, **kwargs}
    return TorchTrainer(net or model(), algorithm, **settings)  # type: ignore[arg-type]


def work(seed: int = 0) -> tuple[PackedBatch, np.ndarray, np.ndarray]:
    """A batch with a masked stretch, its advantages of both signs, and log-probs under a π_i that
    is not the model in training."""
    rng = np.random.default_rng(seed)
    batch = packed(LENGTHS, vocab=VOCAB, group_ids=[0, 0, 0, 1, 1, 1], seed=seed)
    mask = batch.loss_mask.copy()
    mask[batch.cu_seqlens[2] + 4 : batch.cu_seqlens[2] + 7] = 0
    batch = replace(batch, loss_mask=mask)
    advantages = rng.normal(size=len(batch)).astype(np.float32)
    old = trainer(model(seed=1)).log_probs(batch)
    return batch, advantages, old


def work_of_groups(seed: int = 0) -> tuple[PackedBatch, np.ndarray, np.ndarray]:
    """As `work`, but the responses of a group follow the same prompt, as in a real batch."""
    rng = np.random.default_rng(seed)
    lengths = [(3, 5), (3, 1), (3, 9), (1, 4), (2, 7), (2, 3)]
    batch = packed(lengths, vocab=VOCAB, group_ids=[7, 7, 7, 1, 4, 4], seed=seed)
    ids = batch.input_ids.copy()
    for row, leader in ((1, 0), (2, 0), (5, 4)):
        start, source = batch.cu_seqlens[row], batch.cu_seqlens[leader]
        ids[start : start + batch.prompt_lengths[row]] = ids[
            source : source + batch.prompt_lengths[row]
        ]
    batch = replace(batch, input_ids=ids)
    advantages = rng.normal(size=len(batch)).astype(np.float32)
    return batch, advantages, trainer(model(seed=1)).log_probs(batch)


def gradients(net: LeanModel) -> dict[str, np.ndarray]:
    return {name: p.grad.numpy().copy() for name, p in net.named_parameters() if p.grad is not None}


def accumulated(
    batch: PackedBatch, advantages: np.ndarray, old: np.ndarray, **kwargs: object
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    responses = kwargs.pop("responses", len(batch))
    made = trainer(**kwargs)  # type: ignore[arg-type]
    metrics = made.accumulate(batch, advantages, old, responses=responses)  # type: ignore[arg-type]
    return gradients(made.model), metrics


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray], atol: float = 2e-6) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=2e-4, atol=atol, err_msg=name)


def rows(batch: PackedBatch, values: np.ndarray) -> list[np.ndarray]:
    return np.split(values, batch.cu_seqlens[1:-1])
