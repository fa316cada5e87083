"""Several rollout engines as one: streams are spread over them, and engines come and go.

An engine may join or leave between iterations. One whose process dies in the middle of a rollout is
put aside until new weights come: its streams go on with the others from the last token that was
handed out, under the same version. No token is lost by it, none is there twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from k15core.errors import InvalidInputError, ProcessDiedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from k15core.types import Chunk, Lease, RolloutEngine, WeightSource


@dataclass
class _Given:
    """A stream: what an engine was given, and what it has handed out since."""

    lease: Lease
    max_new_tokens: int
    temperature: float
    seed: int
    engine: RolloutEngine
    chunks: list[Chunk] = field(default_factory=list)

    @property
    def prompt(self) -> bytes:
        """Equal for responses to one prompt."""
        return self.lease.input_ids[: self.lease.prompt_length].tobytes()

    @property
    def cost(self) -> int:
        """Tokens that an engine has to compute for it, at most."""
        return len(self.lease.input_ids) + self.max_new_tokens

    def go_on(self) -> None:
        """Stand as another engine is to be given it."""
        lease, tokens = self.lease, [chunk.tokens for chunk in self.chunks]
        versions = [np.full(len(c.tokens), c.version, np.uint32) for c in self.chunks]
        self.max_new_tokens -= sum(map(len, tokens))
        self.chunks = []
        self.lease = replace(
            lease,
            input_ids=np.concatenate((lease.input_ids, *tokens)),
            versions=np.concatenate((lease.versions, *versions)),
        )


class Fleet:
    """A `RolloutEngine` over others, which all sample with weights of the same version.

    Each engine gets about as many tokens to compute; responses to one prompt that follow one
    another go to the same engine, which computes the prompt once. With engines whose noise is a
    function of (seed, trajectory_id, position) the tokens do not depend on the spread. The engines
    given here have weights of the first one's version.

    `lost` are the engines whose process died since the last `update_weights` or `acquire`, which
    bring them back. Raises InvalidInputError for no engine, or versions that differ.
    """

    def __init__(self, engines: Sequence[RolloutEngine]) -> None:
        if not engines:
            raise InvalidInputError("engines = []: expected at least one")
        self.version = engines[0].version
        for engine in engines:
            if engine.version != self.version:
                raise InvalidInputError(
                    f"engines: versions {self.version} and {engine.version}, expected the same"
                )
        self._engines = list(engines)
        self._ready = list(engines)
        self._streams: dict[int, _Given] = {}
        self._handed: asyncio.Queue[Chunk | None] = asyncio.Queue()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._fault: BaseException | None = None

    @property
    def engines(self) -> tuple[RolloutEngine, ...]:
        """All that belong to it, in the order in which they joined."""
        return tuple(self._engines)

    @property
    def lost(self) -> tuple[RolloutEngine, ...]:
        """Those that take no streams: their process died, or they wait for their first weights."""
        return tuple(engine for engine in self._engines if engine not in self._ready)

    def add(self, engine: RolloutEngine) -> None:
        """Have an engine join. It takes streams after the next `update_weights`."""
        if engine in self._engines:
            raise InvalidInputError("engine: expected one that is not in the fleet yet")
        self._engines.append(engine)

    def remove(self, engine: RolloutEngine) -> None:
        """Have an engine leave; it is the caller's again, to close it. None of its streams may run.

        Raises InvalidInputError for the last one.
        """
        if engine not in self._engines:
            raise InvalidInputError("engine: expected one of the fleet")
        if len(self._engines) == 1:
            raise InvalidInputError("engine: expected another one to stay in the fleet")
        if any(given.engine is engine for given in self._streams.values()):
            raise InvalidInputError("engine: expected none of its streams to run; stop them first")
        self._engines.remove(engine)
        if engine in self._ready:
            self._ready.remove(engine)

    def start(
        self,
        leases: Sequence[Lease],
        *,
        max_new_tokens: Sequence[int],
        temperature: float,
        seed: int,
    ) -> None:
        """Take in streams to continue. See `RolloutEngine.start`.

        Raises InvalidInputError for a lease that does not fit; no stream of this call runs then.
        """
        if len(max_new_tokens) != len(leases):
            raise InvalidInputError(
                f"max_new_tokens = {len(max_new_tokens)} entries: expected {len(leases)}, one a "
                "lease"
            )
        for lease in leases:
            if lease.trajectory_id in self._streams:
                raise InvalidInputError(
                    f"trajectory {lease.trajectory_id}: expected one that does not run yet"
                )
        if not self._ready:
            raise ProcessDiedError("no engine of the fleet is left: expected update_weights")
        given = [
            _Given(lease, left, temperature, seed, self._ready[0])
            for lease, left in zip(leases, max_new_tokens, strict=True)
        ]
        self._start(given)

    async def chunks(self) -> AsyncIterator[Chunk]:
        """New tokens as they come from any engine, until no stream is left.

        Where the consumer goes away before that, the streams end.
        """
        self._handed, self._fault = asyncio.Queue(), None
        try:
            self._follow()
            while self._tasks or not self._handed.empty():
                chunk = await self._handed.get()
                if chunk is not None:
                    yield chunk
                if self._fault is not None:
                    raise self._fault
                if chunk is None:  # streams were started, or an engine has none left
                    self._follow()
        finally:
            await self._end_all()

    def stop(self, trajectory_ids: Sequence[int]) -> None:
        """Sample no more for these streams. See `RolloutEngine.stop`."""
        stopped = [self._streams.pop(i) for i in trajectory_ids if i in self._streams]
        for engine in self._ready:
            ids = [each.lease.trajectory_id for each in stopped if each.engine is engine]
            if ids:
                engine.stop(ids)

    def update_weights(self, source: WeightSource, version: int) -> None:
        """Hand new weights to every engine, those that died or joined included.

        Raises ProcessDiedError only if none could take them; InvalidInputError as the engines do.
        """
        if self._streams:
            raise InvalidInputError(
                f"update_weights(version={version}) with {len(self._streams)} streams: expected "
                "none to run; stop them first"
            )

        def update(engine: RolloutEngine) -> None:
            if engine not in self._ready:
                engine.acquire()
            engine.update_weights(source, version)

        self._ready = self._each(update)
        self.version = version

    def acquire(self) -> None:
        """Have every engine take its device's memory; `update_weights` must follow."""
        self._each(lambda engine: engine.acquire())

    def release(self) -> None:
        """Have every engine give its device's memory back."""
        self._each(lambda engine: engine.release())

    def close(self) -> None:
        """End all engines for good."""
        for engine in self._engines:
            engine.close()

    def _each(self, call: Callable[[RolloutEngine], None]) -> list[RolloutEngine]:
        """Those for which a call succeeded. Raises the last ProcessDiedError if that is none."""
        done = []
        fault: ProcessDiedError | None = None
        for engine in self._engines:
            try:
                call(engine)
                done.append(engine)
            except ProcessDiedError as error:
                fault = error
        if fault is not None and not done:
            raise fault
        return done

    def _start(self, given: Sequence[_Given]) -> None:
        """Start streams on the engines that are ready, and on others where one dies by it."""
        waiting = list(given)
        started: list[int] = []
        while waiting:
            if not self._ready:
                raise ProcessDiedError("no engine of the fleet is left: expected update_weights")
            self._spread(waiting)
            shares: dict[tuple[int, float, int], list[_Given]] = {}
            for each in waiting:
                key = (id(each.engine), each.temperature, each.seed)
                shares.setdefault(key, []).append(each)
            waiting = []
            for share in shares.values():
                engine = share[0].engine
                try:
                    engine.start(
                        [each.lease for each in share],
                        max_new_tokens=[each.max_new_tokens for each in share],
                        temperature=share[0].temperature,
                        seed=share[0].seed,
                    )
                except ProcessDiedError:
                    if engine in self._ready:
                        self._ready.remove(engine)
                    waiting += share
                    continue
                except InvalidInputError:
                    self.stop(started)
                    raise
                ids = [each.lease.trajectory_id for each in share]
                self._streams.update(zip(ids, share, strict=True))
                started += ids
        self._handed.put_nowait(None)

    def _spread(self, given: Sequence[_Given]) -> None:
        """Choose an engine for each stream: the one with the least to compute, and that of the
        stream before for the same prompt, up to a fair share."""
        load = dict.fromkeys(map(id, self._ready), 0)
        for running in self._streams.values():
            if id(running.engine) in load:
                load[id(running.engine)] += running.cost
        fair = (sum(load.values()) + sum(each.cost for each in given)) / len(self._ready)
        before: _Given | None = None
        for each in given:
            same = before is not None and before.prompt == each.prompt
            if before is not None and same and load[id(before.engine)] < fair:
                each.engine = before.engine
            else:
                each.engine = min(self._ready, key=lambda engine: load[id(engine)])
            load[id(each.engine)] += each.cost
            before = each

    def _follow(self) -> None:
        """Read from every engine that has streams."""
        for engine in {id(each.engine): each.engine for each in self._streams.values()}.values():
            if id(engine) not in self._tasks:
                self._tasks[id(engine)] = asyncio.create_task(self._read(engine))

    async def _read(self, engine: RolloutEngine) -> None:
        """Hand on what one engine hands out; where it dies, its streams go to the others."""
        try:
            async for chunk in engine.chunks():
                given = self._streams.get(chunk.trajectory_id)
                if given is not None and chunk.finish_reason is None:
                    given.chunks.append(chunk)
                elif given is not None:
                    del self._streams[chunk.trajectory_id]
                self._handed.put_nowait(chunk)
        except ProcessDiedError as error:
            if engine in self._ready:
                self._ready.remove(engine)
            orphans = [each for each in self._streams.values() if each.engine is engine]
            for each in orphans:
                del self._streams[each.lease.trajectory_id]
                each.go_on()
            try:
                self._start(orphans)
            except (ProcessDiedError, InvalidInputError) as none_left:
                self._fault = none_left if self._ready else error
        except Exception as error:  # noqa: BLE001 - handed to whoever reads `chunks`
            self._fault = error
        finally:
            del self._tasks[id(engine)]
            self._handed.put_nowait(None)

    async def _end_all(self) -> None:
        """Nothing is read, and no stream runs any more; nothing of one is left in an engine."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._streams:
            self.stop(list(self._streams))
            for engine in self._ready:
                with contextlib.suppress(ProcessDiedError):
                    async for _ in engine.chunks():
                        pass
