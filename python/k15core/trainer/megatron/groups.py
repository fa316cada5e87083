"""The ranks meet, and are divided into groups: tensor, pipeline and data parallel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state
from torch import distributed

if TYPE_CHECKING:
    from k15core.trainer.megatron.settings import Layout


class World:
    """All ranks, one of which this process is."""

    def __init__(self, rank: int, ranks: int, rendezvous: str, device: str) -> None:
        """`rendezvous` is a URL of torch.distributed."""
        if device != "cpu":
            torch.cuda.set_device(rank % torch.cuda.device_count())
        distributed.init_process_group(
            "gloo" if device == "cpu" else "nccl",
            init_method=rendezvous,
            rank=rank,
            world_size=ranks,
        )
        self._undivided = _groups()
        self._divisions: dict[tuple[int, int], dict[str, Any]] = {}

    def divide(self, layout: Layout) -> None:
        """Divide the ranks anew.

        A division that was made once is kept: a group of gloo's keeps threads for good, and they
        would pile up where models are built in turn in the same processes.
        """
        key = (layout.tensor, layout.pipeline)
        if key not in self._divisions:
            vars(parallel_state).update(self._undivided)
            parallel_state.initialize_model_parallel(
                tensor_model_parallel_size=layout.tensor,
                pipeline_model_parallel_size=layout.pipeline,
            )
            self._divisions[key] = _groups()
        vars(parallel_state).update(self._divisions[key])


def _groups() -> dict[str, Any]:
    """What megatron-core keeps of a division: variables of a module."""
    there = vars(parallel_state).items()
    return {name: value for name, value in there if name.isupper() and name[0] == "_"}
