"""Trajectories packed into flat arrays, and their division into micro-batches.

Shapes in brackets: B trajectories, T packed tokens, S segments. numpy is imported at first use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    S = TypeVar("S", bound=np.generic)


@dataclass(frozen=True)
class PackedBatch:
    """B trajectories, one after another in flat arrays. Groups are contiguous.

    `columns` has what was declared with `Store(columns=…)`, by name. What `Store.sample` returns
    are views into buffers that its next call may reuse: `copy()` what must live longer.
    """

    input_ids: NDArray[np.int32]  # [T]
    position_ids: NDArray[np.int32]  # [T]
    cu_seqlens: NDArray[np.int32]  # [B + 1]
    max_seqlen: int
    loss_mask: NDArray[np.uint8]  # [T]
    rollout_log_probs: NDArray[np.float32]  # [T]
    versions: NDArray[np.uint32]  # [T]
    rewards: NDArray[np.float32]  # [B]
    group_ids: NDArray[np.int64]  # [B]
    trajectory_ids: NDArray[np.int64]  # [B]
    prompt_ids: NDArray[np.int64]  # [B]
    prompt_lengths: NDArray[np.int32]  # [B]
    finish_reasons: NDArray[np.uint8]  # [B], codes of FINISH_REASONS
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # a user's own, [T] each

    def __len__(self) -> int:
        return len(self.rewards)

    def copy(self) -> PackedBatch:
        """The same batch in memory of its own."""
        named = {k: v for k, v in vars(self).items() if k not in ("max_seqlen", "columns")}
        columns = {name: values.copy() for name, values in self.columns.items()}
        return replace(self, columns=columns, **{k: v.copy() for k, v in named.items()})

    def response_lengths(self) -> NDArray[np.int32]:
        """Tokens of each response [B], whatever their loss mask."""
        return self.cu_seqlens[1:] - self.cu_seqlens[:-1] - self.prompt_lengths

    def select(self, rows: NDArray[np.int64] | Sequence[int]) -> PackedBatch:
        """The given trajectories in the given order, in memory of their own."""
        import numpy as np

        rows = np.asarray(rows, np.int64)
        starts, lengths = self.cu_seqlens[:-1][rows], np.diff(self.cu_seqlens)[rows]
        cu_seqlens = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        tokens = np.repeat(starts - cu_seqlens[:-1], lengths) + np.arange(cu_seqlens[-1])
        per_token = ("input_ids", "position_ids", "loss_mask", "rollout_log_probs", "versions")
        per_row = (
            "rewards",
            "group_ids",
            "trajectory_ids",
            "prompt_ids",
            "prompt_lengths",
            "finish_reasons",
        )
        return replace(
            self,
            cu_seqlens=cu_seqlens,
            max_seqlen=int(lengths.max(initial=0)),
            **{name: getattr(self, name)[tokens] for name in per_token},
            **{name: getattr(self, name)[rows] for name in per_row},
            columns={name: values[tokens] for name, values in self.columns.items()},
        )

    def micro_batches(
        self,
        *,
        max_tokens: int,
        ranks: int = 1,
        pad_to_multiple: int = 1,
        pad_total_to_multiple: int = 1,
        whole_groups: bool = False,
        count_multiple: int = 1,
        pad_token_id: int = 0,
    ) -> list[list[MicroBatch]]:
        """Deal the trajectories out to data-parallel ranks: each rank's micro-batches, in order.

        Each trajectory is in one micro-batch, and with `whole_groups` so are all of its group. All
        ranks have the same number of micro-batches, as few as can be found, a multiple of
        `count_multiple` (interleaved pipelines need one). No micro-batch has more than `max_tokens`
        tokens, padding included.

        All micro-batches are about equal in tokens. Of those that ranks compute at the same time,
        and of what ranks have altogether, the largest exceeds the smallest by at most the largest
        trajectory (or group). Where trajectories are fewer than micro-batches, some have nothing
        but padding: they give no loss, and let every rank make the same collective calls.

        Each row is padded to a multiple of `pad_to_multiple` tokens: tp with sequence parallelism,
        times 2·cp with context parallelism. The whole is padded to a multiple of
        `pad_total_to_multiple`, which must be one of `pad_to_multiple` (tp·128 keeps the number of
        shapes, and with them the allocator's fragments, small), by one segment of padding at its
        end.

        A function of its arguments. Raises InvalidInputError for sizes that are not positive, or a
        trajectory (or group) that exceeds `max_tokens` by itself.
        """
        import numpy as np

        from k15core._core import plan_micro_batches

        planned = plan_micro_batches(
            self.cu_seqlens,
            self.group_ids if whole_groups else None,
            ranks=ranks,
            max_tokens=max_tokens,
            pad_to_multiple=pad_to_multiple,
            pad_total_to_multiple=pad_total_to_multiple,
            count_multiple=count_multiple,
        )
        lengths = np.diff(self.cu_seqlens)

        def make(rows: NDArray[np.int64]) -> MicroBatch:
            segments = lengths[rows]
            padded = -(-segments // pad_to_multiple) * pad_to_multiple
            total = max(int(padded.sum()), pad_to_multiple)
            total = -(-total // pad_total_to_multiple) * pad_total_to_multiple
            rest = total - int(padded.sum())
            if rest:
                segments, padded = np.append(segments, rest), np.append(padded, rest)
            return MicroBatch(self, rows, _ends(segments), _ends(padded), pad_token_id)

        return [[make(rows) for rows in rank] for rank in planned]


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Trajectories of a batch that one rank computes at a time, padded: B rows in T tokens.

    Row i holds trajectory rows[i] of `batch`: what the batch has once a trajectory is
    `batch.rewards[micro.rows]`. The tokens lie in S segments: the rows, and where the whole is
    padded, or there are no rows, one more of nothing but padding. Segment i begins at
    cu_seqlens_padded[i] with cu_seqlens[i + 1] - cu_seqlens[i] tokens; then comes its padding.
    Arrays are made when they are first asked for: a rank pays for its own micro-batches only.
    """

    batch: PackedBatch
    rows: NDArray[np.int64]  # [B], ascending
    cu_seqlens: NDArray[np.int32]  # [S + 1], without the padding of rows
    cu_seqlens_padded: NDArray[np.int32]  # [S + 1], with it; the last is T
    pad_token_id: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest segment, padding included."""
        return int((self.cu_seqlens_padded[1:] - self.cu_seqlens_padded[:-1]).max())

    @cached_property
    def input_ids(self) -> NDArray[np.int32]:
        """Prompt and response tokens [T]; `pad_token_id` in the padding."""
        return self.gather(self.batch.input_ids, fill=self.pad_token_id)

    @cached_property
    def position_ids(self) -> NDArray[np.int32]:
        """Places within the trajectory [T]; 0 in the padding."""
        return self.gather(self.batch.position_ids)

    @cached_property
    def loss_mask(self) -> NDArray[np.uint8]:
        """1 for tokens that are trained on [T]; 0 in the padding."""
        return self.gather(self.batch.loss_mask)

    @cached_property
    def rollout_log_probs(self) -> NDArray[np.float32]:
        """Log-probs under the policy that sampled [T]; 0 in the padding."""
        return self.gather(self.batch.rollout_log_probs)

    @cached_property
    def versions(self) -> NDArray[np.uint32]:
        """Policy versions [T]; 0 in the padding."""
        return self.gather(self.batch.versions)

    @cached_property
    def columns(self) -> dict[str, NDArray[Any]]:
        """The batch's columns by name, [T] each; 0 in the padding."""
        return {name: self.gather(values) for name, values in self.batch.columns.items()}

    def packed_seq_params(self) -> dict[str, Any]:
        """The keywords of megatron-core's `PackedSeqParams`; NumPy arrays where it has tensors.

        `qkv_format` is "thd". `cu_seqlens_q` and `cu_seqlens_kv`, int32 [S + 1], count the tokens
        of the segments; `cu_seqlens_q_padded` and `cu_seqlens_kv_padded`, int32 [S + 1], say where
        they lie; `max_seqlen_q` and `max_seqlen_kv`, int, are tokens of the longest with its
        padding. An attention that knows of no padding takes the padded arrays for both: they cover
        all T tokens.
        """
        longest = self.max_seqlen
        return {
            "qkv_format": "thd",
            "cu_seqlens_q": self.cu_seqlens,
            "cu_seqlens_kv": self.cu_seqlens,
            "cu_seqlens_q_padded": self.cu_seqlens_padded,
            "cu_seqlens_kv_padded": self.cu_seqlens_padded,
            "max_seqlen_q": longest,
            "max_seqlen_kv": longest,
        }

    def gather(self, values: NDArray[S], *, fill: float = 0) -> NDArray[S]:
        """Entries a token of the batch [tokens of the batch, …], in this layout [T, …]."""
        import numpy as np

        tokens = len(self.batch.input_ids)
        if values.ndim < 1 or len(values) != tokens:
            raise InvalidInputError(
                f"values has shape {values.shape}: expected {tokens} entries, one for each token "
                "of the batch"
            )
        shape = (int(self.cu_seqlens_padded[-1]), *values.shape[1:])
        gathered = np.full(shape, fill, values.dtype)
        self._copy(values, gathered, out=False)
        return gathered

    def scatter(self, values: NDArray[S], into: NDArray[S]) -> None:
        """Put entries a token of this micro-batch [T, …] where the batch has them.

        `into` [tokens of the batch, …] is contiguous and of the same dtype. What the padding has
        goes nowhere.
        """
        expected = (len(self.batch.input_ids), *values.shape[1:])
        if values.ndim < 1 or len(values) != self.cu_seqlens_padded[-1]:
            raise InvalidInputError(
                f"values has shape {values.shape}: expected {self.cu_seqlens_padded[-1]} entries, "
                "one for each token of the micro-batch"
            )
        if into.shape != expected or into.dtype != values.dtype or not into.flags.c_contiguous:
            raise InvalidInputError(
                f"into is {into.dtype} of shape {into.shape}: expected contiguous {values.dtype} "
                f"of shape {expected}"
            )
        self._copy(values, into, out=True)

    def _copy(self, values: NDArray[Any], into: NDArray[Any], *, out: bool) -> None:
        import numpy as np

        from k15core._core import copy_runs

        ends = self.batch.cu_seqlens.astype(np.int64)
        there, lengths = ends[self.rows], np.diff(ends)[self.rows]
        here = self.cu_seqlens_padded[: len(self)].astype(np.int64)
        width = math.prod(values.shape[1:]) * values.itemsize
        copy_runs(
            np.ascontiguousarray(values).reshape(-1).view(np.uint8),
            into.reshape(-1).view(np.uint8),
            here if out else there,
            there if out else here,
            lengths,
            width,
        )


def _ends(lengths: NDArray[np.int32]) -> NDArray[np.int32]:
    """Where each of some segments begins, and the end: [S + 1]."""
    import numpy as np

    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
