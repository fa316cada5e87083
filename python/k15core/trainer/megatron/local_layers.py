"""Layers of plain torch for any device, where TransformerEngine is not.

megatron-core's own local attention refuses packed rows, and its local norm sequence parallelism.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from torch.nn.functional import scaled_dot_product_attention

from k15core.errors import InvalidInputError


class RMSNorm(torch.nn.RMSNorm):
    """With sequence parallelism each rank norms its part of the tokens: gradients are summed."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class PackedAttention(MegatronModule):  # type: ignore[misc]
    """Drop-in `core_attention` by torch's scaled_dot_product_attention over packed (`thd`) rows.

    Causal within each segment of `cu_seqlens`, which must cover every token: padding is a segment
    of its own.
    """

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
    ) -> None:
        super().__init__(config=config)
        del layer_number, attn_mask_type, attention_type, cp_comm_type, pg_collection
        if attention_dropout or config.attention_dropout:
            raise InvalidInputError(
                f"attention_dropout is {attention_dropout or config.attention_dropout}: expected 0 "
                "without TransformerEngine"
            )
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        attn_mask_type: Any = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> torch.Tensor:
        """query [T, H, D], key and value [T, K, D] of packed rows to [T, H·D]."""
        del attention_mask, attn_mask_type
        assert attention_bias is None
        assert packed_seq_params is not None
        ends = packed_seq_params.cu_seqlens_q.tolist()
        grouped = query.size(1) != key.size(1)
        rows = []
        for start, end in pairwise(ends):
            q, k, v = (x[start:end].transpose(0, 1).unsqueeze(0) for x in (query, key, value))
            attended = scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=self.softmax_scale, enable_gqa=grouped
            )
            rows.append(attended[0].transpose(0, 1))
        return torch.cat(rows).reshape(len(query), -1)


def local_layers(config: Any) -> TransformerBlockSubmodules:
    """The layers of this pipeline stage, and the norm after the last."""
    spec = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=config.qk_layernorm)
    layer = spec.submodules
    layer.input_layernorm = layer.pre_mlp_layernorm = RMSNorm
    attention = layer.self_attention.submodules
    attention.core_attention = PackedAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    return TransformerBlockSubmodules(
        layer_specs=[spec] * get_num_layers_to_build(config), layer_norm=RMSNorm
    )
