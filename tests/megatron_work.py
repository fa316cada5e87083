"""Small models of every family, and worker processes, for the tests of the Megatron trainer."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from packed import packed

from k15core.algorithms import Algorithm, MirrorDescent, ReST
from k15core.models.create import new_model
from k15core.models.weights import load_model, save_model
from k15core.trainer.megatron import MegatronTrainer, Workers
from k15core.trainer.torch import TorchTrainer
from k15core.types import PackedBatch

VOCAB = 61  # divisible by no number of ranks: the last one's part is padded
FAMILIES = {
    "llama": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen2": {"num_key_value_heads": 4, "tie_word_embeddings": False},
    "qwen3": {"num_key_value_heads": 2, "tie_word_embeddings": False, "head_dim": 12},
    "llama-biases": {
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
}
ALGORITHMS: dict[str, Algorithm] = {
    "llama": MirrorDescent(0.3),
    "qwen2": ReST(),
    "qwen3": MirrorDescent(0.1),
    "llama-biases": MirrorDescent(0.3),
}
TEMPERATURES = {"llama": 1.0, "qwen2": 0.7, "qwen3": 1.3, "llama-biases": 1.0}
LENGTHS = [(3, 5), (2, 1), (4, 9), (1, 4), (2, 7), (3, 3)]
RECOMPUTE = {
    "recompute_granularity": "full",
    "recompute_method": "uniform",
    "recompute_num_layers": 1,
}


def needs_megatron() -> None:
    if importlib.util.find_spec("megatron") is None:
        pytest.skip("needs megatron-core, which `pip install k15core[megatron]` brings")


def directory(family: str, folder: Path, seed: int = 0) -> Path:
    """A model whose every parameter is random, written for the workers to read."""
    config = {
        "model_type": family.split("-")[0],
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "rope_theta": 1e4,
        **FAMILIES[family],
    }
    model = new_model(config, seed=seed, embedding_std=0.2, head_std=0.2)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    save_model(model, folder)
    return folder


def work(seed: int = 0, rows: int = 6) -> tuple[PackedBatch, np.ndarray, np.ndarray]:
    """A batch, advantages of both signs, and log-probs of some π_i.

    One response is masked altogether, another in part.
    """
    rng = np.random.default_rng(seed)
    groups = [row // 3 for row in range(rows)]
    batch = packed(LENGTHS[:rows], vocab=VOCAB, group_ids=groups, seed=seed)
    for row, start, end in ((3, 1, 5), (2, 6, 9)) if rows > 3 else ():
        batch.loss_mask[batch.cu_seqlens[row] + start : batch.cu_seqlens[row] + end] = 0
    advantages = rng.normal(size=rows).astype(np.float32)
    old = (rng.normal(-4, 0.3, len(batch.input_ids)) * batch.loss_mask).astype(np.float32)
    return batch, advantages, old


def plain(folder: Path, family: str, **settings: object) -> TorchTrainer:
    given = {"learning_rate": 1e-2, "micro_batch_tokens": 20, "temperature": TEMPERATURES[family]}
    return TorchTrainer(load_model(folder), ALGORITHMS[family], **{**given, **settings})  # type: ignore[arg-type]


def megatron(
    folder: Path, family: str, shared: Path, workers: Workers | None, **settings: object
) -> MegatronTrainer:
    given = {"learning_rate": 1e-2, "micro_batch_tokens": 20, "temperature": TEMPERATURES[family]}
    return MegatronTrainer(
        folder,
        ALGORITHMS[family],
        weights=shared,
        workers=workers,
        **{**given, **settings},  # type: ignore[arg-type]
    )


def weights_of(trainer: MegatronTrainer) -> dict[str, np.ndarray]:
    """The trainer's weights, in memory of their own."""
    with trainer.weights() as handed:
        return {name: tensor.numpy().copy() for name, tensor in handed.tensors()}


def parameters_of(trainer: TorchTrainer) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in trainer.model.named_parameters()}
