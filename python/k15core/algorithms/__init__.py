"""Policy optimisation: one algorithm, one class, one file.

What happens to a batch between the store and the trainer: `CutPenalty`, then `LengthReward` shape
the rewards, an `Algorithm` turns them into advantages, `mini_batches` cuts the batch into optimizer
steps. Old segments are masked where the store packs the batch.
"""

from k15core.algorithms.base import Algorithm, LossTerms
from k15core.algorithms.groups import equal_groups, group_bounds
from k15core.algorithms.length_reward import LengthReward
from k15core.algorithms.mini_batch import MiniBatch, mini_batches
from k15core.algorithms.mirror_descent import MirrorDescent
from k15core.algorithms.penalty import CutPenalty
from k15core.algorithms.rest import ReST

__all__ = [
    "Algorithm",
    "CutPenalty",
    "LengthReward",
    "LossTerms",
    "MiniBatch",
    "MirrorDescent",
    "ReST",
    "equal_groups",
    "group_bounds",
    "mini_batches",
]
