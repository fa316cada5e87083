"""The trainer over megatron-core: tensor, pipeline and data parallel worker processes.

The controller's process imports no Megatron: it checks what it is given, deals a batch's rows out
to data-parallel ranks (equal in micro-batches, about equal in tokens), sends each rank its own, and
puts together what the last pipeline stages report.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from k15core.deploy.shared_weights import SharedWeights, WeightWriter
from k15core.errors import Error, InvalidInputError
from k15core.models.config import ModelConfig
from k15core.trainer.base import (
    NOTHING_TRAINED,
    check_ids,
    check_pack,
    check_step,
    loss_metrics,
    pack_demonstrations,
    response_mask,
    trained_rows,
)
from k15core.trainer.megatron.dealing import (
    added_up,
    as_batch,
    deal,
    micro_for_rank,
)
from k15core.trainer.megatron.placement import Placement, Ranks, start
from k15core.trainer.megatron.saved import SHARDS, Saved, empty_shards
from k15core.trainer.megatron.settings import Layout, Micro, Settings
from k15core.trainer.optimizer import check_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from k15core.algorithms import Algorithm
    from k15core.packing import MicroBatch, PackedBatch
    from k15core.types import Demonstration

    LearningRate = float | Callable[[int], float]


class MegatronTrainer:
    """Trains a Hugging Face model directory's policy in worker processes, by an algorithm's loss.

    `tensor_parallel` · `pipeline_parallel` · `data_parallel` processes of this machine are started,
    on its GPUs in turn where `device` is "cuda". `transformer`, `optimizer` and `ddp` go untouched
    to TransformerConfig, OptimizerConfig and DistributedDataParallelConfig of megatron-core; bf16,
    activation recompute and whatever else they have is asked for there. Without them: float32,
    AdamW as `TorchTrainer` has it, the distributed optimizer.

    `steps`, `temperature` and the metrics are as in `TorchTrainer`. `weights` is the directory of
    shared memory through which `weights()` hands over. `algorithm` is sent to the workers: its
    class must be importable there. With `placement` "ray" the processes are actors of a Ray
    cluster, placed over its nodes as `ray` says (arguments of `RayRanks`); the model's directory
    and checkpoints must lie where all nodes see them. `workers` are processes to build on in place
    of new ones, one a rank; they stay when this trainer is closed.

    Any call raises ProcessDiedError once a worker has ended; `load` starts them anew.
    """

    def __init__(
        self,
        model: str | Path,
        algorithm: Algorithm,
        *,
        learning_rate: LearningRate,
        weights: str | Path,
        weight_decay: float = 0.0,
        max_gradient_norm: float = 1.0,
        micro_batch_tokens: int = 8192,
        temperature: float = 1.0,
        tensor_parallel: int = 1,
        pipeline_parallel: int = 1,
        data_parallel: int = 1,
        sequence_parallel: bool = False,
        device: str = "cpu",
        transformer: Mapping[str, Any] | None = None,
        optimizer: Mapping[str, Any] | None = None,
        ddp: Mapping[str, Any] | None = None,
        placement: Placement = "local",
        ray: Mapping[str, Any] | None = None,
        workers: Ranks | None = None,
    ) -> None:
        if micro_batch_tokens < 1:
            raise InvalidInputError(
                f"micro_batch_tokens is {micro_batch_tokens}: expected at least 1"
            )
        if not callable(learning_rate):
            check_number("learning_rate", learning_rate)
        check_number("weight_decay", weight_decay)
        check_number("temperature", temperature)
        self.config = ModelConfig.from_directory(model)
        self.layout = Layout(tensor_parallel, pipeline_parallel, data_parallel, sequence_parallel)
        self.layout.check(self.config)
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.micro_batch_tokens = micro_batch_tokens
        self.steps = 0
        self._settings = Settings(
            directory=str(Path(model).resolve()),
            layout=self.layout,
            device=device,
            algorithm=algorithm,
            temperature=temperature or 1.0,
            max_gradient_norm=max_gradient_norm,
            weights=str(weights),
            transformer=dict(transformer or {}),
            optimizer=dict(optimizer or {}),
            ddp=dict(ddp or {}),
        )
        if workers is not None and len(workers) != self.layout.ranks:
            raise InvalidInputError(
                f"workers has {len(workers)} processes: expected {self.layout.ranks}"
            )
        self._lent = workers is not None
        self._placement: Placement = placement
        self._ray = dict(ray or {})
        self._workers = workers or self._start()
        self._places: list[Any] = []
        self._published = 0
        self._handed: SharedWeights | None = None
        self._offloaded = False
        try:
            self._build()
        except BaseException:
            if not self._lent:
                self._workers.close()
            raise

    @property
    def pids(self) -> list[int]:
        """The worker processes, by rank."""
        return self._workers.pids

    def log_probs(self, batch: PackedBatch) -> NDArray[np.float32]:
        """Log-probs [T] of all response tokens under the present weights, 0 on prompts."""
        check_pack(batch)
        out = np.zeros(len(batch.input_ids), np.float32)
        for micro, asked, answer in self._scores("log_probs", batch, response_mask(batch)):
            values = np.zeros(len(asked.input_ids), np.float32)
            values[asked.places] = answer
            micro.scatter(values, out)
        return out

    def logits(self, batch: PackedBatch) -> NDArray[np.float32]:
        """Logits [T, V] of every token of a small batch, to hold against other implementations.

        Row t is of the token after t; no temperature is in it.
        """
        check_pack(batch)
        out = np.zeros((len(batch.input_ids), self.config.vocab_size), np.float32)
        for micro, _, answer in self._scores("logits", batch, response_mask(batch)):
            micro.scatter(answer, out)
        return out

    def _scores(
        self, method: str, batch: PackedBatch, mask: NDArray[np.bool_]
    ) -> Iterator[tuple[MicroBatch, Micro, NDArray[np.float32]]]:
        """Each micro-batch, what was sent of it, and what the rank that reports answered."""
        check_ids(batch.input_ids, self.config.vocab_size)
        dealt = self._deal(batch)
        sent = [[micro_for_rank(micro, micro.gather(mask)) for micro in rank] for rank in dealt]
        found = self._call(method, each=[sent[place["data"]] for place in self._places])
        for place, answers in zip(self._places, found, strict=True):
            if place["reports"]:
                rank = place["data"]
                yield from zip(dealt[rank], sent[rank], answers, strict=True)

    def step(
        self,
        batch: PackedBatch,
        advantages: NDArray[np.float32],
        old_log_probs: NDArray[np.float32],
        *,
        responses: int,
    ) -> dict[str, float]:
        """One optimizer step on a mini-batch, with the metrics of `TorchTrainer.step`.

        Raises DivergedError, with the weights untouched, if the gradient is not finite.
        """
        began = time.perf_counter()
        rate = self.learning_rate
        rate = rate(self.steps) if callable(rate) else rate
        check_number("learning_rate", rate)
        metrics, norm = self._train(
            "step",
            batch,
            advantages,
            old_log_probs,
            responses=responses,
            learning_rate=rate,
            weight_decay=self.weight_decay,
        )
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
        """A mini-batch's gradient, without a step; returns what `step` says of the loss.

        `gradients` looks at it; the next step forgets it.
        """
        return self._train("accumulate", batch, advantages, old_log_probs, responses=responses)[0]

    def gradients(self) -> dict[str, NDArray[np.float32]]:
        """What `accumulate` left in every parameter, by Hugging Face name, in host memory."""
        found: dict[str, NDArray[np.float32]] = self._call("gradients")[0]
        return found

    def imitate(
        self, demonstrations: Sequence[Demonstration], *, learning_rate: float, weight_decay: float
    ) -> dict[str, float]:
        """One supervised step on the mean of -log-probs over response tokens, as `TorchTrainer`."""
        began = time.perf_counter()
        check_number("learning_rate", learning_rate)
        check_number("weight_decay", weight_decay)
        pack = pack_demonstrations(demonstrations)
        batch = as_batch(pack)
        check_ids(batch.input_ids, self.config.vocab_size)
        sent = [[micro_for_rank(m, m.loss_mask) for m in rank] for rank in self._deal(batch)]
        answers = self._call(
            "imitate",
            each=[sent[place["data"]] for place in self._places],
            tokens=pack.tokens,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
        )
        return {
            "loss": float(added_up(self._places, [sums for sums, _ in answers])[0]),
            "gradient_norm": answers[0][1],
            "tokens": pack.tokens,
            "learning_rate": learning_rate,
            "seconds": time.perf_counter() - began,
        }

    def reset_optimizer(self) -> None:
        """Forget the optimizer's moments (once an iteration, report section 2.3.2)."""
        self._call("reset_optimizer")

    def weights(self) -> SharedWeights:
        """The present weights in shared memory, under their Hugging Face names.

        Rank 0 writes one tensor after the other as they are gathered. What was handed over before
        is closed. Raises StorageError where memory is short, or a reader holds the buffer that is
        to be written; the trainer can go on then.
        """
        self._published += 1
        self._call("publish", self._published)
        if self._handed is not None:
            self._handed.close()
        # Verified by whoever reads it: this process handed it over a moment ago.
        self._handed = SharedWeights.open(
            self._settings.weights, version=self._published, verify=False
        )
        return self._handed

    def save(self, directory: str) -> None:
        """Write a checkpoint: megatron-core's own in `megatron`, and trainer.json.

        The latter is written last; name the directory in a manifest only after this returns.
        """
        folder = Path(directory).resolve()
        self._call("save", empty_shards(folder))
        Saved(self.steps, self.layout).write(folder)

    def load(self, directory: str) -> None:
        """Return to what `save` wrote, in any layout; bit for bit in the same one.

        Workers that have ended are started anew, and memory that was given away is taken back.
        """
        folder = Path(directory).resolve()
        saved = Saved.read(folder)
        if not self._workers.alive:
            self._workers.close()
            self._workers = self._start()
            self._lent = False
            self._build()
        self._workers.call("load", str(folder / SHARDS), random=saved.layout == self.layout)
        self.steps = saved.steps
        self._offloaded = False

    def offload(self) -> None:
        """Move weights and moments to the host and drop the gradients, by Megatron's own calls.

        Nothing but `reload`, `load` and `close` may follow.
        """
        self._workers.call("offload")
        self._offloaded = True

    def reload(self) -> None:
        """Bring back what `offload` moved. Nothing if it is there."""
        self._workers.call("reload")
        self._offloaded = False

    def close(self) -> None:
        """End the workers, and remove what they hold in shared memory."""
        if self._handed is not None:
            self._handed.close()
            self._handed = None
        if self._workers.alive:
            with suppress(Error):
                self._workers.call("close")
        elif Path(self._settings.weights).is_dir():
            with suppress(Error):
                WeightWriter(self._settings.weights).close()
        if not self._lent:
            self._workers.close()

    def _start(self) -> Ranks:
        return start(
            self.layout.ranks,
            device=self._settings.device,
            placement=self._placement,
            options=self._ray,
        )

    def _build(self) -> None:
        self._places = self._workers.call("build", self._settings)

    def _call(self, method: str, *shared: Any, **keywords: Any) -> list[Any]:
        """Ask every rank, which needs its memory."""
        if self._offloaded:
            raise InvalidInputError(f"{method}: the trainer is offloaded, expected reload() first")
        return self._workers.call(method, *shared, **keywords)

    def _train(
        self,
        method: str,
        batch: PackedBatch,
        advantages: NDArray[np.float32],
        old_log_probs: NDArray[np.float32],
        *,
        responses: int,
        **keywords: float,
    ) -> tuple[dict[str, float], float]:
        """The metrics of the loss, and the gradient's norm where `method` takes a step."""
        check_step(batch, advantages, old_log_probs, responses)
        tokens = int((batch.loss_mask != 0).sum())
        if not tokens:
            return loss_metrics(NOTHING_TRAINED, 0, 0), 0.0
        batch, advantages, old_log_probs = trained_rows(batch, advantages, old_log_probs)
        check_ids(batch.input_ids, self.config.vocab_size)
        sent = [
            [micro_for_rank(m, m.loss_mask, m.gather(old_log_probs), advantages) for m in rank]
            for rank in self._deal(batch)
        ]
        answers = self._call(
            method,
            each=[sent[place["data"]] for place in self._places],
            responses=responses,
            **keywords,
        )
        norm = 0.0
        if method == "step":
            norm, answers = answers[0][1], [sums for sums, _ in answers]
        return loss_metrics(added_up(self._places, answers), tokens, len(batch)), norm

    def _deal(self, batch: PackedBatch) -> list[list[MicroBatch]]:
        return deal(batch, self.layout, self.micro_batch_tokens)
