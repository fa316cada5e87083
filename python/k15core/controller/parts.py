"""The parts of a run, made from its recipe. Every choice between implementations is made here."""

from __future__ import annotations

import math
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from k15core import _core
from k15core.algorithms import CutPenalty, LengthReward, MirrorDescent, ReST
from k15core.config import settings_for
from k15core.controller.evaluate import Evaluator
from k15core.controller.hand_over import HandOver
from k15core.controller.seeds import derive
from k15core.deploy import shared_weights
from k15core.errors import InvalidInputError
from k15core.models.config import ModelConfig
from k15core.models.create import new_model
from k15core.models.lean import parameter_shapes
from k15core.models.runtime import configure
from k15core.models.weights import load_model, save_model
from k15core.registry import resolve
from k15core.rewards import REWARDS
from k15core.rollout import ENGINES
from k15core.rollout.partial import PartialRollout
from k15core.tasks import TASKS
from k15core.trainer import TRAINERS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from k15core.algorithms import Algorithm
    from k15core.config import Kind, Recipe
    from k15core.controller.run_directory import RunDirectory
    from k15core.models.lean import LeanModel
    from k15core.types import Prompt, Reward, RolloutEngine, Task, Trainer


HERE = ("torch", "embedded", "embedded_fleet")
"""Trainers and engines that are given the controller's model; others are given a directory."""


@dataclass
class Parts:
    """Everything that the loop's phases work with."""

    recipe: Recipe
    run: RunDirectory
    task: Task
    prompts: Mapping[int, Prompt]
    reward: Reward
    store: _core.Store
    sampler: _core.PromptSampler
    model: ModelConfig
    trainer: Trainer
    engine: RolloutEngine
    hand_over: HandOver
    rollout: PartialRollout
    evaluator: Evaluator
    algorithm: Algorithm
    cut_penalty: CutPenalty
    length_reward: LengthReward | None

    def seed(self, *labels: str | int) -> int:
        """A seed for one purpose of this run."""
        return derive(self.recipe.seed, *labels)

    @property
    def parameters(self) -> int:
        """How many parameters the policy has."""
        return sum(math.prod(shape) for shape in parameter_shapes(self.model).values())


def make_task(recipe: Recipe) -> Task:
    """The task of a recipe."""
    given: dict[str, Any] = {"seed": recipe.seed}
    if recipe.model.directory is not None:
        given["model"] = recipe.model.directory
    task: Task = _make("task", TASKS, recipe.task, given)
    return task


def assemble(
    recipe: Recipe, run: RunDirectory, clock: Callable[[], float], opened: ExitStack
) -> Parts:
    """Make every part; what must be closed is put on `opened`."""
    task = make_task(recipe)
    if recipe.evaluation.prompts is not None and recipe.evaluation.prompts > len(task.held_out):
        raise InvalidInputError(
            f"evaluation.prompts = {recipe.evaluation.prompts}: expected at most "
            f"{len(task.held_out)}, the task's held-out prompts"
        )
    if recipe.train.prompts > len(task.prompts):
        raise InvalidInputError(
            f"train.prompts = {recipe.train.prompts}: expected at most {len(task.prompts)}, the "
            "task's training prompts"
        )
    reward: Reward = _make("reward", REWARDS, recipe.reward, {})
    algorithm = make_algorithm(recipe)
    configure(recipe.threads, recipe.device)
    policy = make_policy(recipe, task, run)
    weights = _shared_weights(recipe, opened)
    trainer = opened.enter_context(closing(make_trainer(recipe, policy, algorithm, weights)))
    engine = opened.enter_context(closing(make_engine(recipe, task, policy, weights)))
    store = opened.enter_context(
        _core.Store(
            str(run.store),
            capacity_bytes=recipe.store.capacity_bytes,
            sync=recipe.store.sync,
        )
    )
    budget = recipe.rollout.segment_budget if recipe.rollout.partial else None
    rollout = PartialRollout(
        store,
        engine,
        segment_budget=budget or recipe.rollout.max_response_tokens,
        max_response_tokens=recipe.rollout.max_response_tokens,
        eos_token_ids=task.tokenizer.eos_token_ids,
        temperature=recipe.rollout.temperature,
        order=recipe.rollout.order,
        lease_seconds=recipe.rollout.lease_seconds,
        max_versions=recipe.rollout.max_versions,
        beyond_max_versions=recipe.rollout.beyond_max_versions,
        clock=clock,
    )
    evaluator = Evaluator(
        task,
        reward,
        engine,
        max_response_tokens=recipe.rollout.max_response_tokens,
        seed=derive(recipe.seed, "evaluation"),
    )
    return Parts(
        recipe=recipe,
        run=run,
        task=task,
        prompts={prompt.prompt_id: prompt for prompt in task.prompts},
        reward=reward,
        store=store,
        sampler=make_sampler(recipe, task),
        model=policy.config,
        trainer=trainer,
        engine=engine,
        hand_over=HandOver(trainer, engine, share_device=recipe.deploy.share_device),
        rollout=rollout,
        evaluator=evaluator,
        algorithm=algorithm,
        cut_penalty=CutPenalty(recipe.algorithm.repetition_penalty),
        length_reward=make_length_reward(recipe),
    )


