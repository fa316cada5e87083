"""megatron-core on a machine without a GPU: everything that this needs is in this file.

megatron-core 0.16 hard-codes `device="cuda"`, `.cuda()`, the type name `torch.cuda.FloatTensor` and
CUDA's random states. `enable` sends all of them to the CPU, for the whole process; gloo then does
what NCCL would. It must run before a model is built, in a process that trains and nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

OPTIONS: dict[str, Any] = {
    "use_cpu_initialization": True,
    "gradient_accumulation_fusion": False,
    "apply_rope_fusion": False,
    "persist_layer_norm": False,
    "masked_softmax_fusion": False,
    "bias_activation_fusion": False,
}
"""Of TransformerConfig: no kernel that is compiled for GPUs only."""


class _CudaToCpu(TorchFunctionMode):
    """Rewrites calls that name a CUDA device."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if device is not None and str(device).startswith("cuda"):
            kwargs = {**kwargs, "device": "cpu"}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.cpu:
            # The device's copy and the host's are two: one is dropped while the other is kept.
            return args[0].clone()
        if func is torch.Tensor.numpy:
            # No array may hold on to a buffer whose memory is given back later.
            return func(args[0].clone(), *args[1:], **kwargs)
        if func is torch.Tensor.pin_memory:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # DDP looks a gradient's type up in a table of CUDA types.
            return func(*args).replace("torch.", "torch.cuda.", 1)
        return func(*args, **kwargs)


_mode: _CudaToCpu | None = None


def enable() -> None:
    """Let megatron-core run on the CPU of this process and this thread. Once is enough.

    Before any other import of megatron-core: so that none of its kernels is given to torch's
    compiler, which costs two seconds to load.
    """
    global _mode
    if _mode is not None:
        return
    compiled = torch.compile
    torch.compile = _as_it_is  # type: ignore[assignment]
    try:
        import megatron.core.jit
        from megatron.core.tensor_parallel import random
    finally:
        torch.compile = compiled
    megatron.core.jit.disable_jit_fuser()
    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment,return-value]
    torch.cuda.synchronize = lambda *_, **__: None
    torch.cuda.empty_cache = lambda: None
    # Activation recompute replays dropout from the generator that there is.
    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    # The tracker for inference is the one that touches no generator of a GPU.
    random.initialize_rng_tracker(inference_rng_tracker=True, force_reset=True)
    _mode = _CudaToCpu()
    _mode.__enter__()  # type: ignore[no-untyped-call]


def _as_it_is(function: Any = None, **_: Any) -> Any:
    return function if function is not None else lambda each: each
