"""What is closed when its block ends: the context manager of everything here that has a `close`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self


class Closing(ABC):
    """A context manager whose end is its `close`."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held. A second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
