"""Rollout engines behind one protocol, and partial rollouts over the store.

A new engine is a class that implements `k15core.types.RolloutEngine`, and a line in `ENGINES`.
"""

ENGINES = {
    "embedded": "k15core.rollout.embedded:EmbeddedEngine",
    "embedded_fleet": "k15core.rollout.embedded:EmbeddedFleet",
    "vllm": "k15core.rollout.vllm:VllmEngine",
    "vllm_server": "k15core.rollout.vllm:VllmServerEngine",
    "vllm_fleet": "k15core.rollout.vllm:VllmFleet",
}
