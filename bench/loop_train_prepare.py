"""Makes what both sides of loop.train read: the demo's model with its tokenizer, and prompts.

Arguments: where the model is kept between runs, the folder to fill, how many prompts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from k15core.algorithms import MirrorDescent
from k15core.models.create import new_model
from k15core.models.lean import LeanModel
from k15core.models.weights import load_model, save_model
from k15core.tasks.doors import DoorsTask
from k15core.trainer.sft import Stage, warm_up
from k15core.trainer.torch import TorchTrainer

STAGES = [Stage("textbook", 1000, 32, 4e-3), Stage("mixed", 650, 32, 2e-3)]
"""The demo's warm-up (recipes/doors.yaml)."""


def demo_model(task: DoorsTask, kept: Path) -> LeanModel:
    """The demo's model after supervised fine-tuning; made once, then kept."""
    if (kept / "model.safetensors").is_file():
        return load_model(kept)
    print("supervised fine-tuning of the demo's model: about a minute, once", flush=True)
    shape = {
        "model_type": "qwen3",
        "vocab_size": task.tokenizer.vocabulary_size,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "tie_word_embeddings": False,
        "eos_token_id": list(task.tokenizer.eos_token_ids),
    }
    model = new_model(shape, seed=0, embedding_std=1.0, qk_norm_gain=2.0)
    trainer = TorchTrainer(model, MirrorDescent(0.1), learning_rate=1e-6)
    for _ in warm_up(trainer, STAGES, task.demonstrations, weight_decay=0.01):
        pass
    save_model(model, kept)
    return model


def main(kept: Path, folder: Path, pool: int) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    task = DoorsTask(seed=0, pool=pool)
    save_model(demo_model(task, kept), folder / "model", tokenizer=task.tokenizer)
    with (folder / "prompts.jsonl").open("w") as file:
        for prompt in task.prompts:
            ids = prompt.input_ids.tolist()
            row = {"prompt": task.tokenizer.decode(ids), "input_ids": ids, "answer": prompt.answer}
            print(json.dumps(row), file=file)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
