"""megatron-core behind the trainer protocol. Only the worker processes import it."""

from k15core.trainer.megatron.processes import Workers as Workers
from k15core.trainer.megatron.trainer import MegatronTrainer as MegatronTrainer

__all__ = ["MegatronTrainer", "Workers"]
