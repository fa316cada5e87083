"""vLLM as a server behind the rollout protocol: token ids over HTTP, one connection a stream.

vLLM need not be installed where this runs. The tokens of a request come as they are sampled; its
end carries which weights sampled them, and is held against what the engine was updated to.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from k15core.deploy.vllm.arguments import ModelShape, engine_arguments
from k15core.deploy.vllm.program import VllmProgram
from k15core.errors import Error, InvalidInputError, ProcessDiedError
from k15core.rollout.base import streams_of
from k15core.rollout.vllm.event_stream import events
from k15core.rollout.vllm.owners import GivenServer, OwnServer, Release, SidecarServer
from k15core.rollout.vllm.publisher import Publisher
from k15core.rollout.vllm.streams import Streams, check_temperature, sampling_parameters

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from k15core.deploy.vllm.arguments import LoadFormat
    from k15core.deploy.vllm.control import VllmControl
    from k15core.rollout.base import Stream
    from k15core.rollout.vllm.owners import Owner
    from k15core.types import Chunk, Lease, WeightSource

PATH = "/inference/v1/generate"

QUEUED = 2
"""Times `slots`: so many requests are open at once, the others wait here."""


class VllmServerEngine:
    """A `RolloutEngine` over a vLLM 0.32.0 server.

    Settings are those of `VllmEngine`. The server is one of three:

    - at `url`, where somebody keeps one running (with VLLM_SERVER_DEV_MODE=1 and the arguments of
      `engine_arguments`: see `VllmProgram`);
    - the one of the `checkpoint_engine` at that address; on another node with `transfer`, arguments
      of a `WeightSender` (host: this node's address there; protocol and device), for Mooncake then
      brings the weights to it;
    - else one that this process starts with `engine_args`, `environment` and `python` (the
      interpreter of vLLM's environment), and that ends with it. `release` says how that one gives
      its memory back ("sleep" or "restart"), `log` where it writes to.

    `start_seconds` is how long one waits for a server to answer.

    `stop` hands out what had arrived; tokens that were on their way are sampled anew when the
    stream is resumed. Any call raises ProcessDiedError once the server does not answer.
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
        url: str | None = None,
        checkpoint_engine: str | None = None,
        transfer: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        python: str | None = None,
        release: Release = "sleep",
        log: str | Path | None = None,
        start_seconds: float = 1800.0,
    ) -> None:
        if url is not None and checkpoint_engine is not None:
            raise InvalidInputError(
                f"url = {url!r} and checkpoint_engine = {checkpoint_engine!r}: expected one of them"
            )
        arguments = engine_arguments(
            model,
            max_total_tokens=max_total_tokens,
            slots=slots,
            device=device,
            load=load,
            given=engine_args,
        )
        self.version = version
        self._vocabulary = ModelShape.from_directory(model).vocabulary
        self._max_total_tokens = max_total_tokens
        self._eos = sorted({t for t in eos_token_ids if 0 <= t < self._vocabulary})
        self._streams = Streams(
            eos_token_ids=self._eos, chunk_tokens=chunk_tokens, repetition=repetition
        )
        self._open_requests = QUEUED * slots
        self._waiting: deque[Stream] = deque()
        self._requests: dict[int, asyncio.Task[None]] = {}
        self._news = asyncio.Event()
        self._fault: BaseException | None = None
        self._publisher = Publisher(model, weights)
        self._closed = False
        self._owner: Owner
        if url is not None:
            self._owner = GivenServer(url, seconds=start_seconds)
        elif checkpoint_engine is not None:
            self._owner = SidecarServer(checkpoint_engine, seconds=start_seconds, transfer=transfer)
        else:
            first, later = (
                VllmProgram(each, device=device, environment=environment, python=python)
                for each in (arguments, {**arguments, "load_format": "dummy"})
            )
            self._owner = OwnServer(first, later, release=release, log=log, seconds=start_seconds)
        try:
            self._control: VllmControl = self._owner.acquire()
            if isinstance(self._owner, OwnServer) and load == "directory":
                self._control.name_version(version)
        except BaseException:
            self.close()
            raise

    def start(
        self,
        leases: Sequence[Lease],
        *,
        max_new_tokens: Sequence[int],
        temperature: float,
        seed: int,
    ) -> None:
        """Take in streams to continue. See `VllmEngine.start`."""
        has = self._control.version()
        if has != self.version:
            raise InvalidInputError(
                f"start with weights of version {has}: expected {self.version}, by update_weights "
                "after a start on dummy weights or a release"
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
        self._waiting.extend(self._streams.open(streams, self.version))
        self._news.set()

    async def chunks(self) -> AsyncIterator[Chunk]:
        """New tokens as they come, until no stream is left.

        Where the consumer goes away before that, the streams end.
        """
        self._news = asyncio.Event()  # of this event loop
        try:
            while len(self._streams) or self._streams.ready:
                self._news.clear()
                self._send()
                while self._streams.ready:
                    yield self._streams.ready.popleft()
                if self._fault is not None:
                    raise self._fault
                if len(self._streams) and not self._streams.ready:
                    await self._news.wait()
            if self._fault is not None:
                raise self._fault
        finally:
            self._waiting.clear()
            self._streams.discard()
            await self._cancel(list(self._requests))
            self._fault = None

    def stop(self, trajectory_ids: Sequence[int]) -> None:
        """Sample no more for these streams. See `RolloutEngine.stop`."""
        closed = set(self._streams.close(trajectory_ids))
        self._waiting = deque(s for s in self._waiting if s.trajectory_id not in closed)
        for trajectory_id in closed & set(self._requests):
            self._requests[trajectory_id].cancel()
        self._news.set()

    def update_weights(self, source: WeightSource, version: int) -> None:
        """Load new weights and drop every KV block of the old ones. See `VllmEngine`."""
        if len(self._streams):
            raise InvalidInputError(
                f"update_weights(version={version}) with {len(self._streams)} streams: expected "
                "none to run; stop them first"
            )
        self.acquire()
        with self._publisher.directory_of(source, version) as (directory, published):
            self._control = self._owner.update(directory, version, published)
        self.version = version

    def acquire(self) -> None:
        """Have the server run with the device's memory; also starts one that died."""
        if self._closed:
            raise InvalidInputError("acquire on an engine that is closed: expected an open one")
        self._control = self._owner.acquire()

    def release(self) -> None:
        """Give the device's memory back until `acquire`."""
        if len(self._streams):
            raise InvalidInputError(
                f"release with {len(self._streams)} streams: expected none to run"
            )
        if not self._closed:
            self._owner.release()

    def close(self) -> None:
        """End the server where it is ours, or the sidecar's; a directory of weights that the engine
        made is removed."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(ProcessDiedError):
                self._owner.close()
            self._publisher.close()

    def _send(self) -> None:
        """Open connections for streams that wait, in their order."""
        while self._waiting and len(self._requests) < self._open_requests:
            stream = self._waiting.popleft()
            task = asyncio.create_task(self._follow(stream))
            self._requests[stream.trajectory_id] = task
            task.add_done_callback(partial(self._done, stream.trajectory_id))

    def _done(self, trajectory_id: int, task: asyncio.Task[None]) -> None:
        if self._requests.get(trajectory_id) is task:
            del self._requests[trajectory_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fault = self._fault or error
        self._news.set()

    async def _follow(self, stream: Stream) -> None:
        """Take in one stream's tokens until it ends, by our count or by vLLM's."""
        trajectory_id, version = stream.trajectory_id, self.version
        body = {
            "token_ids": [*stream.prompt.tolist(), *stream.response.tolist()],
            "sampling_params": sampling_parameters(stream, self._eos),
            "stream": True,
        }
        answers = events(self._control.host, self._control.port, PATH, body)
        async with contextlib.aclosing(answers):
            async for event in answers:
                if "error" in event:
                    raise ProcessDiedError(f"vLLM at {self._control.url}: {event['error']}")
                choice = event["choices"][0]
                tokens = choice["token_ids"] or []
                entries = (choice["logprobs"] or {}).get("content") or []
                log_probs = [entry["logprob"] for entry in entries]
                for span in choice["weight_versions"] or ():
                    if span["version"] != str(version):
                        raise Error(
                            f"trajectory {trajectory_id}: vLLM at {self._control.url} sampled with "
                            f"weights {span['version']}, expected {version}"
                        )
                goes_on = self._streams.take(trajectory_id, tokens, log_probs, version)
                reason = choice["finish_reason"]
                if goes_on and reason == "abort":  # the server was drained: it is resumed later
                    self._streams.close([trajectory_id])
                elif goes_on and reason is not None:
                    raise Error(
                        f"trajectory {trajectory_id}: vLLM at {self._control.url} ended it by "
                        f"itself: {reason}"
                    )
                self._news.set()
                if reason is not None or not goes_on:
                    return

    async def _cancel(self, trajectory_ids: list[int]) -> None:
        tasks = [self._requests[i] for i in trajectory_ids]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
