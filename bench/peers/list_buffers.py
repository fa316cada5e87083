"""Buffers of rows that are packed when they are drawn; argument: torchrl or lists.

Answers each input line with the seconds a token that drawing and packing one batch took. A row has
what the store keeps of it; the pack has the arrays of a PackedBatch that have an entry a token, and
cu_seqlens and rewards.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from bench.store_work import PROMPT, SAMPLED, SAMPLED_MEDIAN, responses

NAMES = ("input_ids", "rollout_log_probs", "loss_mask", "versions")


def rows() -> list[dict[str, Any]]:
    """The rows as arrays: prompt and response."""
    zeros = np.zeros(len(PROMPT), np.int32)
    return [
        {
            "input_ids": np.concatenate([PROMPT, tokens]),
            "rollout_log_probs": np.concatenate([zeros.astype(np.float32), log_probs]),
            "loss_mask": np.concatenate([zeros.astype(np.uint8), mask]),
            "versions": np.zeros(len(PROMPT) + len(tokens), np.int32),
            "reward": 1.0,
        }
        for tokens, log_probs, mask in responses(SAMPLED, SAMPLED_MEDIAN)
    ]


def torchrl() -> Callable[[], int]:
    """TorchRL's ReplayBuffer over a list, drawn by priority, packed with torch.cat."""
    import torch
    from torchrl.data import ListStorage, ReplayBuffer
    from torchrl.data.replay_buffers.samplers import PrioritizedSampler

    torch.set_num_threads(1)

    def pack(drawn: list[dict[str, Any]]) -> dict[str, Any]:
        packed = {name: torch.cat([row[name] for row in drawn]) for name in NAMES}
        lengths = [len(row["input_ids"]) for row in drawn]
        packed["position_ids"] = torch.cat([torch.arange(n, dtype=torch.int32) for n in lengths])
        packed["cu_seqlens"] = torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int32)
        packed["rewards"] = torch.tensor([row["reward"] for row in drawn])
        return packed

    buffer = ReplayBuffer(
        storage=ListStorage(SAMPLED),
        sampler=PrioritizedSampler(SAMPLED, alpha=1.0, beta=1.0),
        collate_fn=pack,
        batch_size=SAMPLED,
    )
    buffer.extend(
        [{k: torch.from_numpy(v) if k != "reward" else v for k, v in r.items()} for r in rows()]
    )
    return lambda: len(buffer.sample()["input_ids"])


def lists() -> Callable[[], int]:
    """A list of rows that are Python lists, as a driver keeps what an inference server answered."""
    kept = [{k: v.tolist() if k != "reward" else v for k, v in row.items()} for row in rows()]
    draw = random.Random(0)

    def sample() -> int:
        drawn = draw.sample(kept, len(kept))
        packed: dict[str, Any] = {}
        types = (np.int32, np.float32, np.uint8, np.uint32)
        for name, dtype in zip(NAMES, types, strict=True):
            packed[name] = np.array([entry for row in drawn for entry in row[name]], dtype)
        lengths = [len(row["input_ids"]) for row in drawn]
        packed["position_ids"] = np.array([i for n in lengths for i in range(n)], np.int32)
        packed["cu_seqlens"] = np.cumsum([0, *lengths], dtype=np.int32)
        packed["rewards"] = np.array([row["reward"] for row in drawn], np.float32)
        return len(packed["input_ids"])

    return sample


def main(peer: str) -> None:
    # TorchRL logs to stdout, which is for answers here.
    answers, sys.stdout = sys.stdout, sys.stderr
    sample = {"torchrl": torchrl, "lists": lists}[peer]()
    for _ in sys.stdin:
        start = time.perf_counter()
        tokens = sample()
        seconds = time.perf_counter() - start
        print(json.dumps(seconds / tokens), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
