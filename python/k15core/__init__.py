"""k15core: the systems core under reinforcement learning of reasoning LLMs.

Names are loaded when they are first used, so that importing the package loads neither numpy nor
torch: `import k15core` costs little more than Python itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from k15core._core import __version__
from k15core.errors import Error

if TYPE_CHECKING:
    from k15core._core import (
        PriorityIndex,
        PromptSampler,
        RepetitionDetector,
        SharedStore,
        Store,
    )
    from k15core.sandbox import Sandbox
    from k15core.types import Chunk, Lease, Loop, MicroBatch, PackedBatch, Prompt

_HOME = {
    "Chunk": "types",
    "Lease": "types",
    "Loop": "types",
    "MicroBatch": "types",
    "PackedBatch": "types",
    "PriorityIndex": "_core",
    "Prompt": "types",
    "PromptSampler": "_core",
    "RepetitionDetector": "_core",
    "Sandbox": "sandbox",
    "SharedStore": "_core",
    "Store": "_core",
}

__all__ = [
    "Chunk",
    "Error",
    "Lease",
    "Loop",
    "MicroBatch",
    "PackedBatch",
    "PriorityIndex",
    "Prompt",
    "PromptSampler",
    "RepetitionDetector",
    "Sandbox",
    "SharedStore",
    "Store",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'k15core' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"k15core.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
