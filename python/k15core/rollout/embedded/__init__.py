"""The embedded engine: generation in this process, on the CPU or one GPU."""

from k15core.rollout.embedded.engine import EmbeddedEngine, EngineStats

__all__ = ["EmbeddedEngine", "EngineStats"]
