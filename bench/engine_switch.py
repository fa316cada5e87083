"""Handing the device from Megatron-core to vLLM and back, step by step, against starting vLLM anew.

The steps are those of figure 4 of the report, on a CPU: Megatron-core at TP 2 publishes its weights
and moves away, a vLLM server that sleeps wakes up and reads them; then it sleeps again and Megatron
comes back. Peer: what a stack without hand-over does, a model directory written to disk and a vLLM
server started from it. A model of 10 M parameters, so what is measured is the path, not the copy of
weights (weights_handover.py has that). No bars: a CPU has no memory to give back, vLLM's sleep
does nothing there.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

from bench.harness import Contender, Entry, PeerUnavailableError, compare
from k15core.algorithms import MirrorDescent
from k15core.deploy.shared_weights import WeightDirectory
from k15core.deploy.vllm.arguments import engine_arguments
from k15core.deploy.vllm.program import VllmProgram
from k15core.deploy.vllm.server import VllmServer
from k15core.models.config import ModelConfig
from k15core.models.create import new_model
from k15core.models.weights import save_model, write_model
from k15core.rollout.vllm import VllmServerEngine
from k15core.trainer.megatron import MegatronTrainer

SHAPE = {
    "model_type": "qwen3",
    "vocab_size": 1024,
    "hidden_size": 320,
    "intermediate_size": 960,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}
COLD = "a vLLM server from disk"
ENGINE_ARGS = {"kv_cache_memory_bytes": 64 << 20}


STEPS = ("publish", "offload", "start", "update", "stop", "reload")


class Switch:
    """Both engines, and how long each step of the last switch took."""

    def __init__(self, trainer: MegatronTrainer, engine: VllmServerEngine) -> None:
        self.trainer, self.engine = trainer, engine
        self.version = 0
        self.seconds: dict[str, float] = {}

    def once(self) -> float:
        """To the rollout and back; the seconds until the rollout could begin."""
        self.version += 1
        with self._step("publish"):
            weights = self.trainer.weights()
        with self._step("offload"):
            self.trainer.offload()
        with self._step("start"):
            self.engine.acquire()
        with self._step("update"):
            self.engine.update_weights(weights, self.version)
        weights.close()
        with self._step("stop"):
            self.engine.release()
        with self._step("reload"):
            self.trainer.reload()
        return sum(self.seconds[name] for name in ("publish", "offload", "start", "update"))

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def cold_start(switch: Switch, python: str, folder: Path) -> Contender:
    """A model directory written, a server started from it, until it answers."""
    config = ModelConfig.from_directory(folder / "model")
    target = folder / "written"

    def once() -> float:
        with switch.trainer.weights() as weights:
            start = time.perf_counter()
            write_model(config, weights, target)
            arguments = engine_arguments(
                target,
                max_total_tokens=512,
                slots=64,
                device="cpu",
                load="directory",
                given=ENGINE_ARGS,
            )
            server = VllmServer(VllmProgram(arguments, python=python), log=folder / "server.log")
            try:
                server.start()
                server.wait_healthy()
                return time.perf_counter() - start
            finally:
                server.stop()

    return once


def run() -> list[Entry]:
    """The switch to the rollout against a cold start, and each of its steps by itself."""
    try:
        subprocess.run(["bash", "scripts/vllm_environment.sh"], check=True)
    except subprocess.CalledProcessError as error:
        missing = PeerUnavailableError(f"scripts/vllm_environment.sh: {error}")
        return compare("engine.switch", lambda: 0.0, {COLD: missing}, bars={COLD: None}, unit="s")
    python = str(Path(".venv-vllm/bin/python").absolute())
    with tempfile.TemporaryDirectory() as name, ExitStack() as opened:
        folder = Path(name)
        save_model(new_model(SHAPE, seed=0), folder / "model")
        trainer = MegatronTrainer(
            folder / "model",
            MirrorDescent(tau=0.1),
            learning_rate=1e-3,
            weights=opened.enter_context(WeightDirectory("bench-switch")).path,
            tensor_parallel=2,
        )
        opened.enter_context(closing(trainer))
        engine = VllmServerEngine(
            folder / "model",
            max_total_tokens=512,
            eos_token_ids=[2],
            load="dummy",
            engine_args=ENGINE_ARGS,
            python=python,
            log=folder / "engine.log",
        )
        opened.enter_context(closing(engine))
        switch = Switch(trainer, engine)
        steps: dict[str, list[float]] = {step: [] for step in STEPS}

        def ours() -> float:
            cost = switch.once()
            for step in STEPS:
                steps[step].append(switch.seconds[step])
            return cost

        cold = cold_start(switch, python, folder)
        entries = compare("engine.switch", ours, {COLD: cold}, bars={COLD: None}, unit="s")
    (whole,) = entries
    for step in STEPS:
        mine = statistics.median(steps[step][1:])  # the first round is the warm-up
        entries.append(
            replace(
                whole,
                name=f"engine.switch, {step}",
                ours=mine,
                peer=None,
                peer_name="a step of the switch",
                ratio=None,
                pairs=[],
            )
        )
    return entries
