"""Checkpoints: one manifest, renamed into place, that names the model's files and a store mark.

A run resumes from its newest manifest. What the store acknowledged after the mark is kept where it
is still valid (`Store.rewind`), so an iteration that was killed half-way goes on with its tokens.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from k15core.controller.parts import Parts


@dataclass
class Progress:
    """How far a run is. `iteration` and `version` are of the iteration that comes next."""

    stage: int = 0
    """SFT stages that are done."""
    step: int = 0
    """Steps done of the SFT stage under way."""
    iteration: int = 1
    version: int = 0
    tokens: int = 0
    """Response tokens sampled in the run's rollouts."""
    evaluated: bool = False
    """Whether the evaluation before RL has been made."""


def write(parts: Parts, progress: Progress) -> str:
    """Write the files of a checkpoint at `progress`, which nothing names yet; returns its name.

    The trainer must have its memory: a checkpoint is written before the device is handed over.
    """
    name = (
        f"iteration-{progress.iteration:06d}"
        if progress.evaluated
        else f"sft-{progress.stage}-{progress.step:06d}"
    )
    directory = parts.run.checkpoints / name
    # Left over from a run that was killed before its manifest named it.
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir()
    parts.trainer.save(str(directory))
    (directory / "sampler.bin").write_bytes(parts.sampler.state())
    return name


def commit(parts: Parts, progress: Progress, name: str) -> None:
    """Make the run resumable from what `write` wrote at the same progress."""
    mark = parts.store.mark(progress.version)
    parts.run.write_manifest({"checkpoint": name, "store_mark": mark, "progress": asdict(progress)})
    parts.run.forget_checkpoints(parts.recipe.checkpoint.keep)


def restore(parts: Parts) -> Progress | None:
    """Return to the newest checkpoint; None if the run has none yet."""
    manifest = parts.run.manifest()
    if manifest is None:
        return None
    directory = parts.run.checkpoints / manifest["checkpoint"]
    parts.trainer.load(str(directory))
    parts.sampler.restore((directory / "sampler.bin").read_bytes())
    parts.store.rewind(manifest["store_mark"])
    return Progress(**manifest["progress"])
