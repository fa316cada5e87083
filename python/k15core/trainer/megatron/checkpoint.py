"""Checkpoints by megatron-core's dist_checkpointing: saved in one layout, loaded in any.

Weights, master weights and moments lie there by their place in the whole model; random states by
rank, for they mean something in the same layout only.
"""

from __future__ import annotations

from queue import Queue
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.optimizer import distrib_optimizer
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from torch import distributed

METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}


def save(directory: str, module: Any, optimizers: list[Any], optimizer: Any) -> None:
    """Write this rank's part of a checkpoint into an empty directory. Collective."""
    _mend_saving(optimizers)
    _prime(optimizers)
    state = _state(module, optimizer, loading=False)
    random = _random_state()
    state["random"] = _by_rank(random)
    # It would start a process a rank, which loads torch to pass results on from here to here.
    filesystem_async._results_queue = Queue()
    dist_checkpointing.save(state, directory)
    # Saving draws numbers itself: whoever goes on from here has to go on as who loads does.
    _set_random(random)


def load(
    directory: str, module: Any, optimizers: list[Any], optimizer: Any, *, random: bool
) -> None:
    """Return to a checkpoint; `random` where it is of the same layout. Collective."""
    _mend_saving(optimizers)
    _mend_loading()
    _prime(optimizers)
    state = _state(module, optimizer, loading=True)
    if random:
        state["random"] = _by_rank(None)
    found = dist_checkpointing.load(state, directory)
    module.load_state_dict(found["model"])
    optimizer.load_state_dict(found["optimizer"])
    if random:
        _set_random(found["random"])


def _state(module: Any, optimizer: Any, *, loading: bool) -> dict[str, Any]:
    model = module.sharded_state_dict()
    moments = optimizer.sharded_state_dict(model, is_loading=loading, metadata=METADATA)
    return {"model": model, "optimizer": moments}


def _random_state() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "tracker": get_cuda_rng_tracker().get_states(),
    }


def _set_random(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
    get_cuda_rng_tracker().set_states(state["tracker"])


def _by_rank(value: Any) -> ShardedObject:
    place = (distributed.get_rank(),)
    return ShardedObject("random", value, (distributed.get_world_size(),), place)


def _prime(optimizers: list[Any]) -> None:
    """Give moments that are not there yet: zeros, which are what a first step begins with.

    Both ways of a checkpoint want them in place.
    """
    for each in optimizers:
        if each.init_state_fn is None or each.optimizer is None:
            continue
        each.init_state_fn(each.optimizer, each.config)
        if isinstance(each.optimizer, torch.optim.Adam):  # AdamW too; it counts a parameter's steps
            for state in each.optimizer.state.values():
                state.setdefault("step", torch.tensor(0.0))


def _mend_saving(optimizers: list[Any]) -> None:
    """Where a buffer has several buckets, 0.16.1 saves the states of all but the first displaced.

    It gathers the buckets without their padding, and looks parameters up by places that count it
    (mended upstream by NVIDIA/Megatron-LM#5077). Here no padding is left out: the places are right.
    """
    for each in optimizers:
        for buffer in getattr(each, "buffers", ()):
            buffer.numel_unpadded = buffer.numel
            for bucket in buffer.buckets:
                bucket.numel_unpadded = bucket.grad_data.numel()


def _mend_loading() -> None:
    """Without TransformerEngine and Apex, 0.16.1 loads a distributed optimizer wrongly.

    It asks for a saved `step` of each parameter, which is not saved so; it writes into views that
    want a gradient; and it makes all parameters share one step tensor, which then counts as many
    times as there are parameters.
    """
    if distrib_optimizer.HAVE_APEX_OR_TE:
        return

    @torch.no_grad()
    def set_states(self: Any, model_param: Any, tensors: dict[str, Any]) -> None:
        group, order = self.model_param_group_index_map[model_param]
        main = self.optimizer.param_groups[group]["params"][order]
        state = self.optimizer.state[main]
        main.copy_(tensors["param"])
        for moment in ("exp_avg", "exp_avg_sq"):
            state[moment].copy_(tensors[moment])
        state["step"] = state["step"].clone()

    distrib_optimizer.DistributedOptimizer._set_main_param_and_optimizer_states = set_states
