"""Partial rollouts: the unfinished trajectories first, each within the iteration's token budget.

A long response is generated over several iterations (report, section 2.6.2): what is unfinished
when its budget is spent stays in the store with its tokens, log-probs and policy versions, and the
next iteration resumes it instead of sampling it again. A chunk is in the store before the next one
is asked for, so a crash loses only what nobody had acknowledged.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from k15core.errors import InvalidInputError, LeaseExpiredError
from k15core.rollout.version_bound import BeyondMaxVersions, VersionBound

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from k15core.types import Chunk, FinishReason, Lease, Loop, Store, StreamEngine


@dataclass
class RolloutReport:
    """What one iteration's rollout did. Token counts are of responses."""

    started: int = 0
    resumed: int = 0
    tokens: int = 0
    """Tokens sampled and acknowledged in this call."""
    tokens_saved: int = 0
    """Tokens of resumed prefixes: kept from earlier iterations, not sampled again."""
    finished: Counter[str] = field(default_factory=Counter)
    """Finished trajectories by finish reason."""
    loops: list[tuple[int, Loop]] = field(default_factory=list)
    """Trajectories that the repetition detector stopped, with what it found."""
    lost_leases: int = 0
    ended_by_span: int = 0
    """Of the finished, those that would have spanned more versions than they may."""
    groups_dropped: int = 0
    """Groups of which a member would have."""


@dataclass
class _Stream:
    lease: Lease
    length: int


