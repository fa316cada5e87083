"""The recipe for GSM8K, from the command line, on the excerpt and a small random model."""

import json
from pathlib import Path

import pytest
import torch
from byte_tokenizer import save_byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from k15core.cli import main

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "smollm2_gsm8k.yaml"


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    directory = save_byte_tokenizer(tmp_path / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=257,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    values = {
        "model.directory": directory,
        "task.path": ROOT / "tests" / "data" / "gsm8k_train.jsonl",
        "task.held_out_share": 0.4,
        "task.max_difficulty": "null",
        "task.max_prompt_tokens": 600,
        "task.max_demonstration_tokens": 900,
        "sft.stages": "[{name: s, steps: 2, batch: 2, learning_rate: 1e-3, warmup_steps: 1}]",
        "rollout.max_response_tokens": 12,
        "rollout.segment_budget": 8,
        "train.prompts": 2,
        "train.responses": 2,
        "train.iterations": 2,
        "evaluation.prompts": 2,
    }
    return [f"--set={name}={value}" for name, value in values.items()]


def test_the_whole_loop_runs_on_a_prompt_file(settings: list[str], tmp_path: Path) -> None:
    code = main(["train", str(RECIPE), "--runs", str(tmp_path / "runs"), *settings])
    assert not code
    run = tmp_path / "runs" / "smollm2-gsm8k"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    iterations = [line for line in lines if line["kind"] == "iteration"]
    assert [line["iteration"] for line in iterations] == [1, 2]
    assert iterations[0]["new_prompts"] == 2
    assert iterations[1]["resumed"] > 0, "the budget is below the responses' length"
    assert {line["label"] for line in lines if line["kind"] == "evaluation"} >= {"held_out"}
    assert (run / "summary.json").is_file()
    assert (run / "report.html").is_file()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("task.path=none.jsonl", "prompt file none.jsonl does not exist"),
        ("model.directory=none", "model directory none does not exist"),
        ("task.colour=1", "colour"),
        ("task.held_out_share=much", "held_out_share"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong, message
) -> None:
    runs = str(tmp_path / "runs")
    assert main(["train", str(RECIPE), "--runs", runs, *settings, f"--set={wrong}"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert message in said[0]
