"""What every trainer does before it computes: check its input, cut it into micro-batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from k15core.types import Demonstration, PackedBatch


@dataclass(frozen=True)
class Pack:
    """Demonstrations, one after another in flat arrays; `tokens` of them are trained on."""

    input_ids: NDArray[np.int32]  # [T]
    position_ids: NDArray[np.int32]  # [T]
    cu_seqlens: NDArray[np.int32]  # [B + 1]
    loss_mask: NDArray[np.bool_]  # [T]
    tokens: int


def pack_demonstrations(demonstrations: Sequence[Demonstration]) -> Pack:
    """Pack demonstrations; refuses an empty list, a prompt or a response of no tokens."""
    if not demonstrations:
        raise InvalidInputError("demonstrations is empty: expected at least one")
    lengths = np.array([len(shown.input_ids) for shown in demonstrations], np.int32)
    prompts = np.array([shown.prompt_length for shown in demonstrations], np.int32)
    wrong = np.flatnonzero((prompts < 1) | (prompts >= lengths))
    if len(wrong):
        raise InvalidInputError(
            f"demonstrations[{wrong[0]}].prompt_length is {prompts[wrong[0]]} of "
            f"{lengths[wrong[0]]} tokens: expected a prompt and a response of a token at least"
        )
    cu_seqlens = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    position_ids = np.arange(cu_seqlens[-1], dtype=np.int32) - np.repeat(cu_seqlens[:-1], lengths)
    loss_mask = position_ids >= np.repeat(prompts, lengths)
    input_ids = np.concatenate([shown.input_ids for shown in demonstrations])
    return Pack(input_ids, position_ids, cu_seqlens, loss_mask, int(loss_mask.sum()))


def check_pack(batch: PackedBatch) -> None:
    """Refuse a batch whose arrays do not fit together, naming the array."""
    cu_seqlens, tokens, rows = batch.cu_seqlens, len(batch.input_ids), len(batch)
    if len(cu_seqlens) != rows + 1 or rows == 0:
        raise InvalidInputError(
            f"cu_seqlens has {len(cu_seqlens)} entries for {rows} rewards: expected B + 1, B >= 1"
        )
    lengths = np.diff(cu_seqlens)
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != tokens or (lengths < 1).any():
        raise InvalidInputError(
            f"cu_seqlens runs from {cu_seqlens[0]} to {cu_seqlens[-1]}: expected an ascent from 0 "
            f"to {tokens}, the length of input_ids"
        )
    if batch.max_seqlen < lengths.max():
        raise InvalidInputError(
            f"max_seqlen is {batch.max_seqlen}: expected at least {lengths.max()}, the longest"
        )
    if (batch.prompt_lengths < 1).any() or (batch.prompt_lengths > lengths).any():
        raise InvalidInputError(
            "prompt_lengths has an entry outside 1 … the trajectory's length: expected a prompt "
            "token at least, for the first response token needs one before it"
        )
    checked("loss_mask", batch.loss_mask, tokens)
    checked("position_ids", batch.position_ids, tokens)
    if (batch.position_ids != _places(batch)).any():
        raise InvalidInputError("position_ids: expected 0, 1, 2, … from each trajectory's start")


def check_step(
    batch: PackedBatch,
    advantages: NDArray[np.float32],
    old_log_probs: NDArray[np.float32],
    responses: int,
) -> None:
    """Refuse what a step must not be taken with."""
    check_pack(batch)
    checked("advantages", advantages, len(batch))
    checked("old_log_probs", old_log_probs, len(batch.input_ids))
    if responses < len(batch):
        raise InvalidInputError(
            f"responses is {responses}: expected at least {len(batch)}, those in the batch "
            "(skipped groups count too)"
        )
    prompt = _in_prompt(batch)
    if batch.loss_mask[prompt].any():
        raise InvalidInputError("loss_mask is not 0 on a prompt token: expected 0 on prompts")


def checked(name: str, values: NDArray[Any], length: int) -> None:
    """Refuse an array of another length, or one with an entry that is not finite."""
    if values.shape != (length,):
        raise InvalidInputError(f"{name} has shape {values.shape}: expected [{length}]")
    if not np.isfinite(values).all():
        raise InvalidInputError(f"{name} has an entry that is not finite: expected numbers")


def response_mask(batch: PackedBatch) -> NDArray[np.bool_]:
    """True on every response token [T], trained on or not."""
    return ~_in_prompt(batch)


def _in_prompt(batch: PackedBatch) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = _places(batch) < np.repeat(
        batch.prompt_lengths, np.diff(batch.cu_seqlens)
    )
    return inside


def _places(batch: PackedBatch) -> NDArray[np.int64]:
    """Each token's place in its trajectory [T]."""
    starts, lengths = batch.cu_seqlens[:-1], np.diff(batch.cu_seqlens)
    places: NDArray[np.int64] = np.arange(len(batch.input_ids)) - np.repeat(starts, lengths)
    return places


