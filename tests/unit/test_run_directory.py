import json
from pathlib import Path

import numpy as np
import pytest

from k15core.config import Recipe, load_recipe
from k15core.controller.ledger import Ledger
from k15core.controller.run_directory import RunDirectory
from k15core.controller.seeds import derive
from k15core.errors import InvalidInputError
from tests.unit.test_types import batch

RECIPE = Path(__file__).parents[2] / "recipes" / "doors.yaml"


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(RECIPE)


def test_a_run_is_opened_as_it_was_created(tmp_path: Path, recipe: Recipe) -> None:
    RunDirectory.create(tmp_path / "run", recipe)
    run, read = RunDirectory.open(tmp_path / "run")
    assert read == recipe
    assert run.manifest() is None
    run.write_manifest({"checkpoint": "x"})
    assert run.manifest() == {"format": 1, "checkpoint": "x"}


def test_a_run_is_not_replaced_unless_asked(tmp_path: Path, recipe: Recipe) -> None:
    run = RunDirectory.create(tmp_path / "run", recipe)
    run.rollouts_file.write_text("precious")
    with pytest.raises(InvalidInputError, match=r"exists: .*--resume .*--overwrite"):
        RunDirectory.create(tmp_path / "run", recipe)
    assert run.rollouts_file.exists()
    RunDirectory.create(tmp_path / "run", recipe, overwrite=True)
    assert not run.rollouts_file.exists()


def test_only_runs_are_overwritten(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InvalidInputError, match="is not a run: it is not overwritten"):
        RunDirectory.create(tmp_path, recipe, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_a_directory_without_a_recipe_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"expected a directory with a recipe\.yaml"):
        RunDirectory.open(tmp_path)


def test_a_manifest_of_another_format_is_refused(tmp_path: Path, recipe: Recipe) -> None:
    run = RunDirectory.create(tmp_path / "run", recipe)
    run.manifest_file.write_text(json.dumps({"format": 2}))
    with pytest.raises(InvalidInputError, match="format = 2: expected 1"):
        run.manifest()


def test_old_checkpoints_are_forgotten(tmp_path: Path, recipe: Recipe) -> None:
    run = RunDirectory.create(tmp_path / "run", recipe)
    for i in range(4):
        (run.checkpoints / f"iteration-{i:06d}").mkdir()
    run.forget_checkpoints(keep=2)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == [
        "iteration-000002",
        "iteration-000003",
    ]


def test_the_ledger_forgets_later_iterations_and_a_torn_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "rollouts.jsonl")
    for iteration in (1, 2, 3):
        ledger.write(iteration, batch([(2, 3), (1, 4)]))
    with ledger.path.open("a") as file:
        file.write('{"iteration": 1, "group')
    ledger.rewind(2)
    lines = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 1, 2, 2]
    assert lines[0]["tokens_by_version"] == {"1": 3}


def test_seeds_differ_by_label_and_repeat_by_value() -> None:
    seeds = {derive(s, what, i) for s in range(20) for what in "ab" for i in range(50)}
    assert len(seeds) == 20 * 2 * 50
    assert derive(3, "a", 1) == derive(3, "a", 1)
    assert max(seeds) < np.iinfo(np.int64).max
    assert derive(1, "a", 12) != derive(1, "a1", 2)
