"""One launch of worker processes serves every test here: a trainer builds on what another had."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from megatron_work import FAMILIES, directory, needs_megatron

from k15core.trainer.megatron import Workers

Processes = Callable[[int], Workers]


@pytest.fixture(scope="package")
def processes() -> Iterator[Processes]:
    """Processes by their count: started once, and again after a test that killed one."""
    needs_megatron()
    started = {ranks: Workers(ranks) for ranks in (1, 2)}

    def get(ranks: int) -> Workers:
        if not started[ranks].alive:
            started[ranks].close()
            started[ranks] = Workers(ranks)
        return started[ranks]

    yield get
    for workers in started.values():
        workers.close()


@pytest.fixture(scope="package")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: directory(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}
