"""Where an iteration's time goes."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from k15core.report.live import LiveDisplay


class PhaseClock:
    """Seconds by phase; the display is told when a phase begins."""

    def __init__(self, display: LiveDisplay) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._display = display

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        self._display.phase(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def move(self, source: str, target: str, seconds: float) -> None:
        """Book seconds of one phase to another."""
        self.seconds[source] -= seconds
        self.seconds[target] += seconds
