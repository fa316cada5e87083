"""Starting the actors of a store, and finding them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from k15core.errors import InvalidInputError
from k15core.integrations.ray.actor import Shard
from k15core.integrations.ray.store import ShardedStore

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAMESPACE = "k15core"
# Calls that one shard carries out at a time: one that waits for room must not hold up the rest.
_CALLS_AT_ONCE = 8


def start(
    directories: Sequence[str],
    *,
    name: str | None = None,
    nodes: Sequence[str] | None = None,
    patience: float = 60.0,
    **options: Any,
) -> ShardedStore:
    """Start one actor a directory, and give the store that they are together.

    `options` are those of `Store`, for each shard: a capacity is one shard's. `nodes` are Ray's ids
    of the nodes on which the directories lie (all on this one, unless given): an actor stays on
    its node, where its directory is. Ray starts an actor again whose process died, and its store
    has everything that was acknowledged. With a `name` other drivers find the shards by
    `connect(name)`, and they outlive this one; without, they end with it. `patience` is how many
    seconds a call waits for an actor that is started again.
    """
    if not directories:
        raise InvalidInputError("directories = []: expected one for each shard")
    here = ray.get_runtime_context().get_node_id()
    nodes = [here] * len(directories) if nodes is None else list(nodes)
    if len(nodes) != len(directories):
        raise InvalidInputError(
            f"nodes has {len(nodes)} entries: expected {len(directories)}, one for each directory"
        )
    if name is not None and _found(name):
        raise InvalidInputError(f"name = {name!r}: expected one that no store has yet")
    actor = ray.remote(Shard)
    handles = []
    for shard, (directory, node) in enumerate(zip(directories, nodes, strict=True)):
        named: dict[str, Any] = {}
        if name is not None:
            named = {"name": f"{name}/{shard}", "namespace": _NAMESPACE, "lifetime": "detached"}
        place = str(Path(directory).absolute())
        handles.append(
            actor.options(
                num_cpus=0,
                max_restarts=-1,
                max_concurrency=_CALLS_AT_ONCE,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
                **named,
            ).remote(place, shard, len(directories), options)
        )
    store = ShardedStore(handles, patience=patience)
    try:
        store.unfinished()
    except BaseException:
        for handle in handles:
            ray.kill(handle)
        raise
    return store


def connect(name: str, *, patience: float = 60.0) -> ShardedStore:
    """The store whose shards another driver has started under a name."""
    handles = _found(name)
    if not handles:
        raise InvalidInputError(f"name = {name!r}: expected that of shards that were started")
    return ShardedStore(handles, patience=patience)


def _found(name: str) -> list[Any]:
    handles: list[Any] = []
    with suppress(ValueError):
        while True:
            handles.append(ray.get_actor(f"{name}/{len(handles)}", namespace=_NAMESPACE))
    return handles
