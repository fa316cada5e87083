"""The log-probs that the engine records are those of transformers, within fp32's own error."""

import copy

import numpy as np
import pytest
import torch
from families import VARIANTS, reference
from generation import run, stories
from transformers import PreTrainedModel

from k15core.models import decode
from k15core.models.create import new_model
from k15core.models.lean import LeanModel
from k15core.rollout.embedded import EmbeddedEngine


def lean(theirs: PreTrainedModel) -> LeanModel:
    model = new_model(theirs.config.to_dict(), seed=0)
    model.load_state_dict(theirs.state_dict())
    return model


@torch.no_grad()
def plain(model: PreTrainedModel, sequences: list[tuple[list[int], list[int]]]) -> np.ndarray:
    """Log-probs of the responses [all tokens], one sequence at a time."""
    rows = []
    for prompt, response in sequences:
        ids = torch.tensor([prompt + response])
        log_probs = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        at = torch.arange(len(prompt) - 1, len(prompt) + len(response) - 1)
        rows.append(log_probs[at, ids[0, at + 1]])
    return torch.cat(rows).double().numpy()


@pytest.mark.parametrize("cache", ["native", "torch"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_log_probs_equal_transformers(
    variant: str, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "is_native", lambda *_: cache == "native")
    theirs = reference(variant)
    engine = EmbeddedEngine(lean(theirs), max_total_tokens=256, slots=24, eos_token_ids=[])
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 97, int(n)).tolist() for n in rng.integers(1, 70, 20)]
    told = stories(prompts, k=2)
    run(engine, told, rng.integers(1, 150, len(told)).tolist(), seed=5)
    # A second part under newer weights of the same values: prompt and tail are prefilled.
    engine.version = 1
    run(engine, told, 20, seed=5)
    assert engine.stats.replayed == 0

    sequences = [(story.prompt, story.tokens) for story in told]
    ours = np.concatenate([story.log_probs for story in told])
    single = plain(theirs, sequences)
    exact = plain(copy.deepcopy(theirs).double(), sequences)
    assert len(ours) > 2000
    assert np.quantile(np.abs(ours - single), 0.99) <= 1e-5
    for error in (lambda e: np.quantile(e, 0.5), lambda e: np.quantile(e, 0.99), np.mean):
        assert error(np.abs(ours - exact)) <= 2 * error(np.abs(single - exact))


def test_temperature_scales_what_is_recorded() -> None:
    theirs = reference("qwen3")
    engine = EmbeddedEngine(lean(theirs), max_total_tokens=64, slots=8, eos_token_ids=[])
    hot, greedy = stories([[3, 4, 5]]), stories([[3, 4, 5]])
    run(engine, hot, 40, temperature=1.7)
    run(engine, greedy, 40, temperature=0)
    ids = torch.tensor([[3, 4, 5, *hot[0].tokens]])
    with torch.no_grad():
        scaled = (theirs(input_ids=ids).logits[0, 2:-1] / 1.7).log_softmax(-1)
    np.testing.assert_allclose(
        hot[0].log_probs, scaled.gather(1, ids[0, 3:, None])[:, 0], atol=1e-4, rtol=0
    )
    np.testing.assert_allclose(
        greedy[0].log_probs, plain(theirs, [([3, 4, 5], greedy[0].tokens)]), atol=1e-4, rtol=0
    )


def test_samples_follow_the_distribution() -> None:
    theirs = reference("qwen2-gqa")
    engine = EmbeddedEngine(lean(theirs), max_total_tokens=8, slots=256, eos_token_ids=[])
    told = stories([[7, 8]], k=4000)
    run(engine, told, 1, temperature=0.8, seed=11)
    with torch.no_grad():
        logits = theirs(input_ids=torch.tensor([[7, 8]])).logits[0, -1]
    expected = 4000 * (logits / 0.8).softmax(-1).double().numpy()
    counts = np.bincount([story.tokens[0] for story in told], minlength=97)
    common = expected > 5
    chi2 = float((((counts - expected) ** 2) / expected)[common].sum())
    degrees = int(common.sum())
    assert chi2 < degrees + 4 * np.sqrt(2 * degrees)
    assert engine.stats.prefilled == 2
