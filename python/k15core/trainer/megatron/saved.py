"""What a checkpoint directory holds: megatron-core's own in `megatron`, and trainer.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import rmtree

from k15core.errors import InvalidInputError
from k15core.trainer.megatron.settings import Layout

FILE = "trainer.json"
SHARDS = "megatron"


@dataclass(frozen=True)
class Saved:
    """The trainer's part of a checkpoint: its steps, and the layout that the ranks saved in."""

    steps: int
    layout: Layout

    def write(self, folder: Path) -> None:
        """Name a checkpoint complete."""
        (folder / FILE).write_text(json.dumps(asdict(self)) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Saved:
        """What `write` wrote. Raises InvalidInputError where it is not that."""
        try:
            state = json.loads((folder / FILE).read_text())
            return cls(int(state["steps"]), Layout(**state["layout"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(
                f"checkpoint {folder}: {FILE} is not there or not what save wrote ({error!r})"
            ) from error


def empty_shards(folder: Path) -> str:
    """An empty directory for megatron-core's part; the checkpoint that was here is none now."""
    (folder / FILE).unlink(missing_ok=True)
    if (folder / SHARDS).exists():
        rmtree(folder / SHARDS)
    (folder / SHARDS).mkdir(parents=True)
    return str(folder / SHARDS)
