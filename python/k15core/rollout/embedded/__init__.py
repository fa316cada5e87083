"""The embedded engine: generation in this process or in several, on the CPU or one GPU."""

from k15core.rollout.embedded.engine import EmbeddedEngine, EngineStats
from k15core.rollout.embedded.fleet import EmbeddedFleet
from k15core.rollout.embedded.process import EmbeddedProcess

__all__ = ["EmbeddedEngine", "EmbeddedFleet", "EmbeddedProcess", "EngineStats"]
