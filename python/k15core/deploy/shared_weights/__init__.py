"""Weights in shared memory: one writer a directory, any number of readers without a copy.

A directory holds two buffers, written in turn, and `manifest.json`, which names the buffer that
holds the present version and where each tensor lies in it. docs/weights.md has the format and what
it guarantees. Names are loaded when they are first used: manifests can be read without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from k15core.deploy.shared_weights.directory import WeightDirectory, remove_leftovers
    from k15core.deploy.shared_weights.manifest import Manifest, Shard, TensorEntry
    from k15core.deploy.shared_weights.reader import SharedWeights, WeightReader
    from k15core.deploy.shared_weights.writer import WeightWriter

_HOME = {
    "Manifest": "manifest",
    "WeightDirectory": "directory",
    "Shard": "manifest",
    "SharedWeights": "reader",
    "TensorEntry": "manifest",
    "WeightReader": "reader",
    "WeightWriter": "writer",
    "remove_leftovers": "directory",
}

__all__ = [
    "Manifest",
    "Shard",
    "SharedWeights",
    "TensorEntry",
    "WeightDirectory",
    "WeightReader",
    "WeightWriter",
    "remove_leftovers",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
