"""A pass over micro-batches through megatron-core's pipeline schedules.

The schedules divide each micro-batch's loss by the count of micro-batches, and DDP the gradient by
the count of data-parallel ranks. The loss here is a sum over all responses of all of them (each
algorithm divides by P·k itself), so it is multiplied by both first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import (
    gather_from_tensor_model_parallel_region,
    vocab_parallel_cross_entropy,
)
from torch import Tensor

from k15core.algorithms import LossTerms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from k15core.trainer.megatron.settings import Micro

Loss = Callable[[LossTerms], Tensor]


class Passes:
    """Runs a wrapped GPTModel forward, and backward, over this rank's micro-batches."""

    def __init__(
        self, model: Any, *, vocab_size: int, temperature: float, device: str, half: bool
    ) -> None:
        self._model = model
        self._vocab_size = vocab_size
        self._temperature = temperature
        self._device = "cpu" if device == "cpu" else "cuda"
        # In half precision the logits are widened where a log-prob is wanted, and only there.
        self._options = {"fp32_output": False} if half else {}

    def log_probs(self, micros: Sequence[Micro]) -> list[Any]:
        """The log-probs [N] of each micro-batch on the last stage, nothing on the others."""
        return self._score(micros, lambda z, m: self._token_log_probs(z, m, self._temperature))

    def logits(self, micros: Sequence[Micro]) -> list[Any]:
        """The logits [T, V] of each micro-batch on the last stage, nothing on the others."""
        size = self._vocab_size
        gather = gather_from_tensor_model_parallel_region
        return self._score(micros, lambda logits, _: gather(logits)[0, :, :size])

    @torch.no_grad()
    def _score(
        self, micros: Sequence[Micro], collect: Callable[[Tensor, Micro], Tensor]
    ) -> list[Any]:
        """What `collect` makes of the logits of each micro-batch, as arrays."""
        self._model.eval()

        def step(source: Iterator[Micro], model: Any) -> tuple[Tensor, Any]:
            micro = next(source)

            def kept(logits: Tensor, non_loss_data: bool = True) -> Any:
                del non_loss_data
                return collect(logits, micro).float().cpu().numpy()

            return self._forward(model, micro), kept

        try:
            return self._run(step, micros, forward_only=True, collect_non_loss_data=True)
        finally:
            self._model.train()

    def gradient(
        self, micros: Sequence[Micro], loss: Loss, *, responses: int, temperature: float | None
    ) -> list[list[float]]:
        """Add the loss's gradient to the buffers; (loss, Σ k3, Σ δ, -Σ log π) a micro-batch.

        The sums come on the last stage only. `temperature` None is the one of the rollouts.
        """
        if temperature is None:
            temperature = self._temperature
        scale = len(micros) * parallel_state.get_data_parallel_world_size()

        def step(source: Iterator[Micro], model: Any) -> tuple[Tensor, Any]:
            micro = next(source)
            output = self._forward(model, micro)

            def compute(logits: Tensor) -> tuple[Tensor, list[float]]:
                if not len(micro.places):
                    # Padding alone: no loss, yet the backward pass's collective calls are made.
                    return logits.sum() * 0.0, [0.0] * 4
                new = self._token_log_probs(logits, micro, temperature)
                old = self._tensor(micro.old_log_probs)
                value = loss(
                    LossTerms(
                        log_probs=new,
                        old_log_probs=old,
                        rows=self._tensor(micro.rows),
                        advantages=self._tensor(micro.advantages),
                        responses=responses,
                    )
                )
                with torch.no_grad():
                    delta = new.detach() - old
                    sums = (value.detach(), (delta.expm1() - delta).sum(), delta.sum(), -new.sum())
                    kept = torch.stack([each.double() for each in sums]).tolist()
                return value * scale, kept

            return output, compute

        return self._run(step, micros, forward_only=False)

    def _run(self, step: Any, micros: Sequence[Micro], **options: Any) -> list[Any]:
        found: list[Any] = get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=iter(micros),
            model=[self._model],
            num_microbatches=len(micros),
            seq_length=max(len(micro.input_ids) for micro in micros),
            micro_batch_size=1,
            **options,
        )
        return found

    def _forward(self, model: Any, micro: Micro) -> Tensor:
        """Logits [1, T, V / TP] on the last stage, hidden states on the others."""
        ends = self._tensor(micro.cu_seqlens)
        output: Tensor = model(
            input_ids=self._tensor(micro.input_ids).long()[None],
            position_ids=None,
            attention_mask=None,
            packed_seq_params=PackedSeqParams(
                qkv_format="thd",
                cu_seqlens_q=ends,
                cu_seqlens_kv=ends,
                max_seqlen_q=micro.max_seqlen,
                max_seqlen_kv=micro.max_seqlen,
            ),
            **self._options,
        )
        return output

    def _token_log_probs(self, logits: Tensor, micro: Micro, temperature: float) -> Tensor:
        """Log-probs [N] in float32 of the tokens at `places`, over the whole vocabulary."""
        places = self._tensor(micro.places)
        if not len(places):
            return logits.new_zeros(0)
        targets = self._tensor(micro.input_ids).long()[places]
        chosen = logits[0].index_select(0, places - 1).float()
        if temperature != 1.0:
            chosen = chosen / temperature
        width = chosen.shape[1]
        real = self._vocab_size - parallel_state.get_tensor_model_parallel_rank() * width
        if real < width:
            # The vocabulary's padding has no probability.
            beyond = torch.arange(width, device=chosen.device) >= real
            chosen = chosen.masked_fill(beyond, float("-inf"))
        # It works in place: `chosen` is nobody else's.
        surprise: Tensor = vocab_parallel_cross_entropy(chosen[:, None], targets[:, None])
        return -surprise[:, 0]

    def _tensor(self, values: Any) -> Tensor:
        return torch.from_numpy(values).to(self._device)
