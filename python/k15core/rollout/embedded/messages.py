"""What an `EmbeddedProcess` and its program send each other: weights one way, chunks the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import safetensors.torch
import torch

from k15core.types import Chunk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from k15core.types import FinishReason, Loop, WeightSource


@dataclass(frozen=True)
class Weights:
    """A policy's weights as a safetensors file's bytes, which is a WeightSource again."""

    content: bytes

    @classmethod
    def of(cls, source: WeightSource) -> Weights:
        """Copy what a source has."""
        tensors = {
            name: torch.as_tensor(tensor).detach().contiguous() for name, tensor in source.tensors()
        }
        return cls(safetensors.torch.save(tensors))

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """See WeightSource."""
        yield from safetensors.torch.load(self.content).items()


class Chunks(NamedTuple):
    """Some chunks of one version in few plain objects: arrays, two a chunk, would cost both sides
    more than all the rest."""

    version: int
    trajectory_ids: list[int]
    lengths: list[int]
    tokens: bytes
    """int32, one chunk's behind the other's."""
    log_probs: bytes
    """float32, likewise."""
    reasons: list[FinishReason | None]
    loops: list[Loop | None]

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> Chunks:
        """At least one chunk."""
        return cls(
            version=chunks[0].version,
            trajectory_ids=[chunk.trajectory_id for chunk in chunks],
            lengths=[len(chunk.tokens) for chunk in chunks],
            tokens=b"".join([chunk.tokens.tobytes() for chunk in chunks]),
            log_probs=b"".join([chunk.log_probs.tobytes() for chunk in chunks]),
            reasons=[chunk.finish_reason for chunk in chunks],
            loops=[chunk.loop for chunk in chunks],
        )

    def each(self) -> Iterable[Chunk]:
        """The chunks again; their arrays are read-only."""
        tokens, log_probs = (
            np.frombuffer(self.tokens, np.int32),
            np.frombuffer(self.log_probs, np.float32),
        )
        start = 0
        for trajectory_id, length, reason, loop in zip(
            self.trajectory_ids, self.lengths, self.reasons, self.loops, strict=True
        ):
            part = slice(start, start + length)
            start += length
            yield Chunk(trajectory_id, tokens[part], log_probs[part], self.version, reason, loop)
