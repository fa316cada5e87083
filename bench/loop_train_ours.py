"""k15core's side of loop.train: one iteration a line of input, as the peer does it.

An iteration opens the groups, rolls them out through the store, scores them, samples them from the
replay buffer, computes log π_i, takes the optimizer steps and hands the weights to the engine. It
is run in a process of its own, as the peer is, so that both have the same environment.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

libc = ctypes.CDLL(None)
libc.mallopt(-3, 1 << 30)  # what the command k15 sets; the peer has it too
libc.mallopt(-1, 2_000_000_000)

import numpy as np  # noqa: E402
import torch  # noqa: E402

from k15core import Store  # noqa: E402
from k15core.algorithms import MirrorDescent, mini_batches  # noqa: E402
from k15core.models.weights import load_model  # noqa: E402
from k15core.rewards import make_reward  # noqa: E402
from k15core.rollout.embedded import EmbeddedEngine  # noqa: E402
from k15core.rollout.partial import PartialRollout  # noqa: E402
from k15core.tasks.doors import DoorsTask  # noqa: E402
from k15core.trainer.torch import TorchTrainer  # noqa: E402


class Iterations:
    """The parts of a run, and what one iteration does with them."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.task = DoorsTask(seed=0, pool=settings["pool"])
        self.reward = make_reward("ending")
        model = load_model(settings["model"])
        self.store = Store()
        eos = self.task.tokenizer.eos_token_ids if settings["stops"] else ()
        length = settings["length"]
        self.engine = EmbeddedEngine(
            model,
            max_total_tokens=len(self.task.prompts[0].input_ids) + length,
            slots=settings["responses"],
            eos_token_ids=eos,
        )
        self.rollout = PartialRollout(
            self.store,
            self.engine,
            segment_budget=length,
            max_response_tokens=length,
            eos_token_ids=eos,
            clock=time.monotonic,
        )
        self.algorithm = MirrorDescent(tau=0.1, skip_equal_groups=False)
        self.trainer = TorchTrainer(model, self.algorithm, learning_rate=settings["learning_rate"])
        self.version = 0
        self.spent = dict.fromkeys(("rollout", "reward", "log_probs", "train", "handover"), 0.0)

    def once(self) -> float:
        """One iteration: its seconds. The mean length of its responses goes to a file."""
        settings, k = self.settings, self.settings["k"]
        groups = settings["responses"] // k
        times = [time.perf_counter()]
        first = self.version * groups
        opened = [
            self.store.add_group(
                self.task.prompts[(first + i) % len(self.task.prompts)], k, version=self.version
            )
            for i in range(groups)
        ]
        asyncio.run(self.rollout.run(version=self.version, seed=self.version))
        times.append(time.perf_counter())
        asyncio.run(self.score([trajectory for group in opened for trajectory in group]))
        times.append(time.perf_counter())
        batch = self.store.sample(groups=groups, max_staleness=0, version=self.version)
        assert len(batch) == settings["responses"]
        rewards = batch.rewards
        advantages = self.algorithm.advantages(rewards, rewards, batch.group_ids)
        contributes = self.algorithm.contributes(advantages, rewards, batch.group_ids)
        old = self.trainer.log_probs(batch)
        times.append(time.perf_counter())
        self.trainer.reset_optimizer()
        steps = mini_batches(
            batch, advantages, old, contributes, n=settings["steps"], seed=self.version
        )
        for step in steps:
            self.trainer.step(
                step.batch, step.advantages, step.old_log_probs, responses=step.responses
            )
        assert len(steps) == settings["steps"]
        times.append(time.perf_counter())
        self.version += 1
        self.engine.update_weights(self.trainer.weights(), self.version)
        times.append(time.perf_counter())
        for name, seconds in zip(self.spent, np.diff(times), strict=True):
            self.spent[name] += seconds
        with Path(settings["lengths"]).open("a") as file:
            print(batch.response_lengths().mean(), file=file)
        return times[-1] - times[0]

    async def score(self, trajectory_ids: list[int]) -> None:
        """Score every response of the iteration."""
        for trajectory_id in trajectory_ids:
            response = self.store.trajectory(trajectory_id)
            text = self.task.tokenizer.decode(response["tokens"].tolist())
            prompt = self.task.prompts[response["prompt_id"]]
            self.store.set_reward(trajectory_id, await self.reward.score(prompt, text))


def main() -> None:
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    torch.set_flush_denormal(True)
    iterations = Iterations(settings)
    for _ in sys.stdin:
        print(json.dumps(iterations.once()), flush=True)
    total = sum(iterations.spent.values())
    shares = (f"{name} {seconds / total:.0%}" for name, seconds in iterations.spent.items())
    print(f"k15core's time by phase: {', '.join(shares)}", file=sys.stderr)


if __name__ == "__main__":
    main()
