"""What rollout engines share: the check of what `start` is given, and how a lease is resumed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from k15core.types import Lease


@dataclass(frozen=True)
class Stream:
    """One trajectory to continue, as an engine holds it.

    `replay` are the response tokens that the engine's present weights generated: after a crash they
    go through the kernel that sampled them, so that what follows is what would have followed.
    Everything before them is `prompt` and `tail`, and is prefilled.
    """

    trajectory_id: int
    prompt: NDArray[np.int32]
    tail: NDArray[np.int32]
    replay: NDArray[np.int32]
    max_new_tokens: int
    temperature: float
    seed: int

    @property
    def response(self) -> NDArray[np.int32]:
        """The response so far."""
        return np.concatenate((self.tail, self.replay))

    @property
    def tokens(self) -> int:
        """Tokens of prompt and response so far."""
        return len(self.prompt) + len(self.tail) + len(self.replay)


def streams_of(
    leases: Sequence[Lease],
    *,
    max_new_tokens: Sequence[int],
    temperature: float,
    seed: int,
    version: int,
    vocabulary: int,
    max_total_tokens: int,
) -> list[Stream]:
    """Check what an engine is asked to start, and split each lease for an engine at `version`.

    Raises InvalidInputError before anything is started.
    """
    if len(max_new_tokens) != len(leases):
        raise InvalidInputError(
            f"max_new_tokens = {len(max_new_tokens)} entries: expected {len(leases)}, one a lease"
        )
    if not (math.isfinite(temperature) and temperature >= 0):
        raise InvalidInputError(f"temperature = {temperature}: expected 0 (greedy) or more")
    if not 0 <= seed < 1 << 64:
        raise InvalidInputError(f"seed = {seed}: expected an unsigned number of 64 bits")
    streams = []
    for lease, budget in zip(leases, max_new_tokens, strict=True):
        ids = np.asarray(lease.input_ids, np.int32)
        where, prompt = f"trajectory {lease.trajectory_id}", lease.prompt_length
        if not 1 <= prompt <= len(ids) or len(lease.versions) != len(ids):
            raise InvalidInputError(
                f"{where}: prompt_length = {prompt}, {len(lease.versions)} versions: expected a "
                f"prompt of 1 to {len(ids)} tokens and a version for each of them"
            )
        if budget < 1:
            raise InvalidInputError(f"{where}: max_new_tokens = {budget}: expected at least 1")
        if len(ids) + budget > max_total_tokens:
            raise InvalidInputError(
                f"{where}: {len(ids)} tokens and max_new_tokens = {budget}: expected at most "
                f"max_total_tokens = {max_total_tokens} together"
            )
        if ids.min() < 0 or ids.max() >= vocabulary:
            raise InvalidInputError(
                f"{where}: token ids {ids.min()} to {ids.max()}: expected 0 to {vocabulary - 1}"
            )
        older = np.nonzero(lease.versions[prompt:] != version)[0]
        split = prompt + (int(older[-1]) + 1 if len(older) else 0)
        streams.append(
            Stream(
                trajectory_id=lease.trajectory_id,
                prompt=ids[:prompt],
                tail=ids[prompt:split],
                replay=ids[split:],
                max_new_tokens=int(budget),
                temperature=temperature,
                seed=seed,
            )
        )
    return streams
