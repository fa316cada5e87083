"""megatron-core behind the trainer protocol. Only the worker processes import it.

Names are imported at first use: processes that a worker starts for a checkpoint pass through here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from k15core.trainer.megatron.processes import Workers as Workers
    from k15core.trainer.megatron.trainer import MegatronTrainer as MegatronTrainer

_HOME = {"MegatronTrainer": "trainer", "Workers": "processes"}

__all__ = ["MegatronTrainer", "Workers"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
