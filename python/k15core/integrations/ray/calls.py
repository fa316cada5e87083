"""Calls to actors that may die and come back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeAlias

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from k15core.errors import DisconnectedError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: For each shard that is called: positional arguments, and arguments by name.
Wanted: TypeAlias = dict[int, tuple[tuple[Any, ...], dict[str, Any]]]


class Actors:
    """The actors of the shards. Calls go to several of them at once.

    A call that ends with the process of its actor is made again once Ray has started another one,
    for `patience` seconds, if it may be carried out twice; else it is a DisconnectedError, because
    nobody knows whether it was carried out.
    """

    def __init__(self, handles: Sequence[Any], patience: float) -> None:
        self.handles = list(handles)
        self._patience = patience
        self._suspects: set[int] = set()

    def call(self, shard: int, method: str, *arguments: Any, again: bool, **options: Any) -> Any:
        """Call one actor."""
        return self.call_many({shard: (arguments, options)}, method, again=again)[shard]

    def call_all(self, method: str, *arguments: Any, again: bool) -> list[Any]:
        """Call every actor with the same arguments; answers in the order of the shards."""
        wanted: Wanted = {shard: (arguments, {}) for shard in range(len(self.handles))}
        return list(self.call_many(wanted, method, again=again).values())

    def call_many(self, wanted: Wanted, method: str, *, again: bool) -> dict[int, Any]:
        """Call some actors, each with its arguments. All calls end before the first error is
        raised, that of the lowest shard."""
        end = time.monotonic() + self._patience
        for shard in self._suspects & wanted.keys():
            self._wait_for(shard, end)

        def send(shard: int) -> Any:
            arguments, options = wanted[shard]
            return getattr(self.handles[shard], method).remote(*arguments, **options)

        calls = {shard: send(shard) for shard in wanted}
        answers: dict[int, Any] = {}
        first: BaseException | None = None
        for shard, call in calls.items():
            pending = call
            while shard not in answers:
                try:
                    answers[shard] = ray.get(pending)
                except RayActorError as error:
                    self._suspects.add(shard)
                    if not again:
                        first = first or _lost(shard, error)
                        break
                    try:
                        self._wait_for(shard, end)
                    except DisconnectedError as gone:
                        first = first or gone
                        break
                    pending = send(shard)
                except RayTaskError as error:
                    first = first or error.cause
                    break
        if first is not None:
            raise first
        return {shard: answers[shard] for shard in sorted(answers)}

    def _wait_for(self, shard: int, end: float) -> None:
        """Until the actor of a shard answers."""
        while True:
            try:
                ray.get(self.handles[shard].ping.remote())
            except RayActorError as error:
                if time.monotonic() > end:
                    raise _lost(shard, error) from None
                # One that Ray does not start again says so at once.
                time.sleep(0.5 if isinstance(error, ActorDiedError) else 0.05)
            else:
                self._suspects.discard(shard)
                return


def _lost(shard: int, error: RayActorError) -> DisconnectedError:
    why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DisconnectedError(
        f"shard {shard}: its actor's process ended during the call ({why}). What was acknowledged "
        "is kept; whether this call was carried out is not known"
    )
