"""What is run: a source with its inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from k15core.sandbox.limits import Limits


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A source to run, as `Sandbox.run` takes it."""

    source: str
    language: str
    arguments: Sequence[str] = ()
    stdin: bytes = b""
    files: Mapping[str, bytes] = field(default_factory=dict)
    fetch: Sequence[str] = ()
    limits: Limits | None = None

    def __post_init__(self) -> None:
        for name in ("source", "language"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise InvalidInputError(f"{name} = {value!r}: expected a string")


def as_submission(job: Submission | Mapping[str, Any]) -> Submission:
    """A job of `run_many`, which may be a mapping of a submission's fields."""
    if isinstance(job, Submission):
        return job
    try:
        return Submission(**job)
    except TypeError as error:
        message = f"jobs: {error}: expected the fields of k15core.sandbox.Submission"
        raise InvalidInputError(message) from error