def check_ids(input_ids: NDArray[np.int32], vocab_size: int) -> None:
    """Refuse tokens that the model's embedding does not have."""
    low, high = input_ids.min(), input_ids.max()
    if low < 0 or high >= vocab_size:
        raise InvalidInputError(
            f"input_ids runs from {low} to {high}: expected tokens of the model's vocabulary, "
            f"0 … {vocab_size - 1}"
        )


def trained_rows(
    batch: PackedBatch, advantages: NDArray[np.float32], old_log_probs: NDArray[np.float32]
) -> tuple[PackedBatch, NDArray[np.float32], NDArray[np.float32]]:
    """The rows with a trained token: responses that are masked altogether add nothing."""
    trained = np.logical_or.reduceat(batch.loss_mask != 0, batch.cu_seqlens[:-1])
    if trained.all():
        return batch, advantages, old_log_probs
    old_log_probs = old_log_probs[np.repeat(trained, np.diff(batch.cu_seqlens))]
    return batch.select(np.flatnonzero(trained)), advantages[trained], old_log_probs


def loss_metrics(sums: Sequence[float], tokens: int, responses: int) -> dict[str, float]:
    """What a step says of its loss, of `tokens` trained tokens in `responses` rows.

    `sums` are the loss, and over the tokens exp(δ) - 1 - δ, δ and -log π_θ, with δ the log-prob
    under π_θ less that under π_i. All are 0 where nothing is trained.
    """
    loss, k3, drift, surprise = sums
    return {
        "loss": loss,
        "kl": k3 / max(tokens, 1),
        "drift": drift / max(responses, 1),
        "entropy": surprise / max(tokens, 1),
        "tokens": tokens,
    }


NOTHING_TRAINED = (0.0, 0.0, 0.0, 0.0)
"""The sums of a batch without a trained token."""


def micro_batches(cu_seqlens: NDArray[np.int32], tokens: int) -> list[tuple[int, int]]:
    """Cut a pack into runs of whole rows [start, end) of at most `tokens` tokens each.

    A row longer than that has a micro-batch to itself: the loss needs whole responses.
    """
    if tokens < 1:
        raise InvalidInputError(f"micro_batch_tokens is {tokens}: expected at least 1")
    cuts, start, rows = [], 0, len(cu_seqlens) - 1
    while start < rows:
        end = int(np.searchsorted(cu_seqlens, cu_seqlens[start] + tokens, side="right")) - 1
        end = max(end, start + 1)
        cuts.append((start, end))
        start = end
    return cuts


def shared_prompts(
    batch: PackedBatch, start: int, end: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Which tokens of the rows [start, end) need computing once: (places [T], first [U]).

    The k responses of a group follow the same prompt: it is computed for the first of them only.
    As `models.attention.Shared`, counted from the first token of row `start`; None if no row has
    its prompt from another.
    """
    cu_seqlens = batch.cu_seqlens[start : end + 1].astype(np.int64)
    ids = batch.input_ids[cu_seqlens[0] : cu_seqlens[-1]]
    starts, lengths = cu_seqlens[:-1] - cu_seqlens[0], np.diff(cu_seqlens)
    _, leader, group = np.unique(batch.group_ids[start:end], return_index=True, return_inverse=True)
    prompts = batch.prompt_lengths[start:end]
    if len(leader) == len(group) or (prompts != prompts[leader[group]]).any():
        return None
    here = np.arange(len(ids))
    # Where the first response of the group has the token that stands here.
    there = here - np.repeat(starts - starts[leader[group]], lengths)
    prompt = here - np.repeat(starts, lengths) < np.repeat(prompts, lengths)
    same = np.where(prompt, there, here)
    if (ids[same] != ids).any():
        return None
    first = np.flatnonzero(same == here)
    rank = np.cumsum(same == here) - 1
    return rank[same], first
