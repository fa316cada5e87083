"""A run's directory: what lies where, and the one manifest that says what to resume from.

RUN/recipe.yaml       the resolved recipe
RUN/checkpoint.json   the manifest: renamed into place, so it is always whole
RUN/checkpoints/      the model files that manifests name
RUN/initial/          the model before its first step, where other processes need it
RUN/store/            the trajectory store
RUN/metrics.jsonl     what happened; tensorboard/ has the same numbers
RUN/rollouts.jsonl    one line for each trajectory that was trained on
RUN/summary.json, RUN/report.html, RUN/model/   at the end
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from k15core.config import Recipe, dump, load_recipe
from k15core.errors import InvalidInputError

FORMAT = 1


class RunDirectory:
    """Paths of one run, and its manifest."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe_file = self.path / "recipe.yaml"
        self.manifest_file = self.path / "checkpoint.json"
        self.checkpoints = self.path / "checkpoints"
        self.initial = self.path / "initial"
        self.store = self.path / "store"
        self.rollouts_file = self.path / "rollouts.jsonl"
        self.model = self.path / "model"

    @classmethod
    def create(cls, path: str | Path, recipe: Recipe, *, overwrite: bool = False) -> RunDirectory:
        """A new run's directory. One that is there already is refused, or replaced if asked."""
        run = cls(path)
        if run.path.exists():
            if not overwrite:
                raise InvalidInputError(
                    f"run {run.path} exists: choose another --name, continue it with "
                    f"--resume {run.path}, or replace it with --overwrite"
                )
            if any(run.path.iterdir()) and not run.recipe_file.exists():
                raise InvalidInputError(f"{run.path} is not a run: it is not overwritten")
            shutil.rmtree(run.path)
        run.checkpoints.mkdir(parents=True)
        run.recipe_file.write_text(dump(recipe))
        return run

    @classmethod
    def open(cls, path: str | Path) -> tuple[RunDirectory, Recipe]:
        """A run that was started before, and its recipe."""
        run = cls(path)
        if not run.recipe_file.exists():
            raise InvalidInputError(
                f"run {run.path}: expected a directory with a recipe.yaml in it"
            )
        return run, load_recipe(run.recipe_file)

    def discard_unless_begun(self) -> None:
        """Delete a new run that was refused before its first checkpoint."""
        if not self.manifest_file.exists():
            shutil.rmtree(self.path)

    def manifest(self) -> dict[str, Any] | None:
        """What to resume from, or None if the run was stopped before its first checkpoint."""
        if not self.manifest_file.exists():
            return None
        data: dict[str, Any] = json.loads(self.manifest_file.read_text())
        if data.get("format") != FORMAT:
            raise InvalidInputError(
                f"{self.manifest_file}: format = {data.get('format')!r}: expected {FORMAT}"
            )
        return data

    def write_manifest(self, data: dict[str, Any]) -> None:
        """Replace the manifest at once: a reader sees the old one or the new one, whole."""
        write_atomically(self.manifest_file, json.dumps({"format": FORMAT, **data}, indent=1))

    def forget_checkpoints(self, keep: int) -> None:
        """Delete model files of all but the newest `keep` checkpoints."""
        names = sorted(self.checkpoints.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for path in names[:-keep]:
            shutil.rmtree(path)


def write_atomically(path: Path, text: str) -> None:
    """Write beside, sync, rename into place, sync the directory."""
    beside = path.with_suffix(path.suffix + ".new")
    with beside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
