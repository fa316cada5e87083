"""The scalars of metrics.jsonl as TensorBoard files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from k15core.report.schema import Record, number

_PHASE_OF = {
    "loss": "train",
    "gradient_norm": "train",
    "kl": "train",
    "learning_rate": "train",
    "groups_trained": "train",
    "groups_skipped": "train",
    "version": "train",
    "entropy": "train",
    "drift": "train",
}


class ScalarFiles:
    """The directory tensorboard/ of a run. Files are opened at the first scalar."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: Any = None

    def write(self, record: Record) -> None:
        """Write the scalars of one line of metrics, if it has any, and the recipe of a run."""
        if self._writer is None:
            from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

            self._writer = SummaryWriter(str(self._directory))
        step, values = scalars(record)
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)
        if record["kind"] == "run":
            recipe = json.dumps(record.get("recipe", {}), indent=2, ensure_ascii=False)
            self._writer.add_text("recipe", f"```json\n{recipe}\n```", 0)
        self._writer.flush()

    def close(self) -> None:
        """Close the files; the next `write` begins a new one."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def erase(self) -> None:
        """Delete the files: a resumed run writes them anew from the lines that stay."""
        self.close()
        shutil.rmtree(self._directory, ignore_errors=True)


def scalars(record: Record) -> tuple[int, dict[str, float]]:
    """The step and the scalars, by tag, that one line of metrics becomes in TensorBoard.

    SFT counts in its stage's steps, all else in iterations. Tags: sft/STAGE/…, rollout/…, train/…,
    time/PHASE, difficulty/D, and an evaluation's label (held_out/pass_rate, held_out/caught, …).
    """
    kind = record["kind"]
    if kind == "sft":
        prefix, step = f"sft/{record['stage']}", int(record["step"])
        flat = {k: v for k, v in record.items() if k not in ("step", "steps", "seconds")}
        flat |= {f"probe/{k}": v for k, v in (record.get("probe") or {}).items()}
        tags = {f"{prefix}/{name}": value for name, value in flat.items()}
    elif kind == "iteration":
        step = int(record["iteration"])
        tags = {f"{_PHASE_OF.get(k, 'rollout')}/{k}": v for k, v in record.items()}
        for name in ("iteration", "seconds"):
            tags.pop(f"rollout/{name}", None)
        tags |= {f"time/{k}": v for k, v in (record.get("phase_seconds") or {}).items()}
        tags |= {
            f"difficulty/{k}": v for k, v in (record.get("success_by_difficulty") or {}).items()
        }
    elif kind == "evaluation":
        step, label = int(record["iteration"]), record["label"]
        flat = {k: record.get(k) for k in ("pass_rate", "mean_length")}
        flat |= record.get("behaviour") or {}
        tags = {f"{label}/{name}": value for name, value in flat.items()}
        for difficulty, row in (record.get("by_difficulty") or {}).items():
            tags[f"{label}_by_difficulty/{difficulty}"] = row.get("pass_rate")
    else:
        return 0, {}
    return step, {
        tag: v for tag, value in tags.items() if (v := number({"": value}, "")) is not None
    }
