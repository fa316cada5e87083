"""Options of megatron-core that go through the Megatron trainer untouched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron_work import megatron, plain, weights_of, work

from k15core.trainer.megatron import Workers

Processes = Callable[[int], Workers]
EXACT: dict[str, dict[str, Any]] = {
    # Several buckets, reduced while the backward pass runs, gathered while the forward pass does.
    "overlap": {
        "data_parallel": 2,
        "ddp": {"overlap_grad_reduce": True, "overlap_param_gather": True, "bucket_size": 2000},
        "optimizer": {"overlap_param_gather": True},
    },
    "replicated": {"data_parallel": 2, "ddp": {"use_distributed_optimizer": False}},
}


@pytest.mark.parametrize("options", EXACT)
def test_what_changes_how_and_not_what_is_computed(
    options: str, models: dict[str, Path], processes: Processes, tmp_path: Path
) -> None:
    batch, advantages, old = work()
    one = plain(models["llama"], "llama")
    many = megatron(models["llama"], "llama", tmp_path / "w", processes(2), **EXACT[options])
    for sign in (1, -1):
        a, b = (each.step(batch, sign * advantages, old, responses=6) for each in (one, many))
        for name in ("loss", "kl", "gradient_norm"):
            assert b[name] == pytest.approx(a[name], rel=1e-4)
    handed = weights_of(many)
    for name, parameter in one.model.named_parameters():
        # Where a gradient is noise, so is AdamW's step.
        apart = np.abs(handed[name] - parameter.detach().numpy())
        assert (apart < 1e-5).mean() > 0.97, name
    many.close()


def test_dropout_goes_on_bit_for_bit_and_is_off_in_scoring(
    models: dict[str, Path], processes: Processes, tmp_path: Path
) -> None:
    batch, advantages, old = work()
    expected = plain(models["llama"], "llama").log_probs(batch)
    settings = {"tensor_parallel": 2, "transformer": {"hidden_dropout": 0.2}}
    many = megatron(models["llama"], "llama", tmp_path / "w", processes(2), **settings)
    np.testing.assert_allclose(many.log_probs(batch), expected, rtol=0, atol=1e-5)
    many.step(batch, advantages, old, responses=6)
    many.save(str(tmp_path / "checkpoint"))
    wanted = [many.step(batch, advantages, old, responses=6)["loss"] for _ in range(2)]
    many.load(str(tmp_path / "checkpoint"))
    assert [many.step(batch, advantages, old, responses=6)["loss"] for _ in range(2)] == wanted
    assert wanted[0] != pytest.approx(wanted[1])
    many.close()


def test_half_precision_trains_master_weights_and_hands_over_its_own(
    models: dict[str, Path], processes: Processes, tmp_path: Path
) -> None:
    batch, advantages, old = work()
    one = plain(models["qwen2"], "qwen2")
    settings = {"pipeline_parallel": 2, "transformer": {"bf16": True}}
    many = megatron(models["qwen2"], "qwen2", tmp_path / "w", processes(2), **settings)
    assert np.abs(many.log_probs(batch) - one.log_probs(batch)).max() < 0.1
    for _ in range(3):
        a, b = (each.step(batch, advantages, old, responses=6) for each in (one, many))
    assert b["loss"] == pytest.approx(a["loss"], rel=0.05)
    many.offload()
    many.reload()
    with many.weights() as handed:
        parameters = dict(one.model.named_parameters())
        for name, tensor in handed.tensors():
            assert tensor.dtype == torch.bfloat16
            assert (tensor.float() - parameters[name]).abs().max() < 0.1, name
    many.close()
