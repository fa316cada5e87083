"""What the trainer tells its worker processes. Neither side of it needs megatron-core."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from k15core.algorithms import Algorithm
    from k15core.models.config import ModelConfig

OURS = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
    "sequence_parallel",
    "calculate_per_token_loss",
)
"""Options of TransformerConfig that the layout and the loss decide."""


@dataclass(frozen=True)
class Layout:
    """How many ranks share the work, and how: tensor · pipeline · data processes."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    sequence: bool = False

    @property
    def ranks(self) -> int:
        """Processes."""
        return self.tensor * self.pipeline * self.data

    def check(self, config: ModelConfig) -> None:
        """Refuse a model that megatron-core has not, and a layout that does not divide it."""
        biases = (config.qkv_bias, config.o_bias, config.mlp_bias)
        if biases not in ((False, False, False), (True, False, False), (True, True, True)):
            raise InvalidInputError(
                f"{config.family} with qkv_bias, o_bias, mlp_bias = {biases}: megatron-core has "
                "none, those of q, k and v, or all"
            )
        for name, count in (
            ("tensor_parallel", self.tensor),
            ("pipeline_parallel", self.pipeline),
            ("data_parallel", self.data),
        ):
            if count < 1:
                raise InvalidInputError(f"{name} is {count}: expected at least 1")
        for what, size in (
            ("attention heads", config.num_attention_heads),
            ("key-value heads", config.num_key_value_heads),
            ("columns of the MLP", config.intermediate_size),
        ):
            if size % self.tensor:
                raise InvalidInputError(
                    f"tensor_parallel is {self.tensor}: expected a divisor of the {size} {what}"
                )
        if config.num_hidden_layers % self.pipeline:
            raise InvalidInputError(
                f"pipeline_parallel is {self.pipeline}: expected a divisor of the "
                f"{config.num_hidden_layers} layers"
            )
        if self.sequence and self.tensor == 1:
            raise InvalidInputError("sequence_parallel is set: expected tensor_parallel > 1 too")


@dataclass(frozen=True)
class Settings:
    """Everything that a rank builds its shard from."""

    directory: str
    layout: Layout
    device: str
    algorithm: Algorithm
    temperature: float
    max_gradient_norm: float
    weights: str
    transformer: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    ddp: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise InvalidInputError(f"device is {self.device!r}: expected 'cpu' or 'cuda'")
        if not self.max_gradient_norm > 0:
            raise InvalidInputError(f"max_gradient_norm is {self.max_gradient_norm}: expected > 0")
        for name in OURS:
            if name in self.transformer:
                raise InvalidInputError(
                    f"transformer has {name} = {self.transformer[name]!r}: expected it left out, "
                    "the trainer's own arguments decide it"
                )


@dataclass(frozen=True)
class Micro:
    """One micro-batch of one rank: B rows in T tokens, N of which a log-prob is wanted of.

    Padding is the last segment of `cu_seqlens`. A micro-batch of padding alone has B = N = 0.
    """

    input_ids: NDArray[np.int32]  # [T]
    cu_seqlens: NDArray[np.int32]  # [S + 1], from 0 to T
    max_seqlen: int
    places: NDArray[np.int64]  # [N]
    rows: NDArray[np.int64]  # [N], 0 … B - 1
    old_log_probs: NDArray[np.float32]  # [N]
    advantages: NDArray[np.float32]  # [B]
