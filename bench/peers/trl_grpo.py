"""TRL's side of loop.train, run by the peer's Python: one iteration a line of input.

An iteration is what GRPOTrainer does for one batch of completions: generate them, score them, take
`steps` optimizer steps. Its cost is told in seconds, from the line that asked to the last step.
Arguments: a JSON object (see loop_train.py).
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from typing import Any

# What k15's own command sets (page faults and spinning threads are dear in a small machine): the
# peer has the same, or it would look slower than it is. GOMP_SPINCOUNT comes with the environment.
libc = ctypes.CDLL(None)
libc.mallopt(-3, 1 << 30)
libc.mallopt(-1, 2_000_000_000)

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1")

import torch  # noqa: E402
import transformers  # noqa: E402
from datasets import Dataset  # noqa: E402
from datasets.utils.logging import disable_progress_bar  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer  # noqa: E402


class Pacer(TrainerCallback):  # type: ignore[misc]
    """Waits for a line before each iteration and answers with its seconds after it."""

    def __init__(self, steps: int, log: str) -> None:
        self.steps, self.log = steps, log
        self.done = 0
        self.lengths: list[int] = []

    def _wait(self, control: Any) -> None:
        if not sys.stdin.readline():
            control.should_training_stop = True
        self.began = time.perf_counter()

    def on_train_begin(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
        """Before the first iteration."""
        self._wait(control)

    def on_step_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
        """After each optimizer step."""
        self.done += 1
        if self.done % self.steps == 0:
            print(json.dumps(time.perf_counter() - self.began), flush=True)
            with open(self.log, "a") as file:  # noqa: PTH123
                print(sum(self.lengths) / len(self.lengths), file=file)
            self._wait(control)


def main() -> None:
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    torch.set_flush_denormal(True)
    transformers.utils.logging.set_verbosity_error()
    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(settings["model"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
    with open(settings["prompts"]) as file:  # noqa: PTH123
        rows = [json.loads(line) for line in file]
    for row in rows:
        if tokenizer(row["prompt"])["input_ids"] != row.pop("input_ids"):
            raise RuntimeError(f"{row['prompt']!r} has other tokens in transformers")
    responses, k, steps = settings["responses"], settings["k"], settings["steps"]
    length = settings["length"]
    pacer = Pacer(steps, settings["lengths"])

    def ending(completion_ids: list[list[int]], answer: list[str], **_: Any) -> list[float]:
        pacer.lengths = [len(ids) for ids in completion_ids]
        texts = tokenizer.batch_decode(completion_ids)
        return [
            float(text.split()[-3:] == ["!", a, "."]) for text, a in zip(texts, answer, strict=True)
        ]

    config = GRPOConfig(
        output_dir=settings["output"],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=responses // steps,
        gradient_accumulation_steps=1,
        steps_per_generation=steps,
        num_generations=k,
        num_iterations=1,
        max_completion_length=length,
        generation_kwargs={} if settings["stops"] else {"min_new_tokens": length},
        temperature=1.0,
        beta=0.0,
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="constant",
        adam_beta1=0.9,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        max_steps=10**6,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=ending,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[pacer],
    )
    trainer.remove_callback(PrinterCallback)  # stdout is for the costs
    trainer.train()


if __name__ == "__main__":
    main()
