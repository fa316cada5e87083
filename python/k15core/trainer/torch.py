"""The trainer over the lean model: packed rows, micro-batches by tokens, AdamW.

One iteration, from a batch of the store to new weights:

    old = trainer.log_probs(batch)                        # under π_i
    trainer.reset_optimizer()
    for part in mini_batches(batch, advantages, old, contributes, n=4, seed=seed):
        trainer.step(part.batch, part.advantages, part.old_log_probs, responses=part.responses)
    engine.update_weights(trainer.weights(), version + 1)

No padding enters a linear layer, and log-probs are taken at trained tokens only. Given the number
of threads, every result is a function of the arguments.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from k15core.algorithms import LossTerms
from k15core.errors import InvalidInputError
from k15core.models.weights import DirectoryWeights, ModelWeights, copy_weights, save_model
from k15core.trainer.base import check_pack, check_step, micro_batches, response_mask
from k15core.trainer.optimizer import Optimizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from k15core.algorithms import Algorithm
    from k15core.models.lean import LeanModel
    from k15core.types import PackedBatch, WeightSource

LearningRate = float | Callable[[int], float]
"""A constant, or a function of the optimizer steps taken since the run began."""


class TorchTrainer:
    """Trains a `LeanModel` in place on its device, by the loss of an algorithm."""

    def __init__(
        self,
        model: LeanModel,
        algorithm: Algorithm,
        *,
        learning_rate: LearningRate,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        max_gradient_norm: float = 1.0,
        micro_batch_tokens: int = 8192,
    ) -> None:
        if micro_batch_tokens < 1:
            raise InvalidInputError(
                f"micro_batch_tokens is {micro_batch_tokens}: expected at least 1"
            )
        if not callable(learning_rate) and not (math.isfinite(learning_rate) and learning_rate > 0):
            raise InvalidInputError(f"learning_rate is {learning_rate}: expected a number > 0")
        self.model = model
        self.algorithm = algorithm
        self.learning_rate = learning_rate
        self.micro_batch_tokens = micro_batch_tokens
        self._device = model.embedding.device
        self._optimizer = Optimizer(
            model,
            betas=betas,
            weight_decay=weight_decay,
            max_gradient_norm=max_gradient_norm,
        )

    @property
    def steps(self) -> int:
        """Optimizer steps taken since the run began; resets of the moments do not change it."""
        return self._optimizer.steps

    @torch.no_grad()
    def log_probs(self, batch: PackedBatch) -> NDArray[np.float32]:
        """Log-probs [T] of all response tokens under the present weights, 0 on prompts."""
        check_pack(batch)
        mask = response_mask(batch)
        out = np.zeros(len(batch.input_ids), np.float32)
        for start, end in micro_batches(batch.cu_seqlens, self.micro_batch_tokens):
            low, high = batch.cu_seqlens[start], batch.cu_seqlens[end]
            places = np.flatnonzero(mask[low:high])
            out[low + places] = self._forward(batch, start, end, places).float().cpu().numpy()
        return out

    def step(
        self,
        batch: PackedBatch,
        advantages: NDArray[np.float32],
        old_log_probs: NDArray[np.float32],
        *,
        responses: int,
    ) -> dict[str, float]:
        """One optimizer step on a mini-batch. `responses` is its P·k, skipped groups included.

        Returns, over the trained tokens, `loss`; `gradient_norm` before clipping; `kl`, the mean a
        token of exp(δ) - 1 - δ with δ = log π_θ - log π_i (the k3 estimate of KL(π_i ‖ π_θ) from
        tokens of π_i); `drift`, the mean a response of ℓ - ℓ^i; `entropy`, the mean a token of
        -log π_θ (an estimate from sampled tokens); `tokens`, `learning_rate` and `seconds`. All are
        from before the step. Without a trained token nothing happens, and loss and norm are 0.

        Raises DivergedError, with the weights untouched, if the gradient is not finite.
        """
        began = time.perf_counter()
        rate = self.learning_rate
        rate = rate(self.steps) if callable(rate) else rate
        metrics = self.accumulate(batch, advantages, old_log_probs, responses=responses)
        norm = self._optimizer.step(rate) if metrics["tokens"] else 0.0
        seconds = time.perf_counter() - began
        return {**metrics, "gradient_norm": norm, "learning_rate": rate, "seconds": seconds}

    def accumulate(
        self,
        batch: PackedBatch,
        advantages: NDArray[np.float32],
        old_log_probs: NDArray[np.float32],
        *,
        responses: int,
    ) -> dict[str, float]:
        """Add the gradient of a mini-batch's loss to the parameters' `grad`, without a step.

        Works micro-batch by micro-batch; returns what `step` says of the loss.
        """
        check_step(batch, advantages, old_log_probs, responses)
        trained = np.add.reduceat(batch.loss_mask != 0, batch.cu_seqlens[:-1], dtype=np.int64)
        if not trained.all():
            # Responses of which every token is masked add nothing to the loss.
            kept = np.flatnonzero(trained)
            if not len(kept):
                return {"loss": 0.0, "kl": 0.0, "drift": 0.0, "entropy": 0.0, "tokens": 0}
            old_log_probs = old_log_probs[np.repeat(trained > 0, np.diff(batch.cu_seqlens))]
            batch, advantages, trained = batch.select(kept), advantages[kept], trained[kept]
        totals = torch.zeros(4, dtype=torch.float64, device=self._device)
        for start, end in micro_batches(batch.cu_seqlens, self.micro_batch_tokens):
            low, high = batch.cu_seqlens[start], batch.cu_seqlens[end]
            places = np.flatnonzero(batch.loss_mask[low:high])
            new = self._forward(batch, start, end, places)
            old = self._tensor(old_log_probs[low + places]).to(new.dtype)
            terms = LossTerms(
                log_probs=new,
                old_log_probs=old,
                rows=self._tensor(np.repeat(np.arange(end - start), trained[start:end])),
                advantages=self._tensor(advantages[start:end]).to(new.dtype),
                responses=responses,
            )
            loss = self.algorithm.loss(terms)
            loss.backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                delta = new.detach() - old
                sums = (loss.detach(), (delta.expm1() - delta).sum(), delta.sum(), -new.sum())
                totals += torch.stack(sums)
        loss_sum, k3, drift, surprise = totals.tolist()
        tokens = int(trained.sum())
        return {
            "loss": loss_sum,
            "kl": k3 / tokens,
            "drift": drift / len(batch),
            "entropy": surprise / tokens,
            "tokens": tokens,
        }

    def reset_optimizer(self) -> None:
        """Forget the optimizer's moments (once an iteration, report section 2.3.2)."""
        self._optimizer.reset()

    def weights(self) -> WeightSource:
        """The present weights under their Hugging Face names, sharing this trainer's memory."""
        return ModelWeights(self.model)

    def save(self, directory: str) -> None:
        """Write a Hugging Face model directory, and optimizer.safetensors into it.

        The latter holds the moments, the count of steps and torch's random state. Files are written
        in place: name the directory in a manifest only after this returns.
        """
        save_model(self.model, directory)
        self._optimizer.save(Path(directory), {})

    def load(self, directory: str) -> None:
        """Return to what `save` wrote, bit for bit."""
        copy_weights(self.model, DirectoryWeights(directory).tensors(), where=directory)
        self._optimizer.load(Path(directory))

    def _forward(
        self, batch: PackedBatch, start: int, end: int, places: NDArray[np.int64]
    ) -> torch.Tensor:
        """Log-probs [N] of the tokens at `places` [N] of the micro-batch of rows [start, end)."""
        cu_seqlens = batch.cu_seqlens[start : end + 1]
        tokens = slice(cu_seqlens[0], cu_seqlens[-1])
        input_ids = self._tensor(batch.input_ids[tokens])
        hidden = self.model.forward_packed(
            input_ids,
            self._tensor(batch.position_ids[tokens]),
            self._tensor(cu_seqlens - cu_seqlens[0]),
            int(np.diff(cu_seqlens).max()),
        )
        return self.model.token_log_probs(hidden, input_ids, self._tensor(places))

    def _tensor(self, values: NDArray[np.generic]) -> torch.Tensor:
        # A copy: torch warns of arrays that it may not write to, and a store's views are such.
        return torch.from_numpy(np.array(values)).to(self._device)
