"""Embedded engines on several processors: the report's rollout workers on one machine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from k15core.errors import InvalidInputError
from k15core.rollout.embedded.process import EmbeddedProcess
from k15core.rollout.fleet import Fleet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from k15core.models.lean import LeanModel


class EmbeddedFleet(Fleet):
    """A `Fleet` of `processes` embedded engines, with `slots` among them and `threads` each.

    The tokens are those of one `EmbeddedEngine`, whose other settings these are. One process a
    physical processor is what a small model is fastest with; a large one, whose products keep
    several threads at work, needs no fleet.
    """

    def __init__(
        self,
        model: LeanModel | str | Path,
        *,
        max_total_tokens: int,
        processes: int = 2,
        threads: int = 1,
        slots: int = 64,
        eos_token_ids: Sequence[int] | None = None,
        min_rows: int = 32,
        chunk_tokens: int = 32,
        repetition: Mapping[str, Any] | None = None,
        device: str | None = None,
        version: int = 0,
    ) -> None:
        if not 1 <= processes <= slots:
            raise InvalidInputError(
                f"processes = {processes}: expected 1 to slots = {slots}, at least a slot for each"
            )

        def make(i: int) -> EmbeddedProcess:
            return EmbeddedProcess(
                model,
                threads=threads,
                slots=slots // processes + (i < slots % processes),
                max_total_tokens=max_total_tokens,
                eos_token_ids=None if eos_token_ids is None else list(eos_token_ids),
                min_rows=min_rows,
                chunk_tokens=chunk_tokens,
                repetition=None if repetition is None else dict(repetition),
                device=device,
                version=version,
            )

        with ThreadPoolExecutor(processes) as pool:  # what takes seconds is torch's import
            made = [pool.submit(make, i) for i in range(processes)]
        faults = [each.exception() for each in made]
        if any(faults):
            for each in made:
                if each.exception() is None:
                    each.result().close()
            raise next(filter(None, faults))
        super().__init__([each.result() for each in made])
