"""Ranks of a trainer as actors of a Ray cluster: placed over its nodes, asked, and found dead.

Ray starts an actor on a node with room for it, and starts others when these have died; what the
ranks say to each other goes through torch.distributed, not through Ray.
"""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from k15core.errors import Error, InvalidInputError, ProcessDiedError

OURS = 0.001
"""Share of a node's own resource that pins a rank to it."""


class RayRanks:
    """`ranks` actors, one a rank, that are all asked the same at one time.

    `worker` is "module:Class": made without arguments in each actor, asked by `call(method,
    arguments, keywords)`, and told first to `join(rank, ranks, rendezvous, device)`. Exceptions of
    `in_step` are those that every rank raises or survives at the same place, so that all can go on.
    `cpus` and `gpus` are a rank's share; `strategy` is that of a placement group (PACK keeps ranks
    together, SPREAD apart, STRICT_ variants insist). Rank 0 is on this process's node: it writes
    the shared memory that this process reads. `patience` is how many seconds the cluster may take
    to find room.

    Joins the cluster of `address`, by default the one that Ray finds (RAY_ADDRESS, the node's own),
    unless this process is in one. Once a rank ends or fails, all are ended, and every later call
    raises ProcessDiedError.
    """

    def __init__(
        self,
        ranks: int,
        *,
        worker: str,
        device: str = "cpu",
        in_step: tuple[type[BaseException], ...] = (),
        cpus: float = 1.0,
        gpus: float | None = None,
        strategy: str = "PACK",
        address: str | None = None,
        environment: Mapping[str, str] | None = None,
        patience: float = 600.0,
    ) -> None:
        if ranks < 1:
            raise InvalidInputError(f"ranks is {ranks}: expected at least 1")
        if not ray.is_initialized():
            ray.init(address=address or "auto", log_to_driver=False)
        self.device = device
        self._in_step = in_step
        self._died: str | None = None
        gpus = (1.0 if device == "cuda" else 0.0) if gpus is None else gpus
        bundle = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
        here = f"node:{ray.util.get_node_ip_address()}"
        bundles = [dict(bundle) for _ in range(ranks)]
        bundles[0][here] = OURS
        self._group = placement_group(bundles, strategy=strategy)
        try:
            ray.get(self._group.ready(), timeout=patience)
        except GetTimeoutError:
            remove_placement_group(self._group)
            raise InvalidInputError(
                f"the cluster has no room for {ranks} ranks of {bundle} within {patience:g} s; it "
                f"has {ray.cluster_resources()}"
            ) from None
        variables = {"OMP_NUM_THREADS": str(max(1, int(cpus))), **(environment or {})}
        actor = ray.remote(_Rank)
        self._actors = [
            actor.options(
                num_cpus=cpus,
                num_gpus=gpus,
                resources={here: OURS} if rank == 0 else None,
                max_restarts=0,
                runtime_env={"env_vars": variables},
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=self._group, placement_group_bundle_index=rank
                ),
            ).remote(worker)
            for rank in range(ranks)
        ]
        self._joined = False

    def __len__(self) -> int:
        return len(self._actors)

    @property
    def alive(self) -> bool:
        """Whether calls can still be made, as far as is known."""
        return self._died is None

    @property
    def pids(self) -> list[int]:
        """The processes, by rank, each on its own node."""
        return [place["pid"] for place in self.places()]

    def places(self) -> list[dict[str, Any]]:
        """Where each rank is: `node` (its address) and `pid`."""
        return self._gather([actor.place.remote() for actor in self._actors])

    def call(
        self, method: str, *shared: Any, each: Sequence[Any] = (), **keywords: Any
    ) -> list[Any]:
        """Ask every rank for `method`; their results, by rank.

        `each` has a first argument for every rank. An exception of k15core that a rank raises is
        raised here, and what else it raises as ProcessDiedError with its words. All ranks are ended
        then, for some may wait for that one; those of `in_step` leave them alive.
        """
        if self._died is not None:
            raise ProcessDiedError(self._died)
        if not self._joined:
            self._joined = True
            meeting = self._gather([self._actors[0].meeting.remote()])[0]
            common = {"ranks": len(self), "rendezvous": meeting, "device": self.device}
            self._ask("join", [((), {"rank": rank, **common}) for rank in range(len(self))])
        firsts = [(value,) for value in each] if each else [()] * len(self)
        return self._ask(method, [((*first, *shared), keywords) for first in firsts])

    def close(self) -> None:
        """End all of them, and give their places back. A second call does nothing."""
        self._died = self._died or "the trainer is closed"
        self._end()

    def _ask(self, method: str, messages: Sequence[tuple[tuple[Any, ...], Any]]) -> list[Any]:
        answers = self._gather(
            [
                actor.call.remote(method, arguments, keywords)
                for actor, (arguments, keywords) in zip(self._actors, messages, strict=True)
            ]
        )
        refused: BaseException | None = None
        for rank, (_, error, words) in enumerate(answers):
            if isinstance(error, self._in_step):
                refused = error
            elif words is not None:
                raise self._lost(f"rank {rank} of {len(self)} failed: {words}", error)
        if refused is not None:
            raise refused
        return [result for result, _, _ in answers]

    def _gather(self, references: Sequence[Any]) -> list[Any]:
        """All answers, or the first news of a rank that cannot give one."""
        places = {reference: rank for rank, reference in enumerate(references)}
        waiting, found = list(references), [None] * len(references)
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1)
            for reference in ready:
                rank = places[reference]
                try:
                    found[rank] = ray.get(reference)
                except RayActorError as error:
                    how = str(error).strip().splitlines()[-1]
                    raise self._lost(f"rank {rank} of {len(self)} ended: {how}") from None
                except RayError as error:
                    raise self._lost(f"rank {rank} of {len(self)}: {error}") from None
        return found

    def _lost(self, words: str, error: BaseException | None = None) -> BaseException:
        self._died = words
        self._end()
        return error if isinstance(error, Error) else ProcessDiedError(words)

    def _end(self) -> None:
        for actor in self._actors:
            with suppress(RayError):
                ray.kill(actor)
        with suppress(RayError):
            remove_placement_group(self._group)


class _Rank:
    """The actor: one worker, asked by name."""

    def __init__(self, worker: str) -> None:
        module, name = worker.split(":")
        self._worker = getattr(importlib.import_module(module), name)()

    def place(self) -> dict[str, Any]:
        return {"node": ray.util.get_node_ip_address(), "pid": os.getpid()}

    def meeting(self) -> str:
        """Where ranks can meet: a port of this node that was free a moment ago."""
        address = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((address, 0))
            return f"tcp://{address}:{probe.getsockname()[1]}"

    def call(
        self, method: str, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[Any, BaseException | None, str | None]:
        """The result, or an exception and its words: Ray would wrap one in its own."""
        try:
            return self._worker.call(method, arguments, keywords), None, None
        except Error as error:
            return None, error, str(error)
        except Exception as error:  # noqa: BLE001 - told to the trainer
            return None, None, f"{type(error).__name__}: {error}"
