"""`k15core.integrations.slime` under a driver that makes the calls that slime makes.

`Driver` follows slime at 624b824: `RolloutManager` in slime/ray/rollout.py, `generate_rollout` and
`generate_rollout_async` in slime/rollout/sglang_rollout.py, `train` in train.py. What an engine
would do to a sample, `generate` does here.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import slime_parts

slime_parts.install()

import yaml
from slime.utils.misc import load_function
from slime.utils.types import Sample

from k15core.errors import InvalidInputError
from k15core.tasks.doors import DoorsTask

HOOK = "k15core.integrations.slime.record_rewards"
PROMPTS = 40
PAGE = Path(__file__).parents[2] / "docs" / "slime.md"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    DoorsTask(pool=1, held_out_per_difficulty=1).tokenizer.save_pretrained(str(directory))
    return directory


@pytest.fixture
def args(tmp_path: Path, checkpoint: Path) -> SimpleNamespace:
    rows = [
        {"text": f"prompt {i}", "label": str(i), "metadata": {"difficulty": i % 4}}
        for i in range(PROMPTS)
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return SimpleNamespace(
        data_source_path="k15core.integrations.slime.DataSource",
        rollout_all_samples_process_path=HOOK,
        buffer_filter_path=None,
        rollout_global_dataset=True,
        prompt_data=str(tmp_path / "prompts.jsonl"),
        hf_checkpoint=str(checkpoint),
        rollout_max_prompt_len=None,
        input_key="text",
        label_key="label",
        metadata_key="metadata",
        tool_key=None,
        multimodal_keys=None,
        apply_chat_template=False,
        apply_chat_template_kwargs={},
        rollout_seed=42,
        rollout_shuffle=True,
        n_samples_per_prompt=4,
        rollout_batch_size=6,
        over_sampling_batch_size=8,
        partial_rollout=True,
        reward_key=None,
        save=str(tmp_path / "run"),
        load=str(tmp_path / "run"),
        start_rollout_id=0,
    )


class Driver:
    def __init__(self, args: SimpleNamespace, hard: frozenset[int] = frozenset()) -> None:
        self.args = args
        self.hard = hard
        self.seen: Counter[int] = Counter()
        self.data_source = load_function(args.data_source_path)(args)
        if args.rollout_global_dataset:
            self.data_source.load(args.start_rollout_id - 1)

    def generate(self, group: list[Any], rollout_id: int, *, abort: bool) -> None:
        rng = random.Random(f"{rollout_id} {group[0].index}")
        for member, sample in enumerate(group):
            if sample.status in (Sample.Status.COMPLETED, Sample.Status.TRUNCATED):
                assert sample.reward is not None
                continue
            assert sample.status in (Sample.Status.PENDING, Sample.Status.ABORTED)
            if sample.session_id is None:
                sample.session_id = f"session {sample.index}"
            new = [rng.randrange(1000) for _ in range(rng.randrange(1, 9))]
            if not sample.tokens:
                sample.tokens = [1, 2, 3]
            sample.tokens = sample.tokens + new
            sample.response += "".join(chr(65 + token % 26) for token in new)
            sample.response_length += len(new)
            sample.loss_mask = (sample.loss_mask or []) + [1] * len(new)
            sample.rollout_log_probs = (sample.rollout_log_probs or []) + [-0.5] * len(new)
            sample.weight_versions.append(str(rollout_id))
            if abort and member % 2:
                sample.status = Sample.Status.ABORTED
                continue
            sample.status = Sample.Status.COMPLETED
            sample.reward = 0.0 if int(sample.label) in self.hard else 1.0

    def rollout(self, rollout_id: int) -> list[list[Any]]:
        args, pending, data, everything = self.args, [], [], []
        remaining = 0
        get_samples = self.data_source.get_samples
        while len(data) < args.rollout_batch_size:
            while remaining < args.rollout_batch_size:
                groups = get_samples(args.over_sampling_batch_size)
                for group in groups:
                    self.seen[int(group[0].label)] += 1
                pending += groups
                remaining += len(groups)
            group = pending.pop(0)
            self.generate(group, rollout_id, abort=False)
            assert len(group) == args.n_samples_per_prompt
            everything.append(group)
            data.append(group)
        aborted = []
        for group in pending:
            self.generate(group, rollout_id, abort=True)
            for sample in group:
                if sample.response and "start_rollout_id" not in sample.metadata:
                    sample.metadata["start_rollout_id"] = rollout_id
            aborted.append(group)
        data = sorted(data, key=lambda group: group[0].index)
        everything = sorted(everything, key=lambda group: group[0].index)
        if args.rollout_all_samples_process_path is not None:
            load_function(args.rollout_all_samples_process_path)(args, everything, get_samples)
        if aborted:
            self.data_source.add_samples(aborted)
        return data

    def train(self, start: int, stop: int) -> list[list[list[dict[str, Any]]]]:
        log = []
        for rollout_id in range(start, stop):
            data = self.rollout(rollout_id)
            log.append([[sample.to_dict() for sample in group] for group in data])
            self.data_source.save(rollout_id)
        return log


def test_a_run_that_died_goes_on_with_its_partial_samples(args: SimpleNamespace) -> None:
    args.k15_sampler = {"rule": "priority", "epsilon": 0.01}
    whole = Driver(args, hard=frozenset(range(10)))
    expected = whole.train(0, 8)
    partial = copy.deepcopy(whole.data_source.buffer)
    assert partial, "the driver leaves partial samples behind"
    for died_after in (2, 5, 7):
        args.start_rollout_id = died_after + 1
        resumed = Driver(args, hard=frozenset(range(10)))
        if died_after == 7:
            assert resumed.data_source.buffer == partial
        assert len(resumed.data_source) == PROMPTS
        assert resumed.train(died_after + 1, 8) == expected[died_after + 1 :]


def test_partial_samples_come_back_first_and_whole(args: SimpleNamespace) -> None:
    driver = Driver(args)
    driver.rollout(0)
    waiting = copy.deepcopy(driver.data_source.buffer)
    assert driver.data_source.get_buffer_length() == len(waiting) == 2
    statuses = {sample.status for group in waiting for sample in group}
    assert statuses == {Sample.Status.COMPLETED, Sample.Status.ABORTED}
    groups = driver.data_source.get_samples(5)
    assert groups[:2] == waiting
    assert driver.data_source.get_buffer_length() == 0
    indices = [sample.index for group in groups for sample in group]
    assert len(set(indices)) == 20
    assert len({group[0].group_index for group in groups}) == 5
    assert groups[2][0] is not groups[2][1]
    assert groups[2][0].metadata is not groups[2][1].metadata


def test_priority_prefers_what_fails(args: SimpleNamespace) -> None:
    args.k15_sampler = {"rule": "priority", "alpha": 2.0, "epsilon": 0.001, "gamma": 1.0}
    hard = frozenset(range(8))
    driver = Driver(args, hard)
    driver.train(0, 60)
    on_hard = sum(count for prompt, count in driver.seen.items() if prompt in hard)
    assert on_hard > 0.6 * driver.seen.total()  # uniform: 0.2
    rates = driver.data_source.sampler.success_rates()
    assert rates[:8].max() < 0.2
    assert rates[8:].mean() > 0.6


def test_curriculum_goes_on_with_the_rollouts(args: SimpleNamespace) -> None:
    args.k15_sampler = {"curriculum": "difficulty", "warmup_iterations": 3, "min_difficulty": 3}
    args.k15_difficulty_key = "difficulty"
    args.partial_rollout = False
    driver = Driver(args)
    for rollout_id in range(6):
        driver.seen.clear()
        driver.rollout(rollout_id)
        new = {prompt % 4 for prompt in driver.seen}
        if rollout_id < 3:
            assert len(new) > 1
    assert new == {3}


def test_what_says_nothing_is_not_recorded(args: SimpleNamespace) -> None:
    driver = Driver(args)
    source = driver.data_source
    first, second, split = source.get_samples(3)
    driver.generate(first, 0, abort=False)
    driver.generate(second, 0, abort=True)
    driver.generate(split, 0, abort=False)
    before = source.sampler.success_rates()
    load_function(HOOK)(args, [first, second, [[sample, sample] for sample in split]], source)
    changed = (source.sampler.success_rates() != before).nonzero()[0]
    assert sorted(changed) == sorted(int(group[0].label) for group in (first, split))
    assert source.rollouts == 1


def test_rewards_beyond_one_need_a_threshold(args: SimpleNamespace) -> None:
    source = Driver(args).data_source
    (group,) = source.get_samples(1)
    for sample in group:
        sample.reward = {"score": -1.0}
        sample.status = Sample.Status.COMPLETED
    group[0].reward = {"score": 1.0}
    args.reward_key = "score"
    with pytest.raises(InvalidInputError, match="k15_correct_at"):
        source.record([group])
    args.k15_correct_at = 1.0
    source.record([group])
    rate = source.sampler.success_rates()[int(group[0].label)]
    assert rate == pytest.approx((0.25 + 0.5) / 2)


def test_more_prompts_than_there_are(args: SimpleNamespace) -> None:
    groups = Driver(args).data_source.get_samples(PROMPTS + 3)
    counts = Counter(group[0].label for group in groups)
    assert len(counts) == PROMPTS
    assert counts.total() == PROMPTS + 3


def test_without_a_data_set_samples_are_blank(args: SimpleNamespace) -> None:
    args.prompt_data = None
    driver = Driver(args)
    ((sample, *_),) = driver.data_source.get_samples(1)
    assert sample.prompt == ""
    assert len(driver.data_source) == 0
    driver.data_source.save(0)
    driver.data_source.load(0)


def test_bad_settings(args: SimpleNamespace) -> None:
    with pytest.raises(InvalidInputError, match=r"n_samples_per_prompt = 4"):
        Driver(args).data_source.add_samples([[Sample()]])
    args.k15_sampler = {"rule": "priority", "alhpa": 1}
    with pytest.raises(InvalidInputError, match="alhpa"):
        Driver(args)
    args.k15_sampler = {"rule": "priority"}
    args.rollout_all_samples_process_path = None
    with pytest.raises(InvalidInputError, match="record_rewards"):
        Driver(args)
    args.k15_sampler = None
    args.k15_difficulty_key = "hardness"
    with pytest.raises(InvalidInputError, match="hardness"):
        Driver(args)
    with pytest.raises(InvalidInputError, match="data-source-path"):
        load_function(HOOK)(args, [], object())


def test_the_pages_settings_are_taken(args: SimpleNamespace) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for name, value in yaml.safe_load(text).items():  # as slime reads --custom-config-path
        setattr(args, name, value)
    driver = Driver(args, hard=frozenset(range(8)))
    driver.train(0, 12)
    flags = dict(re.findall(r"^ *--([a-z-]+) (k15core\S+)", PAGE.read_text(), re.MULTILINE))
    assert flags == {
        "data-source-path": args.data_source_path,
        "rollout-all-samples-process-path": HOOK,
    }
