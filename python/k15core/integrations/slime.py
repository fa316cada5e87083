"""slime: a data source with a curriculum and priorities, whose checkpoints keep partial samples.

    --data-source-path k15core.integrations.slime.DataSource
    --rollout-all-samples-process-path k15core.integrations.slime.record_rewards
    --custom-config-path k15.yaml

It is called as slime's `RolloutManager` and rollout functions call their data source (slime at
624b824, 2026-08-21: `slime/ray/rollout.py`, `slime/rollout/sglang_rollout.py`). Prompts come from
slime's own `Dataset`. See docs/slime.md.
"""

from __future__ import annotations

import copy
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from slime.utils.data import Dataset
from slime.utils.misc import load_function
from slime.utils.processing_utils import load_processor, load_tokenizer
from slime.utils.types import Sample

from k15core._core import PromptSampler
from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

PROMPT_ID = "k15_prompt_id"
"""The key of `Sample.metadata` that holds the place of its prompt in the data set."""
_FORMAT = 1


class DataSource:
    """Groups of samples for slime: those put back first, then prompts drawn by a `PromptSampler`.

    Read from `args`, beside what slime's own source reads:
    `k15_sampler`: keyword arguments of `k15core.PromptSampler` (rule, curriculum, …); uniform
    draws if absent. `k15_difficulty_key`: which entry of a prompt's metadata is its difficulty.
    `k15_correct_at`: a reward from here on counts as 1 in success rates, any other as 0; without
    it rewards are taken as they are, and must lie between 0 and 1.

    Draws are a function of `rollout_seed` and of what was recorded. Raises InvalidInputError for
    settings that do not fit.
    """

    def __init__(self, args: Any) -> None:
        self.args = args
        self.buffer: list[list[Sample]] = []
        """Groups to hand out again, oldest first. A buffer filter may take from it."""
        self.metadata: dict[str, Any] = {}
        self.rollouts = 0
        """Rollouts whose rewards were recorded: the iteration of the curriculum."""
        self._draws = 0
        self._groups = 0
        self._samples = 0
        path = args.buffer_filter_path
        self._buffer_filter: Callable[..., list[list[Sample]]] = (
            _pop_first if path is None else load_function(path)
        )
        self.dataset = _load_dataset(args)
        self.sampler = None if self.dataset is None else _sampler(args, self.dataset)

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        """`num_samples` groups of `n_samples_per_prompt` samples each."""
        groups = []
        if self.buffer and num_samples:
            groups = self._buffer_filter(self.args, None, self.buffer, num_samples)
        return groups + [self._group(each) for each in self._draw(num_samples - len(groups))]

    def _draw(self, n: int) -> list[int | None]:
        if self.sampler is None:
            return [None] * n
        drawn: list[int | None] = []
        while len(drawn) < n:  # more prompts than there are: all of them, then some again
            key = np.random.SeedSequence([self.args.rollout_seed, self._draws])
            drawn += self.sampler.sample(
                min(n - len(drawn), len(self.sampler)),
                seed=int(key.generate_state(1, np.uint64)[0] >> np.uint64(1)),
                iteration=self.rollouts,
            ).tolist()
            self._draws += 1
        return drawn

    def _group(self, prompt_id: int | None) -> list[Sample]:
        group = []
        for _ in range(self.args.n_samples_per_prompt):
            if prompt_id is None or self.dataset is None:
                sample = Sample()
            else:
                sample = copy.deepcopy(self.dataset.origin_samples[prompt_id])
                sample.metadata[PROMPT_ID] = prompt_id
            sample.group_index = self._groups
            sample.index = self._samples
            self._samples += 1
            group.append(sample)
        self._groups += 1
        return group

    def add_samples(self, samples: list[list[Sample]]) -> None:
        """Put groups back: aborted ones, to be continued by a later rollout."""
        for place, group in enumerate(samples):
            if len(group) != self.args.n_samples_per_prompt:
                raise InvalidInputError(
                    f"samples[{place}] has {len(group)} samples: expected n_samples_per_prompt = "
                    f"{self.args.n_samples_per_prompt}"
                )
        self.buffer += samples

    def record(self, groups: list[list[Sample]]) -> None:
        """Take in the rewards of one rollout's groups, filtered ones too; a curriculum goes on.

        Groups that hold an aborted sample, or one without a reward, say nothing about their prompt.
        """
        if self.sampler is None:
            return
        prompt_ids, means = [], []
        for group in groups:
            members = list(_members(group))
            prompt_id = members[0].metadata.get(PROMPT_ID)
            known = all(
                sample.reward is not None and sample.status != Sample.Status.ABORTED
                for sample in members
            )
            if prompt_id is not None and known:
                prompt_ids.append(prompt_id)
                means.append(np.mean([self._success(sample) for sample in members]))
        self.sampler.update(
            np.array(prompt_ids, np.int64), np.array(means, np.float32), self.rollouts
        )
        self.rollouts += 1

    def _success(self, sample: Sample) -> float:
        reward = float(sample.get_reward_value(self.args))
        correct_at = getattr(self.args, "k15_correct_at", None)
        if correct_at is not None:
            return float(reward >= correct_at)
        if not 0 <= reward <= 1:
            raise InvalidInputError(
                f"reward of sample {sample.index} = {reward}: expected 0 to 1, or k15_correct_at "
                "in the file of --custom-config-path"
            )
        return reward

    def save(self, rollout_id: int) -> None:
        """Write what `load` needs beside slime's checkpoint: one file, renamed into place."""
        if not self.args.rollout_global_dataset:
            return
        state = {
            "format": _FORMAT,
            "sampler": None if self.sampler is None else self.sampler.state(),
            "counts": [self.rollouts, self._draws, self._groups, self._samples],
            "buffer": _to_dicts(self.buffer),
            "metadata": self.metadata,
        }
        path = _path(self.args.save, rollout_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".tmp")
        with unfinished.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)

    def load(self, rollout_id: int | None = None) -> None:
        """Return to what `save` wrote, partial samples included.

        As slime's own source does, it goes on without where there is no such file, and says so.
        """
        if not self.args.rollout_global_dataset or self.args.load is None:
            return
        path = _path(self.args.load, rollout_id)
        if not path.exists():
            log.warning("%s does not exist: the data source starts afresh", path)
            return
        # Samples may hold images; the file is as trusted as the checkpoint beside it.
        state = torch.load(path, weights_only=False)
        if state.get("format") != _FORMAT:
            raise InvalidInputError(
                f"{path} is of format {state.get('format')}: expected {_FORMAT}"
            )
        if self.sampler is not None:
            self.sampler.restore(state["sampler"])
        self.rollouts, self._draws, self._groups, self._samples = state["counts"]
        self.buffer = _from_dicts(state["buffer"])
        self.metadata = state["metadata"]

    def __len__(self) -> int:
        return 0 if self.dataset is None else len(self.dataset)

    def update_metadata(self, metadata: dict[str, Any]) -> None:
        """Remember what slime's plug-ins ask to be kept."""
        self.metadata.update(metadata)

    def get_metadata(self) -> dict[str, Any]:
        """What `update_metadata` was given."""
        return self.metadata

    def get_buffer_length(self) -> int:
        """How many groups wait to be handed out again."""
        return len(self.buffer)


