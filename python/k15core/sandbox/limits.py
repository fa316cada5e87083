"""What a run may use."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a run; None leaves what the language or the sandbox has.

    Memory counts all processes of the run together with their files, which lie in memory, so
    `disk_bytes` is at most `memory_bytes` less 8 MiB. `output_bytes` is kept of stdout and of
    stderr each; a run that writes more ends with the verdict `output_limit`. `cpus` is how many
    processors it may keep busy at once. Values are checked where they are used: an
    InvalidInputError names the field.
    """

    cpu_seconds: float | None = None
    wall_seconds: float | None = None
    memory_bytes: int | None = None
    processes: int | None = None
    disk_bytes: int | None = None
    disk_files: int | None = None
    output_bytes: int | None = None
    open_files: int | None = None
    stack_bytes: int | None = None
    cpus: float | None = None

    def given(self) -> dict[str, float | int]:
        """The fields that are not None."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not None}
