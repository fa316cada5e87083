"""The writer of a TorchRL replay buffer: round and round a TrajectoryStorage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torchrl.data import Writer

from k15core.errors import InvalidInputError
from k15core.integrations.torchrl.storage import TrajectoryStorage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tensordict import TensorDictBase


class TrajectoryWriter(Writer):
    """Writes into a TrajectoryStorage from its end on, then over the oldest items."""

    def __init__(self) -> None:
        super().__init__()
        self._cursor = 0
        self._write_count = 0

    def register_storage(self, storage: TrajectoryStorage) -> None:
        """Go on behind what the storage holds already."""
        if not isinstance(storage, TrajectoryStorage):
            raise InvalidInputError(
                f"storage is a {type(storage).__name__}: expected a TrajectoryStorage"
            )
        super().register_storage(storage)
        self._cursor = len(storage) % storage.max_size

    def add(self, data: TensorDictBase) -> int:
        """Write one trajectory (`group_size` 1); its index."""
        return int(self.extend([data])[0])

    def extend(self, data: TensorDictBase | Sequence[TensorDictBase]) -> torch.Tensor:
        """Write trajectories, a multiple of `group_size`; their indices [B]."""
        storage = self._storage
        last = self._cursor + len(data)
        places = torch.arange(self._cursor, last) % int(storage.max_size)
        storage.set(places, data)
        self._cursor = last % storage.max_size
        self._write_count += len(data)
        for entity in storage._attached_entities_iter():
            entity.mark_update(places)
        return places

    def _empty(self, empty_write_count: bool = True) -> None:
        self._cursor = 0
        if empty_write_count:
            self._write_count = 0

    def state_dict(self) -> dict[str, Any]:
        """Where the next trajectory goes, and how many were written."""
        return {"cursor": self._cursor, "write_count": self._write_count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Return to what `state_dict` gave."""
        self._cursor = state_dict["cursor"]
        self._write_count = state_dict["write_count"]

    def dumps(self, path: str | Path) -> None:
        """Write `state_dict` into a directory."""
        Path(path).mkdir(parents=True, exist_ok=True)
        (Path(path) / "k15_writer.json").write_text(json.dumps(self.state_dict()))

    def loads(self, path: str | Path) -> None:
        """Return to what `dumps` wrote."""
        self.load_state_dict(json.loads((Path(path) / "k15_writer.json").read_text()))
