"""rollouts.jsonl: one line for each trajectory that was trained on, in the order of the batches."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING

import numpy as np

from k15core.controller.run_directory import write_atomically
from k15core.types import FINISH_REASONS

if TYPE_CHECKING:
    from pathlib import Path

    from k15core.types import PackedBatch


class Ledger:
    """Who was trained on what: ids, tokens a version, reward, and a checksum of the tokens."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, iteration: int) -> None:
        """Forget what came after an iteration, a torn last line included."""
        self.path.touch()
        kept = [
            line
            for line in self.path.read_text().splitlines(keepends=True)
            if line.endswith("}\n") and json.loads(line)["iteration"] <= iteration
        ]
        write_atomically(self.path, "".join(kept))

    def write(self, iteration: int, batch: PackedBatch | None) -> None:
        """Add the trajectories of a batch."""
        if batch is None:
            return
        lines = []
        for row in range(len(batch)):
            start = int(batch.cu_seqlens[row] + batch.prompt_lengths[row])
            end = int(batch.cu_seqlens[row + 1])
            versions, counts = np.unique(batch.versions[start:end], return_counts=True)
            lines.append(
                {
                    "iteration": iteration,
                    "group_id": int(batch.group_ids[row]),
                    "trajectory_id": int(batch.trajectory_ids[row]),
                    "prompt_id": int(batch.prompt_ids[row]),
                    "tokens_by_version": dict(
                        zip(map(str, versions.tolist()), counts.tolist(), strict=True)
                    ),
                    "finish_reason": FINISH_REASONS[int(batch.finish_reasons[row])],
                    "reward": float(batch.rewards[row]),
                    "tokens_crc32": zlib.crc32(batch.input_ids[start:end].tobytes()),
                }
            )
        with self.path.open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
