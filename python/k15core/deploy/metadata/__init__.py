"""Who has published what: keys and values that processes and nodes share, with leases and watches.

`Metadata` is the interface; `FileMetadata` serves the processes of one machine, and
`k15core.deploy.etcd.EtcdMetadata` many machines. `WeightRegistry` lays published weights out in
either. docs/weights.md has the keys.
"""

from __future__ import annotations

from k15core.deploy.metadata.base import Event, Item, KeptLease, Metadata, MetadataLease
from k15core.deploy.metadata.file import FileMetadata
from k15core.deploy.metadata.registry import Published, WeightRegistry

__all__ = [
    "Event",
    "FileMetadata",
    "Item",
    "KeptLease",
    "Metadata",
    "MetadataLease",
    "Published",
    "WeightRegistry",
]
