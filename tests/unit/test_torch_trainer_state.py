"""What the trainer keeps and refuses: moments, checkpoints, threads, bad input."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trainer_work import VOCAB, model, trainer, work

from k15core.errors import InvalidInputError
from k15core.trainer import torch as torch_trainer
from k15core.trainer.optimizer import DivergedError
from k15core.types import PackedBatch


def test_reset_optimizer_forgets_the_moments() -> None:
    batch, advantages, old = work()
    used, fresh, kept = trainer(), trainer(), trainer()
    for made in (used, kept):
        made.step(batch, advantages, old, responses=6)
    fresh.model.load_state_dict(used.model.state_dict())
    used.reset_optimizer()
    for made in (used, fresh, kept):
        made.step(batch, -advantages, old, responses=6)
    for name, p in used.model.named_parameters():
        assert torch.equal(p, fresh.model.get_parameter(name))
    assert any(
        not torch.equal(p, kept.model.get_parameter(name))
        for name, p in used.model.named_parameters()
    )
    assert used.steps == 2


def test_save_and_load_continue_bit_for_bit(tmp_path: Path) -> None:
    batch, advantages, old = work()
    made = trainer(learning_rate=lambda step: 1e-2 / (step + 1), weight_decay=0.1)
    made.step(batch, advantages, old, responses=6)
    torch.manual_seed(5)
    made.save(str(tmp_path / "there"))
    expected_noise = torch.rand(3)
    for _ in range(2):
        made.step(batch, advantages, old, responses=6)
    other = trainer(model(seed=7), learning_rate=made.learning_rate, weight_decay=0.1)
    other.step(batch, -advantages, old, responses=6)
    other.load(str(tmp_path / "there"))
    assert torch.equal(torch.rand(3), expected_noise)
    assert other.steps == 1
    for _ in range(2):
        last = other.step(batch, advantages, old, responses=6)
    assert last["learning_rate"] == pytest.approx(1e-2 / 3)
    for name, p in made.model.named_parameters():
        assert torch.equal(p, other.model.get_parameter(name)), name


def test_a_checkpoint_before_the_first_step_has_no_moments(tmp_path: Path) -> None:
    batch, advantages, old = work()
    made, other = trainer(), trainer(model(seed=7))
    made.save(str(tmp_path))
    other.step(batch, advantages, old, responses=6)
    other.load(str(tmp_path))
    for each in (made, other):
        each.step(batch, advantages, old, responses=6)
    for name, p in made.model.named_parameters():
        assert torch.equal(p, other.model.get_parameter(name)), name


def test_weights_are_handed_over_without_a_copy() -> None:
    made = trainer()
    handed = dict(made.weights().tensors())
    assert handed.keys() == {name for name, _ in made.model.named_parameters()}
    for name, p in made.model.named_parameters():
        tensor = handed[name]
        assert isinstance(tensor, torch.Tensor)
        assert tensor.data_ptr() == p.data_ptr()
        assert not tensor.requires_grad


@pytest.mark.parametrize("serial_work", [0, 10**9])
def test_small_work_takes_one_thread_and_gives_the_others_back(
    monkeypatch: pytest.MonkeyPatch, serial_work: int
) -> None:
    monkeypatch.setattr(torch_trainer, "SERIAL_WORK", serial_work)
    batch, advantages, old = work()
    made = trainer()
    seen: list[int] = []
    forward = made.model.forward_packed

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return forward(*args, **kwargs)

    monkeypatch.setattr(made.model, "forward_packed", watched)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        made.log_probs(batch)
        made.step(batch, advantages, old, responses=6)
        with pytest.raises(DivergedError):
            made.step(batch, advantages * np.float32(3e38), old, responses=6)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1 if serial_work else 2] * 3


def test_steps_are_deterministic() -> None:
    batch, advantages, old = work()
    one, two = trainer(micro_batch_tokens=20), trainer(micro_batch_tokens=20)
    for _ in range(3):
        a = one.step(batch, advantages, old, responses=6)
        b = two.step(batch, advantages, old, responses=6)
    assert a["loss"] == b["loss"]
    for name, p in one.model.named_parameters():
        assert torch.equal(p, two.model.get_parameter(name)), name


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    batch, advantages, old = work()
    made = trainer()
    before = {n: p.detach().clone() for n, p in made.model.named_parameters()}
    with pytest.raises(DivergedError, match="norm is"):
        made.step(batch, advantages * np.float32(3e38), old, responses=6)
    assert all(torch.equal(before[n], p) for n, p in made.model.named_parameters())
    assert made.step(batch, advantages, old, responses=6)["gradient_norm"] > 0


def test_read_only_arrays_are_welcome() -> None:
    batch, advantages, old = work()
    for array in vars(batch).values():
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    made = trainer()
    made.log_probs(batch)
    made.step(batch, advantages, old, responses=6)


def change(**fields: object) -> PackedBatch:
    return replace(work()[0], **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"responses": 5}, "responses is 5: expected at least 6"),
        ({"advantages": np.zeros(5, np.float32)}, r"advantages has shape \(5,\)"),
        ({"advantages": np.full(6, np.nan, np.float32)}, "advantages has an entry"),
        ({"old_log_probs": np.zeros(5, np.float32)}, r"old_log_probs has shape \(5,\)"),
        ({"batch": change(loss_mask=np.ones(44, np.uint8))}, "loss_mask is not 0 on a prompt"),
        ({"batch": change(cu_seqlens=np.array([0, 44], np.int32))}, "cu_seqlens has 2 entries"),
        (
            {"batch": change(cu_seqlens=np.array([0, 8, 8, 24, 29, 38, 44], np.int32))},
            "expected an ascent from 0 to 44",
        ),
        ({"batch": change(max_seqlen=9)}, "max_seqlen is 9: expected at least 13"),
        ({"batch": change(prompt_lengths=np.zeros(6, np.int32))}, "prompt_lengths has an entry"),
        (
            {"batch": change(input_ids=np.full(44, VOCAB, np.int32))},
            "input_ids runs from 11 to 11: expected tokens of the model's vocabulary, 0 … 10",
        ),
        ({"batch": change(position_ids=np.zeros(44, np.int32))}, "position_ids: expected 0, 1, 2"),
    ],
)
def test_bad_steps_are_refused(arguments: dict[str, object], message: str) -> None:
    batch, advantages, old = work()
    made = trainer()
    given = {"batch": batch, "advantages": advantages, "old_log_probs": old, "responses": 6}
    with pytest.raises(InvalidInputError, match=message):
        made.step(**{**given, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"betas": (0.9, 1.0)}, r"betas is \(0.9, 1.0\)"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"max_gradient_norm": 0.0}, "max_gradient_norm is 0.0"),
        ({"micro_batch_tokens": 0}, "micro_batch_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        trainer(**settings)  # type: ignore[arg-type]


def test_a_checkpoint_without_its_optimizer_is_refused(tmp_path: Path) -> None:
    made = trainer()
    made.save(str(tmp_path))
    (tmp_path / "optimizer.safetensors").write_bytes(b"torn")
    with pytest.raises(InvalidInputError, match="not an optimizer checkpoint"):
        made.load(str(tmp_path))
    (tmp_path / "optimizer.safetensors").unlink()
    with pytest.raises(InvalidInputError, match=r"no optimizer\.safetensors"):
        made.load(str(tmp_path))
