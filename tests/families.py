"""Tiny random models of every family and variant, as transformers makes them."""

from pathlib import Path

import torch
from transformers import LlamaConfig, PreTrainedModel, Qwen2Config, Qwen3Config
from transformers.models.llama import LlamaForCausalLM
from transformers.models.qwen2 import Qwen2ForCausalLM
from transformers.models.qwen3 import Qwen3ForCausalLM

SMALL = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

VARIANTS = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"rms_norm_eps": 1e-5}),
    "llama-gqa-tied": (
        LlamaConfig,
        LlamaForCausalLM,
        {"num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "llama-biases-rope3": (
        LlamaConfig,
        LlamaForCausalLM,
        {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3, "head_dim": 16},
    ),
    "qwen2-gqa": (Qwen2Config, Qwen2ForCausalLM, {"num_key_value_heads": 3}),
    "qwen2-tied": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8}),
    "qwen3-gqa-tied-biases": (
        Qwen3Config,
        Qwen3ForCausalLM,
        {
            "head_dim": 20,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "attention_bias": True,
        },
    ),
}


def reference(variant: str, seed: int = 0, **more: object) -> PreTrainedModel:
    """A transformers model whose every parameter is random, norms and biases included.

    `more` goes into its config.
    """
    config_class, model_class, changes = VARIANTS[variant]
    torch.manual_seed(seed)
    settings = {**SMALL, **changes, **more}
    model = model_class(config_class(**settings, attn_implementation="eager"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 2.0)
            elif name.endswith(".bias"):
                parameter.normal_(0.0, 0.3)
            else:
                parameter.normal_(0.0, 1.3 * parameter.shape[1] ** -0.5)
    return model.eval()


def save(model: PreTrainedModel, directory: Path, **options: object) -> Path:
    model.save_pretrained(directory, **options)
    return directory
