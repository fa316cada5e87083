"""megatron-core takes `packed_seq_params` as meant: a packed row attends as its trajectories do."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from trajectories import random_groups

pytest.importorskip("megatron.core", reason="needs megatron-core, which `make setup` installs")

from megatron.core import parallel_state
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from k15core.packing import MicroBatch

# megatron-core warns of what is not installed beside it.
pytestmark = pytest.mark.filterwarnings("ignore")

WIDTH, HEADS = 32, 4


class CoreAttention(MegatronModule):
    """Causal attention within each segment; megatron-core's own takes packed rows on a GPU only."""

    def __init__(self, config: TransformerConfig, *_: Any, **__: Any) -> None:
        super().__init__(config=config)

    def forward(self, q: Any, k: Any, v: Any, *_: Any, packed_seq_params: Any, **__: Any) -> Any:
        ends = packed_seq_params.cu_seqlens_q_padded.tolist()
        heads_first = [x.reshape(x.shape[0], HEADS, -1).transpose(0, 1) for x in (q, k, v)]
        segments = [
            scaled_dot_product_attention(*(x[:, start:end] for x in heads_first), is_causal=True)
            for start, end in pairwise(ends)
        ]
        return torch.cat(segments, 1).transpose(0, 1).reshape(len(q), -1)


@pytest.fixture(scope="module")
def attention(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    store = f"file://{tmp_path_factory.mktemp('megatron') / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    torch.manual_seed(1)
    patch = pytest.MonkeyPatch()
    # It moves the frequencies of places to the current GPU, whatever was asked for.
    patch.setattr(torch.cuda, "current_device", lambda: torch.device("cpu"))
    config = TransformerConfig(
        num_layers=1,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        apply_rope_fusion=False,
        attention_dropout=0.0,
        add_bias_linear=False,
    )
    layers = SelfAttentionSubmodules(
        linear_qkv=ColumnParallelLinear, core_attention=CoreAttention, linear_proj=RowParallelLinear
    )
    try:
        made = SelfAttention(config, layers, layer_number=1, attn_mask_type=AttnMaskType.causal)
        rotary = RotaryEmbedding(WIDTH // HEADS, 1.0, use_cpu_initialization=True)
        yield made.eval(), rotary
    finally:
        patch.undo()
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def parameters_of(micro: MicroBatch) -> PackedSeqParams:
    """As docs/store.md says it."""
    given = micro.packed_seq_params()
    return PackedSeqParams(
        **{k: torch.as_tensor(v) if k.startswith("cu_") else v for k, v in given.items()}
    )


@torch.inference_mode()
def attend(attention: tuple[Any, Any], states: Any, parameters: PackedSeqParams) -> Any:
    module, rotary = attention
    places = rotary(parameters.max_seqlen_q, packed_seq=True)
    out, bias = module(states[:, None], None, rotary_pos_emb=places, packed_seq_params=parameters)
    assert bias is None
    return out[:, 0]


@pytest.mark.parametrize(("multiple", "total"), [(1, 1), (4, 1), (4, 64)])
def test_a_packed_row_attends_as_its_trajectories_do(
    attention: tuple[Any, Any], multiple: int, total: int
) -> None:
    batch = random_groups(12, 3, seed=multiple + total)
    torch.manual_seed(multiple)
    states = torch.randn(len(batch.input_ids), WIDTH)
    found = np.full(states.shape, np.nan, np.float32)
    ranks = batch.micro_batches(
        ranks=2, max_tokens=64, pad_to_multiple=multiple, pad_total_to_multiple=total
    )
    assert len(ranks[0]) > 1
    for micro in (micro for rank in ranks for micro in rank):
        row = torch.from_numpy(micro.gather(states.numpy()))
        parameters = parameters_of(micro)
        assert int(parameters.cu_seqlens_q_padded[-1]) == len(row)
        assert len(row) % total == 0
        lengths = parameters.cu_seqlens_q_padded.diff()
        assert int(lengths.max()) == parameters.max_seqlen_q
        assert (parameters.cu_seqlens_q.diff() <= lengths).all()
        micro.scatter(attend(attention, row, parameters).numpy(), found)
    for start, end in pairwise(batch.cu_seqlens.tolist()):
        ends = torch.tensor([0, end - start], dtype=torch.int32)
        alone = PackedSeqParams("thd", ends, ends, ends, ends, end - start, end - start)
        wanted = attend(attention, states[start:end], alone).numpy()
        np.testing.assert_allclose(found[start:end], wanted, atol=1e-5)
