"""The shape of a model, read from a Hugging Face directory's config.json.

Three families share one decoder: Llama, Qwen2 (biases on q, k and v) and Qwen3 (norms on q and k).
What the lean forward would compute differently from transformers is refused here, by name: another
family, another activation, sliding windows, rope scaling other than Llama 3's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from k15core.errors import InvalidInputError

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""`model_type` of config.json, and the transformers class that reads the same directory."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3's rope scaling: low frequencies divided by `factor`, with a smooth passage."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class ModelConfig:
    """What the lean forward needs to know of a model.

    `source` is config.json as it was read; it is written back unchanged when the model is saved.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Llama3Scaling | None
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    eos_token_ids: tuple[int, ...]
    source: Mapping[str, Any] = field(compare=False, repr=False)

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys pass through a norm of each head (Qwen3)."""
        return self.family == "qwen3"

    @classmethod
    def from_dict(cls, source: Mapping[str, Any], *, where: str = "config") -> ModelConfig:
        """Read a config.json's content, in the layout of transformers 4 or 5.

        `where` names the source in messages. Raises InvalidInputError.
        """
        family = source.get("model_type")
        if family not in FAMILIES:
            raise _refuse(where, "model_type", family, f"one of {', '.join(FAMILIES)}")
        hidden = _count(source, "hidden_size", where)
        heads = _count(source, "num_attention_heads", where)
        kv_heads = _count(source, "num_key_value_heads", where, 32 if family == "qwen2" else heads)
        head_dim = _count(source, "head_dim", where, 128 if family == "qwen3" else hidden // heads)
        if heads % kv_heads:
            raise _refuse(where, "num_key_value_heads", kv_heads, f"a divisor of {heads} heads")
        if head_dim % 2:
            raise _refuse(where, "head_dim", head_dim, "an even number")
        activation = source.get("hidden_act", "silu")
        if activation != "silu":
            raise _refuse(where, "hidden_act", activation, "silu")
        if source.get("use_sliding_window"):
            raise _refuse(where, "use_sliding_window", True, "false")
        theta, scaling = _rope(source, where)
        bias = bool(source.get("attention_bias", False))
        return cls(
            family=family,
            vocab_size=_count(source, "vocab_size", where),
            hidden_size=hidden,
            intermediate_size=_count(source, "intermediate_size", where),
            num_hidden_layers=_count(source, "num_hidden_layers", where),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=_count(
                source, "max_position_embeddings", where, 2048 if family == "llama" else 32768
            ),
            rms_norm_eps=float(source.get("rms_norm_eps", 1e-6)),
            rope_theta=theta,
            rope_scaling=scaling,
            tie_word_embeddings=bool(source.get("tie_word_embeddings", False)),
            qkv_bias=family == "qwen2" or bias,
            o_bias=family != "qwen2" and bias,
            mlp_bias=family == "llama" and bool(source.get("mlp_bias", False)),
            eos_token_ids=_token_ids(source.get("eos_token_id")),
            source=dict(source),
        )

    @classmethod
    def from_directory(cls, directory: str | Path) -> ModelConfig:
        """Read `directory`/config.json; end-of-sequence ids of generation_config.json win."""
        folder = Path(directory)
        path = folder / "config.json"
        if not path.is_file():
            raise InvalidInputError(
                f"model directory {folder}: no config.json, expected a Hugging Face model directory"
            )
        config = cls.from_dict(_read_json(path), where=str(path))
        generation = folder / "generation_config.json"
        if generation.is_file():
            ids = _token_ids(_read_json(generation).get("eos_token_id"))
            if ids:
                object.__setattr__(config, "eos_token_ids", ids)
        return config


def check_directory(directory: str | Path) -> ModelConfig:
    """The configuration of a directory that has everything: config, weights and tokenizer.

    Raises InvalidInputError in one sentence that names the directory and what it lacks.
    """
    config = ModelConfig.from_directory(directory)
    folder = Path(directory)
    for what, names in (("weights", WEIGHT_FILES), ("tokenizer", TOKENIZER_FILES)):
        if not any((folder / name).is_file() for name in names):
            raise InvalidInputError(
                f"model directory {folder}: no {what}, expected one of {', '.join(names)}"
            )
    return config


def _rope(source: Mapping[str, Any], where: str) -> tuple[float, Llama3Scaling | None]:
    """Theta and scaling, from `rope_parameters` (transformers 5) or the older two fields."""
    rope = dict(source.get("rope_parameters") or source.get("rope_scaling") or {})
    theta = float(rope.get("rope_theta", source.get("rope_theta", 10000.0)))
    partial = rope.get("partial_rotary_factor", source.get("partial_rotary_factor", 1.0))
    if partial not in (None, 1, 1.0):
        raise _refuse(where, "partial_rotary_factor", partial, "1.0")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise _refuse(where, "rope_type", kind, "default or llama3")
    try:
        return theta, Llama3Scaling(
            factor=float(rope["factor"]),
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
            original_max_position_embeddings=int(rope["original_max_position_embeddings"]),
        )
    except KeyError as error:
        raise _refuse(where, f"rope_parameters[{error}]", None, "a number for llama3") from error


def _count(source: Mapping[str, Any], name: str, where: str, default: int | None = None) -> int:
    value = source.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _refuse(where, name, value, "a positive integer")
    return value


def _token_ids(value: object) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,)
    return tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else ()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InvalidInputError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise InvalidInputError(f"{path}: {type(content).__name__}, expected a JSON object")
    return content


def _refuse(where: str, name: str, value: object, expected: str) -> InvalidInputError:
    return InvalidInputError(f"{where}: {name} = {value!r}, expected {expected}")
