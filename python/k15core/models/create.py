"""New models from scratch: small ones that a run trains before it does anything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from k15core.models.config import FAMILIES, ModelConfig
from k15core.models.lean import LeanModel


@torch.no_grad()
def new_model(
    config: Mapping[str, Any],
    *,
    seed: int,
    embedding_std: float = 0.02,
    head_std: float = 0.02,
    qk_norm_gain: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> LeanModel:
    """A model with random weights, a pure function of its arguments.

    `config` is what config.json shall say (`model_type`, sizes, `eos_token_id`, …); architectures
    and dtype are filled in. Matrices are normal with standard deviation 1/√fan_in, those that write
    to the residual stream divided by √(2 · layers) besides (GPT-2's scaling); biases are 0 and norm
    gains 1. The demo uses embeddings of standard deviation 1, so that tokens are told apart from
    the first step, and q/k-norm gain 2: attention starts sharper, and copying is learned sooner.
    """
    source = {**config}
    source.setdefault("architectures", [FAMILIES.get(str(source.get("model_type")), "")])
    source.setdefault("dtype", str(dtype).removeprefix("torch."))
    read = ModelConfig.from_dict(source)
    model = LeanModel(read, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    residual = (2 * read.num_hidden_layers) ** -0.5
    for name, parameter in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            parameter.fill_(qk_norm_gain)
        elif name.endswith("norm.weight"):
            parameter.fill_(1.0)
        elif name.endswith(".bias"):
            parameter.zero_()
        else:
            std = parameter.shape[1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std *= residual
            elif "embed_tokens" in name:
                std = embedding_std
            elif "lm_head" in name:
                std = head_std
            parameter.normal_(0.0, std, generator=generator)
    return model
