"""What a run tells: lines of metrics.jsonl, and the live display."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from k15core.types import FINISH_REASONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from k15core.controller.evaluate import Answer
    from k15core.controller.parts import Parts
    from k15core.report.live import LiveDisplay
    from k15core.report.metrics import MetricsWriter
    from k15core.rollout.partial import RolloutReport
    from k15core.types import PackedBatch


class Recorder:
    """Writes the records of docs/metrics.md and shows them while the run goes on."""

    def __init__(self, parts: Parts, metrics: MetricsWriter, display: LiveDisplay) -> None:
        self.parts = parts
        self.metrics = metrics
        self.display = display

    def run(self) -> None:
        """What this run is."""
        recipe = self.parts.recipe
        length_reward = recipe.algorithm.length_reward
        self.metrics.write(
            "run",
            name=recipe.name,
            seed=recipe.seed,
            task=recipe.task.kind,
            parameters=self.parts.parameters,
            threads=recipe.threads,
            recipe=recipe.model_dump(),
            length_reward_from=length_reward.starts_at if length_reward else None,
            iterations=recipe.train.iterations,
        )

    def event(self, iteration: int, text: str) -> None:
        """Something that a reader of the curves should know."""
        self.metrics.write("event", iteration=iteration, text=text)
        self.display.event(text)

    def sft(self, record: dict[str, Any]) -> None:
        """A step of supervised fine-tuning."""
        self.metrics.write("sft", **record)
        self.display.sft(record)

    def iteration(self, record: dict[str, Any]) -> None:
        """The end of an RL iteration."""
        self.metrics.write("iteration", **record)
        self.display.iteration(record)

    def evaluation(self, record: dict[str, Any]) -> None:
        """A held-out evaluation."""
        self.metrics.write("evaluation", **record)
        self.display.evaluation(record)

    def answers(self, iteration: int, when: str, version: int, answers: Sequence[Answer]) -> None:
        """Transcripts of some held-out answers, spread over the difficulties."""
        wanted = self.parts.recipe.evaluation.transcripts
        stride = max(1, len(answers) // max(1, wanted))
        for answer in answers[stride // 2 :: stride][:wanted]:
            self.metrics.write(
                "transcript",
                iteration=iteration,
                when=when,
                prompt_id=answer.prompt.prompt_id,
                prompt=self._text(answer.prompt.input_ids),
                answer=answer.prompt.answer,
                segments=[{"version": version, "text": answer.text}],
                reward=answer.reward,
                finish_reason=answer.finish_reason,
            )

    def trained(self, iteration: int, batch: PackedBatch) -> None:
        """Transcripts of the trained responses that span the most policy versions."""
        spans = [
            len(np.unique(batch.versions[end - length : end])) if length else 0
            for end, length in zip(batch.cu_seqlens[1:], batch.response_lengths(), strict=True)
        ]
        wanted = self.parts.recipe.evaluation.transcripts // 2
        for row in np.argsort(spans, kind="stable")[::-1][:wanted].tolist():
            prompt = self.parts.prompts[int(batch.prompt_ids[row])]
            self.metrics.write(
                "transcript",
                iteration=iteration,
                when="during",
                prompt_id=prompt.prompt_id,
                prompt=self._text(prompt.input_ids),
                answer=prompt.answer,
                segments=self._segments(batch, row),
                reward=float(batch.rewards[row]),
                finish_reason=FINISH_REASONS[int(batch.finish_reasons[row])],
            )

    def loops(self, iteration: int, report: RolloutReport) -> None:
        """The responses that the repetition detector stopped."""
        for trajectory_id, loop in report.loops:
            self.metrics.write(
                "repetition",
                iteration=iteration,
                trajectory_id=trajectory_id,
                start=loop.start,
                period=loop.period,
                covered=loop.covered,
                loop_kind=loop.kind,
                text=self._text(self.parts.store.trajectory(trajectory_id)["tokens"]),
            )

    def _segments(self, batch: PackedBatch, row: int) -> list[dict[str, Any]]:
        """A response's text, cut where the policy version changes."""
        end = int(batch.cu_seqlens[row + 1])
        first = end - int(batch.response_lengths()[row])
        versions = batch.versions[first:end].astype(np.int64)
        cuts = [0, *(np.flatnonzero(np.diff(versions)) + 1).tolist(), len(versions)]
        return [
            {
                "version": int(versions[a]),
                "text": self._text(batch.input_ids[first + a : first + b]),
            }
            for a, b in itertools.pairwise(cuts)
            if b > a
        ]

    def _text(self, ids: Any) -> str:
        return self.parts.task.tokenizer.decode(ids.tolist())
