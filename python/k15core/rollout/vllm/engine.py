"""vLLM in this process behind the rollout protocol, step by step.

Noise: vLLM draws from a generator of each request. Its seed is a function of (seed, trajectory_id,
response tokens so far), so a run that stops and resumes at the same places gives the same tokens,
and one that stops elsewhere gives others of the same distribution. The embedded engine goes further
(a stopped stream goes on as if it had never stopped); nobody can without vLLM's kernels.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from k15core.deploy.vllm.arguments import ModelShape, engine_arguments
from k15core.deploy.vllm.local import LocalEngine
from k15core.errors import Error, InvalidInputError
from k15core.rollout.base import streams_of
from k15core.rollout.vllm.publisher import Publisher
from k15core.rollout.vllm.streams import Streams, check_temperature, sampling_parameters

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from k15core.deploy.vllm.arguments import LoadFormat
    from k15core.types import Chunk, Lease, WeightSource


class VllmEngine:
    """A `RolloutEngine` over vLLM 0.32.0 in this process.

    `model` is a Hugging Face directory; with `load` "dummy" its config.json is enough, and
    `update_weights` must come before the first stream. `version` is that of the weights in the
    directory. `eos_token_ids` end a response. `slots` streams run at once, of at most
    `max_total_tokens` tokens each. Tokens leave at the latest `chunk_tokens` after they were
    sampled. `repetition` are the settings of the `RepetitionDetector` that watches every stream;
    None switches it off. `engine_args` go to vLLM's `EngineArgs` untouched, over the defaults of
    `engine_arguments`. Weights from anywhere but shared memory are published to a directory of the
    engine's own first: `weights`, by default a new one under /dev/shm.

    Log-probs are those of the distribution that was sampled from, temperature included; at
    temperature 0 the likeliest token is taken, with its log-prob under the unscaled softmax.

    One such engine a process at a time: vLLM keeps process groups of its own in globals. Raises
    InvalidInputError for settings out of range or a directory that is no model's.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        max_total_tokens: int,
        eos_token_ids: Sequence[int],
        slots: int = 64,
        repetition: Mapping[str, Any] | None = None,
        chunk_tokens: int = 16,
        device: str = "cpu",
        version: int = 0,
        load: LoadFormat = "directory",
        engine_args: Mapping[str, Any] | None = None,
        weights: str | Path | None = None,
    ) -> None:
        self.version = version
        arguments = engine_arguments(
            model,
            max_total_tokens=max_total_tokens,
            slots=slots,
            device=device,
            load=load,
            given=engine_args,
        )
        self._vocabulary = ModelShape.from_directory(model).vocabulary
        self._max_total_tokens = max_total_tokens
        self._eos = sorted({t for t in eos_token_ids if 0 <= t < self._vocabulary})
        self._streams = Streams(
            eos_token_ids=self._eos, chunk_tokens=chunk_tokens, repetition=repetition
        )
        self._publisher = Publisher(model, weights)
        self._asleep = False
        self._closed = False
        self._vllm = LocalEngine(
            arguments, device=device, version=version if load == "directory" else None
        )

    def start(
        self,
        leases: Sequence[Lease],
        *,
        max_new_tokens: Sequence[int],
        temperature: float,
        seed: int,
    ) -> None:
        """Take in streams to continue. See `RolloutEngine.start`.

        A lease whose response has ended already (an end-of-sequence token, a loop) gets an empty
        chunk that says so. Raises InvalidInputError, and starts nothing, for a lease that does not
        fit, or before the engine has weights.
        """
        if self._vllm.version != self.version:
            raise InvalidInputError(
                "start without weights: expected update_weights after a start on dummy weights or "
                "a release"
            )
        check_temperature(temperature)
        streams = streams_of(
            leases,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            version=self.version,
            vocabulary=self._vocabulary,
            max_total_tokens=self._max_total_tokens,
        )
        for stream in self._streams.open(streams, self.version):
            self._vllm.add(
                str(stream.trajectory_id),
                [*stream.prompt.tolist(), *stream.response.tolist()],
                sampling_parameters(stream, self._eos),
            )

    async def chunks(self) -> AsyncIterator[Chunk]:
        """New tokens as they come, until no stream is left. Other tasks run between steps."""
        while len(self._streams) or self._streams.ready:
            while self._streams.ready:
                yield self._streams.ready.popleft()
            if len(self._streams):
                self._step()
            await asyncio.sleep(0)

    def stop(self, trajectory_ids: Sequence[int]) -> None:
        """Sample no more for these streams. See `RolloutEngine.stop`."""
        closed = self._streams.close(trajectory_ids)
        self._vllm.abort([str(trajectory_id) for trajectory_id in closed])

    def update_weights(self, source: WeightSource, version: int) -> None:
        """Load new weights and drop every KV block of the old ones.

        A `SharedWeights` is read where it lies; any other source is published first. Raises
        InvalidInputError while streams run, or if the source's parameters are not the model's; the
        old weights stay then.
        """
        if len(self._streams):
            raise InvalidInputError(
                f"update_weights(version={version}) with {len(self._streams)} streams: expected "
                "none to run; stop them first"
            )
        self.acquire()
        with self._publisher.directory_of(source, version) as (directory, published):
            self._vllm.update_weights(directory, version, published=published)
        self.version = version

    def acquire(self) -> None:
        """Take the device's memory again. `update_weights` must follow a release."""
        if self._closed:
            raise InvalidInputError("acquire on an engine that is closed: expected an open one")
        if self._asleep:
            self._vllm.wake()
            self._asleep = False

    def release(self) -> None:
        """Give weights' and KV cache's memory back until `acquire` (vLLM's sleep of level 2).

        On a CPU vLLM keeps its memory; the weights count as gone all the same.
        """
        if len(self._streams):
            raise InvalidInputError(
                f"release with {len(self._streams)} streams: expected none to run"
            )
        if not (self._asleep or self._closed):
            self._vllm.sleep()
            self._asleep = True

    def close(self) -> None:
        """End vLLM and its workers; a directory of weights that the engine made is removed."""
        if not self._closed:
            self._closed = True
            self._streams.discard()
            self._vllm.close()
            self._publisher.close()

    def _step(self) -> None:
        version = self._vllm.version
        outputs = self._vllm.step()
        if version is None:
            raise Error("vLLM sampled with weights that have no version")
        over: list[str] = []
        for request_id, tokens, log_probs, reason in outputs:
            trajectory_id = int(request_id)
            goes_on = self._streams.take(trajectory_id, tokens, log_probs, version)
            if reason is None and not goes_on:
                over.append(request_id)
            elif reason is not None and goes_on:
                raise Error(f"vLLM ended trajectory {trajectory_id} by itself: {reason}")
        if over:
            self._vllm.abort(over)
