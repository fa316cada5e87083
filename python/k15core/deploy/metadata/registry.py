"""Published weights in the metadata: who has which version of which model, and where.

    weights/MODEL/VERSION/NODE/SHARD   one published version in one directory

VERSION has ten digits, so that keys sort as versions do. MODEL, NODE and SHARD are percent-encoded;
SHARD is "all" where the directory holds whole tensors, else a name of the trainer's choice (of its
rank, say). Values are JSON.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from k15core.errors import CorruptionError, InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from k15core.deploy.metadata.base import Item, Metadata, MetadataLease
    from k15core.deploy.shared_weights import Manifest

ALL = "all"


@dataclass(frozen=True)
class Published:
    """One published version: `directory` on `node`; `address` is where other nodes can fetch it
    from (k15core.deploy.mooncake), None where nobody sends it."""

    model: str
    version: int
    node: str
    shard: str
    directory: str
    bytes: int
    tensors: int
    address: str | None = None


class WeightRegistry:
    """The published versions of one model."""

    def __init__(self, metadata: Metadata, model: str) -> None:
        self.metadata = metadata
        self.model = model
        self._prefix = f"weights/{_part('model', model)}/"

    def announce(
        self,
        manifest: Manifest,
        directory: str | Path,
        *,
        node: str,
        shard: str = ALL,
        address: str | None = None,
        lease: MetadataLease | None = None,
    ) -> Published:
        """Tell of a version that is published in a directory of a node.

        It stands in for what the node announced of this shard before: the directory holds that no
        more. With a lease it is withdrawn when the owner dies.
        """
        made = Published(
            self.model,
            manifest.version,
            node,
            shard,
            str(directory),
            manifest.bytes,
            len(manifest.tensors),
            address,
        )
        key = self._key(made.version, node, shard)
        self.metadata.put(key, json.dumps(asdict(made)).encode(), lease=lease)
        for item in self._items():
            if item.key != key and item.key.split("/")[3:] == key.split("/")[3:]:
                self.metadata.delete(item.key)
        return made

    def withdraw(self, *, node: str, shard: str = ALL) -> None:
        """Tell that a node's directory is no more."""
        for item in self._items():
            if item.key.split("/")[3:] == [_part("node", node), _part("shard", shard)]:
                self.metadata.delete(item.key)

    def published(self, version: int | None = None) -> list[Published]:
        """What is published, by version, node and shard; of one version where it is given."""
        found = [self._decode(item) for item in self._items()]
        return [each for each in found if version is None or each.version == version]

    def wait_for(self, version: int, *, seconds: float) -> list[Published]:
        """The places of the newest version that is at least `version`; none if it does not come."""
        deadline = time.monotonic() + seconds
        while True:
            items, revision = self.metadata.items(self._prefix)
            found = [self._decode(item) for item in items]
            newest = max((each.version for each in found), default=-1)
            left = deadline - time.monotonic()
            if newest >= version:
                return [each for each in found if each.version == newest]
            if left <= 0:
                return []
            self.metadata.watch(self._prefix, after=revision, seconds=left)

    def _items(self) -> list[Item]:
        return self.metadata.items(self._prefix)[0]

    def _key(self, version: int, node: str, shard: str) -> str:
        return f"{self._prefix}{version:010d}/{_part('node', node)}/{_part('shard', shard)}"

    def _decode(self, item: Item) -> Published:
        try:
            found = Published(**json.loads(item.value))
            same = self._key(found.version, found.node, found.shard) == item.key
        except (TypeError, ValueError, InvalidInputError) as error:
            raise CorruptionError(f"metadata key {item.key}: {error}") from error
        if not same or found.model != self.model:
            raise CorruptionError(f"metadata key {item.key}: is about {found}")
        return found


def _part(field: str, text: str) -> str:
    if not isinstance(text, str) or not text or unquote(quoted := quote(text, safe="")) != text:
        raise InvalidInputError(f"{field} {text!r}: expected some text")
    return quoted
