from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy_decoder import log_probs as numpy_log_probs
from numpy_decoder import surrogate
from packed import packed

from k15core.algorithms import MirrorDescent, ReST, mask_stale
from k15core.errors import InvalidInputError
from k15core.models.create import new_model
from k15core.models.lean import LeanModel
from k15core.trainer import torch as torch_trainer
from k15core.trainer.base import shared_prompts
from k15core.trainer.optimizer import DivergedError
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


@pytest.mark.parametrize("make", [work, work_of_groups])
def test_gradient_equals_central_differences_in_numpy(make: Work) -> None:
    """Every parameter's derivative, from a forward that shares no code with torch's."""
    batch, advantages, old = make()
    made = trainer()
    metrics = made.accumulate(batch, advantages, old, responses=10)
    got = gradients(made.model)
    weights = {
        name: p.detach().numpy().astype(np.float64) for name, p in made.model.named_parameters()
    }
    sequences = rows(batch, batch.input_ids)
    masks = [mask[1:] for mask in rows(batch, batch.loss_mask)]
    before = [lp[1:].astype(np.float64) for lp in rows(batch, old)]

    def loss() -> float:
        new = [numpy_log_probs(weights, tokens, **SHAPE) for tokens in sequences]
        return surrogate(new, before, masks, advantages.tolist(), tau=0.3, responses=10)

    assert metrics["loss"] == pytest.approx(loss(), rel=1e-5)
    scale = max(np.abs(g).max() for g in got.values())
    h = 1e-5
    for name, value in weights.items():
        expected = np.zeros_like(value)
        for at in np.ndindex(value.shape):
            kept = value[at]
            value[at] = kept + h
            up = loss()
            value[at] = kept - h
            expected[at] = (up - loss()) / (2 * h)
            value[at] = kept
        np.testing.assert_allclose(got[name], expected, rtol=1e-3, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("make", [work, work_of_groups])
def test_log_probs_are_the_numpy_decoders(make: Work) -> None:
    batch, _, _ = make()
    made = trainer()
    weights = {n: p.detach().numpy().astype(np.float64) for n, p in made.model.named_parameters()}
    got = made.log_probs(batch)
    assert got.dtype == np.float32
    for j, tokens in enumerate(rows(batch, batch.input_ids)):
        mine, prompt = rows(batch, got)[j], batch.prompt_lengths[j]
        assert not mine[:prompt].any()
        # Masked tokens have log-probs too: whether they are trained on is another question.
        expected = numpy_log_probs(weights, tokens, **SHAPE)[prompt - 1 :]
        np.testing.assert_allclose(mine[prompt:], expected, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 12, 20, 33])
def test_micro_batches_do_not_change_the_step(tokens: int) -> None:
    batch, advantages, old = work()
    whole, metrics = accumulated(batch, advantages, old)
    cut, cut_metrics = accumulated(batch, advantages, old, micro_batch_tokens=tokens)
    same(whole, cut)
    assert cut_metrics == pytest.approx(metrics, rel=1e-5)


def test_packed_equals_one_at_a_time() -> None:
    batch, advantages, old = work()
    whole, _ = accumulated(batch, advantages, old)
    made = trainer()
    for j in range(len(batch)):
        one = slice(batch.cu_seqlens[j], batch.cu_seqlens[j + 1])
        made.accumulate(batch.select([j]), advantages[[j]], old[one], responses=len(batch))
    same(whole, gradients(made.model))


def test_a_prompt_is_computed_once_for_its_group() -> None:
    batch, _, _ = work_of_groups()
    found = shared_prompts(batch, 0, 6)
    assert found is not None
    places, first = found
    # Of 3 + 3 + 3 and 2 + 2 prompt tokens only the first responses' are left.
    assert len(first) == len(batch.input_ids) - 6 - 2
    assert (batch.input_ids[first][places] == batch.input_ids).all()
    assert (batch.position_ids[first][places] == batch.position_ids).all()
    assert (places[first] == np.arange(len(first))).all()
    # A micro-batch may begin inside a group; nothing is shared where every group has one row.
    inside = shared_prompts(batch, 1, 4)
    assert inside is not None
    assert len(inside[1]) == batch.cu_seqlens[4] - batch.cu_seqlens[1] - 3
    assert shared_prompts(batch, 2, 5) is None


def test_prompts_that_differ_are_not_shared() -> None:
    batch, _, _ = work_of_groups()
    other = batch.input_ids.copy()
    other[batch.cu_seqlens[2]] = (other[batch.cu_seqlens[2]] + 1) % VOCAB
    assert shared_prompts(replace(batch, input_ids=other), 0, 6) is None
    shorter = batch.prompt_lengths.copy()
    shorter[1] = 2
    assert shared_prompts(replace(batch, prompt_lengths=shorter), 0, 6) is None


def test_sharing_prompts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, advantages, old = work_of_groups()
    shared, metrics = accumulated(batch, advantages, old)
    cut, _ = accumulated(batch, advantages, old, micro_batch_tokens=20)
    monkeypatch.setattr(TorchTrainer, "_shared", lambda *_: None)
    plain, plain_metrics = accumulated(batch, advantages, old)
    same(shared, plain)
    same(cut, plain)
    assert metrics == pytest.approx(plain_metrics, rel=1e-5)


def test_skipped_groups_count_in_the_loss() -> None:
    batch, advantages, old = work()
    six, metrics = accumulated(batch, advantages, old, responses=6)
    twelve, halved = accumulated(batch, advantages, old, responses=12)
    same(six, {name: 2 * g for name, g in twelve.items()})
    assert halved["loss"] == pytest.approx(metrics["loss"] / 2)
    assert halved["kl"] == metrics["kl"]


