"""Giving the GPU's memory to others between training and training, by megatron-core's own calls.

Gradient buffers are dropped, parameter buffers and moments go to the host. Parameters lie in
buffers with the distributed optimizer only: without it they stay. On a GPU this was reasoned, not
run; on a CPU the same calls run, and move parameters from one place of the host to another.
"""

from __future__ import annotations

from typing import Any

import torch


class Offload:
    """Moves one rank's buffers out, and back in."""

    def __init__(self, ddp: Any, optimizers: list[Any]) -> None:
        self._ddp = ddp
        self._optimizers = optimizers
        self._views: list[tuple[Any, Any]] = []
        self._out = False

    def offload(self) -> None:
        """Give the memory back. Nothing if it was given."""
        if self._out:
            return
        buffers = self._buffers()
        there = {
            buffer.param_data.untyped_storage().data_ptr()
            for buffer in buffers
            if buffer.param_data is not None
        }
        # In single precision the optimizer steps views of the parameter buffers. Moving these views
        # by themselves would leave it to step copies that no model looks at.
        self._views = [
            (parameter, parameter.data)
            for each in self._optimizers
            if each.optimizer is not None
            for group in each.optimizer.param_groups
            for parameter in group["params"]
            if parameter.data.untyped_storage().data_ptr() in there
        ]
        self._ddp.offload_grad_buffers()
        for each in self._optimizers:
            each.offload_to_cpu()
        for buffer in buffers:
            buffer.offload_to_cpu(move_params=True, move_grads=False)
        torch.cuda.empty_cache()
        self._out = True

    def reload(self) -> None:
        """Bring it back. Nothing if it is there."""
        if not self._out:
            return
        for buffer in self._buffers():
            buffer.reload_from_cpu(move_params=True, move_grads=False)
        for each in self._optimizers:
            each.restore_from_cpu()
        for parameter, view in self._views:
            parameter.data = view
        self._views = []
        self._ddp.restore_grad_buffers()
        self._out = False

    def _buffers(self) -> list[Any]:
        return [*self._ddp.buffers, *self._ddp.expert_parallel_buffers]
