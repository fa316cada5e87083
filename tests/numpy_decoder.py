"""Qwen3's forward, one sequence at a time, in float64 NumPy: written from the architecture, and
sharing no code with the package. Also the surrogate of DESIGN's loss over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Weights = Mapping[str, np.ndarray]


def norm(x: np.ndarray, gain: np.ndarray, eps: float = 1e-6) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * gain


def rotate(x: np.ndarray, theta: float) -> np.ndarray:
    """x [T, heads, D]; pairs (i, i + D/2) turn by position / theta^(2i/D)."""
    length, _, size = x.shape
    half = size // 2
    angle = np.arange(length)[:, None] * theta ** (-2 * np.arange(half) / size)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), -1)


def log_probs(
    weights: Weights, tokens: Sequence[int], *, layers: int, heads: int, kv: int, theta: float
) -> np.ndarray:
    """log p(token t | tokens before t) for t = 1 … T - 1: [T - 1]."""
    x = weights["model.embed_tokens.weight"][np.asarray(tokens)]
    length = len(x)
    for i in range(layers):
        w = {k.split(f"layers.{i}.")[1]: v for k, v in weights.items() if f"layers.{i}." in k}
        h = norm(x, w["input_layernorm.weight"])
        q, k, v = (
            (h @ w[f"self_attn.{n}_proj.weight"].T).reshape(length, count, -1)
            for n, count in (("q", heads), ("k", kv), ("v", kv))
        )
        q = rotate(norm(q, w["self_attn.q_norm.weight"]), theta)
        k = rotate(norm(k, w["self_attn.k_norm.weight"]), theta)
        mixed = []
        for head in range(heads):
            at = head // (heads // kv)
            score = q[:, head] @ k[:, at].T / np.sqrt(q.shape[-1])
            score = np.where(np.tril(np.ones((length, length))) > 0, score, -np.inf)
            p = np.exp(score - score.max(-1, keepdims=True))
            mixed.append(p / p.sum(-1, keepdims=True) @ v[:, at])
        x = x + np.concatenate(mixed, -1) @ w["self_attn.o_proj.weight"].T
        h = norm(x, w["post_attention_layernorm.weight"])
        gate = h @ w["mlp.gate_proj.weight"].T
        up = h @ w["mlp.up_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w["mlp.down_proj.weight"].T
    logits = norm(x, weights["model.norm.weight"]) @ weights["lm_head.weight"].T
    top = logits.max(-1, keepdims=True)
    every = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return every[np.arange(length - 1), np.asarray(tokens)[1:]]


def surrogate(
    new: Sequence[np.ndarray],
    old: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    advantages: Sequence[float],
    *,
    tau: float,
    responses: int,
) -> float:
    """-1/(P·k) Σ_j [A_j·ℓ_j - τ/2·(ℓ_j - ℓ_j^i)²], each list with one entry a response."""
    total = 0.0
    for lp, lp_old, mask, advantage in zip(new, old, masks, advantages, strict=True):
        here, there = (lp * mask).sum(), (lp_old * mask).sum()
        total += advantage * here - tau / 2 * (here - there) ** 2
    return -total / responses
