"""vLLM as a rollout engine: in this process, or a server over HTTP."""

from k15core.rollout.vllm.engine import VllmEngine

__all__ = ["VllmEngine"]
