"""Hugging Face names to megatron-core's parameters and back, one tensor at a time.

Every Hugging Face tensor is a view of one parameter of each tensor-parallel rank: q, k and v are
the rows of each group in the fused `linear_qkv` ([q … q k v] a group), gate and up the halves of
`linear_fc1`. So one table of views serves both ways: loading copies a slice of the file into the
view, exporting gathers the views. Norms lie under other names with TransformerEngine.

Why the export gathers: the report folds pipeline and expert parallelism and registers the tensor
shards one by one, each for the inference rank that has the same shard. Here an engine may have any
layout, and reads its own part of a whole tensor that lies in memory once. It costs a gather over
TP, and at most one whole tensor beside its shard on one rank. The manifest's `shard` field is where
shards registered one by one would say what they are; experts would be more rows of this table,
gathered from their expert-parallel rank as layers are from their stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import set_tensor_model_parallel_attributes
from torch import Tensor, distributed

from k15core.errors import InvalidInputError
from k15core.models.lean import parameter_shapes
from k15core.models.weights import DirectoryWeights

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

    from k15core.models.config import ModelConfig


@dataclass(frozen=True)
class Part:
    """A Hugging Face tensor's share of one rank: `view` of `parameter`, cut along `dim`."""

    parameter: torch.nn.Parameter
    view: Callable[[Tensor], Tensor]
    dim: int | None

    def read(self, source: Any, name: str, shape: tuple[int, ...], rank: int, ranks: int) -> None:
        """Copy this rank's part of a safetensors slice into the parameter."""
        if tuple(source.get_shape()) != shape:
            raise InvalidInputError(
                f"{name} has shape {tuple(source.get_shape())}, expected {shape}"
            )
        there = self.view(self.parameter.data)
        if self.dim is None:
            there.copy_(source[:])
        elif self.dim == 1:
            width = shape[1] // ranks
            there.copy_(source[:, rank * width : (rank + 1) * width])
        else:
            # The last ranks' part of a padded vocabulary is shorter, or empty.
            rows = -(-shape[0] // ranks)
            part = source[min(rank * rows, shape[0]) : min((rank + 1) * rows, shape[0])]
            if len(part) < rows:
                there.zero_()[: len(part)].copy_(part)
            else:
                there.copy_(part.reshape(there.shape))


Row = tuple[str, tuple[str, ...], Callable[[Tensor], Tensor], int | None]
"""A Hugging Face name, what megatron-core may call the parameter, the view, the dimension cut."""


def parts(config: ModelConfig, model: GPTModel) -> dict[str, Part]:
    """The table: what this rank holds, by Hugging Face name.

    A tied head counts as the embedding where a stage has one of its own.
    """
    parameters = dict(model.named_parameters())
    unused = dict(parameters)
    found: dict[str, Part] = {}
    for name, candidates, view, dim in _rows(config, model):
        for candidate in candidates:
            if candidate in parameters:
                unused.pop(candidate, None)
                found[name] = Part(parameters[candidate], view, dim)
    if unused:
        raise InvalidInputError(
            f"megatron-core has a parameter {min(unused)}, which {config.family} has not"
        )
    for part in found.values():
        # Initialisation would have set it; the gradient's norm counts a shard by it.
        if part.dim is not None and not hasattr(part.parameter, "tensor_model_parallel"):
            set_tensor_model_parallel_attributes(part.parameter, True, part.dim, 1)
    return found


def _rows(config: ModelConfig, model: GPTModel) -> Iterator[Row]:
    yield "model.embed_tokens.weight", ("embedding.word_embeddings.weight",), _whole, 0
    for place, layer in enumerate(model.decoder.layers):
        ours, theirs = f"model.layers.{layer.layer_number - 1}.", f"decoder.layers.{place}."
        for name, candidates, view, dim in _layer_rows(config):
            yield ours + name, tuple(theirs + each for each in candidates), view, dim
    yield "model.norm.weight", ("decoder.final_layernorm.weight",), _whole, None
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    yield head, ("output_layer.weight",), _whole, 0


def _layer_rows(config: ModelConfig) -> Iterator[Row]:
    attention, mlp = "self_attention.", "mlp."
    groups = config.num_key_value_heads // parallel_state.get_tensor_model_parallel_world_size()
    queries = config.num_attention_heads // config.num_key_value_heads * config.head_dim
    ends = (0, queries, queries + config.head_dim, queries + 2 * config.head_dim)
    for kind, across in (("weight", 1), ("bias", None)):
        for i, name in enumerate("qkv"):
            view = _group_rows(groups, ends[i], ends[i + 1])
            yield f"self_attn.{name}_proj.{kind}", (f"{attention}linear_qkv.{kind}",), view, 0
        for i, name in enumerate(("gate", "up")):
            yield f"mlp.{name}_proj.{kind}", (f"{mlp}linear_fc1.{kind}",), _half(i), 0
        yield f"self_attn.o_proj.{kind}", (f"{attention}linear_proj.{kind}",), _whole, across
        yield f"mlp.down_proj.{kind}", (f"{mlp}linear_fc2.{kind}",), _whole, across
    for name, candidates in (
        ("self_attn.q_norm", (f"{attention}q_layernorm.weight",)),
        ("self_attn.k_norm", (f"{attention}k_layernorm.weight",)),
        ("input_layernorm", ("input_layernorm.weight", f"{attention}linear_qkv.layer_norm_weight")),
        (
            "post_attention_layernorm",
            ("pre_mlp_layernorm.weight", f"{mlp}linear_fc1.layer_norm_weight"),
        ),
    ):
        yield f"{name}.weight", candidates, _whole, None


def _whole(parameter: Tensor) -> Tensor:
    return parameter


def _group_rows(groups: int, start: int, end: int) -> Callable[[Tensor], Tensor]:
    return lambda fused: fused.view(groups, -1, *fused.shape[1:])[:, start:end]


def _half(number: int) -> Callable[[Tensor], Tensor]:
    return lambda fused: fused.chunk(2)[number]


@torch.no_grad()
def read_directory(directory: str, config: ModelConfig, table: dict[str, Part]) -> None:
    """Fill this rank's parameters from a model directory; reads no more than its part of it."""
    rank = parallel_state.get_tensor_model_parallel_rank()
    ranks = parallel_state.get_tensor_model_parallel_world_size()
    shapes, missing = parameter_shapes(config), set(table)
    where = f"model directory {directory}"
    for name, source in DirectoryWeights(directory).slices():
        if name in table:
            table[name].read(source, f"{where}: {name}", shapes[name], rank, ranks)
            missing.discard(name)
        elif name not in shapes and not (
            name.endswith("rotary_emb.inv_freq")
            or (name == "lm_head.weight" and config.tie_word_embeddings)
        ):
            raise InvalidInputError(f"{where}: parameter {name} is not one of {config.family}")
    if missing:
        raise InvalidInputError(f"{where}: no parameter {min(missing)}, expected it")


class Exporter:
    """Gathers the model's tensors to rank 0, whole, under their Hugging Face names."""

    def __init__(self, config: ModelConfig, table: dict[str, Part]) -> None:
        self._shapes = parameter_shapes(config)
        self._table = table
        self._tensor = parallel_state.get_tensor_model_parallel_group()
        self._ranks = distributed.get_process_group_ranks(self._tensor)
        self._replica = parallel_state.get_data_parallel_rank()
        # The first rank of the stage that holds a tensor; the first stage's of a tied embedding.
        holders: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(holders, (self._replica, self._ranks[0], list(table)))
        self._holders: dict[str, int] = {}
        for replica, first, names in holders:
            for name in names if replica == 0 else ():
                self._holders.setdefault(name, first)
        lacking = set(self._shapes) - set(self._holders)
        if lacking:
            raise InvalidInputError(f"no rank has a parameter {min(lacking)}")

    @torch.no_grad()
    def tensors(self, values: Callable[[torch.nn.Parameter], Tensor]) -> Iterator[Any]:
        """(name, tensor) on rank 0, nothing on the others; every rank must run it to its end.

        `values` of a parameter is what is exported: its data, or its gradient.
        """
        rank = distributed.get_rank()
        for name, shape in self._shapes.items():
            first, whole = self._holders[name], None
            if self._replica == 0 and self._ranks[0] == first:
                whole = self._gather(name, shape, values)
                if rank == first and rank != 0:
                    distributed.send(whole.contiguous(), dst=0)
            if rank == 0:
                if first != 0:
                    like = values(next(iter(self._table.values())).parameter)
                    whole = torch.empty(shape, dtype=like.dtype, device=like.device)
                    distributed.recv(whole, src=first)
                yield name, whole

    def _gather(
        self, name: str, shape: tuple[int, ...], values: Callable[[torch.nn.Parameter], Tensor]
    ) -> Tensor:
        part = self._table[name]
        own = part.view(values(part.parameter))
        if len(own.shape) > len(shape):
            own = own.flatten(0, 1)
        if part.dim is None or len(self._ranks) == 1:
            return own[: shape[0]]
        own = own.contiguous()
        there = distributed.get_rank() == self._ranks[0]
        shards = [torch.empty_like(own) for _ in self._ranks] if there else None
        distributed.gather(own, shards, dst=self._ranks[0], group=self._tensor)
        return torch.cat(shards, part.dim)[: shape[0]] if shards is not None else own
