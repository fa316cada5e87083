"""One lean decoder for Llama, Qwen2 and Qwen3, its parameters named and shaped as in transformers.

`LeanModel` holds the parameters (its state_dict is transformers' own) and runs the packed forward
that training and scoring use:

    model = load_model(directory)                       # or create.new_model(config, seed=0)
    hidden = model.forward_packed(input_ids, position_ids, cu_seqlens, max_seqlen)       # [T, d]
    log_probs = model.token_log_probs(hidden, input_ids, positions)                      # [N]

Decoding with a KV cache is in decode.py; both run the same `LayerWeights`. Left out on purpose:
dropout, sliding windows, output_attentions and everything else that these models do not need.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from k15core.models.attention import Layout, Shared, attend, plan, repeat
from k15core.models.config import ModelConfig

LOGITS_BYTES = 64 << 20
"""Log-probs are taken in chunks of tokens whose logits fit in about this many bytes."""


class LayerWeights(NamedTuple):
    """One layer's weights, with q, k, v and gate, up fused: a matrix product less for each."""

    input_norm: Tensor
    qkv: Tensor  # [(H + 2 K) * D, d]
    qkv_bias: Tensor | None
    qk_norm: Tensor | None  # [H + K, D]
    o: Tensor  # [d, H * D]
    o_bias: Tensor | None
    post_norm: Tensor
    gate_up: Tensor  # [2 * m, d]
    gate_up_bias: Tensor | None
    down: Tensor  # [d, m]
    down_bias: Tensor | None


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Hugging Face names and shapes of the parameters; lm_head is absent when it is tied."""
    d, m, D = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_attention_heads * D, config.num_key_value_heads * D
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, d)}
    linear = (
        ("self_attn.q_proj", q, d, config.qkv_bias),
        ("self_attn.k_proj", kv, d, config.qkv_bias),
        ("self_attn.v_proj", kv, d, config.qkv_bias),
        ("self_attn.o_proj", d, q, config.o_bias),
        ("mlp.gate_proj", m, d, config.mlp_bias),
        ("mlp.up_proj", m, d, config.mlp_bias),
        ("mlp.down_proj", d, m, config.mlp_bias),
    )
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}."
        for name, rows, columns, bias in linear:
            shapes[f"{layer}{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{layer}{name}.bias"] = (rows,)
        if config.qk_norm:
            shapes[layer + "self_attn.q_norm.weight"] = (D,)
            shapes[layer + "self_attn.k_norm.weight"] = (D,)
        shapes[layer + "input_layernorm.weight"] = (d,)
        shapes[layer + "post_attention_layernorm.weight"] = (d,)
    shapes["model.norm.weight"] = (d,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, d)
    return shapes


class LeanModel(nn.Module):
    """The parameters of one model and its forward over packs. Parameters start uninitialised."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.config = config
        for name, shape in parameter_shapes(config).items():
            _register(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        if config.tie_word_embeddings:
            _register(self, "lm_head.weight", self.get_parameter("model.embed_tokens.weight"))
        self._rope = rope_table(config, 0)

    @property
    def embedding(self) -> Tensor:
        """Token embeddings [V, d]."""
        return self.get_parameter("model.embed_tokens.weight")

    @property
    def head(self) -> Tensor:
        """The matrix from hidden states to logits [V, d]."""
        return self.get_parameter("lm_head.weight")

    def rope(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines [>= length, 1, D] of positions 0, 1, … on the model's device."""
        embedding = self.embedding
        cos, sin = self._rope
        if len(cos) < length or cos.device != embedding.device or cos.dtype != embedding.dtype:
            size = max(64, 1 << (length - 1).bit_length())
            cos, sin = rope_table(self.config, size)
            self._rope = cos.to(embedding), sin.to(embedding)
        return self._rope

    def layer_weights(self) -> list[LayerWeights]:
        """Each layer's weights, fused. Under autograd gradients pass through to the parameters."""
        config, layers = self.config, []
        weights: dict[str, Tensor] = dict(self.named_parameters())
        for i in range(config.num_hidden_layers):
            layer = f"model.layers.{i}."

            def fused(kind: str, *names: str, layer: str = layer) -> Tensor | None:
                parts = [weights.get(f"{layer}{name}.{kind}") for name in names]
                present = [part for part in parts if part is not None]
                return torch.cat(present) if len(present) > 1 else present[0] if present else None

            qk_norm = None
            if config.qk_norm:
                q_norm, k_norm = (weights[f"{layer}self_attn.{x}_norm.weight"] for x in "qk")
                qk_norm = torch.cat(
                    (
                        q_norm.expand(config.num_attention_heads, -1),
                        k_norm.expand(config.num_key_value_heads, -1),
                    )
                )
            qkv = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
            gate_up = ("mlp.gate_proj", "mlp.up_proj")
            qkv_weight, gate_up_weight = fused("weight", *qkv), fused("weight", *gate_up)
            assert qkv_weight is not None
            assert gate_up_weight is not None
            layers.append(
                LayerWeights(
                    input_norm=weights[layer + "input_layernorm.weight"],
                    qkv=qkv_weight,
                    qkv_bias=fused("bias", *qkv),
                    qk_norm=qk_norm,
                    o=weights[layer + "self_attn.o_proj.weight"],
                    o_bias=weights.get(layer + "self_attn.o_proj.bias"),
                    post_norm=weights[layer + "post_attention_layernorm.weight"],
                    gate_up=gate_up_weight,
                    gate_up_bias=fused("bias", *gate_up),
                    down=weights[layer + "mlp.down_proj.weight"],
                    down_bias=weights.get(layer + "mlp.down_proj.bias"),
                )
            )
        return layers

    def forward_packed(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        *,
        shared: Shared | None = None,
    ) -> Tensor:
        """Hidden states [T, d] (after the last norm) of B sequences, one after another in T tokens.

        input_ids, position_ids: int [T]; cu_seqlens: int32 [B + 1] from 0 to T; max_seqlen at least
        the longest sequence, and more than any position id. All on the model's device.
        Differentiable; run it under `torch.no_grad()` for scoring. Row t predicts token t + 1.

        `shared` says which tokens are the same, with the same tokens before them: they are computed
        once, and their hidden states and gradients are those of the whole pack but for rounding.
        """
        layout = plan(cu_seqlens, max_seqlen, shared)
        if shared is not None:
            input_ids, position_ids = input_ids[shared.first], position_ids[shared.first]
        cos, sin = (table[position_ids] for table in self.rope(max_seqlen))
        x = F.embedding(input_ids, self.embedding)
        for weights in self.layer_weights():
            x = self._block(x, weights, cos, sin, layout)
        x = rms_norm(x, self.get_parameter("model.norm.weight"), self.config.rms_norm_eps)
        return x if shared is None else repeat(x, shared.places)

    def _block(
        self, x: Tensor, w: LayerWeights, cos: Tensor, sin: Tensor, layout: Layout
    ) -> Tensor:
        q, k, v = queries_keys_values(x, w, cos, sin, self.config)
        a = attend(q, k, v, layout).flatten(1)
        return feed_forward(x + F.linear(a, w.o, w.o_bias), w, self.config.rms_norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., d]."""
        return F.linear(hidden, self.head)

    def token_log_probs(
        self,
        hidden: Tensor,
        input_ids: Tensor,
        positions: Tensor,
        *,
        temperature: float = 1.0,
    ) -> Tensor:
        """Log-probs [N] of the tokens at `positions` [N] of a pack, given the tokens before them.

        hidden [T, d] is what `forward_packed` returned and input_ids [T] what it was given; a
        position is a place in the pack that is not a sequence's first (its predecessor's hidden
        state predicts it). Computed in float32 from logits / temperature, in chunks of
        LOGITS_BYTES; under autograd a chunk's logits are recomputed in the backward pass, so memory
        does not grow with N times the vocabulary.
        """
        states = hidden.index_select(0, positions - 1)
        targets = input_ids.index_select(0, positions).long()
        size = max(1, LOGITS_BYTES // (4 * self.config.vocab_size))
        head = self.head
        if len(targets) <= size:
            return _log_probs(states, head, targets, temperature)
        return torch.cat(
            [
                checkpoint(_log_probs, h, head, t, temperature, use_reentrant=False)
                for h, t in zip(torch.split(states, size), torch.split(targets, size), strict=True)
            ]
        )


def response_positions(loss_mask: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Places [N] of a pack where the mask [T] is not 0, sequences' first tokens left out."""
    wanted = loss_mask != 0
    wanted[cu_seqlens[:-1].long().clamp(max=max(len(wanted) - 1, 0))] = False
    return wanted.nonzero()[:, 0]


def queries_keys_values(
    x: Tensor, w: LayerWeights, cos: Tensor, sin: Tensor, config: ModelConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Normed, rotated q [T, H, D] and k [T, K, D], and v [T, K, D], of hidden states [T, d]."""
    H, K, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    eps = config.rms_norm_eps
    qkv = F.linear(rms_norm(x, w.input_norm, eps), w.qkv, w.qkv_bias).view(len(x), H + 2 * K, D)
    qk, v = torch.split(qkv, [H + K, K], dim=1)
    if w.qk_norm is not None:
        qk = rms_norm(qk, w.qk_norm, eps)
    q, k = torch.split(rotate(qk, cos, sin), [H, K], dim=1)
    return q, k, v


def feed_forward(x: Tensor, w: LayerWeights, eps: float) -> Tensor:
    """The second half of a block: x plus the gated MLP of its norm."""
    gate_up = F.linear(rms_norm(x, w.post_norm, eps), w.gate_up, w.gate_up_bias)
    gate, up = gate_up.chunk(2, dim=-1)
    return x + F.linear(F.silu(gate) * up, w.down, w.down_bias)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [T, heads, D]; `sin` carries the sign of the rotated half."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, the statistics in float32 or better."""
    if x.dtype in (torch.float32, torch.float64):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def rope_frequencies(config: ModelConfig) -> Tensor:
    """Turns a position of each pair of dimensions [D / 2] in float32, as transformers has them.

    Llama 3's scaling divides frequencies whose wavelength exceeds original / low_freq_factor by
    `factor`, keeps those below original / high_freq_factor, and interpolates in between.
    """
    half = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    frequency = 1.0 / config.rope_theta**half
    scaling = config.rope_scaling
    if scaling is not None:
        turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        frequency = frequency * (keep + (1 - keep) / scaling.factor)
    return frequency


def rope_table(config: ModelConfig, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines [length, 1, D] in float32, as transformers computes them."""
    angle = torch.outer(torch.arange(length).float(), rope_frequencies(config))[:, None, :]
    sin = angle.sin()
    return torch.cat((angle.cos(), angle.cos()), -1), torch.cat((-sin, sin), -1)


def _log_probs(states: Tensor, head: Tensor, targets: Tensor, temperature: float) -> Tensor:
    logits = F.linear(states, head).float()
    if temperature != 1.0:
        logits = logits / temperature
    return -F.cross_entropy(logits, targets, reduction="none")


def _register(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Put a parameter under its dotted name, making the modules on the way."""
    *path, leaf = name.split(".")
    module = model
    for part in path:
        child = module._modules.get(part)
        if child is None:
            child = nn.Module()
            module.add_module(part, child)
        module = child
    module.register_parameter(leaf, parameter)
