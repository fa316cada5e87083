"""Where the ranks are started: on this machine, or by Ray over the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from k15core.errors import InvalidInputError
from k15core.trainer.megatron.processes import IN_STEP, Workers

Placement = Literal["local", "ray"]

WORKER = "k15core.trainer.megatron.worker:Worker"


@runtime_checkable
class Ranks(Protocol):
    """Processes, one a rank, that are all asked the same at one time. See `Workers`."""

    def __len__(self) -> int: ...

    @property
    def alive(self) -> bool:
        """Whether calls can still be made, as far as is known."""
        ...

    @property
    def pids(self) -> list[int]:
        """The processes, by rank, each on its own machine."""
        ...

    def call(
        self, method: str, *shared: Any, each: Sequence[Any] = (), **keywords: Any
    ) -> list[Any]:
        """Ask every rank for `method`; their results, by rank."""
        ...

    def close(self) -> None:
        """End all of them."""
        ...


def start(ranks: int, *, device: str, placement: Placement, options: Mapping[str, Any]) -> Ranks:
    """Start `ranks` processes; `options` are keyword arguments of `RayRanks` with placement ray."""
    if placement == "ray":
        from k15core.deploy.ray import RayRanks

        try:
            return RayRanks(ranks, worker=WORKER, device=device, in_step=IN_STEP, **options)
        except TypeError as error:
            raise InvalidInputError(f"ray = {dict(options)}: {error}") from error
    if placement != "local":
        raise InvalidInputError(f"placement = {placement!r}: expected local or ray")
    if options:
        raise InvalidInputError(f"ray = {dict(options)}: expected none with placement local")
    return Workers(ranks, device=device)
