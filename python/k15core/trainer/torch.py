"""The trainer over the lean model: packed rows, micro-batches by tokens, AdamW.

One iteration, from a batch of the store to new weights:

    old = trainer.log_probs(batch)                        # under π_i
    trainer.reset_optimizer()
    for part in mini_batches(batch, advantages, old, contributes, n=4, seed=seed):
        trainer.step(part.batch, part.advantages, part.old_log_probs, responses=part.responses)
    engine.update_weights(trainer.weights(), version + 1)

No padding enters a linear layer, the prompt of a group is computed once for all its responses, and
log-probs are taken at trained tokens only. Given the number of threads, every result is a function
of the arguments.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from k15core.algorithms import LossTerms
from k15core.errors import InvalidInputError
from k15core.models.attention import Shared
from k15core.models.weights import DirectoryWeights, ModelWeights, copy_weights, save_model
from k15core.trainer.base import (
    NOTHING_TRAINED,
    Pack,
    check_ids,
    check_pack,
    check_step,
    loss_metrics,
    micro_batches,
    pack_demonstrations,
    response_mask,
    shared_prompts,
    trained_rows,
)
from k15core.trainer.optimizer import Optimizer, check_number

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from k15core.algorithms import Algorithm
    from k15core.models.lean import LeanModel
    from k15core.types import Demonstration, PackedBatch, WeightSource

SERIAL_WORK = 15 * 10**8
"""Tokens of a micro-batch times parameters times passes below which one thread computes it.

