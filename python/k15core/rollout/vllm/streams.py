"""What the two vLLM engines share: the streams that run, and how their tokens become chunks.

vLLM samples; this decides when a stream has ended. Budgets, end-of-sequence tokens and the
repetition detector work on the whole response as the store has it, so that a loop which began
before a resume is seen: vLLM's own detector sees the tokens of one request only.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from k15core._core import RepetitionDetector
from k15core.errors import InvalidInputError
from k15core.types import Chunk

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from k15core.rollout.base import Stream
    from k15core.types import FinishReason, Loop

LOWEST_TEMPERATURE = 0.01
"""Below it vLLM samples at 0.01 (`_MAX_TEMP` in its sampling_params.py): not what was asked for."""


def request_seed(seed: int, trajectory_id: int, tokens: int) -> int:
    """The seed of vLLM's request for a trajectory of which `tokens` response tokens exist.

    A request's generator starts anew when a stream is resumed; with one seed a trajectory it would
    repeat its noise. 63 bits: a hash of the three numbers, so that no two requests share a stream.
    """
    packed = struct.pack("<Qqq", seed, trajectory_id, tokens)
    digest = hashlib.blake2b(packed, digest_size=8, person=b"k15 vllm seed").digest()
    return int.from_bytes(digest, "little") >> 1


def sampling_parameters(stream: Stream, eos_token_ids: Sequence[int]) -> dict[str, Any]:
    """What vLLM is asked for one stream, as `SamplingParams` names it.

    Log-probs are of the sampled token only (0 others). The model directory's own defaults (top_p
    and the like, its end-of-sequence tokens) do not count: what is recorded must be what was
    sampled.
    """
    return {
        "max_tokens": stream.max_new_tokens,
        "temperature": stream.temperature,
        "seed": request_seed(stream.seed, stream.trajectory_id, len(stream.response)),
        "stop_token_ids": list(eos_token_ids),
        "ignore_eos": True,
        "logprobs": 0,
        "detokenize": False,
        "skip_special_tokens": False,
    }


def check_temperature(temperature: float) -> None:
    """Raise InvalidInputError for a temperature that vLLM would silently replace."""
    if 0 < temperature < LOWEST_TEMPERATURE:
        raise InvalidInputError(
            f"temperature = {temperature}: expected 0 (greedy) or at least {LOWEST_TEMPERATURE}, "
            "below which vLLM samples at that"
        )


@dataclass
class _Open:
    detector: RepetitionDetector | None
    left: int
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    version: int = 0


class Streams:
    """The streams that an engine runs, and the chunks that are ready to be handed out.

    `eos_token_ids` end a response; `chunk_tokens` is the most that a chunk holds; `repetition` are
    the `RepetitionDetector`'s settings, or None for no detector. Raises InvalidInputError for
    settings out of range.
    """

    def __init__(
        self,
        *,
        eos_token_ids: Iterable[int],
        chunk_tokens: int,
        repetition: Mapping[str, Any] | None,
    ) -> None:
        if chunk_tokens < 1:
            raise InvalidInputError(f"chunk_tokens = {chunk_tokens}: expected at least 1")
        self.ready: deque[Chunk] = deque()
        self._eos = frozenset(eos_token_ids)
        self._chunk_tokens = chunk_tokens
        self._repetition = None if repetition is None else dict(repetition)
        self._open: dict[int, _Open] = {}
        self._detector()

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, trajectory_id: int) -> bool:
        return trajectory_id in self._open

    @property
    def ids(self) -> list[int]:
        """The trajectories that run, in the order in which they began."""
        return list(self._open)

    def open(self, streams: Sequence[Stream], version: int) -> list[Stream]:
        """Take in streams; those that need tokens.

        A response that has ended already, or loops already, gets an empty chunk that says so.
        Raises InvalidInputError, and takes in nothing, for a trajectory that runs.
        """
        ids = [stream.trajectory_id for stream in streams]
        twice = [i for i, times in Counter([*self._open, *ids]).items() if times > 1]
        if twice:
            raise InvalidInputError(f"trajectory {twice[0]}: expected one that does not run yet")
        wanted = []
        for stream in streams:
            response = stream.response
            detector = self._detector()
            if len(response) and int(response[-1]) in self._eos:
                self._end(stream.trajectory_id, version, "stop", None)
            elif detector is not None and (loop := detector.extend(0, response)) is not None:
                self._end(stream.trajectory_id, version, "repetition", loop)
            else:
                self._open[stream.trajectory_id] = _Open(detector, stream.max_new_tokens)
                wanted.append(stream)
        return wanted

    def take(
        self,
        trajectory_id: int,
        tokens: Sequence[int],
        log_probs: Sequence[float],
        version: int,
    ) -> bool:
        """Add tokens that a stream has sampled under `version`; True if the stream goes on.

        What comes after the token that ended it is dropped, as are tokens of a stream that does not
        run any more.
        """
        stream = self._open.get(trajectory_id)
        if stream is None:
            return False
        for token, log_prob in zip(tokens, log_probs, strict=True):
            if stream.tokens and stream.version != version:
                self._emit(trajectory_id, stream, None, None)
            stream.version = version
            stream.tokens.append(token)
            stream.log_probs.append(log_prob)
            stream.left -= 1
            loop = stream.detector.push(token) if stream.detector is not None else None
            reason: FinishReason | None = None
            if token in self._eos:
                reason, loop = "stop", None
            elif loop is not None:
                reason = "repetition"
            elif stream.left == 0:
                reason = "length"
            if reason is not None:
                self._emit(trajectory_id, stream, reason, loop)
                del self._open[trajectory_id]
                return False
            if len(stream.tokens) == self._chunk_tokens:
                self._emit(trajectory_id, stream, None, None)
        return True

    def close(self, trajectory_ids: Iterable[int]) -> list[int]:
        """End streams as they are: what they have sampled comes in a last chunk each, without a
        reason. Which of them ran."""
        closed = []
        for trajectory_id in trajectory_ids:
            stream = self._open.pop(trajectory_id, None)
            if stream is None:
                continue
            closed.append(trajectory_id)
            if stream.tokens:
                self._emit(trajectory_id, stream, None, None)
        return closed

    def discard(self) -> None:
        """Forget everything: the engine's process died."""
        self._open.clear()
        self.ready.clear()

    def _detector(self) -> RepetitionDetector | None:
        if self._repetition is None:
            return None
        try:
            return RepetitionDetector(1, **self._repetition)
        except TypeError as error:
            raise InvalidInputError(f"repetition = {self._repetition}: {error}") from error

    def _end(
        self, trajectory_id: int, version: int, reason: FinishReason, loop: Loop | None
    ) -> None:
        self._put(trajectory_id, [], [], version, reason, loop)

    def _emit(
        self, trajectory_id: int, stream: _Open, reason: FinishReason | None, loop: Loop | None
    ) -> None:
        self._put(trajectory_id, stream.tokens, stream.log_probs, stream.version, reason, loop)
        stream.tokens, stream.log_probs = [], []

    def _put(
        self,
        trajectory_id: int,
        tokens: list[int],
        log_probs: list[float],
        version: int,
        reason: FinishReason | None,
        loop: Loop | None,
    ) -> None:
        self.ready.append(
            Chunk(
                trajectory_id,
                np.array(tokens, np.int32),
                np.array(log_probs, np.float32),
                version,
                reason,
                loop,
            )
        )
