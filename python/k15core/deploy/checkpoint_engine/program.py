"""What the checkpoint engine needs to know of the server that it starts, whichever that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class EngineProgram(Protocol):
    """A server that samples with weights which it is handed: how it is started and spoken to.

    It holds no process: each call names the server by its `url`, so that one which was started by
    another process can be spoken to as well. Calls raise ProcessDiedError where nothing answers,
    and InvalidInputError with the server's words where it refuses.
    """

    def command(self, listening: int) -> Sequence[str]:
        """The command line of a server on dummy weights.

        It inherits the descriptor `listening`: a socket that is bound to its address already.
        """
        ...

    def environment(self) -> Mapping[str, str]:
        """Variables over those of this process."""
        ...

    def is_healthy(self, url: str) -> bool:
        """Whether it answers, and can take requests. Never raises, and takes a second at most."""
        ...

    def version(self, url: str) -> int | None:
        """Of the weights that it has, by its own report; None for dummy ones."""
        ...

    def update(self, url: str, directory: str, version: int, published: int) -> None:
        """Load weights, call them `version` and drop every cache of others; takes requests again.

        `published` is the version by which `directory` must have them.
        """
        ...

    def drain(self, url: str) -> None:
        """Take no more requests, and wait for those under way. `update` and `resume` end it."""
        ...

    def resume(self, url: str) -> None:
        """Take requests again."""
        ...

    def sleep(self, url: str) -> None:
        """Give the device's memory back, weights and caches; what runs is aborted first."""
        ...

    def wake(self, url: str) -> None:
        """Take the memory again; weights are without content until `update`."""
        ...
