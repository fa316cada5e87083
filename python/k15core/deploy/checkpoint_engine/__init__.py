"""The checkpoint engine of the report's Figure 4: a sidecar that owns the rollout engine's process.

Names are loaded when they are first used: the client needs nothing but Python.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from k15core.deploy.checkpoint_engine.client import CheckpointEngineClient, EngineState
    from k15core.deploy.checkpoint_engine.engine import CheckpointEngine
    from k15core.deploy.checkpoint_engine.program import EngineProgram
    from k15core.deploy.checkpoint_engine.service import Service
    from k15core.deploy.checkpoint_engine.state import State

_HOME = {
    "CheckpointEngine": "engine",
    "CheckpointEngineClient": "client",
    "EngineProgram": "program",
    "EngineState": "client",
    "Service": "service",
    "State": "state",
}

__all__ = [
    "CheckpointEngine",
    "CheckpointEngineClient",
    "EngineProgram",
    "EngineState",
    "Service",
    "State",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
