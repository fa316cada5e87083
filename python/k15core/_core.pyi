"""The Rust core. Held to the compiled module by mypy's stubtest (`make lint`)."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["__version__", "uniforms"]

__version__: str

def uniforms(
    seed: int, trajectory_ids: NDArray[np.int64], positions: NDArray[np.int64]
) -> NDArray[np.float64]:
    """One uniform number in (0, 1) for each stream: a pure function of its three keys [B]."""
