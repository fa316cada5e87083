"""Weights in shared memory: one writer a directory, any number of readers without a copy.

A directory holds two buffers, written in turn, and `manifest.json`, which names the buffer that
holds the present version and where each tensor lies in it. docs/weights.md has the format and what
it guarantees.
"""

from __future__ import annotations

from k15core.deploy.shared_weights.directory import RunDirectory, remove_leftovers
from k15core.deploy.shared_weights.manifest import Manifest, Shard, TensorEntry
from k15core.deploy.shared_weights.reader import SharedWeights, WeightReader
from k15core.deploy.shared_weights.writer import WeightWriter

__all__ = [
    "Manifest",
    "RunDirectory",
    "Shard",
    "SharedWeights",
    "TensorEntry",
    "WeightReader",
    "WeightWriter",
    "remove_leftovers",
]
