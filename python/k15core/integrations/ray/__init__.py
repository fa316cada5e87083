"""A store over the nodes of a Ray cluster: actors that own a directory each, sharded by group."""

from k15core.integrations.ray.actor import Shard
from k15core.integrations.ray.cluster import connect, start
from k15core.integrations.ray.store import ShardedStore

__all__ = ["Shard", "ShardedStore", "connect", "start"]
