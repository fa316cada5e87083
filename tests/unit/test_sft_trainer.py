import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from k15core.algorithms import MirrorDescent
from k15core.errors import InvalidInputError
from k15core.models.create import new_model
from k15core.models.lean import LeanModel
from k15core.trainer.sft import SftProgress, Stage, Until, warm_up
from k15core.trainer.torch import TorchTrainer
from k15core.types import Demonstration

VOCAB = 11
STAGES = [Stage("one", 4, 3, 2e-2, warmup_steps=1), Stage("two", 3, 2, 1e-2, warmup_steps=1)]


def trainer(seed: int = 0, **kwargs: int) -> TorchTrainer:
    config = {
        "model_type": "qwen3",
        "vocab_size": VOCAB,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "max_position_embeddings": 64,
    }
    net: LeanModel = new_model(config, seed=seed, embedding_std=1.0)
    return TorchTrainer(net, MirrorDescent(0.1), learning_rate=1e-2, **kwargs)


def demonstrations(stage: str, step: int, n: int) -> list[Demonstration]:
    """Sequences that count up; a pure function of (stage, step)."""
    rng = np.random.default_rng([len(stage), ord(stage[0]), step])
    shown = []
    for _ in range(n):
        start, length, prompt = rng.integers(VOCAB), int(rng.integers(3, 9)), rng.integers(1, 3)
        ids = (start + np.arange(length)) % VOCAB
        shown.append(Demonstration(ids.astype(np.int32), int(prompt)))
    return shown


def run(
    made: TorchTrainer, stages: list[Stage] | None = None, **kwargs: object
) -> list[SftProgress]:
    settings = {"weight_decay": 0.01, **kwargs}
    return list(warm_up(made, stages or STAGES, demonstrations, **settings))  # type: ignore[arg-type]


def equal(a: TorchTrainer, b: TorchTrainer) -> bool:
    return all(torch.equal(p, b.model.get_parameter(n)) for n, p in a.model.named_parameters())


def test_rate_is_a_cosine_from_the_peak_to_a_tenth() -> None:
    stage = Stage("s", steps=121, batch=1, learning_rate=2e-5, warmup_steps=20)
    assert [stage.rate(i) for i in (0, 9, 19)] == pytest.approx([1e-6, 1e-5, 2e-5])
    assert stage.rate(20) == pytest.approx(2e-5)
    assert stage.rate(70) == pytest.approx((2e-5 + 2e-6) / 2)
    assert stage.rate(45) == pytest.approx(2e-6 + 1.8e-5 * (1 + math.cos(math.pi / 4)) / 2)
    assert stage.rate(120) == pytest.approx(2e-6)
    # Beyond its steps: from half the peak, over half the steps, again and again.
    assert stage.rate(121) == stage.rate(181) == pytest.approx(1e-5)
    assert stage.rate(180) == pytest.approx(1e-6)
    falling = [stage.rate(i) for i in range(20, 121)]
    assert falling == sorted(falling, reverse=True)


def test_stages_follow_one_another_and_learn() -> None:
    made = trainer()
    stages = [replace(stage, steps=60, batch=16) for stage in STAGES]
    steps = run(made, stages)
    assert [s.name for s in steps] == ["one"] * 60 + ["two"] * 60
    assert [s.step for s in steps] == [*range(1, 61)] * 2
    assert [(s.next_stage, s.next_step) for s in steps[58:62]] == [(0, 59), (1, 0), (1, 1), (1, 2)]
    assert (steps[-1].next_stage, steps[-1].next_step) == (2, 0)
    rates = [s.metrics["learning_rate"] for s in steps]
    assert max(rates[:60]) == 2 * max(rates[60:])
    # From a guess over the vocabulary to what counting up leaves open.
    assert steps[0].metrics["loss"] > 2.0
    assert steps[-1].metrics["loss"] < 0.2
    assert made.steps == 0


def test_loss_is_the_mean_over_response_tokens() -> None:
    made, shown = trainer(), demonstrations("one", 0, 5)
    total, tokens = 0.0, 0
    with torch.no_grad():
        for one in shown:
            ids = torch.from_numpy(one.input_ids)
            length = len(ids)
            hidden = made.model.forward_packed(
                ids, torch.arange(length), torch.tensor([0, length], dtype=torch.int32), length
            )
            every = made.model.logits(hidden[:-1]).log_softmax(-1)
            picked = every[torch.arange(length - 1), ids[1:].long()]
            total -= float(picked[one.prompt_length - 1 :].sum())
            tokens += length - one.prompt_length
    metrics = made.imitate(shown, learning_rate=0.0, weight_decay=0.0)
    assert metrics["tokens"] == tokens
    assert metrics["loss"] == pytest.approx(total / tokens, rel=1e-5)


