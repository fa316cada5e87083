"""The training phase: complete groups in, a better policy out."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from k15core.algorithms import mini_batches

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from k15core.config import TrainSection
    from k15core.controller.parts import Parts
    from k15core.types import PackedBatch


@dataclass
class TrainReport:
    """What one iteration trained on, as fields of an "iteration" line of metrics.jsonl."""

    batch: PackedBatch | None = None
    fields: dict[str, Any] = field(default_factory=dict)


def train(parts: Parts, iteration: int, version: int) -> TrainReport:
    """Train on every complete group that is not too stale; success rates go to the sampler.

    Consumes the store's complete groups (each `max_uses` times). π_i is the policy as it is when
    the phase begins: its log-probs are computed before the first optimizer step.
    """
    recipe = parts.recipe
    batch = parts.store.sample(
        groups=max(1, len(parts.store.complete_groups())),
        max_staleness=recipe.store.max_staleness,
        version=version,
        strategy="fifo",
        seed=parts.seed("batch", iteration),
        max_segment_staleness=recipe.oldest_segment,
    )
    parts.trainer.reset_optimizer()
    parts.trainer.learning_rate = learning_rate(recipe.train, iteration)
    if len(batch) == 0:
        return TrainReport(fields={"finished": 0, "groups_trained": 0, "groups_skipped": 0})
    batch = batch.copy()
    rewards = parts.cut_penalty(batch.rewards, batch.finish_reasons)
    _report_success(parts, replace(batch, rewards=np.maximum(rewards, 0)), version)

    shaped = rewards
    if parts.length_reward is not None:
        shaped = parts.length_reward(
            rewards,
            batch.response_lengths(),
            batch.finish_reasons,
            batch.group_ids,
            iteration=iteration,
        )
    advantages = parts.algorithm.advantages(rewards, shaped, batch.group_ids)
    contributes = parts.algorithm.contributes(advantages, shaped, batch.group_ids)
    old_log_probs = np.zeros(len(batch.input_ids), np.float32)
    rows = np.flatnonzero(contributes)
    if len(rows):
        _scatter(old_log_probs, batch, rows, parts.trainer.log_probs(batch.select(rows)))
    groups = len(np.unique(batch.group_ids))
    steps = [
        parts.trainer.step(
            step.batch, step.advantages, step.old_log_probs, responses=step.responses
        )
        for step in mini_batches(
            batch,
            advantages,
            old_log_probs,
            contributes,
            n=min(recipe.train.mini_batches, groups),
            seed=parts.seed("mini-batches", iteration),
        )
    ]
    fields = _describe(replace(batch, rewards=rewards), version, parts)
    fields["groups_trained"] = groups
    fields["groups_skipped"] = groups - len(np.unique(batch.group_ids[contributes]))
    fields.update(
        {name: float(np.mean([step[name] for step in steps])) for name in (steps or [{}])[0]}
    )
    return TrainReport(batch, fields)


def learning_rate(section: TrainSection, iteration: int) -> float:
    """The rate of iteration 1, 2, …: linear, from the recipe's to its final share."""
    done = (iteration - 1) / max(section.iterations - 1, 1)
    return section.learning_rate * (1 - done * (1 - section.final_learning_rate_share))


def _report_success(parts: Parts, batch: PackedBatch, version: int) -> None:
    """Tell the sampler the mean reward of each group, in the order of the batch."""
    _, first, group = np.unique(batch.group_ids, return_index=True, return_inverse=True)
    means = np.bincount(group, weights=batch.rewards) / np.bincount(group)
    parts.sampler.update(batch.prompt_ids[first], means.astype(np.float32), version)


def _scatter(
    into: NDArray[np.float32],
    batch: PackedBatch,
    rows: NDArray[np.int64],
    values: NDArray[np.float32],
) -> None:
    """Write values of the selected rows [T of the selection] to their places in the batch [T]."""
    starts, lengths = batch.cu_seqlens[:-1][rows], np.diff(batch.cu_seqlens)[rows]
    packed = np.cumsum(lengths) - lengths
    into[np.repeat(starts - packed, lengths) + np.arange(lengths.sum())] = values


def _masked(batch: PackedBatch, version: int, oldest_segment: int | None) -> int:
    """Response tokens that are not trained on because their segment is too old."""
    if oldest_segment is None or oldest_segment >= version:
        return 0
    response = batch.position_ids >= np.repeat(batch.prompt_lengths, np.diff(batch.cu_seqlens))
    old = response & (batch.versions < version - oldest_segment)
    return int((old & (batch.loss_mask == 0)).sum())


def _describe(batch: PackedBatch, version: int, parts: Parts) -> dict[str, Any]:
    """What the batch looks like: pass rate, lengths, staleness, segments."""
    lengths = batch.response_lengths()
    counts, edges = np.histogram(
        lengths, bins=24, range=(0, parts.recipe.rollout.max_response_tokens)
    )
    staleness: list[int] = []
    segments: Counter[int] = Counter()
    for start, end, prompt in zip(
        batch.cu_seqlens[:-1], batch.cu_seqlens[1:], batch.prompt_lengths, strict=True
    ):
        versions = np.unique(batch.versions[start + prompt : end])
        staleness.append(version - int(versions[0]) if len(versions) else 0)
        segments[len(versions)] += 1
    correct = batch.rewards >= parts.recipe.algorithm.correct_at
    by_difficulty: dict[float, list[bool]] = defaultdict(list)
    for prompt_id, right in zip(batch.prompt_ids.tolist(), correct.tolist(), strict=True):
        difficulty = parts.prompts[prompt_id].difficulty
        if difficulty is not None:
            by_difficulty[difficulty].append(right)
    return {
        "finished": len(batch),
        "pass_rate": float(correct.mean()),
        "mean_reward": float(batch.rewards.mean()),
        "mean_length": float(lengths.mean()),
        "length_quantiles": np.quantile(lengths, [0.1, 0.5, 0.9]).tolist(),
        "length_histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        "staleness_mean": float(np.mean(staleness)),
        "staleness_max": max(staleness),
        "staleness_histogram": {str(n): count for n, count in sorted(Counter(staleness).items())},
        "tokens_masked": _masked(batch, version, parts.recipe.oldest_segment),
        "segments_histogram": {str(n): count for n, count in sorted(segments.items())},
        "success_by_difficulty": {
            f"{difficulty:g}": float(np.mean(right))
            for difficulty, right in sorted(by_difficulty.items())
        },
    }
