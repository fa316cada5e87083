"""Held-out evaluation: sampled and greedy answers, by difficulty, and the task's own statistics."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from k15core.types import Lease

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from k15core.types import Prompt, Reward, StreamEngine, Task

FIRST_ID = 1 << 48
"""Trajectory ids of evaluations start here: they draw noise of their own and are never stored."""


@dataclass(frozen=True)
class Answer:
    """One sampled response to a held-out prompt."""

    prompt: Prompt
    text: str
    length: int
    reward: float
    finish_reason: str


@dataclass(frozen=True)
class Evaluator:
    """Asks an engine for answers and scores them, outside the store."""

    task: Task
    reward: Reward
    engine: StreamEngine
    max_response_tokens: int
    seed: int

    def answers(
        self,
        prompts: Sequence[Prompt],
        *,
        temperature: float,
        forced: bool = False,
    ) -> list[Answer]:
        """One response to each prompt; `forced` starts each with the task's forced first step."""
        return asyncio.run(self._answers(prompts, temperature, forced=forced))

    async def _answers(
        self, prompts: Sequence[Prompt], temperature: float, *, forced: bool
    ) -> list[Answer]:
        tokenizer = self.task.tokenizer
        prefixes: list[list[int]] = [
            tokenizer.encode(self.task.forced_prefix(prompt) or "") if forced else []
            for prompt in prompts
        ]
        leases = [
            _lease(FIRST_ID + i, prompt, prefix)
            for i, (prompt, prefix) in enumerate(zip(prompts, prefixes, strict=True))
        ]
        self.engine.start(
            leases,
            max_new_tokens=[self.max_response_tokens - len(prefix) for prefix in prefixes],
            temperature=temperature,
            seed=self.seed,
        )
        tokens: list[list[int]] = [list(prefix) for prefix in prefixes]
        reasons = [""] * len(prompts)
        async for chunk in self.engine.chunks():
            row = chunk.trajectory_id - FIRST_ID
            tokens[row].extend(chunk.tokens.tolist())
            reasons[row] = chunk.finish_reason or ""
        texts = [tokenizer.decode(response) for response in tokens]
        rewards = await asyncio.gather(
            *(self.reward.score(p, text) for p, text in zip(prompts, texts, strict=True))
        )
        return [
            Answer(prompt, text, len(response), float(reward), reason)
            for prompt, text, response, reward, reason in zip(
                prompts, texts, tokens, rewards, reasons, strict=True
            )
        ]

    def record(
        self, answers: Sequence[Answer], *, label: str, temperature: float, iteration: int
    ) -> dict[str, Any]:
        """The fields of an "evaluation" line of metrics.jsonl."""
        by_difficulty: dict[float, list[Answer]] = defaultdict(list)
        sums: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(2))
        for answer in answers:
            if answer.prompt.difficulty is not None:
                by_difficulty[answer.prompt.difficulty].append(answer)
            for name, fraction in self.task.behaviour(answer.prompt, answer.text).items():
                sums[name] += fraction
        return {
            "iteration": iteration,
            "label": label,
            "temperature": temperature,
            "prompts": len(answers),
            **_means(answers),
            "by_difficulty": {
                f"{difficulty:g}": {**_means(group), "count": len(group)}
                for difficulty, group in sorted(by_difficulty.items())
            },
            "behaviour": {
                name: float(part / whole) if whole else None for name, (part, whole) in sums.items()
            },
        }


def _means(answers: Sequence[Answer]) -> dict[str, float | None]:
    if not answers:
        return {"pass_rate": None, "mean_length": None}
    return {
        "pass_rate": float(np.mean([answer.reward for answer in answers])),
        "mean_length": float(np.mean([answer.length for answer in answers])),
    }


def _lease(trajectory_id: int, prompt: Prompt, response: list[int]) -> Lease:
    input_ids = np.concatenate([prompt.input_ids, np.asarray(response, np.int32)])
    return Lease(
        trajectory_id=trajectory_id,
        epoch=0,
        deadline=float("inf"),
        input_ids=input_ids,
        prompt_length=len(prompt.input_ids),
        versions=np.zeros(len(input_ids), np.uint32),
    )