class PartialRollout:
    """Runs an engine over a store's unfinished trajectories, one iteration a call.

    `segment_budget` is what a trajectory may spend under one policy version, `max_response_tokens`
    over its life, both in tokens. A trajectory may span `max_versions` policy versions, from that
    of its oldest token to the one under which it would go on; `beyond_max_versions` says what
    happens to one that would span more (`VersionBound`). `clock` gives seconds for lease deadlines
    only: no decision about tokens depends on time.
    """

    def __init__(
        self,
        store: Store,
        engine: StreamEngine,
        *,
        segment_budget: int,
        max_response_tokens: int,
        eos_token_ids: Collection[int],
        temperature: float = 1.0,
        order: Literal["oldest", "stalest", "longest"] = "oldest",
        lease_seconds: float = 3600.0,
        max_versions: int | None = None,
        beyond_max_versions: BeyondMaxVersions = "finish",
        clock: Callable[[], float],
    ) -> None:
        for name, value in (
            ("segment_budget", segment_budget),
            ("max_response_tokens", max_response_tokens),
        ):
            if value < 1:
                raise InvalidInputError(f"{name} = {value}: expected a count of at least 1")
        self.store = store
        self.engine = engine
        self.segment_budget = segment_budget
        self.max_response_tokens = max_response_tokens
        self.eos_token_ids = frozenset(eos_token_ids)
        self.temperature = temperature
        self.order = order
        self.lease_seconds = lease_seconds
        self.bound = VersionBound(store, max_versions, beyond_max_versions)
        self.clock = clock

    async def run(
        self,
        *,
        version: int,
        seed: int,
        on_finished: Callable[[int], None] = lambda _: None,
        on_dropped: Callable[[int], None] = lambda _: None,
        enough: Callable[[], bool] = lambda: False,
    ) -> RolloutReport:
        """Roll out every unfinished trajectory of the store under policy `version`.

        `on_finished` is told each trajectory id as it ends. `enough` is asked then: once it says
        True the rest is stopped, unfinished, for a later iteration (over-provisioning); what had
        been sampled by then is kept. `on_dropped` is told each trajectory id, finished or not, of
        the groups that `beyond_max_versions` drops: before anything is awaited.
        """
        report = RolloutReport()
        leases, budgets = self._claim(version, report, on_finished, on_dropped)
        streams = {lease.trajectory_id: _Stream(lease, lease.response_length) for lease in leases}
        try:
            self.engine.start(
                leases, max_new_tokens=budgets, temperature=self.temperature, seed=seed
            )
            async for chunk in self.engine.chunks():
                stream = streams.get(chunk.trajectory_id)
                if stream is None:
                    continue
                if chunk.finish_reason is not None:
                    del streams[chunk.trajectory_id]
                try:
                    self._append(stream, chunk, report)
                    ended = chunk.finish_reason is not None and self._end(stream, chunk, report)
                except LeaseExpiredError:  # another worker holds the trajectory, or has finished it
                    streams.pop(chunk.trajectory_id, None)
                    self.engine.stop([chunk.trajectory_id])
                    report.lost_leases += 1
                    continue
                if ended:
                    on_finished(chunk.trajectory_id)
                    if enough():
                        self.engine.stop(list(streams))
        finally:
            # Those that were stopped; all where the engine died: who rolls out next goes on.
            self._release(streams.values(), report)
        return report

    def _release(self, streams: Iterable[_Stream], report: RolloutReport) -> None:
        for stream in streams:
            try:
                self.store.release(stream.lease.trajectory_id, stream.lease.epoch)
            except LeaseExpiredError:
                report.lost_leases += 1

    def _claim(
        self,
        version: int,
        report: RolloutReport,
        on_finished: Callable[[int], None],
        on_dropped: Callable[[int], None],
    ) -> tuple[list[Lease], list[int]]:
        """Lease what is unfinished and has budget left, oldest work first; leases and budgets."""
        leases = self.store.lease(
            self.store.unfinished(),
            now=self.clock(),
            duration=self.lease_seconds,
            order=self.order,
        )
        # A run that was killed within this version resumes between the last token of a response and
        # its end, or with part of its budget spent.
        open_ended: list[Lease] = []
        for lease in leases:
            if reason := self._ended(lease):
                self.store.finish(lease.trajectory_id, lease.epoch, reason)
                report.finished[reason] += 1
                on_finished(lease.trajectory_id)
            else:
                open_ended.append(lease)
        bounded = self.bound.sort(open_ended, version, self.clock())
        for trajectory_id in bounded.finished:
            report.finished["length"] += 1
            report.ended_by_span += 1
            on_finished(trajectory_id)
        for trajectory_id in sorted(bounded.dropped):
            on_dropped(trajectory_id)
        report.groups_dropped += len(bounded.dropped_groups)
        ready: list[Lease] = []
        budgets: list[int] = []
        for lease in bounded.leases:
            spent = int((lease.versions[lease.prompt_length :] == version).sum())
            if spent < self.segment_budget:
                left = self.max_response_tokens - lease.response_length
                ready.append(lease)
                budgets.append(min(self.segment_budget - spent, left))
            else:
                self.store.release(lease.trajectory_id, lease.epoch)
            if lease.response_length > spent:
                report.resumed += 1
                report.tokens_saved += lease.response_length - spent
            else:
                report.started += 1
        return ready, budgets

    def _ended(self, lease: Lease) -> FinishReason | None:
        if lease.response_length and int(lease.input_ids[-1]) in self.eos_token_ids:
            return "stop"
        return "length" if lease.response_length >= self.max_response_tokens else None

    def _append(self, stream: _Stream, chunk: Chunk, report: RolloutReport) -> None:
        self.store.append(
            chunk.trajectory_id,
            stream.lease.epoch,
            stream.length,
            chunk.tokens,
            chunk.log_probs,
            chunk.version,
        )
        stream.length += len(chunk.tokens)
        report.tokens += len(chunk.tokens)

    def _end(self, stream: _Stream, chunk: Chunk, report: RolloutReport) -> bool:
        """Finish a trajectory, or give it back if only its budget is spent; True if finished."""
        lease, reason = stream.lease, chunk.finish_reason
        assert reason is not None
        if reason == "length" and stream.length < self.max_response_tokens:
            self.store.release(lease.trajectory_id, lease.epoch)
            return False
        self.store.finish(lease.trajectory_id, lease.epoch, reason)
        report.finished[reason] += 1
        if chunk.loop is not None:
            report.loops.append((lease.trajectory_id, chunk.loop))
        return True