Of a small model most kernels are too short to be divided: on two cores a second thread gains at
most a fifth at this size and nothing at half of it, and whenever another process takes its core the
first waits for it, at the end of every kernel.
"""

LearningRate = float | Callable[[int], float]
"""A constant, or a function of the policy optimisation steps taken so far."""


class TorchTrainer:
    """Trains a `LeanModel` in place on its device, by the loss of an algorithm.

    `steps` counts the steps of policy optimisation, whatever became of the moments: a schedule of
    the learning rate is a function of it. `temperature` is that of the rollouts: the policy that is
    trained is the one that was sampled from, softmax(logits / temperature); at 0 (greedy rollouts)
    it is the plain softmax, as in the engines.
    """

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
        temperature: float = 1.0,
    ) -> None:
        if micro_batch_tokens < 1:
            raise InvalidInputError(
                f"micro_batch_tokens is {micro_batch_tokens}: expected at least 1"
            )
        if not callable(learning_rate):
            check_number("learning_rate", learning_rate)
        check_number("weight_decay", weight_decay)
        check_number("temperature", temperature)
        self.model = model
        self.algorithm = algorithm
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.micro_batch_tokens = micro_batch_tokens
        self.temperature = temperature or 1.0
        self.steps = 0
        self._device = model.embedding.device
        self._parameters = sum(parameter.numel() for parameter in model.parameters())
        self._optimizer = Optimizer(model, betas=betas, max_gradient_norm=max_gradient_norm)

    @torch.no_grad()
    def log_probs(self, batch: PackedBatch) -> NDArray[np.float32]:
        """Log-probs [T] of all response tokens under the present weights, 0 on prompts."""
        check_pack(batch)
        mask = response_mask(batch)
        out = np.zeros(len(batch.input_ids), np.float32)
        with self._threads(len(batch.input_ids), passes=1):
            for start, end in micro_batches(batch.cu_seqlens, self.micro_batch_tokens):
                places = _places(mask, batch.cu_seqlens, start, end)
                log_probs = self._forward(batch, start, end, places, self.temperature)
                out[batch.cu_seqlens[start] + places] = log_probs.float().cpu().numpy()
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
        self._optimizer.clear()
        with self._threads(len(batch.input_ids)):
            metrics = self.accumulate(batch, advantages, old_log_probs, responses=responses)
            norm = self._optimizer.step(rate, self.weight_decay) if metrics["tokens"] else 0.0
        self.steps += 1
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
        tokens = int((batch.loss_mask != 0).sum())
        if not tokens:
            return loss_metrics(NOTHING_TRAINED, 0, 0)
        batch, advantages, old_log_probs = trained_rows(batch, advantages, old_log_probs)
        trained = np.add.reduceat(batch.loss_mask != 0, batch.cu_seqlens[:-1], dtype=np.int64)
        totals = torch.zeros(4, dtype=torch.float64, device=self._device)
        for start, end in micro_batches(batch.cu_seqlens, self.micro_batch_tokens):
            places = _places(batch.loss_mask, batch.cu_seqlens, start, end)
            new = self._forward(batch, start, end, places, self.temperature)
            old = self._tensor(old_log_probs[batch.cu_seqlens[start] + places]).to(new.dtype)
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
        return loss_metrics(totals.tolist(), tokens, len(batch))

    def imitate(
        self, demonstrations: Sequence[Demonstration], *, learning_rate: float, weight_decay: float
    ) -> dict[str, float]:
        """One supervised step: the mean of -log-probs over all response tokens, packed.

        Returns `loss` before the step, `gradient_norm` before clipping, `tokens` trained on,
        `learning_rate` and `seconds`. Raises DivergedError as `step` does.
        """
        began = time.perf_counter()
        pack = pack_demonstrations(demonstrations)
        self._optimizer.clear()
        with self._threads(len(pack.input_ids)):
            loss = torch.zeros((), dtype=torch.float64, device=self._device)
            for start, end in micro_batches(pack.cu_seqlens, self.micro_batch_tokens):
                places = _places(pack.loss_mask, pack.cu_seqlens, start, end)
                part = -self._forward(pack, start, end, places).sum() / pack.tokens
                part.backward()  # type: ignore[no-untyped-call]
                loss += part.detach()
            norm = self._optimizer.step(learning_rate, weight_decay)
        return {
            "loss": loss.item(),
            "gradient_norm": norm,
            "tokens": pack.tokens,
            "learning_rate": learning_rate,
            "seconds": time.perf_counter() - began,
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
        self._optimizer.save(Path(directory), {"steps": self.steps})

    def load(self, directory: str) -> None:
        """Return to what `save` wrote, bit for bit."""
        copy_weights(self.model, DirectoryWeights(directory).tensors(), where=directory)
        self.steps = self._optimizer.load(Path(directory))["steps"]

    def offload(self) -> None:
        """Nothing: this trainer and its engine are one process, with room for both."""

    def reload(self) -> None:
        """Nothing, as `offload`."""

    def close(self) -> None:
        """Nothing: memory goes with the object."""

    def _forward(
        self,
        pack: PackedBatch | Pack,
        start: int,
        end: int,
        places: NDArray[np.int64],
        temperature: float = 1.0,
    ) -> torch.Tensor:
        """Log-probs [N] of the tokens at `places` [N] of the micro-batch of rows [start, end)."""
        cu_seqlens = pack.cu_seqlens[start : end + 1]
        tokens = slice(cu_seqlens[0], cu_seqlens[-1])
        ids = pack.input_ids[tokens]
        check_ids(ids, self.model.config.vocab_size)
        input_ids = self._tensor(ids)
        hidden = self.model.forward_packed(
            input_ids,
            self._tensor(pack.position_ids[tokens]),
            self._tensor(cu_seqlens - cu_seqlens[0]),
            int(np.diff(cu_seqlens).max()),
            shared=self._shared(pack, start, end),
        )
        return self.model.token_log_probs(
            hidden, input_ids, self._tensor(places), temperature=temperature
        )

    @contextmanager
    def _threads(self, tokens: int, passes: int = 3) -> Iterator[None]:
        """One thread for small work, for as long as the block runs: a function of sizes alone.

        A backward pass is worth two forward ones.
        """
        threads = torch.get_num_threads()
        work = passes * min(tokens, self.micro_batch_tokens) * self._parameters
        serial = self._device.type == "cpu" and work < SERIAL_WORK and threads > 1
        if serial:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if serial:
                torch.set_num_threads(threads)

    def _shared(self, pack: PackedBatch | Pack, start: int, end: int) -> Shared | None:
        found = None if isinstance(pack, Pack) else shared_prompts(pack, start, end)
        return None if found is None else Shared(*(self._tensor(array) for array in found))

    def _tensor(self, values: NDArray[np.generic]) -> torch.Tensor:
        # A copy: torch warns of arrays that it may not write to, and a store's views are such.
        return torch.from_numpy(np.array(values)).to(self._device)


def _places(
    mask: NDArray[np.uint8] | NDArray[np.bool_], cu_seqlens: NDArray[np.int32], start: int, end: int
) -> NDArray[np.int64]:
    """Where the mask is set in the micro-batch of rows [start, end), counted from its start."""
    return np.flatnonzero(mask[cu_seqlens[start] : cu_seqlens[end]])
