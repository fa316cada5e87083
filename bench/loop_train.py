"""Whole iterations on the demo's model against TRL's GRPOTrainer, in responses a second.

An iteration is 256 responses (32 prompts of the doors task, k = 8) and 4 optimizer steps, equal
groups kept, partial rollouts off, 2 threads. Both sides start from the same weights, files that
transformers loads, and sample at temperature 1 from prompts of the same tokens; both recompute the
log-probs of the policy that sampled, clip the gradient to 1 and step AdamW. A learning rate of 1e-6
keeps the policy, and with it the lengths, where they were. Two rows:

- `loop.train`: the policy after the demo's supervised warm-up ends its responses itself, up to the
  demo's 72 tokens. The distribution of lengths is the same, for weights and sampling are; that the
  mean lengths of the two sides differ by less than LENGTHS_AGREE is checked.
- `loop.train, 24 tokens each`: no response may end before its 24th token, so all lengths are equal
  and neither padding nor waiting for the longest costs anybody anything. No bar: it shows how much
  of the first row is due to lengths that differ.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.harness import (
    OUT,
    Contender,
    Entry,
    PeerUnavailableError,
    compare,
    peer_environment,
    peer_process,
)

PEER = Path(__file__).parent / "peers" / "trl_grpo.py"
PEER_NAME = "TRL 1.16.0 GRPOTrainer"
BARS = {"loop.train": 2.0, "loop.train, 24 tokens each": None}
LENGTHS_AGREE = 0.1
ROUNDS = 15
"""More than others need: what TRL's iteration costs depends on its longest response."""
SHARED = {
    "threads": 2,
    "responses": 256,
    "k": 8,
    "steps": 4,
    "learning_rate": 1e-6,
    "pool": 512,
}
CASES: dict[str, dict[str, Any]] = {
    "loop.train": {"length": 72, "stops": True},
    "loop.train, 24 tokens each": {"length": 24, "stops": False},
}


def measure(name: str, case: dict[str, Any], folder: Path, python: Path) -> Entry:
    """Both sides in turn, each in a process of its own with the same environment."""
    files = {side: folder / f"{side}-{case['length']}.txt" for side in ("ours", "peer")}

    def arguments(side: str) -> str:
        paths = {
            "model": folder / "model",
            "prompts": folder / "prompts.jsonl",
            "output": folder / "trl",
            "lengths": files[side],
        }
        return json.dumps({**SHARED, **case, **{what: str(path) for what, path in paths.items()}})

    with ExitStack() as processes:

        def contender(executable: Path, script: Path, side: str) -> Contender:
            return processes.enter_context(peer_process(executable, script, arguments(side)))

        ours_script = Path(__file__).with_name("loop_train_ours.py")
        ours = contender(Path(sys.executable), ours_script, "ours")
        theirs = contender(python, PEER, "peer")
        (entry,) = compare(
            name,
            ours,
            {PEER_NAME: theirs},
            bars={PEER_NAME: BARS[name]},
            unit="responses/s",
            figure=lambda seconds: SHARED["responses"] / seconds,
            rounds=ROUNDS,
        )
    mean = {
        side: statistics.mean(float(line) for line in path.read_text().split())
        for side, path in files.items()
    }
    agree = abs(mean["ours"] / mean["peer"] - 1) < LENGTHS_AGREE
    said = f"mean response {mean['ours']:.1f} tokens, the peer's {mean['peer']:.1f}"
    return replace(entry, ok=entry.ok and agree, reason=said)


def run() -> list[Entry]:
    # For the processes below: idle threads must not spin for long, which beside a busy neighbour
    # turns milliseconds into seconds, for both sides alike.
    os.environ["GOMP_SPINCOUNT"] = "1000"
    os.environ["OMP_NUM_THREADS"] = str(SHARED["threads"])
    requirements = PEER.with_name("trl-requirements.txt").read_text().split()
    try:
        python = peer_environment("trl", requirements, no_deps=True, borrow=True)
    except PeerUnavailableError as error:
        return [
            Entry(name, None, None, PEER_NAME, "responses/s", None, BARS[name], False, str(error))
            for name in CASES
        ]
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        prepare = Path(__file__).with_name("loop_train_prepare.py")
        kept, pool = OUT / "loop_train_model", SHARED["pool"]
        subprocess.run([sys.executable, prepare, kept, folder, str(pool)], check=True)
        return [measure(name, case, folder, python) for name, case in CASES.items()]
