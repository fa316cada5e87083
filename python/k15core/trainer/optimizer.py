"""AdamW with a clipped gradient, its moments named after the parameters that they belong to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from k15core.errors import Error, InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
FILE = "optimizer.safetensors"


class DivergedError(Error):
    """The gradient is not finite. The step was not taken; the weights are what they were."""


class Optimizer:
    """Steps a model's parameters from the gradients that stand in them, then clears those."""

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        betas: tuple[float, float],
        max_gradient_norm: float,
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise InvalidInputError(f"betas is {betas}: expected two numbers 0 <= beta < 1")
        if not max_gradient_norm > 0:
            raise InvalidInputError(f"max_gradient_norm is {max_gradient_norm}: expected > 0")
        self.parameters = dict(model.named_parameters())
        self.max_gradient_norm = max_gradient_norm
        self._betas = betas
        self.reset()

    def reset(self) -> None:
        """Forget the moments."""
        self._adam = torch.optim.AdamW(
            self.parameters.values(), lr=0.0, betas=self._betas, fused=True
        )

    def step(self, learning_rate: float, weight_decay: float) -> float:
        """One step; returns the gradient's norm before clipping.

        Raises DivergedError, with the weights untouched, if the gradient is not finite.
        """
        check_number("learning_rate", learning_rate)
        check_number("weight_decay", weight_decay)
        norm = torch.nn.utils.clip_grad_norm_(
            list(self.parameters.values()), self.max_gradient_norm
        ).item()
        if not math.isfinite(norm):
            self.clear()
            raise DivergedError(
                f"the gradient's norm is {norm}: expected a finite number; the step was not taken, "
                "try a smaller learning rate"
            )
        for group in self._adam.param_groups:
            group["lr"], group["weight_decay"] = learning_rate, weight_decay
        self._adam.step()
        self.clear()
        return norm

    def clear(self) -> None:
        """Drop the gradients, those of a step that failed half-way too."""
        self._adam.zero_grad(set_to_none=True)

    def save(self, directory: Path, extra: dict[str, int]) -> None:
        """Write moments, torch's random state and `extra` integers; `load` returns the latter."""
        tensors: dict[str, Tensor] = {"torch_rng": torch.get_rng_state()}
        for name, parameter in self.parameters.items():
            state = self._adam.state.get(parameter)
            if state:
                tensors[f"step.{name}"] = state["step"]
                tensors |= {f"{moment}.{name}": state[moment] for moment in MOMENTS}
        metadata = {key: str(value) for key, value in extra.items()}
        save_file(tensors, directory / FILE, metadata=metadata)

    def load(self, directory: Path) -> dict[str, int]:
        """Return to what `save` wrote, bit for bit."""
        path = directory / FILE
        if not path.is_file():
            raise InvalidInputError(f"checkpoint {directory}: no {FILE}, expected it")
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                extra = {key: int(value) for key, value in (file.metadata() or {}).items()}
        except (SafetensorError, ValueError) as error:
            raise InvalidInputError(f"{path}: not an optimizer checkpoint ({error})") from error
        self.reset()
        for name, parameter in self.parameters.items():
            if f"step.{name}" in tensors:
                # Moments are of the parameter's device; the step count of a fused AdamW too.
                self._adam.state[parameter] = {
                    kind: tensors[f"{kind}.{name}"].to(parameter.device)
                    for kind in ("step", *MOMENTS)
                }
        torch.set_rng_state(tensors["torch_rng"])
        return extra


def check_number(name: str, value: float) -> None:
    """Refuse what is not a finite number >= 0."""
    if not (math.isfinite(value) and value >= 0):
        raise InvalidInputError(f"{name} is {value}: expected a number >= 0")
