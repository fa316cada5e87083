import inspect
from pathlib import Path

import numpy as np
import pytest

from k15core import PromptSampler
from k15core.config import Recipe, dump, load_recipe, parse_yaml, settings_for, validate
from k15core.errors import InvalidInputError
from k15core.registry import resolve
from k15core.rewards import REWARDS
from k15core.rollout import ENGINES
from k15core.tasks import TASKS
from k15core.trainer import TRAINERS

RECIPES = Path(__file__).parents[2] / "recipes"

MINIMAL = """
name: tiny
task: {kind: doors, pool: 64}
reward: {kind: rule}
model: {new: {hidden_size: 64}}
rollout: {segment_budget: 12, max_response_tokens: 72}
train: {iterations: 2, prompts: 4, learning_rate: 4e-4}
"""


def recipe_file(tmp_path: Path, text: str = MINIMAL) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(tmp_path))
    assert recipe.train.learning_rate == 4e-4
    assert load_recipe(recipe_file(tmp_path, dump(recipe))) == recipe


def test_overrides_are_yaml(tmp_path: Path) -> None:
    recipe = load_recipe(
        recipe_file(tmp_path),
        ["train.iterations=7", "sft.stages=[]", "task.pool=9", "rollout.repetition=null"],
    )
    assert (recipe.train.iterations, recipe.task.settings()) == (7, {"pool": 9})
    assert recipe.rollout.repetition is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("name: tiny", "nome: tiny"), r"name is missing; nome = 'tiny': unknown key"),
        (
            ("iterations: 2", "iterations: many"),
            r"train.iterations = 'many': input should be a valid int",
        ),
        (("iterations: 2", "iterations: 2, itrs: 3"), r"train.itrs = 3: unknown key"),
        (
            ("prompts: 4", "prompts: 0"),
            r"train.prompts = 0: input should be greater than or equal to 1",
        ),
        (("{new: {hidden_size: 64}}", "{}"), r"model = .*: give either directory"),
        (("name: tiny", "name: tiny\nname: twice"), r"line 3: key 'name' stands twice"),
        (("name: tiny", "name: [tiny"), r"is not YAML"),
        (("{segment", "{max_versions: 0, segment"), r"rollout.max_versions = 0: input should be"),
        (
            ("{segment", "{max_versions: 2, beyond_max_versions: cut, segment"),
            r"rollout.beyond_max_versions = 'cut': input should be 'finish', 'drop' or 'mask'",
        ),
        (
            (
                "{segment",
                "{max_versions: 2, beyond_max_versions: mask, segment",
                "name: tiny",
                "name: tiny\nalgorithm: {max_segment_staleness: 1}",
            ),
            r"max_segment_staleness and rollout.beyond_max_versions = mask both say",
        ),
    ],
)
def test_a_bad_recipe_is_refused_by_name(
    tmp_path: Path, change: tuple[str, ...], message: str
) -> None:
    assert change[0] in MINIMAL
    text = MINIMAL
    for old, new in zip(change[::2], change[1::2], strict=True):
        text = text.replace(old, new)
    with pytest.raises(InvalidInputError, match=message):
        load_recipe(recipe_file(tmp_path, text))


def test_which_segments_are_too_old_to_train_on(tmp_path: Path) -> None:
    path = recipe_file(tmp_path)
    assert load_recipe(path).oldest_segment is None
    assert load_recipe(path, ["algorithm.max_segment_staleness=4"]).oldest_segment == 4
    bound = "rollout.max_versions=3"
    assert load_recipe(path, [bound]).oldest_segment is None
    masked = load_recipe(path, [bound, "rollout.beyond_max_versions=mask"])
    assert masked.oldest_segment == 2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"nowhere.yaml: No such file"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_numbers_are_read_as_people_write_them() -> None:
    assert parse_yaml("[4e-3, 1e4, .5, 1., 7, -2, 1.5e+3, .inf]", "x") == [
        4e-3, 1e4, 0.5, 1.0, 7, -2, 1500.0, float("inf"),
    ]  # fmt: skip
    assert parse_yaml("[1.2.3, e4, a1e5, '1e3']", "x") == ["1.2.3", "e4", "a1e5", "1e3"]


class Thing:
    def __init__(self, seed: int, size: int = 3, names: list[str] | None = None) -> None: ...


def test_settings_follow_the_constructor() -> None:
    assert settings_for(Thing, {"size": 5}, {"seed": 9, "other": 1}, "task") == {
        "size": 5, "names": None, "seed": 9,
    }  # fmt: skip
    with pytest.raises(InvalidInputError, match=r"task: sice = 5: unknown key"):
        settings_for(Thing, {"sice": 5}, {"seed": 9}, "task")
    with pytest.raises(InvalidInputError, match=r"task: size = 'big'"):
        settings_for(Thing, {"size": "big"}, {"seed": 9}, "task")
    with pytest.raises(InvalidInputError, match=r"task: seed is missing"):
        settings_for(Thing, {}, {}, "task")


def test_validate_names_what_it_checks() -> None:
    with pytest.raises(InvalidInputError, match=r"^recipe x: name is missing"):
        validate(Recipe, {}, "recipe x")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_reads_and_its_parts_take_its_settings(path: Path) -> None:
    recipe = load_recipe(path)
    for room, table, kind in (
        ("task", TASKS, recipe.task),
        ("reward", REWARDS, recipe.reward),
        ("engine", ENGINES, recipe.rollout.engine),
        ("trainer", TRAINERS, recipe.trainer),
    ):
        make = resolve(room, table, kind.kind)
        needed = {
            name: None
            for name, parameter in inspect.signature(make).parameters.items()
            if parameter.default is parameter.empty
        }
        settings_for(make, kind.settings(), needed, room)
    PromptSampler(np.arange(4), difficulty=np.ones(4, np.float32), **recipe.sampling)
