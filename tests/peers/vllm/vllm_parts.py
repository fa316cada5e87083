"""What the tests of the vLLM engines share: models that vLLM's CPU kernels take, and the oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from families import reference, save
from generation import Story
from transformers import PreTrainedModel

from k15core.models.weights import DirectoryWeights

SHAPE = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,  # the smallest that vLLM's attention has on a CPU
}
REPETITION = {"max_period": 64, "min_repeats": 4, "min_covered": 24, "near": False}
EOS = 1


LOOPING = 2
"""The index of weights under which a greedy response soon walks in circles."""


class Policies:
    """One family under several sets of weights, each as transformers has it."""

    def __init__(self, family: str, root: Path) -> None:
        self.models = [reference(family, seed, **SHAPE) for seed in range(3)]
        for name, parameter in self.models[LOOPING].named_parameters():
            if "o_proj" in name:  # without attention the next token depends on the last one only
                parameter.data.zero_()
        self.directories = [save(m, root / str(i)) for i, m in enumerate(self.models)]

    def source(self, index: int) -> DirectoryWeights:
        return DirectoryWeights(self.directories[index])

    def check_log_probs(self, story: Story, temperature: float, weights: dict[int, int]) -> int:
        """Hold each segment to 1e-4 of its own weights; how many tokens were compared."""
        versions = np.array(story.versions)
        for version in set(story.versions):
            expected = log_probs(self.models[weights[version]], story, temperature)
            here = versions == version
            np.testing.assert_allclose(
                np.array(story.log_probs)[here], expected[here], atol=1e-4, rtol=0
            )
        return len(versions)


def prompts_of(count: int, *, seed: int = 0, longest: int = 70) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 97, int(n)).tolist() for n in rng.integers(1, longest, count)]


@torch.no_grad()
def logits(model: PreTrainedModel, story: Story) -> torch.Tensor:
    """Those of each response token [n, V]."""
    ids = torch.tensor([story.prompt + story.tokens])
    return model(input_ids=ids, use_cache=False).logits[0, len(story.prompt) - 1 : -1].float()


def log_probs(model: PreTrainedModel, story: Story, temperature: float) -> np.ndarray:
    values = (logits(model, story) / (temperature or 1.0)).log_softmax(-1)
    return values.gather(1, torch.tensor(story.tokens)[:, None])[:, 0].numpy()


def check_same_greedy(ours: Story, theirs: Story, model: PreTrainedModel) -> None:
    """The same tokens, unless two logits are so near that fp32 may order them either way."""
    pairs = zip(ours.tokens, theirs.tokens, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if at is None:
        assert ours.tokens == theirs.tokens
        assert (ours.reason, ours.loop) == (theirs.reason, theirs.loop)
        return
    best = logits(model, theirs)[at].topk(2).values
    assert best[0] - best[1] < 1e-4, f"trajectory {ours.trajectory_id}, token {at}"
