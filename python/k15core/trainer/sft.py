"""Supervised warm-up before RL: stages of imitation on packed demonstrations.

Each stage's learning rate falls by a cosine from its peak to a tenth; the report warms its second
stage up again to half the first peak (section 2.5: 2e-5 to 2e-6, then 1e-5 to 1e-6). The moments
of the optimizer go on from stage to stage. What a stage trains on is a function of (stage, step),
so that a warm-up resumed from a checkpoint at (stage, step) goes on as if it had never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from k15core.errors import InvalidInputError
from k15core.types import Demonstration, Trainer

FINAL_SHARE = 0.1
"""Where the cosine ends, as a share of the peak."""

Demonstrations = Callable[[str, int, int], Sequence[Demonstration]]
"""(stage's name, step, n) to n demonstrations: `Task.demonstrations`."""

Probe = Callable[[], Mapping[str, float]]
"""Statistics of answers that the present weights give."""


@dataclass(frozen=True)
class Until:
    """Goes on with a stage until a probed statistic has fallen enough: counts steps, never time."""

    statistic: str
    at_most: float
    every: int


@dataclass(frozen=True)
class Stage:
    """`steps` of `batch` demonstrations at a rate of up to `learning_rate`.

    With `until`, the probe is called every `until.every` steps. If its statistic is not there after
    `steps`, the stage goes on, warmed up again to half its peak, until it is, or to `max_steps`
    (twice `steps` unless given).
    """

    name: str
    steps: int
    batch: int
    learning_rate: float
    warmup_steps: int = 20
    until: Until | None = None
    max_steps: int | None = None

    def __post_init__(self) -> None:
        for field in ("steps", "batch"):
            if getattr(self, field) < 1:
                raise self._refusal(field, "at least 1")
        if not 0 <= self.warmup_steps < self.steps:
            raise self._refusal("warmup_steps", f"0 … {self.steps - 1}, less than its steps")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise self._refusal("learning_rate", "a number > 0")
        if self.max_steps is not None and (self.until is None or self.max_steps < self.steps):
            raise self._refusal("max_steps", f"at least {self.steps}, its steps, beside `until`")
        if self.until is not None and self.until.every < 1:
            raise InvalidInputError(
                f"stage {self.name}: until.every is {self.until.every}: expected at least 1"
            )

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, …: linear warm-up, then the cosine.

        Beyond `steps`: a cosine from half the peak over half the steps, as often as it takes.
        """
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if step < self.steps:
            return _cosine(
                self.learning_rate, step - self.warmup_steps, self.steps - self.warmup_steps
            )
        again = max(self.steps // 2, 1)
        return _cosine(self.learning_rate / 2, (step - self.steps) % again, again)

    def ends(self, done: int, probed: Mapping[str, float] | None) -> bool:
        """Whether the stage is over after `done` steps, the last probe having said `probed`."""
        if self.until is None or done < self.steps:
            return done >= self.steps
        if done >= (self.max_steps or 2 * self.steps):
            return True
        return probed is not None and self._statistic(probed) <= self.until.at_most

    def _statistic(self, probed: Mapping[str, float]) -> float:
        assert self.until is not None
        if self.until.statistic not in probed:
            raise InvalidInputError(
                f"stage {self.name}: until.statistic is {self.until.statistic!r}: expected one of "
                f"{', '.join(sorted(probed))}"
            )
        return probed[self.until.statistic]

    def _refusal(self, field: str, expected: str) -> InvalidInputError:
        return InvalidInputError(
            f"stage {self.name}: {field} is {getattr(self, field)}: expected {expected}"
        )


def _cosine(peak: float, step: int, steps: int) -> float:
    """From the peak at step 0 to FINAL_SHARE of it at the last of `steps`."""
    done = step / max(steps - 1, 1)
    return peak * (FINAL_SHARE + (1 - FINAL_SHARE) * (1 + math.cos(math.pi * done)) / 2)


@dataclass(frozen=True)
class SftProgress:
    """One step done. (`next_stage`, `next_step`) is where a checkpoint made now resumes."""

    name: str
    step: int  # of the stage, 1-based
    steps: int  # of the stage, as far as is known
    next_stage: int
    next_step: int
    metrics: Mapping[str, float]  # as Trainer.imitate returned them
    probe: Mapping[str, float] | None  # where the probe was called after this step


def warm_up(
    trainer: Trainer,
    stages: Sequence[Stage],
    demonstrations: Demonstrations,
    *,
    weight_decay: float,
    probe: Probe | None = None,
    stage: int = 0,
    step: int = 0,
) -> Iterator[SftProgress]:
    """Train through the stages from `step` steps into stage number `stage`; yields every step.

    The caller may save the trainer between two steps and resume there. `probe` is needed by stages
    with `until`, and called for them only, at multiples of `until.every` and after `steps`.
    """
    if not (0 <= stage <= len(stages) and step >= 0):
        raise InvalidInputError(
            f"stage is {stage}, step is {step}: expected a stage up to {len(stages)} and step >= 0"
        )
    for plan in stages[stage:]:
        if plan.until is not None and probe is None:
            raise InvalidInputError(f"stage {plan.name} has `until`: expected a probe")
    for number in range(stage, len(stages)):
        plan, over = stages[number], False
        while not over:
            shown = demonstrations(plan.name, step, plan.batch)
            metrics = trainer.imitate(
                shown, learning_rate=plan.rate(step), weight_decay=weight_decay
            )
            step += 1
            probed = None
            if probe is not None and plan.until is not None:
                due = step % plan.until.every == 0 or step == plan.steps
                probed = probe() if due else None
            over = plan.ends(step, probed)
            yield SftProgress(
                name=plan.name,
                step=step,
                steps=max(plan.steps, step),
                next_stage=number + over,
                next_step=0 if over else step,
                metrics=metrics,
                probe=probed,
            )
        step = 0
