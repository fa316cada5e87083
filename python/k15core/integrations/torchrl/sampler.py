"""The sampler of a TorchRL replay buffer, on k15core's priority index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torchrl.data.replay_buffers.samplers import Sampler

from k15core._core import PriorityIndex
from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class PrioritySampler(Sampler):
    """Draws items with P(i) in proportion to (priority + eps)^alpha, by `k15core.PriorityIndex`.

    Arguments are those of TorchRL's PrioritizedSampler; it works with any storage of one dimension.
    New items have the largest priority that was ever given (1 at first). `sample` also gives
    `priority_weight` [B], (w_i / w_min)^-beta over the weights w of the batch (TorchRL takes the
    smallest of all items). With `replace=False` no item comes twice in a batch. Draws are a
    function of the buffer's `generator`, if it has one, of torch's otherwise.
    """

    def __init__(
        self,
        max_capacity: int,
        alpha: float,
        beta: float,
        eps: float = 1e-8,
        *,
        replace: bool = True,
    ) -> None:
        for name, value in (("alpha", alpha), ("beta", beta), ("eps", eps)):
            if not 0 <= value < float("inf"):
                raise InvalidInputError(f"{name} = {value}: expected a number from 0 on")
        self._index = PriorityIndex(max_capacity)
        self._known = 0
        self._largest = 1.0
        self.max_capacity = max_capacity
        self.alpha, self.beta, self.eps = alpha, beta, eps
        self.replace = replace

    @property
    def default_priority(self) -> float:
        """The priority of a new item: the largest that was ever given."""
        return self._largest

    def sample(self, storage: Any, batch_size: int) -> tuple[torch.Tensor, dict[str, Any]]:
        """Draw indices [B]."""
        if len(storage) > self._known:  # items that were there before the sampler was
            self.extend(torch.arange(self._known, len(storage)))
        if not len(storage):
            raise InvalidInputError("the storage is empty: expected items to sample from")
        seed = int(torch.randint(2**62, (), generator=self._rng))
        drawn = self._index.sample(batch_size, seed=seed, replace=self.replace)
        weights = self._index.weights(drawn)
        weight = (weights / weights.min()) ** -self.beta
        return torch.from_numpy(drawn), {
            "priority_weight": torch.from_numpy(weight.astype(np.float32))
        }

    def add(self, index: int | torch.Tensor) -> None:
        """Give a new item the default priority."""
        self.extend(torch.as_tensor(index).reshape(-1))

    def extend(self, index: torch.Tensor) -> None:
        """Give new items [m] the default priority."""
        places = torch.as_tensor(index).reshape(-1).numpy().astype(np.int64)
        self._set(places, np.full(len(places), self._largest))

    def update_priority(
        self,
        index: int | torch.Tensor,
        priority: float | torch.Tensor,
        *,
        storage: Any = None,  # noqa: ARG002 (TorchRL passes it)
    ) -> None:
        """Give items [m] new priorities [m], or one for all; each at least 0."""
        places = torch.as_tensor(index).reshape(-1).cpu().numpy().astype(np.int64)
        values = torch.as_tensor(priority).detach().reshape(-1).cpu().numpy().astype(np.float64)
        if len(values) not in (1, len(places)):
            raise InvalidInputError(
                f"{len(values)} priorities: expected {len(places)}, one an index, or one for all"
            )
        if not np.all(np.isfinite(values) & (values >= 0)):
            raise InvalidInputError(f"priority = {values.tolist()}: expected numbers from 0 on")
        self._set(places, np.broadcast_to(values, places.shape))
        self._largest = max(self._largest, float(values.max(initial=0)))

    def _set(self, places: NDArray[np.int64], priorities: NDArray[np.float64]) -> None:
        self._index.update(places, (priorities + self.eps) ** self.alpha)
        self._known = max(self._known, int(places.max(initial=-1)) + 1)

    def _empty(self) -> None:
        self._index = PriorityIndex(self.max_capacity)
        self._known = 0
        self._largest = 1.0

    def state_dict(self) -> dict[str, Any]:
        """The weights of all items [n], and the default priority."""
        return {
            "weights": torch.from_numpy(self._index.weights()[: self._known]),
            "largest": self._largest,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Return to what `state_dict` gave."""
        self._empty()
        weights = state_dict["weights"].numpy()
        self._index.update(np.arange(len(weights)), weights)
        self._known = len(weights)
        self._largest = float(state_dict["largest"])

    def dumps(self, path: str | Path) -> None:
        """Write `state_dict` into a directory."""
        Path(path).mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), Path(path) / "k15_sampler.pt")

    def loads(self, path: str | Path) -> None:
        """Return to what `dumps` wrote."""
        self.load_state_dict(torch.load(Path(path) / "k15_sampler.pt"))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(alpha={self.alpha}, beta={self.beta}, eps={self.eps})"