def test_masked_segments_attract_no_gradient() -> None:
    """A stale segment is context: the loss and its gradient are those of the other tokens alone."""
    batch, advantages, old = work()
    versions = np.where(batch.versions > 0, 3, 0).astype(np.uint32)
    stale = slice(batch.cu_seqlens[4] + 2, batch.cu_seqlens[4] + 6)
    versions[stale] = 2
    masked = mask_stale(replace(batch, versions=versions), version=3, max_segment_staleness=0)
    assert masked.loss_mask.sum() == batch.loss_mask.sum() - 4
    got, metrics = accumulated(masked, advantages, old)
    # What π_i thought of a masked token cannot matter.
    other = old.copy()
    other[stale] -= 5
    again, _ = accumulated(masked, advantages, other)
    same(got, again, atol=0)
    kept, kept_metrics = accumulated(batch, advantages, old)
    assert metrics["tokens"] == kept_metrics["tokens"] - 4
    assert any(np.abs(got[name] - kept[name]).max() > 1e-3 for name in got)


def test_wholly_masked_responses_add_nothing() -> None:
    batch, advantages, old = work()
    mask = batch.loss_mask.copy()
    mask[batch.cu_seqlens[1] : batch.cu_seqlens[2]] = 0
    got, _ = accumulated(replace(batch, loss_mask=mask), advantages, old)
    rest = [0, 2, 3, 4, 5]
    kept = np.concatenate([rows(batch, old)[j] for j in rest])
    expected, _ = accumulated(batch.select(rest), advantages[rest], kept, responses=6)
    same(got, expected)


def test_nothing_to_train_on_leaves_everything_alone() -> None:
    batch, advantages, old = work()
    made = trainer(weight_decay=0.5)
    before = {n: p.detach().clone() for n, p in made.model.named_parameters()}
    nothing = replace(batch, loss_mask=batch.loss_mask * 0)
    metrics = made.step(nothing, advantages, old, responses=6)
    assert metrics["loss"] == metrics["gradient_norm"] == metrics["tokens"] == 0
    assert all(torch.equal(before[n], p) for n, p in made.model.named_parameters())


def test_rest_trains_as_plain_imitation() -> None:
    batch, _, old = work()
    ones = np.ones(len(batch), np.float32)
    got, metrics = accumulated(batch, ones, old, rest=True)
    expected, _ = accumulated(batch, ones, old, tau=0.0)
    same(got, expected, atol=0)
    chosen = batch.loss_mask > 0
    assert metrics["loss"] == pytest.approx(
        -trainer().log_probs(batch)[chosen].sum() / len(batch), rel=1e-5
    )


def test_a_temperature_is_a_head_divided_by_it() -> None:
    """The policy that is trained is the one that was sampled from: softmax(logits / T)."""
    batch, advantages, old = work()
    colder = model()
    with torch.no_grad():
        colder.head.div_(0.7)
    want, wanted = (
        trainer(colder).log_probs(batch),
        accumulated(batch, advantages, old, net=colder)[0],
    )
    np.testing.assert_allclose(trainer(temperature=0.7).log_probs(batch), want, rtol=0, atol=1e-5)
    got, _ = accumulated(batch, advantages, old, temperature=0.7)
    got["lm_head.weight"] = got["lm_head.weight"] * np.float32(0.7)
    same(got, wanted, atol=1e-5)
    # Greedy rollouts record the plain softmax.
    np.testing.assert_array_equal(
        trainer(temperature=0).log_probs(batch), trainer().log_probs(batch)
    )


def test_negative_advantages_push_down() -> None:
    batch, _, _ = work()
    made = trainer(learning_rate=1e-3)
    old = made.log_probs(batch)
    advantages = np.array([1, -1, 1, -1, 1, -1], np.float32)
    made.step(batch, advantages, old, responses=6)
    change = (made.log_probs(batch) - old) * batch.loss_mask
    assert (np.sign([row.sum() for row in rows(batch, change)]) == advantages).all()


def test_metrics_measure_the_distance_to_the_old_policy() -> None:
    batch, advantages, old = work()
    made = trainer()
    new = made.log_probs(batch)
    _, metrics = accumulated(batch, advantages, old)
    chosen = batch.loss_mask > 0
    delta = (new - old)[chosen]
    assert metrics["kl"] == pytest.approx((np.exp(delta) - 1 - delta).mean(), rel=1e-4)
    assert metrics["drift"] == pytest.approx(delta.sum() / len(batch), rel=1e-4)
    assert metrics["entropy"] == pytest.approx(-new[chosen].mean(), rel=1e-4)
    assert metrics["tokens"] == chosen.sum()
    at_home = made.accumulate(batch, advantages, new, responses=6)
    assert at_home["kl"] == pytest.approx(0, abs=1e-9)


def test_gradient_is_clipped_to_its_norm() -> None:
    """The first step of AdamW without decay moves by lr·g/(|g| + eps): scale shows in eps only, so
    the clipped gradient is looked at as the optimizer sees it."""
    batch, advantages, old = work()
    raw, _ = accumulated(batch, advantages, old)
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in raw.values()))
    for limit in (norm / 10, norm * 10):
        made = trainer(max_gradient_norm=limit)
        seen: dict[str, np.ndarray] = {}
        made._optimizer._adam.register_step_pre_hook(
            lambda *_, seen=seen, made=made: seen.update(gradients(made.model))
        )
        metrics = made.step(batch, advantages, old, responses=6)
        assert metrics["gradient_norm"] == pytest.approx(norm, rel=1e-4)
        factor = min(1.0, limit / norm)
        same(seen, {name: factor * g for name, g in raw.items()})


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
