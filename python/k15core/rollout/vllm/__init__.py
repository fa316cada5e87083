"""vLLM as a rollout engine: in this process, or a server over HTTP."""

from k15core.rollout.vllm.engine import VllmEngine
from k15core.rollout.vllm.fleet import VllmFleet
from k15core.rollout.vllm.server_engine import VllmServerEngine

__all__ = ["VllmEngine", "VllmFleet", "VllmServerEngine"]
