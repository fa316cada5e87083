"""Supervised warm-up: the recipe's stages, probed on held-out prompts, resumable at a step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from k15core.controller.hand_over import untimed
from k15core.trainer.sft import Stage, Until, warm_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from k15core.config import SftSection
    from k15core.config import Stage as StageSection
    from k15core.controller.checkpoint import Progress
    from k15core.controller.parts import Parts

TELL_EVERY = 10
"""Steps between two "sft" lines of metrics.jsonl, which say the mean of what lies between."""


def run(
    parts: Parts, section: SftSection, progress: Progress, save: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    """Train through the stages from where `progress` stands; yields "sft" records.

    `progress` is moved along, and `save` called at the end of each stage and every so many steps.
    """
    prompts = max((stage.until.prompts for stage in section.stages if stage.until), default=0)
    steps = warm_up(
        parts.trainer,
        [_stage(stage) for stage in section.stages],
        parts.task.demonstrations,
        weight_decay=section.weight_decay,
        probe=lambda: probe(parts, progress.version, prompts),
        stage=progress.stage,
        step=progress.step,
    )
    since: list[dict[str, float]] = []
    for done in steps:
        progress.stage, progress.step = done.next_stage, done.next_step
        since.append(dict(done.metrics))
        ends = progress.step == 0
        if ends or done.probe is not None or done.step % TELL_EVERY == 0:
            yield {
                "stage": done.name,
                "step": done.step,
                "steps": done.steps,
                "loss": math.fsum(m["loss"] for m in since) / len(since),
                "learning_rate": done.metrics["learning_rate"],
                "tokens_per_second": math.fsum(m["tokens"] for m in since)
                / max(math.fsum(m["seconds"] for m in since), 1e-9),
                **({"probe": dict(done.probe)} if done.probe is not None else {}),
            }
            since.clear()
        if ends or done.step % parts.recipe.checkpoint.sft_every == 0:
            save()


def probe(parts: Parts, version: int, prompts: int) -> dict[str, float]:
    """What sampled answers to the first held-out prompts do: pass rate, length, behaviour."""
    parts.hand_over.to_engine(untimed, version)
    temperature = parts.recipe.evaluation.temperature
    answers = parts.evaluator.answers(parts.task.held_out[:prompts], temperature=temperature)
    parts.hand_over.to_trainer(untimed)
    record = parts.evaluator.record(answers, label="probe", temperature=temperature, iteration=0)
    told = {"pass_rate": record["pass_rate"], "mean_length": record["mean_length"]}
    return told | {k: v for k, v in record["behaviour"].items() if v is not None}


def _stage(section: StageSection) -> Stage:
    until = section.until
    return Stage(
        name=section.name,
        steps=section.steps,
        batch=section.batch,
        learning_rate=section.learning_rate,
        warmup_steps=section.warmup_steps,
        until=Until(until.statistic, until.at_most, until.every) if until else None,
        max_steps=section.max_steps,
    )
