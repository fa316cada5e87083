"""Where an iteration's time goes."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from k15core.report.live import LiveDisplay


class PhaseClock:
    """Seconds by phase, and when each began; the display is told when a phase begins.

    `now` says the seconds of the run, in which the timeline's beginnings are.
    """

    def __init__(self, display: LiveDisplay, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.timeline: list[tuple[str, float, float]] = []
        """Phases in their order: name, when it began, how long it took; in seconds."""
        self._display = display
        self._now = now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        self._display.phase(name)
        start = self._now()
        try:
            yield
        finally:
            spent = self._now() - start
            self.seconds[name] += spent
            self.timeline.append((name, round(start, 3), round(spent, 3)))

    def move(self, source: str, target: str, seconds: float) -> None:
        """Book seconds of one phase to another; the timeline keeps them where they were."""
        self.seconds[source] -= seconds
        self.seconds[target] += seconds