def record_rewards(args: Any, all_samples: list[list[Sample]], data_source: Any) -> None:  # noqa: ARG001
    """For `--rollout-all-samples-process-path`: what a rollout found goes into success rates.

    slime's rollout hands over the data source's `get_samples` in the place of the data source.
    """
    source = getattr(data_source, "__self__", data_source)
    if not isinstance(source, DataSource):
        raise InvalidInputError(
            f"data source is a {type(source).__name__}: expected k15core.integrations.slime."
            "DataSource, by --data-source-path"
        )
    source.record(all_samples)


def _load_dataset(args: Any) -> Dataset | None:
    if not args.rollout_global_dataset or args.prompt_data is None:
        return None
    return Dataset(
        args.prompt_data,
        tokenizer=load_tokenizer(args.hf_checkpoint, trust_remote_code=True),
        processor=load_processor(args.hf_checkpoint, trust_remote_code=True),
        max_length=args.rollout_max_prompt_len,
        prompt_key=args.input_key,
        multimodal_keys=args.multimodal_keys,
        label_key=args.label_key,
        metadata_key=args.metadata_key,
        tool_key=args.tool_key,
        apply_chat_template=args.apply_chat_template,
        apply_chat_template_kwargs=args.apply_chat_template_kwargs,
        seed=args.rollout_seed,
    )


def _sampler(args: Any, dataset: Dataset) -> PromptSampler:
    settings = dict(getattr(args, "k15_sampler", None) or {})
    key = getattr(args, "k15_difficulty_key", None)
    if key is not None:
        settings["difficulty"] = np.array(
            [_difficulty(sample, row, key) for row, sample in enumerate(dataset.origin_samples)],
            np.float32,
        )
    still = settings.get("rule", "uniform") == "uniform" and (
        settings.get("curriculum", "none") == "none"
    )
    if not still and args.rollout_all_samples_process_path is None:
        raise InvalidInputError(
            "rollout_all_samples_process_path is not set, so that no reward would reach the "
            "sampler: expected k15core.integrations.slime.record_rewards"
        )
    try:
        return PromptSampler(np.arange(len(dataset.origin_samples)), **settings)
    except TypeError as error:  # an argument that PromptSampler does not have
        raise InvalidInputError(f"k15_sampler = {settings}: {error}") from None


def _difficulty(sample: Sample, row: int, key: str) -> float:
    value = sample.metadata.get(key)
    if not isinstance(value, int | float):
        raise InvalidInputError(
            f"metadata[{key!r}] of prompt {row} = {value!r}: expected a number, by "
            "k15_difficulty_key"
        )
    return float(value)


def _pop_first(
    args: Any,  # noqa: ARG001 (the arguments of a buffer filter)
    rollout_id: int | None,  # noqa: ARG001
    buffer: list[list[Sample]],
    num_samples: int,
) -> list[list[Sample]]:
    taken = buffer[:num_samples]
    del buffer[:num_samples]
    return taken


def _members(group: list[Any]) -> Iterator[Sample]:
    """The samples of a group; a rollout that split into several is a list in it."""
    for each in group:
        if isinstance(each, list):
            yield from _members(each)
        else:
            yield each


def _to_dicts(samples: Any) -> Any:
    if isinstance(samples, list):
        return [_to_dicts(each) for each in samples]
    return samples.to_dict()


def _from_dicts(saved: Any) -> Any:
    if isinstance(saved, list):
        return [_from_dicts(each) for each in saved]
    return Sample.from_dict(saved)


def _path(directory: str, rollout_id: int | None) -> Path:
    return Path(directory) / "rollout" / f"k15_data_source_{rollout_id}.pt"
