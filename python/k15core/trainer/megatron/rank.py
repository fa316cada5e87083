"""One rank: its shard of the model, its optimizer, and what the trainer asks of it.

All ranks are asked the same at the same time; what is collective in a method is so on every rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.distributed.finalize_model_grads import finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.module import Float16Module
from torch import distributed

from k15core.deploy.shared_weights import WeightWriter
from k15core.models.config import ModelConfig
from k15core.trainer.megatron import checkpoint, model
from k15core.trainer.megatron.forward import Passes
from k15core.trainer.megatron.huggingface import Exporter, parts, read_directory
from k15core.trainer.megatron.offload import Offload
from k15core.trainer.optimizer import DivergedError

if TYPE_CHECKING:
    from k15core.algorithms import LossTerms
    from k15core.trainer.megatron.groups import World
    from k15core.trainer.megatron.settings import Micro, Settings

BETAS = (0.9, 0.95)
SEED = 1234
"""Of dropout, where an option asks for any."""


class Rank:
    """The shard of this process, built from a model directory."""

    def __init__(self, settings: Settings, world: World) -> None:
        self.settings = settings
        self.config = ModelConfig.from_directory(settings.directory)
        world.divide(settings.layout)
        # Tensor-parallel ranks must draw the same dropout of what each holds whole.
        torch.manual_seed(SEED)
        cpu = settings.device == "cpu"
        model_parallel_cuda_manual_seed(SEED, inference_rng_tracker=cpu, force_reset_rng=True)
        transformer = model.transformer_config(
            self.config, settings.layout, settings.device, _dtypes(settings.transformer)
        )
        self.transformer = transformer
        self.module = model.build_model(self.config, transformer)
        table = parts(self.config, self.module)
        read_directory(settings.directory, self.config, table)
        self.exporter = Exporter(self.config, table)
        wrapped: Any = self.module
        half = transformer.fp16 or transformer.bf16
        if half:
            wrapped = Float16Module(transformer, wrapped)
        ddp = {"use_distributed_optimizer": True, "grad_reduce_in_fp32": True, **settings.ddp}
        self.ddp = DistributedDataParallel(
            transformer, DistributedDataParallelConfig(**ddp), wrapped
        )
        given = {
            "optimizer": "adam",
            "adam_beta1": BETAS[0],
            "adam_beta2": BETAS[1],
            "lr": 0.0,
            "weight_decay": 0.0,
            "clip_grad": settings.max_gradient_norm,
            "bf16": transformer.bf16,
            "fp16": transformer.fp16,
            "params_dtype": transformer.params_dtype,
            "use_distributed_optimizer": ddp["use_distributed_optimizer"],
            **_dtypes(settings.optimizer),
        }
        # No overrides: every parameter decays, biases and norms too, as in TorchTrainer.
        self.optimizer = get_megatron_optimizer(
            OptimizerConfig(**given), [self.ddp], config_overrides={}
        )
        self._offload = Offload(self.ddp, _chained(self.optimizer))
        self._writer: WeightWriter | None = None
        transformer.finalize_model_grads_func = finalize_model_grads
        transformer.grad_scale_func = self.optimizer.scale_loss
        transformer.no_sync_func = self.ddp.no_sync
        self.passes = Passes(
            self.ddp,
            vocab_size=self.config.vocab_size,
            temperature=settings.temperature,
            device=settings.device,
            half=half,
        )

    def coordinates(self) -> dict[str, Any]:
        """Where this rank stands: its data-parallel rank, and whether it reports for it."""
        last = parallel_state.is_pipeline_last_stage()
        first = parallel_state.get_tensor_model_parallel_rank() == 0
        return {"data": parallel_state.get_data_parallel_rank(), "reports": last and first}

    def log_probs(self, micros: Sequence[Micro]) -> list[Any]:
        """Log-probs [N] of each micro-batch, where this rank is of the last stage."""
        return self.passes.log_probs(micros)

    def logits(self, micros: Sequence[Micro]) -> list[Any]:
        """Logits [T, V] of each micro-batch, where this rank is of the last stage."""
        return self.passes.logits(micros)

    def accumulate(self, micros: Sequence[Micro], *, responses: int) -> list[list[float]]:
        """The gradient of a mini-batch's loss, whole on every data-parallel rank; no step."""

        def whole(*args: Any, **kwargs: Any) -> None:
            finalize_model_grads(*args, **{**kwargs, "force_all_reduce": True})

        self._clear()
        self.transformer.finalize_model_grads_func = whole
        try:
            return self._gradient(micros, responses)
        finally:
            self.transformer.finalize_model_grads_func = finalize_model_grads

    def step(
        self,
        micros: Sequence[Micro],
        *,
        responses: int,
        learning_rate: float,
        weight_decay: float,
    ) -> tuple[list[list[float]], float]:
        """One step of the algorithm: the sums of `Passes.gradient`, and the gradient's norm."""
        self._clear()
        sums = self._gradient(micros, responses)
        return sums, self._optimize(learning_rate, weight_decay)

    def imitate(
        self, micros: Sequence[Micro], *, tokens: int, learning_rate: float, weight_decay: float
    ) -> tuple[list[list[float]], float]:
        """One supervised step on the mean of -log-probs over `tokens` tokens."""

        def loss(terms: LossTerms) -> torch.Tensor:
            return -terms.log_probs.sum() / tokens

        self._clear()
        sums = self.passes.gradient(micros, loss, responses=tokens, temperature=1.0)
        return sums, self._optimize(learning_rate, weight_decay)

    def gradients(self) -> dict[str, Any]:
        """On rank 0: what `accumulate` left, by Hugging Face name."""

        def grad(parameter: Any) -> torch.Tensor:
            found: torch.Tensor = parameter.main_grad
            return found

        found = self.exporter.tensors(grad)
        return {name: grad.cpu().numpy().copy() for name, grad in found}

    def publish(self, version: int) -> None:
        """Gather the weights, tensor by tensor, into shared memory; rank 0 writes them."""
        self._settle()
        source = self.exporter.tensors(lambda parameter: parameter.data)
        try:
            if distributed.get_rank() == 0:
                if self._writer is None:
                    self._writer = WeightWriter(self.settings.weights)
                self._writer.publish(source, version)
        finally:
            # The other ranks send all of it, whatever becomes of what was sent.
            for _ in source:
                pass

    def save(self, directory: str) -> None:
        """Write this rank's part of a checkpoint."""
        self._settle()
        checkpoint.save(directory, self.module, _chained(self.optimizer), self.optimizer)

    def load(self, directory: str, *, random: bool) -> None:
        """Return to a checkpoint, of any layout; `random` where it is of this one."""
        self.reload()
        optimizers = _chained(self.optimizer)
        checkpoint.load(directory, self.module, optimizers, self.optimizer, random=random)

    def offload(self) -> None:
        """Give the device's memory to others."""
        self._settle()
        self._offload.offload()

    def reload(self) -> None:
        """Bring back what `offload` moved."""
        self._offload.reload()

    def close(self) -> None:
        """Remove what this rank holds in shared memory, and let the model's own memory go."""
        # Hooks on the gradients refer to the model, where no garbage collector sees it.
        self.ddp.grad_accs.clear()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def reset_optimizer(self) -> None:
        """Forget the moments; master weights of half precision stay."""
        for each in _inner(self.optimizer):
            each.state.clear()
            for group in each.param_groups:
                group.pop("step", None)  # TransformerEngine's FusedAdam counts here

    def _gradient(self, micros: Sequence[Micro], responses: int) -> list[list[float]]:
        loss = self.settings.algorithm.loss
        return self.passes.gradient(micros, loss, responses=responses, temperature=None)

    def _settle(self) -> None:
        """Where the gathering of stepped parameters overlaps the next forward pass: have it now."""
        if self.ddp.ddp_config.overlap_param_gather:
            self.ddp.start_param_sync(force_sync=True)

    def _clear(self) -> None:
        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()

    def _optimize(self, learning_rate: float, weight_decay: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
            group["weight_decay"] = weight_decay * group.get("wd_mult", 1.0)
        if self.optimizer.prepare_grads():
            # Overflow under half precision's loss scale, which is lower from now on.
            raise DivergedError("the gradient overflowed: the step was not taken")
        norm = float(self.optimizer.get_grad_norm())
        if not math.isfinite(norm):
            self._clear()
            raise DivergedError(
                f"the gradient's norm is {norm}: expected a finite number; the step was not taken, "
                "try a smaller learning rate"
            )
        for each in _chained(self.optimizer):
            parameters = [] if each.is_stub_optimizer else each.get_parameters()
            if parameters and each.config.clip_grad > 0:
                clip_grad_by_total_norm_fp32(
                    parameters,
                    max_norm=each.config.clip_grad,
                    total_norm=norm,
                    use_decoupled_grad=each.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8,
                )
        self.optimizer.step_with_ready_grads()
        return norm


def _chained(optimizer: Any) -> list[Any]:
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def _inner(optimizer: Any) -> list[Any]:
    """The torch or TransformerEngine optimizers in it."""
    return [each.optimizer for each in _chained(optimizer) if each.optimizer is not None]


def _dtypes(options: Any) -> dict[str, Any]:
    """A recipe has the names of dtypes."""
    return {
        name: getattr(torch, value.removeprefix("torch."))
        if name.endswith("dtype") and isinstance(value, str)
        else value
        for name, value in options.items()
    }
