"""Inside vLLM's worker: weights come from shared memory, under their Hugging Face names.

vLLM imports this module in each of its workers because `worker_extension_cls` names it. An update
carries a directory of `k15core.deploy.shared_weights` and a version. The layers are reloaded one by
one (vLLM's layerwise reload): kernels may have packed or fused what they got at the start, and go
through the same steps again. Addresses stay, so that captured graphs remain valid.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from k15core.deploy.shared_weights import SharedWeights
from k15core.deploy.shared_weights.cuda import DeviceReader, DeviceWeights
from k15core.deploy.vllm.arguments import BACKEND
from k15core.deploy.vllm.launch import SERVER_PID, end_group_with

if TYPE_CHECKING:
    from torch import nn


@dataclass
class SharedInit(WeightTransferInitInfo):
    """Nothing is to be agreed on before the first update."""


@dataclass
class SharedUpdate(WeightTransferUpdateInfo):
    """Where the weights lie, and which version is expected there (None: any)."""

    directory: str
    version: int | None = None


class SharedMemoryTransfer(WeightTransferEngine[SharedInit, SharedUpdate]):
    """Loads a published version into the worker's model.

    The version is opened before the first tensor of the model is touched, its checksums included:
    a directory that does not hold it leaves the old weights in place.
    """

    init_info_cls = SharedInit
    update_info_cls = SharedUpdate
    model: Any  # a torch module with vLLM's load_weights
    _reader: DeviceReader | None = None

    def init_transfer_engine(self, init_info: SharedInit) -> None:
        """Nothing to do."""

    def start_weight_update(self) -> None:
        """Nothing yet: see `receive_weights`."""

    def receive_weights(self, update_info: SharedUpdate) -> None:
        """Load one whole version."""
        with self._open(update_info) as weights, torch.no_grad():
            initialize_layerwise_reload(self.model)
            self.model.load_weights(weights.tensors())
            finalize_layerwise_reload(self.model, self.model_config)
            if self.device.type == "cpu":
                pack_tied_layers(self.model)

    def finish_weight_update(self) -> None:
        """Nothing more: see `receive_weights`."""

    def shutdown(self) -> None:
        """Unregister what a GPU reads from; nothing else is held between updates."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _open(self, update: SharedUpdate) -> SharedWeights | DeviceWeights:
        if self.device.type != "cuda":
            return SharedWeights.open(update.directory, version=update.version)
        if self._reader is None or self._reader.directory != Path(update.directory):
            self.shutdown()
            self._reader = DeviceReader(update.directory, self.device)
        return self._reader.open(version=update.version)


def pack_tied_layers(model: nn.Module) -> None:
    """Bring layers up to date that share another's parameter, and so got no tensor of their own.

    A tied lm_head has the embedding's storage, which is right on a GPU. On a CPU its kernel has
    packed a copy of that at the start, which vLLM 0.32.0 does not renew.
    """
    seen: set[int] = set()
    for layer in model.modules():
        weight, method = getattr(layer, "weight", None), getattr(layer, "quant_method", None)
        if weight is None or method is None:
            continue
        if id(weight) in seen:
            method.process_weights_after_loading(layer)
        seen.add(id(weight))


class WorkerExtension:
    """What vLLM mixes into its worker class. Naming it loads this module, which is all it does."""


if os.environ.get(SERVER_PID) == str(os.getpgrp()):  # not on another node
    end_group_with(os.getpgrp())

if BACKEND not in WeightTransferEngineFactory._registry:  # an engine was here before
    WeightTransferEngineFactory.register_engine(BACKEND, SharedMemoryTransfer)
