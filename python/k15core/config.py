"""The recipe: everything that a run needs, typed. A key that is not here is refused.

A recipe is a YAML file of the sections below. Where a section says `kind`, the other keys are the
keyword arguments of the class that the room's registry names for that kind, checked against its
signature: adding a task, a reward or an engine needs no line here.
"""

from __future__ import annotations

import builtins
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

S = TypeVar("S", bound=BaseModel)

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)


class Section(BaseModel):
    """A part of a recipe: unknown keys and wrong types are refused, nothing changes later."""

    model_config = STRICT


class Kind(BaseModel):
    """A part that a registry makes: its `kind`, and the settings of that kind."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    kind: str

    def settings(self) -> dict[str, Any]:
        """The keys beside `kind`."""
        return dict(self.model_extra or {})


class ModelSection(Section):
    """Which policy: a Hugging Face directory, or a new model of this shape for the task's words."""

    directory: str | None = None
    new: dict[str, Any] | None = None
    """config.json of a new model; vocabulary and end-of-sequence come from the task."""
    init: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of `k15core.models.create.new_model`: standard deviations, gains."""

    @model_validator(mode="after")
    def _one_of_two(self) -> ModelSection:
        if (self.directory is None) == (self.new is None):
            raise ValueError("give either directory (a Hugging Face directory) or new (a shape)")
        return self


class Until(Section):
    """Goes on with a stage until a behaviour statistic of sampled answers has fallen enough."""

    statistic: str
    at_most: float
    every: int = Field(100, ge=1)
    prompts: int = Field(128, ge=1)


class Stage(Section):
    """One stage of supervised fine-tuning: cosine from `learning_rate` to a tenth of it."""

    name: str
    steps: int = Field(ge=1)
    batch: int = Field(32, ge=1)
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(20, ge=0)
    until: Until | None = None
    max_steps: int | None = None
    """With `until`: the stage goes on, re-warmed, up to here if it is not reached."""


class SftSection(Section):
    """Supervised warm-up before RL (the report re-warms stage two to half the first peak)."""

    stages: list[Stage]
    weight_decay: float = Field(0.01, ge=0)


class RolloutSection(Section):
    """How responses are sampled."""

    engine: Kind = Kind(kind="embedded")
    partial: bool = True
    segment_budget: int = Field(ge=1)
    max_response_tokens: int = Field(ge=1)
    temperature: float = Field(1.0, ge=0)
    order: Literal["oldest", "stalest", "longest"] = "oldest"
    over_provision: float = Field(0.0, ge=0)
    lease_seconds: float = Field(3600.0, gt=0)
    max_versions: int | None = Field(None, ge=1)
    """How many policy versions a trajectory may span; null is no bound."""
    beyond_max_versions: Literal["finish", "drop", "mask"] = "finish"
    """What happens to one that would span more: it ends where it is, with finish reason length; its
    group is dropped; it goes on, and its old segments are masked in training."""
    repetition: dict[str, Any] | None = Field(default_factory=dict)
    """Settings of the repetition detector; null switches it off."""


class LengthRewardSection(Section):
    """The report's length reward (section 2.3.3): its weight from iteration `starts_at` on."""

    weight: float = Field(0.5, ge=0)
    starts_at: int = Field(ge=1)


class AlgorithmSection(Section):
    """What is optimised: the algorithm, and how raw scores become its rewards."""

    kind: Literal["mirror_descent", "rest"] = "mirror_descent"
    tau: float = Field(0.1, ge=0)
    baseline: Literal["mean", "log_mean_exp"] = "mean"
    correct_at: float = Field(1.0, gt=0, le=1)
    skip_equal_groups: bool = True
    length_reward: LengthRewardSection | None = None
    repetition_penalty: float = Field(0.0, ge=0)
    max_segment_staleness: int | None = Field(None, ge=0)
    """Segments older than this many versions are masked; null keeps them all in the loss."""


class TrainSection(Section):
    """The loop's sizes and the optimizer."""

    iterations: int = Field(ge=0)
    prompts: int = Field(ge=1)
    responses: int = Field(8, ge=2)
    mini_batches: int = Field(4, ge=1)
    learning_rate: float = Field(gt=0)
    final_learning_rate_share: float = Field(1.0, gt=0, le=1)
    """The rate falls linearly to this share of itself by the last iteration."""
    weight_decay: float = Field(0.0, ge=0)
    max_gradient_norm: float = Field(1.0, gt=0)
    micro_batch_tokens: int = Field(8192, ge=1)


class DeploySection(Section):
    """How trainer and engine share a machine (report, section 2.6.3 and figure 4)."""

    share_device: bool = False
    """They take turns on the same device: each gives its memory back before the other works."""
    weights: str | None = None
    """Directory of shared memory for the weights' hand-over; null is one in /dev/shm a run."""
    restarts: int = Field(3, ge=0)
    """So often in a row, without a checkpoint in between, processes that died are started again."""


class StoreSection(Section):
    """The trajectory store of the run."""

    sync: Literal["never", "batch", "always"] = "batch"
    capacity_bytes: int = Field(1 << 30, ge=1 << 20)
    max_staleness: int = Field(8, ge=0)


class EvaluationSection(Section):
    """Held-out evaluation: before RL, every so many iterations, and at the end."""

    every: int = Field(5, ge=1)
    prompts: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0)
    greedy: bool = True
    transcripts: int = Field(6, ge=0)


