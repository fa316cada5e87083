"""Continuous batching over slots: a finished stream frees its slot, the next one takes it.

One step samples a token for every running stream, hands out what is finished or full, feeds the
tokens to the model, and lets waiting streams into free slots. Chunks leave between steps.

A stream's tokens are a function of (weights, its tokens so far, seed, trajectory id, temperature):
noise comes from a counter, and the decoder gives a row the same bits in any company (models/
decode.py). So a stream that was stopped and resumed under the same weights goes on as if it had
never been, whatever else ran beside it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from k15core._core import RepetitionDetector
from k15core.errors import InvalidInputError
from k15core.models.calibrate import calibrate
from k15core.models.decode import Decoder
from k15core.models.lean import LeanModel
from k15core.models.weights import copy_weights, load_model
from k15core.rollout.base import Stream, streams_of
from k15core.rollout.embedded.arrange import arrangement
from k15core.rollout.embedded.prompts import PromptRows
from k15core.rollout.embedded.sampling import sample
from k15core.rollout.embedded.slots import Slots
from k15core.types import Chunk

if TYPE_CHECKING:
    from k15core.types import FinishReason, Lease, Loop, WeightSource

ADMIT_SHARE = 16
"""Waiting streams enter when 1/16 of the slots is free: a prefill pass costs as much as a step."""

ARRANGE_STEPS = 16
"""Where attention pads, streams are sorted into classes of length every so many steps."""

NO_TOKENS = np.empty(0, np.int32)
NO_LOG_PROBS = np.empty(0, np.float32)


@dataclass
class EngineStats:
    """What an engine has done since it was made, in tokens unless named otherwise."""

    sampled: int = 0
    replayed: int = 0
    prefilled: int = 0
    """Prompt and tail tokens that went through prefill."""
    shared: int = 0
    """Prompt tokens that were copied from another stream of the group instead."""
    steps: int = 0
    """Decode steps, each one token of every running stream."""


class EmbeddedEngine:
    """A `RolloutEngine` over a lean model in this process.

    `model` is a model, whose weights are copied, or a Hugging Face directory. `slots` streams run
    at once, of at most `max_total_tokens` tokens each (prompt and response). `eos_token_ids`
    default to the model's own. Matrix products see at least `min_rows` rows, more where the machine
    needs it for results that do not depend on the company. Tokens leave at the latest
    `chunk_tokens` after they were sampled. `repetition` are the settings of the
    `RepetitionDetector` that watches every stream; None switches it off. `version` is that of the
    weights given here. Log-probs are those of the distribution that was sampled from: see
    `sampling.sample`.

    Raises InvalidInputError for settings out of range or a directory that is no model's.
    """

    def __init__(
        self,
        model: LeanModel | str | Path,
        *,
        max_total_tokens: int,
        slots: int = 64,
        eos_token_ids: Sequence[int] | None = None,
        min_rows: int = 32,
        chunk_tokens: int = 32,
        repetition: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        version: int = 0,
    ) -> None:
        for name, value in (
            ("max_total_tokens", max_total_tokens),
            ("slots", slots),
            ("min_rows", min_rows),
            ("chunk_tokens", chunk_tokens),
        ):
            if value < 1:
                raise InvalidInputError(f"{name} = {value}: expected a count of at least 1")
        if isinstance(model, LeanModel):
            self._place = (device or model.embedding.device, dtype or model.embedding.dtype)
        else:
            self._place = (device or "cpu", dtype or torch.float32)
            model = load_model(model, device=self._place[0], dtype=self._place[1])
        self._config = model.config
        if max_total_tokens > self._config.max_position_embeddings:
            raise InvalidInputError(
                f"max_total_tokens = {max_total_tokens}: expected at most the model's "
                f"max_position_embeddings = {self._config.max_position_embeddings}"
            )
        self.version = version
        self.stats = EngineStats()
        self._max_total_tokens, self._chunk_tokens = max_total_tokens, chunk_tokens
        self._decoder = Decoder(
            self._on_device(model), rows=slots, length=max_total_tokens, min_rows=min_rows
        )
        calibrate(self._decoder)
        self._slots = Slots(slots, chunk_tokens)
        embedding = self._decoder.embedding
        self._prompts = PromptRows(embedding.new_zeros(slots, self._config.hidden_size))
        self._logits = embedding.new_zeros(slots, self._config.vocab_size)
        eos = self._config.eos_token_ids if eos_token_ids is None else eos_token_ids
        self._is_eos = np.zeros(self._config.vocab_size, bool)
        self._is_eos[[token for token in eos if 0 <= token < len(self._is_eos)]] = True
        self._detector = None
        if repetition is not None:
            try:
                self._detector = RepetitionDetector(slots, **repetition)
            except TypeError as error:
                raise InvalidInputError(f"repetition = {dict(repetition)}: {error}") from error
        self._bounds = [0]
        self._waiting: deque[Stream] = deque()
        self._ready: deque[Chunk] = deque()
        self._ids: set[int] = set()

    def start(
        self,
        leases: Sequence[Lease],
        *,
        max_new_tokens: Sequence[int],
        temperature: float,
        seed: int,
    ) -> None:
        """Take in streams to continue, in this order. See `RolloutEngine.start`.

        Members of a group should follow one another, so that their prompt is computed once. A lease
        whose response has ended already (an end-of-sequence token) gets an empty chunk that says
        so. Raises InvalidInputError, and starts nothing, for a lease that does not fit.
        """
        streams = streams_of(
            leases,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            version=self.version,
            vocabulary=self._config.vocab_size,
            max_total_tokens=self._max_total_tokens,
        )
        ids = [stream.trajectory_id for stream in streams]
        twice = [i for i, times in Counter([*self._ids, *ids]).items() if times > 1]
        if twice:
            raise InvalidInputError(f"trajectory {twice[0]}: expected one that does not run yet")
        self._ids.update(ids)
        self._waiting.extend(streams)

    async def chunks(self) -> AsyncIterator[Chunk]:
        """New tokens as they come, until no stream is left. Other tasks run between steps."""
        while self._ids or self._ready:
            while self._ready:
                yield self._ready.popleft()
            if self._ids:
                self._step()
            await asyncio.sleep(0)

    def stop(self, trajectory_ids: Sequence[int]) -> None:
        """Sample no more for these streams. See `RolloutEngine.stop`."""
        gone = set(trajectory_ids)
        self._ids -= gone
        self._waiting = deque(s for s in self._waiting if s.trajectory_id not in gone)
        for row in np.nonzero(self._slots.active)[0].tolist():
            if int(self._slots.trajectory_id[row]) in gone:
                if self._slots.pending[row]:
                    self._emit(row, None, None)
                self._slots.free(row)

    def update_weights(self, source: WeightSource, version: int) -> None:
        """Load new weights and drop every KV cache of the old ones.

        Raises InvalidInputError while streams run, or if the source's parameters are not the
        model's; the old weights stay then.
        """
        if self._ids:
            raise InvalidInputError(
                f"update_weights(version={version}) with {len(self._ids)} streams: expected none "
                "to run; stop them first"
            )
        device, dtype = self._place
        model = LeanModel(self._config, device=device, dtype=dtype)
        copy_weights(model, source.tensors(), where=f"weights of version {version}")
        self._decoder.load(model)
        self._decoder.cache.clear()
        self._prompts.clear()
        self.version = version

    def acquire(self) -> None:
        """Nothing: weights and KV cache stay where they are."""

    def release(self) -> None:
        """Nothing: an engine in the trainer's process keeps its memory between iterations."""

    def close(self) -> None:
        """Nothing: there is no process, and memory goes with the object."""

    def _on_device(self, model: LeanModel) -> LeanModel:
        device, dtype = self._place
        same = model.embedding.device == torch.device(device) and model.embedding.dtype == dtype
        if same:
            return model
        moved = LeanModel(self._config, device=device, dtype=dtype)
        copy_weights(moved, ((n, p.detach()) for n, p in model.named_parameters()))
        return moved

    @torch.inference_mode()
    def _step(self) -> None:
        self._admit()
        slots, n = self._slots, self._slots.used
        if n == 0:
            return
        with self._decoder.threads(n):
            tokens, log_probs = sample(self._logits[:n], slots.temperature[:n], slots.noise(n))
        replayed = slots.known(n, tokens)
        rows = np.nonzero(slots.active[:n])[0]
        fresh = rows[~replayed[rows]]
        slots.record(fresh, tokens[fresh], log_probs[fresh])
        slots.position[rows] += 1
        slots.replay[rows] -= replayed[rows]
        self.stats.sampled += len(fresh)
        self.stats.replayed += len(rows) - len(fresh)
        self._hand_out(fresh, tokens)
        self._decode(tokens)

    def _hand_out(self, rows: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        """Make chunks of streams that ended or have enough tokens; free the slots of the first."""
        slots = self._slots
        ended, spent = self._is_eos[tokens[rows]], slots.left[rows] == 0
        loops: dict[int, Loop] = {}
        if self._detector is not None and len(rows):
            watched = slots.watch[rows]
            for watch, loop in self._detector.push_many(watched, tokens[rows].astype(np.int32)):
                loops[int(rows[watched == watch][0])] = loop
        full = slots.pending[rows] == self._chunk_tokens
        looping = np.isin(rows, list(loops)) if loops else np.zeros(len(rows), bool)
        out = ended | spent | full | looping
        for row, is_end, is_spent in zip(
            rows[out].tolist(), ended[out].tolist(), spent[out].tolist(), strict=True
        ):
            found = None if is_end else loops.get(row)
            reason: FinishReason | None = (
                "stop" if is_end else "repetition" if found else "length" if is_spent else None
            )
            self._emit(row, reason, found)

    def _emit(self, row: int, reason: FinishReason | None, loop: Loop | None) -> None:
        slots = self._slots
        trajectory_id, pending = int(slots.trajectory_id[row]), slots.pending[row]
        tokens = slots.tokens[row, :pending].copy()
        log_probs = slots.log_probs[row, :pending].copy()
        self._ready.append(Chunk(trajectory_id, tokens, log_probs, self.version, reason, loop))
        slots.pending[row] = 0
        if reason is not None:
            slots.free(row)
            self._ids.discard(trajectory_id)

    def _decode(self, tokens: NDArray[np.int64]) -> None:
        """Feed each running stream its token; the logits of the next one.

        Holes among them are computed too: what they write is behind the prompt that they hold.
        """
        slots, decoder = self._slots, self._decoder
        self._arrange(tokens)
        n = slots.used
        if n == 0:
            return
        width = decoder.width(n)
        fed, at = np.zeros(width, np.int64), np.zeros(width, np.int64)
        fed[:n], at[:n] = tokens[:n], slots.length[:n]
        logits = decoder.step(
            torch.from_numpy(fed).to(decoder.device),
            torch.from_numpy(at).to(decoder.device),
            np.nonzero(slots.active[:n])[0],
            self._bounds,
        )
        self._logits[:n] = logits[:n]
        slots.length[:n] += slots.active[:n]
        self.stats.steps += 1

    def _arrange(self, tokens: NDArray[np.int64]) -> None:
        """Close holes that nobody waits for; where attention pads, bring rows of like length
        together now and then.

        `tokens` are the rows' next ones and move with them.
        """
        slots, padded = self._slots, self._decoder.cache.padded
        used = slots.used
        sparse = not self._waiting and used - slots.running > used // 8
        if not sparse and not (padded and self.stats.steps % ARRANGE_STEPS == 0):
            return
        lengths = slots.length[:used]
        sources, targets, bounds = arrangement(
            slots.active[:used], lengths if padded else np.zeros_like(lengths)
        )
        self._bounds = bounds[:-1]
        if len(sources):
            self._decoder.cache.copy(sources, targets, int(slots.length[sources].max()))
            self._prompts.move(sources, targets)
            slots.move(sources, targets)
            tokens[targets] = tokens[sources]

    def _admit(self) -> None:
        """Let waiting streams into free slots: prompts copied or prefilled, tails prefilled."""
        slots = self._slots
        free = slots.count - slots.running
        if not self._waiting or (slots.running and free * ADMIT_SHARE < slots.count):
            return
        streams: list[Stream] = []
        while self._waiting and len(streams) < free:
            stream = self._waiting.popleft()
            if not self._ended_before(stream):
                streams.append(stream)
        if streams:
            self._fill(streams, self._choose_rows(streams))

    def _ended_before(self, stream: Stream) -> bool:
        response = stream.response
        if len(response) == 0 or not self._is_eos[response[-1]]:
            return False
        self._ready.append(
            Chunk(stream.trajectory_id, NO_TOKENS, NO_LOG_PROBS, self.version, "stop")
        )
        self._ids.discard(stream.trajectory_id)
        return True

    def _choose_rows(self, streams: list[Stream]) -> list[int]:
        """A free slot for each stream: one that holds its prompt already, else the lowest."""
        free = dict.fromkeys(np.nonzero(~self._slots.active)[0].tolist())
        rows: list[int | None] = []
        for stream in streams:
            row = self._prompts.among(stream.prompt.tobytes(), free)
            rows.append(row)
            if row is not None:
                del free[row]
        rest = iter(free)
        return [next(rest) if row is None else row for row in rows]

    def _fill(self, streams: list[Stream], rows: list[int]) -> None:
        decoder, prompts, slots = self._decoder, self._prompts, self._slots
        first: dict[bytes, int] = {}
        held: list[tuple[int, int, int]] = []
        siblings: list[tuple[int, int, int]] = []
        for stream, row in zip(streams, rows, strict=True):
            key, length = stream.prompt.tobytes(), len(stream.prompt)
            source = prompts.find(key, near=row)
            if source is not None:
                held.append((source, row, length))
            elif key in first:
                siblings.append((first[key], row, length))
            else:
                first[key] = row
        self._copy_prompts(held)
        fresh = [(row, s.prompt) for s, row in zip(streams, rows, strict=True)
                 if first.get(s.prompt.tobytes()) == row]  # fmt: skip
        if fresh:
            target, ids = [row for row, _ in fresh], [prompt for _, prompt in fresh]
            prompts.hidden[target] = decoder.extend(target, [0] * len(target), ids)
            self.stats.prefilled += sum(map(len, ids))
        self._copy_prompts(siblings)
        for stream, row in zip(streams, rows, strict=True):
            prompts.put(row, stream.prompt.tobytes())
            slots.put(row, stream)
        hidden = prompts.hidden[rows]
        tails = [i for i, stream in enumerate(streams) if len(stream.tail)]
        if tails:
            ids = [streams[i].tail for i in tails]
            starts = [len(streams[i].prompt) for i in tails]
            hidden[tails] = decoder.extend([rows[i] for i in tails], starts, ids)
            self.stats.prefilled += sum(map(len, ids))
        self._logits[rows] = decoder.logits(hidden)
        self._watch(streams, rows)

    def _copy_prompts(self, copies: list[tuple[int, int, int]]) -> None:
        """Copy prompts (source row, target row, length) within the cache."""
        self.stats.shared += sum(length for *_, length in copies)
        moves = [copy for copy in copies if copy[0] != copy[1]]
        if moves:
            sources, targets, lengths = np.array(moves).T
            self._decoder.cache.copy(sources, targets, int(lengths.max()))
            self._prompts.hidden[targets] = self._prompts.hidden[sources]

    def _watch(self, streams: list[Stream], rows: list[int]) -> None:
        """Show the detector what new streams have generated before; end those that loop already."""
        if self._detector is None:
            return
        for stream, row in zip(streams, rows, strict=True):
            watch = int(self._slots.watch[row])
            self._detector.reset(watch)
            loop = self._detector.extend(watch, stream.response)
            if loop is not None:
                self._emit(row, "repetition", loop)
