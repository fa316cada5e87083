"""What TransferQueue calls: bootstrap, storage manager and storage client of "K15Store".

A Ray actor on the node that called `init` owns the directory. If its process dies, Ray starts it
again, the store recovers what was acknowledged, and calls under way are made again: a put writes
the same value once more, a clear finds nothing to do.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from transfer_queue.storage.bootstrap.provider import StorageBootstrapProvider
from transfer_queue.storage.clients.base import StorageClientFactory, StorageKVClient
from transfer_queue.storage.managers.base import KVStorageManager, StorageManagerFactory

from k15core.errors import InvalidInputError, StorageError
from k15core.integrations.transfer_queue.codec import decode, encode
from k15core.integrations.transfer_queue.values import Sync, ValueStore

NAME = "K15Store"
_NAMESPACE = "transfer_queue"
_OPENING_SECONDS = 30.0
_SETTINGS = {"directory", "capacity_bytes", "sync", "existing", "actor", "endpoint"}
_CHECKPOINT = "k15_store.json"


class Endpoint:
    """Where the values are: the name of an actor.

    It travels in TransferQueue's configuration. A process that reads that configuration imports
    this module by it, and so knows the backend. (No dataclass: OmegaConf would take it apart.)
    """

    def __init__(self, actor: str, namespace: str) -> None:
        self.actor = actor
        self.namespace = namespace

    def __repr__(self) -> str:
        return f"Endpoint({self.actor!r}, {self.namespace!r})"


class K15StoreServer(ValueStore):
    """The actor: a ValueStore that answers calls one after another."""

    def __init__(self, directory: str, capacity_bytes: int | None, sync: Sync) -> None:
        deadline = time.monotonic() + _OPENING_SECONDS
        while True:
            try:
                super().__init__(directory, capacity_bytes=capacity_bytes, sync=sync)
                return
            except StorageError:  # the actor of a queue that was just closed may still end
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def size(self) -> int:
        """How many values there are."""
        return len(self)


class _Ownership:
    """Ends the actor when TransferQueue's `close` lets go of it."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def __del__(self) -> None:
        if ray.is_initialized():
            ray.kill(self._server)


def actor_name(node: str, directory: str) -> str:
    """The name of the actor of a directory (absolute) of a node."""
    place = hashlib.sha256(f"{node}\0{directory}".encode()).hexdigest()
    return f"{NAME}-{place[:16]}"


@StorageBootstrapProvider.register_provider(NAME)
def initialize_k15_store(conf: Any) -> _Ownership:
    """Start the actor that owns the directory of `conf.backend.K15Store`; called by `init`.

    Keys: `directory`; `capacity_bytes` and `sync` as of `k15core.Store`; `existing`, "keep" or
    "clear", which is asked for when the directory holds values already; `actor`, the name of the
    actor, which unless given follows from the node and the directory, so that a cluster may have
    several.
    """
    settings = dict(conf.backend[NAME])
    if unknown := sorted(settings.keys() - _SETTINGS):
        raise InvalidInputError(
            f"backend.{NAME} has {', '.join(unknown)}: expected only "
            f"{', '.join(sorted(_SETTINGS - {'endpoint'}))}"
        )
    directory = settings.get("directory")
    if not directory:
        raise InvalidInputError(f"backend.{NAME}.directory = {directory}: expected a directory")
    existing = settings.get("existing")
    if existing not in (None, "keep", "clear"):
        raise InvalidInputError(f"backend.{NAME}.existing = {existing}: expected keep or clear")
    node = ray.get_runtime_context().get_node_id()
    path = str(Path(directory).absolute())
    actor = settings.get("actor") or actor_name(node, path)
    server = (
        ray.remote(K15StoreServer)
        .options(
            name=actor,
            namespace=_NAMESPACE,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        .remote(
            path,
            settings.get("capacity_bytes"),
            settings.get("sync") or "batch",
        )
    )
    size = ray.get(server.size.remote())
    if size and existing is None:
        ray.kill(server)
        raise InvalidInputError(
            f"backend.{NAME}.directory = {directory} holds {size} values: expected "
            f"backend.{NAME}.existing, keep (to load a checkpoint) or clear"
        )
    if existing == "clear":
        ray.get(server.clear.remote(None))
    conf.backend[NAME].endpoint = Endpoint(actor, _NAMESPACE)
    return _Ownership(server)


@StorageClientFactory.register("K15StorageClient")
class K15StorageClient(StorageKVClient):
    """Puts, gets and clears values by key through the actor."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        endpoint = config.get("endpoint")
        if not isinstance(endpoint, Endpoint):
            raise InvalidInputError(
                f"endpoint = {endpoint!r}: expected what transfer_queue.init puts there"
            )
        self._server = ray.get_actor(endpoint.actor, namespace=endpoint.namespace)

    def put(self, keys: list[str], values: list[Any]) -> None:
        """Write values; they are on their way to the disk when this returns."""
        if len(keys) != len(values):
            raise InvalidInputError(f"{len(keys)} keys for {len(values)} values: expected one each")
        ray.get(self._server.put.remote(keys, encode(values)))

    def get(
        self,
        keys: list[str],
        shapes: Any = None,  # noqa: ARG002 (each value knows its own)
        dtypes: Any = None,  # noqa: ARG002
        custom_backend_meta: Any = None,  # noqa: ARG002
    ) -> list[Any]:
        """The values of keys, tensors on the CPU; KeyError if one is not there."""
        return decode(ray.get(self._server.get.remote(keys)))

    def clear(self, keys: list[str], custom_backend_meta: Any = None) -> None:  # noqa: ARG002
        """Remove keys; those that are not there are passed over."""
        ray.get(self._server.clear.remote(keys))

    def mark(self) -> dict[str, int]:
        """Name the present point for a checkpoint."""
        mark: dict[str, int] = ray.get(self._server.mark.remote())
        return mark

    def rewind(self, mark: dict[str, int]) -> None:
        """Return to a checkpoint's point."""
        ray.get(self._server.rewind.remote(mark))


@StorageManagerFactory.register(NAME)
class K15StorageManager(KVStorageManager):
    """TransferQueue's key-value manager over K15StorageClient, with checkpoints.

    A checkpoint is a mark in the store, not a copy of it: it can be loaded as long as it is one of
    the two newest, into a queue on the same directory that was opened with `existing: keep`.
    """

    def __init__(self, controller_info: Any, config: Any, zmq_context: Any = None) -> None:
        super().__init__(
            controller_info,
            {**dict(config), "client_name": "K15StorageClient"},
            zmq_context=zmq_context,
        )

    async def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Mark the store, and write down the mark."""
        path = Path(checkpoint_dir) / _CHECKPOINT
        path.write_text(json.dumps(self.storage_client.mark()))

    async def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Return to the mark that `save_checkpoint` wrote down."""
        path = Path(checkpoint_dir) / _CHECKPOINT
        if not path.exists():
            raise InvalidInputError(f"{path} is not there: expected a checkpoint of {NAME}")
        self.storage_client.rewind(json.loads(path.read_text()))