class CheckpointSection(Section):
    """How often a run can be resumed from, and how many checkpoints are kept."""

    every: int = Field(1, ge=1)
    sft_every: int = Field(500, ge=1)
    keep: int = Field(2, ge=1)


class Recipe(Section):
    """A whole run: a function of (recipe, seed, code)."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0)
    threads: int = Field(2, ge=1)
    device: str = "cpu"
    task: Kind
    reward: Kind
    model: ModelSection
    sft: SftSection | None = None
    sampling: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of `k15core.PromptSampler`: the rule, the curriculum, their settings."""
    rollout: RolloutSection
    algorithm: AlgorithmSection = AlgorithmSection()
    trainer: Kind = Kind(kind="torch")
    train: TrainSection
    deploy: DeploySection = DeploySection()
    store: StoreSection = StoreSection()
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()

    @model_validator(mode="after")
    def _one_bound_on_segments(self) -> Recipe:
        masks = self.rollout.max_versions is not None and self.rollout.beyond_max_versions == "mask"
        if masks and self.algorithm.max_segment_staleness is not None:
            raise ValueError(
                "algorithm.max_segment_staleness and rollout.beyond_max_versions = mask both say "
                "which segments are masked: give one of them"
            )
        return self

    @property
    def oldest_segment(self) -> int | None:
        """How many versions old a segment may be and still be trained on; None is any."""
        if self.rollout.max_versions is not None and self.rollout.beyond_max_versions == "mask":
            return self.rollout.max_versions - 1
        return self.algorithm.max_segment_staleness


class _Loader(yaml.SafeLoader):
    """YAML as people write numbers: `4e-4` is one (YAML 1.2), and a key may stand only once."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)?(\.\d*)?([eE][-+]?\d+)?$|^[-+]?\.(inf|nan)$"),
    list("-+0123456789."),
)


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[object] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in seen:
            raise InvalidInputError(
                f"{key_node.start_mark.name}, line {key_node.start_mark.line + 1}: "
                f"key {key!r} stands twice: expected it once"
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_duplicates)


def parse_yaml(text: str, name: str) -> Any:
    """The value that a YAML text holds; a syntax error names the file and the line."""
    loader = _Loader(text)
    loader.name = name
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise InvalidInputError(f"{name} is not YAML: {' '.join(str(error).split())}") from error
    finally:
        loader.dispose()


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file; `overrides` are `section.key=value` with the value in YAML."""
    path = Path(path)
    try:
        text = path.read_text()
    except OSError as error:
        raise InvalidInputError(f"recipe {path}: {error.strerror}: expected a YAML file") from error
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise InvalidInputError(f"recipe {path} = {data!r}: expected sections with keys")
    for override in overrides:
        _override(data, override)
    return validate(Recipe, data, f"recipe {path}")


def _override(data: dict[str, Any], override: str) -> None:
    dotted, equals, value = override.partition("=")
    if not equals:
        raise InvalidInputError(f"--set {override}: expected section.key=value")
    *sections, key = dotted.split(".")
    for name in sections:
        below = data.setdefault(name, {})
        if not isinstance(below, dict):
            raise InvalidInputError(f"--set {override}: {name} = {below!r} has no keys below it")
        data = below
    data[key] = parse_yaml(value, f"--set {dotted}")


def validate(section: type[S], data: Mapping[str, Any], what: str) -> S:
    """Check data against a section; what is wrong is said with field, value and expectation."""
    try:
        return section.model_validate(data)
    except ValidationError as error:
        raise InvalidInputError(f"{what}: {'; '.join(_sentences(error))}") from error


def _sentences(error: ValidationError) -> list[str]:
    said = []
    for fault in error.errors(include_url=False):
        field = ".".join(str(part) for part in fault["loc"]) or "recipe"
        value = repr(fault["input"])
        shown = value if len(value) <= 60 else f"{value[:57]}..."
        if fault["type"] == "extra_forbidden":
            said.append(f"{field} = {shown}: unknown key")
        elif fault["type"] == "missing":
            said.append(f"{field} is missing")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            said.append(f"{field} = {shown}: {message[0].lower()}{message[1:]}")
    return said


def dump(section: BaseModel) -> str:
    """The resolved recipe as YAML that `load_recipe` reads back."""
    return yaml.safe_dump(section.model_dump(), sort_keys=False, allow_unicode=True)


def settings_for(
    make: Callable[..., Any], settings: Mapping[str, Any], given: Mapping[str, Any], what: str
) -> dict[str, Any]:
    """Check a recipe's settings against a constructor's signature, and add what a run gives.

    `given` are values that the run supplies (the seed, the model's directory): those that the
    constructor takes are added unless the recipe sets them itself. Returns keyword arguments with
    the constructor's defaults filled in.
    """
    fields: dict[str, Any] = {}
    taken: dict[str, Any] = {}
    for name, parameter in inspect.signature(make).parameters.items():
        if name in given and name not in settings:
            taken[name] = given[name]
            continue
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        fields[name] = (_annotation(make, parameter), default)
    # Types that YAML cannot hold (a device, a dtype) are checked as instances.
    config = ConfigDict(**STRICT, arbitrary_types_allowed=True)
    model = create_model("Settings", __config__=config, **fields)
    return {**validate(model, settings, what).model_dump(), **taken}


def _annotation(make: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """A parameter's type. Names that only a type checker knows become Any."""
    annotation = parameter.annotation
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    body = make.__init__ if inspect.isclass(make) else make
    names = {**vars(builtins), **getattr(body, "__globals__", {})}
    try:
        return eval(annotation, names)
    except NameError:
        return Any
