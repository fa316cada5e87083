"""Scores for responses, one file a family.

A new reward is a class that implements `k15core.types.Reward`, and a line in `REWARDS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from k15core.registry import make

if TYPE_CHECKING:
    from k15core.types import Reward

REWARDS = {
    "ending": "k15core.rewards.rule:EndingReward",
    "number": "k15core.rewards.rule:NumberReward",
    "boxed": "k15core.rewards.rule:BoxedReward",
    "math": "k15core.rewards.math:MathReward",
    "code": "k15core.rewards.code:CodeReward",
}


def make_reward(kind: str, **settings: object) -> Reward:
    """The reward of a kind of `REWARDS` with its settings; InvalidInputError for unknown ones."""
    return cast("Reward", make("reward", REWARDS, kind, settings))
