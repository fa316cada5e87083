"""What each rank is sent: a batch's rows, dealt out and cut down to what it needs; and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from k15core.packing import PackedBatch
from k15core.trainer.megatron.settings import Micro

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from k15core.packing import MicroBatch
    from k15core.trainer.base import Pack
    from k15core.trainer.megatron.settings import Layout


def deal(batch: PackedBatch, layout: Layout, tokens: int) -> list[list[MicroBatch]]:
    """Each data-parallel rank's micro-batches, of at most `tokens` tokens.

    All ranks have the same number of them, about equal in tokens. A row that is longer has one to
    itself. With sequence parallelism the tokens of each are a multiple of the ranks that share it.
    """
    multiple = layout.tensor if layout.sequence else 1
    longest = -(-int(np.diff(batch.cu_seqlens).max()) // multiple) * multiple
    return batch.micro_batches(
        max_tokens=max(tokens // multiple * multiple, longest),
        ranks=layout.data,
        pad_total_to_multiple=multiple,
    )


def micro_for_rank(
    micro: MicroBatch,
    mask: NDArray[Any],
    old_log_probs: NDArray[np.float32] | None = None,
    advantages: NDArray[np.float32] | None = None,
) -> Micro:
    """What a rank needs of a micro-batch, `mask` [T] saying of which tokens it wants log-probs."""
    places = np.flatnonzero(mask)
    rows = np.searchsorted(micro.cu_seqlens_padded, places, side="right") - 1
    old = np.zeros(len(mask), np.float32) if old_log_probs is None else old_log_probs
    mine = np.zeros(len(micro), np.float32) if advantages is None else advantages[micro.rows]
    return Micro(
        input_ids=micro.input_ids,
        cu_seqlens=micro.cu_seqlens_padded,
        max_seqlen=micro.max_seqlen,
        places=places,
        rows=rows,
        old_log_probs=old[places],
        advantages=mine.astype(np.float32),
    )


def added_up(places: Sequence[Mapping[str, Any]], answers: Sequence[Any]) -> list[float]:
    """What the ranks that report found, some sums a micro-batch each, added up."""
    found = [
        sums
        for place, answer in zip(places, answers, strict=True)
        for sums in answer
        if place["reports"]
    ]
    return [float(each) for each in np.sum(found, axis=0)]


def as_batch(pack: Pack) -> PackedBatch:
    """Demonstrations as trajectories, of which tokens, lengths and the mask alone are looked at."""
    rows = len(pack.cu_seqlens) - 1
    lengths = np.diff(pack.cu_seqlens)
    numbers = np.arange(rows, dtype=np.int64)
    return PackedBatch(
        input_ids=pack.input_ids.astype(np.int32),
        position_ids=pack.position_ids,
        cu_seqlens=pack.cu_seqlens,
        max_seqlen=int(lengths.max()),
        loss_mask=pack.loss_mask.astype(np.uint8),
        rollout_log_probs=np.zeros(len(pack.input_ids), np.float32),
        versions=np.zeros(len(pack.input_ids), np.uint32),
        rewards=np.zeros(rows, np.float32),
        group_ids=numbers,
        trajectory_ids=numbers,
        prompt_ids=numbers,
        prompt_lengths=np.ones(rows, np.int32),
        finish_reasons=np.zeros(rows, np.uint8),
    )
