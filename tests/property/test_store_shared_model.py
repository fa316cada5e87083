"""The random operations of test_store_model.py through a client: the same answers as the model."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_store_model import Walk

from k15core import SharedStore


class ServedWalk(Walk):
    """A walk whose store is served; the client stays when the server is started again."""

    def __init__(self, seed: int, directory: Path | None, path: Path) -> None:
        super().__init__(seed, directory)
        self.own = self.store
        self.server = self.own.serve(path)
        self.store = self.client = SharedStore(path)

    def reopen(self) -> None:
        if self.directory is None:
            return
        path = self.server.path
        self.server.close()
        self.store = self.own
        super().reopen()
        self.own = self.store
        self.server = self.own.serve(path)
        self.store = self.client


@pytest.mark.parametrize("durable", [False, True], ids=["memory", "directory"])
@pytest.mark.parametrize("seed", range(6))
def test_random_operations_through_a_client(seed: int, durable: bool, tmp_path: Path) -> None:
    walk = ServedWalk(seed, tmp_path / "store" if durable else None, tmp_path / "socket")
    for _ in range(500):
        walk.step()
    walk.same_answers()
    walk.client.close()
    walk.server.close()
    walk.own.close()
