"""A Hugging Face configuration as megatron-core's: GPTModel in its tensor and pipeline shards.

Dense Llama, Qwen2 and Qwen3. With TransformerEngine (on a GPU) its layers and its attention: that
was reasoned, not run. Else megatron-core's linear layers, with those of local_layers.py between.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn import functional as F  # noqa: N812

from k15core.models.lean import rope_frequencies
from k15core.trainer.megatron import cpu_mode
from k15core.trainer.megatron.local_layers import local_layers

if TYPE_CHECKING:
    from k15core.models.config import ModelConfig
    from k15core.trainer.megatron.settings import Layout


def transformer_config(
    config: ModelConfig, layout: Layout, device: str, options: Mapping[str, Any]
) -> TransformerConfig:
    """What megatron-core calls the configuration, `options` laid over it untouched."""
    half = "bf16" if options.get("bf16") else "fp16" if options.get("fp16") else None
    dtype = {None: torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[half]
    given: dict[str, Any] = {
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_query_groups": config.num_key_value_heads,
        "kv_channels": config.head_dim,
        "ffn_hidden_size": config.intermediate_size,
        "normalization": "RMSNorm",
        "layernorm_epsilon": config.rms_norm_eps,
        "add_bias_linear": config.mlp_bias,
        "add_qkv_bias": config.qkv_bias,
        "qk_layernorm": config.qk_norm,
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        # Every parameter is loaded before it is used.
        "perform_initialization": False,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "tensor_model_parallel_size": layout.tensor,
        "pipeline_model_parallel_size": layout.pipeline,
        "sequence_parallel": layout.sequence,
        # Micro-batches differ in length: stages tell each other the shapes.
        "variable_seq_lengths": layout.pipeline > 1,
        "moe_token_dispatcher_type": "alltoall",  # which it wants for that, experts or none
    }
    if device == "cpu":
        given |= cpu_mode.OPTIONS
    return TransformerConfig(**{**given, **options})


def build_model(config: ModelConfig, transformer: TransformerConfig) -> GPTModel:
    """This rank's shard, parameters uninitialised, the vocabulary padded to a multiple of TP."""
    ranks = transformer.tensor_model_parallel_size
    if transformer.use_cpu_initialization or not _has_transformer_engine():
        spec = local_layers(transformer)
    else:
        spec = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=transformer.qk_layernorm)
    model = GPTModel(
        transformer,
        spec,
        vocab_size=-(-config.vocab_size // ranks) * ranks,
        max_sequence_length=config.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=config.tie_word_embeddings,
        position_embedding_type="rope",
        rotary_base=config.rope_theta,
    )
    rotary = model.rotary_pos_emb
    # megatron-core has Llama 3's scaling with its other three numbers fixed: here are all four.
    rotary.inv_freq = rope_frequencies(config).to(rotary.inv_freq)
    if not transformer.use_cpu_initialization:
        model.cuda()
    return model


def _has_transformer_engine() -> bool:
    return importlib.util.find_spec("transformer_engine") is not None
