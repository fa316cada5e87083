"""A fleet of vLLM servers that a file names: who is in it may change between iterations."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from k15core.errors import InvalidInputError, ProcessDiedError
from k15core.rollout.fleet import Fleet
from k15core.rollout.vllm.server_engine import VllmServerEngine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from k15core.types import WeightSource

LOG = logging.getLogger(__name__)


class VllmFleet(Fleet):
    """A `Fleet` over the servers that the file `members` names: an address a line, # for comments.

    An address is that of a checkpoint engine (`k15 engine serve`), or, with `by` "url", of a vLLM
    server. The file is read again at each `update_weights`: what is new joins, what is gone leaves
    and is stopped; what does not answer within `start_seconds` is tried again the next time. The
    other settings are those of `VllmServerEngine`, for each server. They read weights from this
    machine's shared memory, or with `transfer` are on other nodes, all of them.

    Raises InvalidInputError where the file names no server, ProcessDiedError where none answers.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        members: str | Path,
        max_total_tokens: int,
        eos_token_ids: Sequence[int],
        slots: int = 64,
        repetition: Mapping[str, Any] | None = None,
        chunk_tokens: int = 16,
        device: str = "cpu",
        weights: str | Path | None = None,
        by: Literal["checkpoint_engine", "url"] = "checkpoint_engine",
        start_seconds: float = 10.0,
        transfer: Mapping[str, Any] | None = None,
    ) -> None:
        if by not in ("checkpoint_engine", "url"):
            raise InvalidInputError(f"by = {by!r}: expected checkpoint_engine or url")
        self._file, self._by, self._model = Path(members), by, model
        self._weights = None if weights is None else Path(weights)
        self._settings: dict[str, Any] = {
            "max_total_tokens": max_total_tokens,
            "eos_token_ids": eos_token_ids,
            "slots": slots,
            "repetition": repetition,
            "chunk_tokens": chunk_tokens,
            "device": device,
            "load": "dummy",
            "start_seconds": start_seconds,
            "transfer": transfer,
        }
        self._made = 0
        self._members: dict[str, VllmServerEngine] = {}
        fault = self._join(self._named())
        if not self._members:
            assert fault is not None
            raise fault
        super().__init__(list(self._members.values()))

    def update_weights(self, source: WeightSource, version: int) -> None:
        """Take in who is new, let go who is gone, and hand the weights to all. See `Fleet`."""
        named = self._named()
        before = set(self._members)
        self._join(named)
        for url in self._members.keys() - before:
            self.add(self._members[url])
        for url in self._members.keys() - set(named):
            if len(self._members) == 1:
                raise ProcessDiedError(f"members = {self._file}: none of them answers")
            engine = self._members[url]
            self.remove(engine)
            del self._members[url]
            engine.close()
        super().update_weights(source, version)

    def _named(self) -> list[str]:
        """The addresses in the file."""
        try:
            lines = self._file.read_text().splitlines()
        except OSError as error:
            raise InvalidInputError(
                f"members = {self._file}: {error.strerror}, expected a file of addresses"
            ) from error
        named = [line.partition("#")[0].strip() for line in lines]
        found = list(dict.fromkeys(filter(None, named)))
        if not found:
            raise InvalidInputError(f"members = {self._file}: expected at least one address")
        return found

    def _join(self, named: Sequence[str]) -> ProcessDiedError | None:
        """Make engines for addresses that have none; the last one's fault that did not answer."""
        fault = None
        for url in named:
            if url in self._members:
                continue
            self._made += 1
            weights = None if self._weights is None else self._weights / str(self._made)
            where: dict[str, Any] = {self._by: url, "weights": weights}
            try:
                self._members[url] = VllmServerEngine(self._model, **self._settings, **where)
            except ProcessDiedError as error:
                LOG.warning("%s does not join the fleet yet: %s", url, error)
                fault = error
        return fault
