"""What the checkpoint engine knows of its engine process, and the file in which it survives."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from k15core.deploy.checkpoint_engine.process import Identity
from k15core.errors import CorruptionError

Phase = Literal[
    "stopped",
    "starting",
    "started",
    "updating",
    "serving",
    "draining",
    "drained",
    "releasing",
    "asleep",
    "waking",
    "failed",
]
"""What the engine process is at; docs/engines.md has the table of them."""

Goal = Literal["stopped", "asleep", "started", "serving", "drained"]
"""Where it is going: what was last asked for."""

PHASES: tuple[Phase, ...] = get_args(Phase)
GOALS: tuple[Goal, ...] = get_args(Goal)

FORMAT = 1


@dataclass(frozen=True)
class Memory:
    """What a release gave back, in bytes: held before it, left after it.

    `kind` is "device" where a driver told (NVML), else "resident": that of the processes.
    """

    kind: Literal["device", "resident"]
    held: int
    left: int


@dataclass(frozen=True)
class State:
    """One state of the checkpoint engine. Every change of it is in the file before it is acted on.

    `directory` and `version` are the weights that are wanted, `published` the version by which they
    are published there; `loaded` is the version that the process has: None while that is dummy
    weights, or not known. `incarnation` counts the processes started:
    streams of an earlier one are gone. `since` is in seconds of Unix time.
    """

    phase: Phase = "stopped"
    goal: Goal = "stopped"
    since: float = 0.0
    directory: str | None = None
    version: int | None = None
    published: int | None = None
    loaded: int | None = None
    process: Identity | None = None
    url: str | None = None
    incarnation: int = 0
    last_error: str | None = None
    memory: Memory | None = None

    def encode(self) -> bytes:
        """As JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, content: bytes, *, where: str) -> State:
        """What `encode` wrote. Raises CorruptionError."""
        try:
            found: dict[str, Any] = json.loads(content)
            if found.pop("format") != FORMAT or found.keys() != {each.name for each in fields(cls)}:
                raise ValueError("it has other fields than this release writes")
            for name, kind in (("process", Identity), ("memory", Memory)):
                found[name] = found[name] and kind(**found[name])
            if found["phase"] not in PHASES or found["goal"] not in GOALS:
                raise ValueError(f"phase {found['phase']!r}, goal {found['goal']!r}")
            return cls(**found)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptionError(
                f"{where}: not the state of a checkpoint engine ({error}). Where no engine process "
                "is left, the file can be removed"
            ) from error


class StateFile:
    """The file `state.json` of a directory: replaced by renaming, so that it is always whole."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "state.json"

    def load(self) -> State:
        """What was saved last, or the state of one that never was. Raises CorruptionError."""
        try:
            return State.decode(self.path.read_bytes(), where=str(self.path))
        except FileNotFoundError:
            return State()

    def save(self, state: State) -> None:
        """Replace what was there."""
        fresh = self.path.with_suffix(".fresh")
        fresh.write_bytes(state.encode())
        os.replace(fresh, self.path)  # noqa: PTH105 - the same as Path.replace
