"""Checkpoints of the Megatron trainer: bit for bit in their layout, the same run in any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from megatron_work import directory, megatron, weights_of, work

from k15core.errors import InvalidInputError
from k15core.trainer.megatron import MegatronTrainer, Workers

Processes = Callable[[int], Workers]
RATE = 1e-2
LAYOUTS = {
    "tp1": {},
    "tp2": {"tensor_parallel": 2},
    "pp2": {"pipeline_parallel": 2},
    "dp2": {"data_parallel": 2},
}


def rate(step: int) -> float:
    return RATE / (step + 1)


@pytest.mark.parametrize("saved", ["tp2", "pp2"])
def test_a_checkpoint_goes_on_the_same_in_every_layout(
    saved: str, models: dict[str, Path], processes: Processes, tmp_path: Path
) -> None:
    """The embedding is tied: with PP2 it is on two stages, and in a bucket of its own."""
    batch, advantages, old = work()
    checkpoint = tmp_path / "checkpoint"

    def made(layout: str, model: Path) -> MegatronTrainer:
        workers = processes(1 if layout == "tp1" else 2)
        shared = tmp_path / "weights"
        return megatron(
            model, "llama", shared, workers, learning_rate=rate, weight_decay=0.1, **LAYOUTS[layout]
        )

    one = made(saved, models["llama"])
    one.step(batch, advantages, old, responses=6)
    one.step(batch, -advantages, old, responses=6)
    there = weights_of(one)
    one.save(str(checkpoint))
    wanted = [one.step(batch, advantages, old, responses=6) for _ in range(2)]
    after = weights_of(one)
    one.close()

    other_model = directory("llama", tmp_path / "other", seed=7)
    for layout in LAYOUTS:
        other = made(layout, other_model)
        other.step(batch, -advantages, old, responses=6)
        other.load(str(checkpoint))
        assert other.steps == 2
        found = weights_of(other)
        for name in there:
            np.testing.assert_array_equal(found[name], there[name], err_msg=name)
        steps = [other.step(batch, advantages, old, responses=6) for _ in range(2)]
        found = weights_of(other)
        for mine, theirs in zip(steps, wanted, strict=True):
            exact = {"rel": 0, "abs": 0} if layout == saved else {"rel": 1e-4}
            for name in ("loss", "kl", "gradient_norm", "learning_rate"):
                assert mine[name] == pytest.approx(theirs[name], **exact), (layout, name)
        for name in after:
            apart = np.abs(found[name] - after[name])
            if layout == saved:
                assert not apart.any(), name
            else:
                # Where a gradient is noise, so is AdamW's step.
                assert (apart < 2e-4 * RATE).mean() > 0.97, (layout, name)
        other.close()


def test_a_checkpoint_before_the_first_step(
    models: dict[str, Path], processes: Processes, tmp_path: Path
) -> None:
    batch, advantages, old = work()
    one = megatron(models["qwen2"], "qwen2", tmp_path / "w", processes(2), data_parallel=2)
    one.save(str(tmp_path / "checkpoint"))
    one.step(batch, advantages, old, responses=6)
    wanted = weights_of(one)
    one.step(batch, -advantages, old, responses=6)
    one.load(str(tmp_path / "checkpoint"))
    assert one.steps == 0
    one.step(batch, advantages, old, responses=6)
    found = weights_of(one)
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
    # Saved again into the same directory: the old one is gone first.
    one.save(str(tmp_path / "checkpoint"))
    one.load(str(tmp_path / "checkpoint"))
    assert one.steps == 1
    one.close()


def test_offloading_changes_nothing(
    models: dict[str, Path], processes: Processes, tmp_path: Path
) -> None:
    batch, advantages, old = work()
    results = []
    for offloads in (False, True):
        each = megatron(models["qwen3"], "qwen3", tmp_path / "w", processes(2), tensor_parallel=2)
        each.step(batch, advantages, old, responses=6)
        if offloads:
            handed = each.weights()
            for _ in range(2):
                each.offload()
                each.offload()
                assert next(iter(handed.tensors()))[1].abs().sum() > 0
                each.reload()
                each.reload()
        each.step(batch, -advantages, old, responses=6)
        results.append(weights_of(each))
        each.close()
    for name in results[0]:
        np.testing.assert_array_equal(results[1][name], results[0][name], err_msg=name)


def test_what_is_no_checkpoint_is_refused(
    models: dict[str, Path], processes: Processes, tmp_path: Path
) -> None:
    one = megatron(models["llama"], "llama", tmp_path / "w", processes(1))
    with pytest.raises(InvalidInputError, match=r"trainer\.json is not there"):
        one.load(str(tmp_path))
    (tmp_path / "trainer.json").write_text('{"steps": "many"}')
    with pytest.raises(InvalidInputError, match="not what save wrote"):
        one.load(str(tmp_path))
    one.close()
