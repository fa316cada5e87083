"""What a step of the trainer computes: losses, gradients and log-probs, against NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy_decoder import log_probs as numpy_log_probs
from numpy_decoder import surrogate
from trainer_work import (
    SHAPE,
    VOCAB,
    Work,
    accumulated,
    gradients,
    model,
    rows,
    same,
    trainer,
    work,
    work_of_groups,
)

from k15core.trainer.base import shared_prompts
from k15core.trainer.torch import TorchTrainer


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
    stale = slice(batch.cu_seqlens[4] + 2, batch.cu_seqlens[4] + 6)
    loss_mask = batch.loss_mask.copy()
    loss_mask[stale] = 0
    masked = replace(batch, loss_mask=loss_mask)
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
