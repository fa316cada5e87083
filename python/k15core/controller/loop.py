"""The loop: warm up, then iterate rollout, reward, training and the hand-over of weights.

Every run is a function of (recipe, seed, code): no decision depends on time. A run that was killed
and resumed takes the same prompts, samples the same tokens and trains the same steps.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from k15core.controller import checkpoint, warmup
from k15core.controller.checkpoint import Progress
from k15core.controller.hand_over import closed, untimed
from k15core.controller.ledger import Ledger
from k15core.controller.parts import Parts, assemble
from k15core.controller.phase_clock import PhaseClock
from k15core.controller.recorder import Recorder
from k15core.controller.rollout_phase import open_groups, roll_out
from k15core.controller.train_phase import learning_rate, train
from k15core.errors import ProcessDiedError
from k15core.models.weights import write_model
from k15core.report.html import write_report
from k15core.report.live import LiveDisplay
from k15core.report.metrics import MetricsWriter
from k15core.report.summary import write_summary

if TYPE_CHECKING:
    from pathlib import Path

    from k15core.config import Recipe
    from k15core.controller.run_directory import RunDirectory
    from k15core.rollout.partial import RolloutReport


def run_recipe(recipe: Recipe, directory: RunDirectory) -> Path:
    """Run a recipe to its end in a run directory, from its newest checkpoint if it has one.

    Returns the path of the report.
    """
    with ExitStack() as opened:
        parts = assemble(recipe, directory, clock=time.time, opened=opened)
        metrics = opened.enter_context(MetricsWriter(directory.path))
        length_reward = recipe.algorithm.length_reward
        display = opened.enter_context(
            LiveDisplay(
                recipe.name,
                recipe.train.iterations,
                length_reward_from=length_reward.starts_at if length_reward else None,
            )
        )
        return Loop(parts, metrics, display).go()


class Loop:
    """One run under way: its parts, how far it is, and who is told."""

    def __init__(self, parts: Parts, metrics: MetricsWriter, display: LiveDisplay) -> None:
        self.parts = parts
        self.recipe = parts.recipe
        self.metrics = metrics
        self.display = display
        self.recorder = Recorder(parts, metrics, display)
        self.ledger = Ledger(parts.run.rollouts_file)
        self.progress = Progress()
        self._died = ""

    def go(self) -> Path:
        """From the newest checkpoint to the end of the run; returns the path of the report.

        Where a process of the trainer or of an engine dies, it is started again, and the run goes
        on from its newest checkpoint, as `k15 train --resume` does where this process died.
        """
        deaths = Counter[str]()
        while True:
            try:
                self.begin()
                self.warm_up()
                self.evaluate_before()
                while self.progress.iteration <= self.recipe.train.iterations:
                    self.iterate()
                return self.finish()
            except ProcessDiedError as error:
                newest = str(self.parts.run.manifest())
                deaths[newest] += 1
                if deaths[newest] > self.recipe.deploy.restarts:
                    raise
                self._died = str(error)

    def begin(self) -> None:
        """Resume from the newest checkpoint, or begin. What was told after it is told again."""
        self.parts.hand_over.begin_anew()
        restored = checkpoint.restore(self.parts)
        if restored is None:
            self.metrics.rewind(-1)
            self.ledger.rewind(0)
            self.recorder.run()
            self._save()
            return
        self.progress = restored
        done = restored.iteration - 1
        self.metrics.rewind(done)
        self.ledger.rewind(done)
        if restored.evaluated:
            self.parts.hand_over.to_engine(untimed, restored.version)
        where = f"iteration {restored.iteration}" if restored.evaluated else "the warm-up"
        why = f", since {self._died}" if self._died else ""
        self.recorder.event(done, f"resumed in {where}{why}")

    def warm_up(self) -> None:
        """Supervised fine-tuning, stage by stage, from where the checkpoint stands."""
        if self.recipe.sft is None or self.progress.evaluated:
            return
        self.display.phase("sft")
        for record in warmup.run(self.parts, self.recipe.sft, self.progress, self._save):
            self.recorder.sft(record)

    def evaluate_before(self) -> None:
        """The policy before RL: what the run starts from, and what a forced first step shows."""
        if self.progress.evaluated:
            return
        self.progress.evaluated = True
        files = checkpoint.write(self.parts, self.progress)
        self.parts.hand_over.to_engine(untimed, self.progress.version)
        self.display.phase("evaluate")
        self._evaluate(0, when="before")
        checkpoint.commit(self.parts, self.progress, files)

    def iterate(self) -> None:
        """One iteration under one policy version.

        Consumes prompts and unfinished trajectories, produces the next version. The iteration is
        told before its checkpoint is made: one that was killed in between is told again, the same.
        """
        progress, parts = self.progress, self.parts
        iteration, version = progress.iteration, progress.version
        self._announce(iteration)
        clock = PhaseClock(self.display, self.metrics.now)

        with clock.phase("rollout"):
            new_prompts = open_groups(parts, iteration, version)
            report, waited = asyncio.run(roll_out(parts, version))
        clock.move("rollout", "reward", waited)
        parts.hand_over.to_trainer(clock.phase)
        with clock.phase("train"):
            trained = train(parts, iteration, version)
        progress.iteration, progress.version = iteration + 1, version + 1
        last = iteration == self.recipe.train.iterations
        files = None
        if last or iteration % self.recipe.checkpoint.every == 0:
            with clock.phase("checkpoint"):
                files = checkpoint.write(parts, progress)
        parts.hand_over.to_engine(clock.phase, progress.version)
        progress.tokens += report.tokens
        self.ledger.write(iteration, trained.batch)
        self.recorder.loops(iteration, report)

        if last or iteration % self.recipe.evaluation.every == 0:
            with clock.phase("evaluate"):
                if trained.batch is not None:
                    self.recorder.trained(iteration, trained.batch)
                self._evaluate(iteration, when="after" if last else None)
        self.recorder.iteration(
            {
                "iteration": iteration,
                "version": version,
                **trained.fields,
                **_rollout_fields(report),
                "new_prompts": new_prompts,
                "groups_pending": len(parts.store.pending_groups(progress.version)),
                "learning_rate": learning_rate(self.recipe.train, iteration),
                "tokens_per_second": report.tokens / max(clock.seconds["rollout"], 1e-9),
                "phase_seconds": dict(clock.seconds),
                "timeline": clock.timeline,
            }
        )
        if files is not None:
            checkpoint.commit(parts, progress, files)

    def finish(self) -> Path:
        """Write the model, the summary and the report."""
        parts = self.parts
        parts.hand_over.to_trainer(untimed)
        with closed(parts.trainer.weights()) as weights:
            write_model(parts.model, weights, parts.run.model, tokenizer=parts.task.tokenizer)
        write_summary(self.parts.run.path)
        return write_report(self.parts.run.path)

    def _announce(self, iteration: int) -> None:
        length_reward = self.recipe.algorithm.length_reward
        if length_reward is not None and iteration == length_reward.starts_at:
            self.recorder.event(
                iteration, f"the length reward begins, weight {length_reward.weight:g}"
            )

    def _evaluate(self, iteration: int, *, when: str | None) -> None:
        """Held-out answers; at the ends of a run (`when`) with transcripts and the control."""
        section, evaluator = self.recipe.evaluation, self.parts.evaluator
        prompts = self.parts.task.held_out[: section.prompts]
        modes = [("held_out", section.temperature, False)]
        if section.greedy:
            modes.append(("greedy", 0.0, False))
        if when and prompts and self.parts.task.forced_prefix(prompts[0]) is not None:
            modes.append(("greedy_forced", 0.0, True))
        for label, temperature, forced in modes:
            answers = evaluator.answers(prompts, temperature=temperature, forced=forced)
            self.recorder.evaluation(
                evaluator.record(answers, label=label, temperature=temperature, iteration=iteration)
            )
            if when and label == "held_out":
                self.recorder.answers(iteration, when, self.progress.version, answers)

    def _save(self) -> None:
        files = checkpoint.write(self.parts, self.progress)
        checkpoint.commit(self.parts, self.progress, files)


def _rollout_fields(report: RolloutReport) -> dict[str, Any]:
    return {
        "resumed": report.resumed,
        "tokens": report.tokens,
        "tokens_saved": report.tokens_saved,
        "repeats_stopped": report.finished["repetition"],
        "ended_by_span": report.ended_by_span,
        "groups_dropped": report.groups_dropped,
        "stopped_by": dict(report.finished),
    }
