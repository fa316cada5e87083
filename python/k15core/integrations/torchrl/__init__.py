"""TorchRL: a k15core store under `torchrl.data.ReplayBuffer`, our priority index as its sampler.

    store = k15core.Store("buffer/")
    buffer = ReplayBuffer(
        storage=TrajectoryStorage(store, 4096, group_size=8),
        sampler=PrioritySampler(4096, alpha=0.7, beta=0.5),
        writer=TrajectoryWriter(),
        batch_size=64,
    )

An item is a scored trajectory, a row of `k15core.integrations.tensordict`. See docs/torchrl.md.
"""

from k15core.integrations.torchrl.sampler import PrioritySampler
from k15core.integrations.torchrl.storage import TrajectoryStorage
from k15core.integrations.torchrl.writer import TrajectoryWriter

__all__ = ["PrioritySampler", "TrajectoryStorage", "TrajectoryWriter"]