def make_algorithm(recipe: Recipe) -> Algorithm:
    """The policy-gradient rule of a recipe."""
    section = recipe.algorithm
    if section.kind == "rest":
        return ReST(correct_at=section.correct_at)
    return MirrorDescent(
        tau=section.tau,
        baseline=section.baseline,
        skip_equal_groups=section.skip_equal_groups,
    )


@dataclass(frozen=True)
class Policy:
    """The policy to train, before its first step.

    `model` is for what lives in this process, `directory` for what does not: each is there where
    a part of the run needs it.
    """

    config: ModelConfig
    model: LeanModel | None
    directory: Path

    def given(self, kind: str) -> LeanModel | Path:
        """What a trainer or an engine of this kind is made from."""
        if kind not in HERE:
            return self.directory
        assert self.model is not None
        return self.model


def make_policy(recipe: Recipe, task: Task, run: RunDirectory) -> Policy:
    """The policy of a recipe: a directory's, or a new one with the task's vocabulary.

    A new one that other processes need is written to RUN/initial/ when the run begins.
    """
    here = {recipe.trainer.kind in HERE, recipe.rollout.engine.kind in HERE}
    section = recipe.model
    if section.directory is not None:
        given = Path(section.directory)
        loaded = load_model(given, device=recipe.device) if True in here else None
        return Policy(ModelConfig.from_directory(given), loaded, given)
    model = _new_model(recipe, task)
    if False in here:
        save_model(model, run.initial, tokenizer=task.tokenizer)
    return Policy(model.config, model.to(recipe.device), run.initial)


def _new_model(recipe: Recipe, task: Task) -> LeanModel:
    section = recipe.model
    assert section.new is not None
    shape = {
        "vocab_size": task.tokenizer.vocabulary_size,
        "eos_token_id": list(task.tokenizer.eos_token_ids),
        "max_position_embeddings": _longest(recipe, task),
        **section.new,
    }
    settings = settings_for(
        new_model,
        section.init,
        {"config": shape, "seed": derive(recipe.seed, "model"), "dtype": None},
        "model.init",
    )
    settings.pop("dtype")
    return new_model(**settings)


def make_trainer(recipe: Recipe, policy: Policy, algorithm: Algorithm, weights: Path) -> Trainer:
    """The trainer of a recipe, with the policy as it is before its first step."""
    given = {
        "model": policy.given(recipe.trainer.kind),
        "algorithm": algorithm,
        "learning_rate": recipe.train.learning_rate,
        "weight_decay": recipe.train.weight_decay,
        "max_gradient_norm": recipe.train.max_gradient_norm,
        "micro_batch_tokens": recipe.train.micro_batch_tokens,
        "temperature": recipe.rollout.temperature,
        "device": recipe.device,
        "weights": weights / "trainer",
    }
    trainer: Trainer = _make("trainer", TRAINERS, recipe.trainer, given)
    return trainer


def make_engine(recipe: Recipe, task: Task, policy: Policy, weights: Path) -> RolloutEngine:
    """The rollout engine of a recipe."""
    given = {
        "model": policy.given(recipe.rollout.engine.kind),
        "eos_token_ids": task.tokenizer.eos_token_ids,
        "max_total_tokens": _longest(recipe, task),
        "repetition": recipe.rollout.repetition,
        "device": recipe.device,
        "weights": weights / "engine",
    }
    engine: RolloutEngine = _make("engine", ENGINES, recipe.rollout.engine, given)
    return engine


def _shared_weights(recipe: Recipe, opened: ExitStack) -> Path:
    """Where the run's weights lie in shared memory: gone when it ends, or with the next if killed.

    Where trainer and engine live in this process nothing does.
    """
    if recipe.deploy.weights is not None:
        return Path(recipe.deploy.weights)
    if {recipe.trainer.kind, recipe.rollout.engine.kind} <= set(HERE):
        return Path("/dev/shm")
    return opened.enter_context(shared_weights.WeightDirectory(recipe.name)).path


def _longest(recipe: Recipe, task: Task) -> int:
    """Tokens of the longest trajectory that a run can have."""
    prompts = [len(prompt.input_ids) for prompt in [*task.prompts, *task.held_out]]
    return max(prompts) + recipe.rollout.max_response_tokens


def make_length_reward(recipe: Recipe) -> LengthReward | None:
    """The length reward of a recipe, or None."""
    section = recipe.algorithm.length_reward
    if section is None:
        return None
    return LengthReward(section.weight, section.starts_at, recipe.algorithm.correct_at)


def make_sampler(recipe: Recipe, task: Task) -> _core.PromptSampler:
    """The prompt sampler of a recipe, over the task's training prompts."""
    labels = [prompt.difficulty for prompt in task.prompts]
    difficulty = None if None in labels else np.array(labels, np.float32)
    ids = np.array([prompt.prompt_id for prompt in task.prompts], np.int64)
    try:
        return _core.PromptSampler(ids, difficulty=difficulty, **recipe.sampling)
    except TypeError as error:
        raise InvalidInputError(f"sampling: {error}") from error


def _make(room: str, table: Mapping[str, str], kind: Kind, given: Mapping[str, Any]) -> Any:
    """What a registry names for a kind, with its settings checked against the constructor."""
    make = resolve(room, table, kind.kind)
    return make(**settings_for(make, kind.settings(), given, f"{room} {kind.kind}"))
