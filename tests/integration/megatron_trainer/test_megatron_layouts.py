"""What the Megatron trainer computes, in every layout, against the plain-torch one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from megatron_work import (
    FAMILIES,
    RECOMPUTE,
    megatron,
    parameters_of,
    plain,
    weights_of,
    work,
)

from k15core.errors import InvalidInputError
from k15core.models.weights import write_model
from k15core.trainer.megatron import Workers
from k15core.trainer.optimizer import DivergedError
from k15core.types import Demonstration

Processes = Callable[[int], Workers]
LAYOUTS = {
    "tp1": {},
    "tp2": {"tensor_parallel": 2},
    "pp2": {"pipeline_parallel": 2},
    "dp2": {"data_parallel": 2},
    "sp": {"tensor_parallel": 2, "sequence_parallel": True, "transformer": RECOMPUTE},
}


FEWER = {"qwen2": {"tp1", "tp2", "pp2", "dp2"}, "llama-biases": {"tp2", "pp2"}}
"""Of what the other layouts touch, these have nothing that the others have not."""

CASES = [
    (family, layout)
    for family in FAMILIES
    for layout in LAYOUTS
    if layout in FEWER.get(family, LAYOUTS)
]


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_every_layout_computes_what_one_process_does(
    family: str,
    layout: str,
    models: dict[str, Path],
    processes: Processes,
    tmp_path: Path,
) -> None:
    batch, advantages, old = work()
    one = plain(models[family], family, weight_decay=0.1)
    many = megatron(
        models[family],
        family,
        tmp_path / "weights",
        processes(1 if layout == "tp1" else 2),
        weight_decay=0.1,
        **LAYOUTS[layout],
    )
    # Hugging Face to Megatron and back: every bit.
    before, handed = parameters_of(one), weights_of(many)
    assert handed.keys() == before.keys()
    for name in before:
        np.testing.assert_array_equal(handed[name], before[name], err_msg=name)

    log_probs = one.log_probs(batch)
    np.testing.assert_allclose(many.log_probs(batch), log_probs, rtol=0, atol=1e-5)

    wanted = one.accumulate(batch, advantages, old, responses=8)
    assert many.accumulate(batch, advantages, old, responses=8) == pytest.approx(wanted, rel=1e-5)
    expected = {n: p.grad.numpy().copy() for n, p in one.model.named_parameters()}
    found = many.gradients()
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    assert found.keys() == expected.keys()
    for name in expected:
        worst = np.abs(found[name] - expected[name]).max()
        assert worst <= 1e-5 * largest, (name, worst / largest)

    a, b = (each.step(batch, advantages, old, responses=8) for each in (one, many))
    assert b.keys() == a.keys()
    del a["seconds"], b["seconds"]
    assert b == pytest.approx(a, rel=1e-5)
    after, stepped = parameters_of(one), weights_of(many)
    for name in after:
        # AdamW's first step is the gradient's sign: where that is noise, so is the step.
        clear = np.abs(expected[name]) > 1e-4 * largest
        assert (np.abs(stepped[name] - after[name])[clear] < 1e-3 * 1e-2).all(), name
        assert (after[name] != before[name]).any()
    many.close()


def test_a_supervised_step_is_that_of_one_process(
    models: dict[str, Path], processes: Processes, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    shown = [
        Demonstration(rng.integers(0, 61, length).astype(np.int32), prompt)
        for prompt, length in ((3, 9), (1, 4), (5, 17), (2, 8))
    ]
    one = plain(models["qwen3"], "qwen3")
    many = megatron(models["qwen3"], "qwen3", tmp_path / "w", processes(2), data_parallel=2)
    for _ in range(2):
        a, b = (each.imitate(shown, learning_rate=1e-3, weight_decay=0.1) for each in (one, many))
        del a["seconds"], b["seconds"]
        assert b == pytest.approx(a, rel=1e-4)
    assert many.steps == 0
    many.close()


def test_more_ranks_than_rows(
    models: dict[str, Path], processes: Processes, tmp_path: Path
) -> None:
    """A rank with nothing to do computes padding, so that the others do not wait for it.

    The row is longer than a micro-batch may be, and has one to itself.
    """
    batch, advantages, old = work(rows=1)
    one = plain(models["llama"], "llama")
    settings = {"data_parallel": 2, "micro_batch_tokens": 1}
    many = megatron(models["llama"], "llama", tmp_path / "w", processes(2), **settings)
    np.testing.assert_allclose(many.log_probs(batch), one.log_probs(batch), atol=1e-5)
    a, b = (each.step(batch, advantages, old, responses=4) for each in (one, many))
    for name in ("loss", "kl", "drift", "gradient_norm"):
        assert b[name] == pytest.approx(a[name], rel=1e-5)
    # Of what is masked altogether nothing is computed.
    nothing = batch.copy()
    nothing.loss_mask[:] = 0
    assert many.step(nothing, advantages, old, responses=4)["tokens"] == 0
    many.close()


def test_reset_forgets_the_moments_and_nothing_else(
    models: dict[str, Path], processes: Processes, tmp_path: Path
) -> None:
    batch, advantages, old = work()
    used = megatron(models["qwen3"], "qwen3", tmp_path / "w", processes(2), tensor_parallel=2)
    used.step(batch, advantages, old, responses=6)
    write_model(used.config, used.weights(), tmp_path / "exported")
    used.reset_optimizer()
    used.step(batch, -advantages, old, responses=6)
    assert used.steps == 2
    wanted = weights_of(used)
    used.close()
    exported, shared = tmp_path / "exported", tmp_path / "w"
    fresh = megatron(exported, "qwen3", shared, processes(2), tensor_parallel=2)
    fresh.step(batch, -advantages, old, responses=6)
    found = weights_of(fresh)
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
    fresh.close()


def test_a_gradient_that_is_not_finite_is_refused_by_all(
    models: dict[str, Path], processes: Processes, tmp_path: Path
) -> None:
    batch, advantages, old = work()
    many = megatron(models["llama"], "llama", tmp_path / "w", processes(2), tensor_parallel=2)
    before = weights_of(many)
    with pytest.raises(DivergedError, match="norm is"):
        many.step(batch, advantages * np.float32(3e38), old, responses=6)
    after = weights_of(many)
    for name in before:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    assert many.step(batch, advantages, old, responses=6)["gradient_norm"] > 0
    many.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tensor_parallel": 3}, "tensor_parallel is 3: expected a divisor of the 4 attention"),
        ({"pipeline_parallel": 3}, "pipeline_parallel is 3: expected a divisor of the 2 layers"),
        ({"data_parallel": 0}, "data_parallel is 0"),
        ({"sequence_parallel": True}, "expected tensor_parallel > 1"),
        ({"transformer": {"context_parallel_size": 2}}, "expected it left out"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"max_gradient_norm": 0.0}, "max_gradient_norm is 0.0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"micro_batch_tokens": 0}, "micro_batch_tokens is 0"),
    ],
)
def test_bad_settings_are_refused_before_a_process_starts(
    settings: dict[str, object], message: str, models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        megatron(models["llama"], "llama", tmp_path, None, **settings)


def test_a_model_that_megatron_has_not_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "qwen3", "attention_bias": True, "vocab_size": 8, "hidden_size": 8}
    sizes = {"intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({**config, **sizes}))
    with pytest.raises(InvalidInputError, match=r"o_bias, mlp_bias = \(True, True, False\)"):
        megatron(tmp_path, "qwen3", tmp_path / "w", None)


def test_bad_steps_are_refused_and_the_workers_live(
    models: dict[str, Path], processes: Processes, tmp_path: Path
) -> None:
    batch, advantages, old = work()
    many = megatron(models["llama"], "llama", tmp_path / "w", processes(1))
    with pytest.raises(InvalidInputError, match="responses is 5: expected at least 6"):
        many.step(batch, advantages, old, responses=5)
    wrong = batch.copy()
    wrong.input_ids[0] = 61
    with pytest.raises(InvalidInputError, match="expected tokens of the model"):
        many.log_probs(wrong)
    many.offload()
    with pytest.raises(InvalidInputError, match="offloaded, expected reload"):
        many.log_probs(batch)
    many.reload()
    many.log_probs(batch)
    many.close()