def test_micro_batches_do_not_change_the_step() -> None:
    whole, cut = trainer(), trainer(micro_batch_tokens=7)
    for step in range(3):
        shown = demonstrations("one", step, 6)
        a = whole.imitate(shown, learning_rate=1e-2, weight_decay=0.01)
        b = cut.imitate(shown, learning_rate=1e-2, weight_decay=0.01)
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-3)


def test_a_refused_step_leaves_no_gradient_behind() -> None:
    made, other = trainer(), trainer()
    with pytest.raises(InvalidInputError, match=r"learning_rate is -1\.0"):
        made.imitate(demonstrations("one", 0, 5), learning_rate=-1.0, weight_decay=0.0)
    for each in (made, other):
        each.imitate(demonstrations("one", 1, 5), learning_rate=1e-2, weight_decay=0.0)
    assert equal(made, other)


@pytest.mark.parametrize("stop", [1, 4, 5])
def test_a_resumed_warm_up_ends_with_the_same_weights(tmp_path: Path, stop: int) -> None:
    through = trainer()
    expected = run(through)
    killed, position = trainer(), (0, 0)
    for done, progress in enumerate(warm_up(killed, STAGES, demonstrations, weight_decay=0.01), 1):
        if done == stop:
            killed.save(str(tmp_path))
            position = (progress.next_stage, progress.next_step)
            break
    resumed = trainer(seed=9)
    resumed.load(str(tmp_path))
    rest = run(resumed, stage=position[0], step=position[1])
    assert equal(resumed, through)
    assert [s.metrics["loss"] for s in rest] == [s.metrics["loss"] for s in expected[stop:]]


def until(at_most: float = 0.15) -> list[Stage]:
    return [replace(STAGES[0], until=Until("misread", at_most, every=3), max_steps=9), STAGES[1]]


def probing(values: Mapping[int, float]) -> tuple[object, list[int]]:
    """A probe that reads `values` by how often it was called."""
    calls: list[int] = []

    def probe() -> dict[str, float]:
        calls.append(len(calls))
        return {"misread": values[len(calls) - 1]}

    return probe, calls


@pytest.mark.parametrize(
    ("readings", "steps"),
    [
        ([0.1, 0.1], 4),  # after 3 steps it is early, after 4 it is enough
        ([0.1, 0.2, 0.15], 6),
        ([0.3, 0.2, 0.2, 0.2], 9),  # never: max_steps ends the stage
    ],
)
def test_a_stage_goes_on_until_the_probe_is_content(readings: list[float], steps: int) -> None:
    probe, calls = probing(dict(enumerate(readings)))
    progress = run(trainer(), until(), probe=probe)
    first = [s for s in progress if s.name == "one"]
    assert len(first) == steps
    assert (first[-1].next_stage, first[-1].next_step) == (1, 0)
    assert len(calls) == len(readings)
    assert [s.step for s in first if s.probe is not None] == [3, 4, 6, 9][: len(readings)]
    assert all(s.probe is None for s in progress if s.name == "two")
    rates = [s.metrics["learning_rate"] for s in first]
    assert rates[3] == pytest.approx(2e-3), "the stage's last step of its own"
    assert rates[4::2] == pytest.approx([1e-2] * len(rates[4::2])), "half the peak, again"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Stage("s", 0, 1, 1e-3), "stage s: steps is 0"),
        (lambda: Stage("s", 30, 0, 1e-3), "stage s: batch is 0"),
        (lambda: Stage("s", 30, 1, 0.0), "learning_rate is 0.0"),
        (lambda: Stage("s", 20, 1, 1e-3), "warmup_steps is 20: expected 0 … 19"),
        (lambda: Stage("s", 30, 1, 1e-3, max_steps=40), "max_steps is 40"),
        (lambda: Stage("s", 30, 1, 1e-3, until=Until("x", 0, 0)), "until.every is 0"),
        (
            lambda: Stage("s", 30, 1, 1e-3, until=Until("x", 0, 1), max_steps=29),
            "max_steps is 29: expected at least 30",
        ),
        (lambda: run(trainer(), until()), "stage one has `until`: expected a probe"),
        (
            lambda: run(trainer(), until(), probe=lambda: {"other": 1.0}),
            "until.statistic is 'misread': expected one of other",
        ),
        (lambda: run(trainer(), stage=3), "stage is 3, step is 0"),
        (
            lambda: trainer().imitate([], learning_rate=1e-3, weight_decay=0.0),
            "demonstrations is empty",
        ),
        (
            lambda: trainer().imitate(
                [Demonstration(np.zeros(3, np.int32), 3)], learning_rate=1e-3, weight_decay=0.0
            ),
            r"demonstrations\[0\]\.prompt_length is 3 of 3 tokens",
        ),
    ],
)
def test_bad_input_is_named(call: object, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        call()  # type: ignore[operator]
