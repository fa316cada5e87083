"""vLLM inside this process: one `LLMEngine` that is stepped by its owner."""

from __future__ import annotations

import gc
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from k15core.deploy.vllm.arguments import UNKNOWN, set_environment, version_of
from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


class LocalEngine:
    """vLLM 0.32.0 in this process; workers of tensor parallelism are processes of their own.

    `arguments` are those of `EngineArgs`, see `engine_arguments`. `version` names the weights that
    it starts with, None leaves them without a name (dummy ones).
    """

    def __init__(self, arguments: Mapping[str, Any], *, device: str, version: int | None) -> None:
        set_environment(device)
        from vllm.engine.arg_utils import EngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.llm_engine import LLMEngine
        from vllm.v1.executor import Executor

        _no_compilation(device)
        try:
            engine_args = EngineArgs(**arguments)
        except TypeError as error:
            raise InvalidInputError(f"engine_args: {error}") from error
        with _one_process():
            config = engine_args.create_engine_config(UsageContext.ENGINE_CONTEXT)
            self._engine: Any = LLMEngine(
                vllm_config=config,
                executor_class=Executor.get_class(config),
                log_stats=not engine_args.disable_log_stats,
                usage_context=UsageContext.ENGINE_CONTEXT,
                multiprocess_mode=False,
            )
        if version is not None:
            self._engine.set_weight_version(str(version))

    @property
    def version(self) -> int | None:
        """Of the weights that the next step samples with, as vLLM's core reports it."""
        return version_of(self._engine.get_weight_version())

    def add(self, request_id: str, token_ids: list[int], parameters: Mapping[str, Any]) -> None:
        """Queue a request; `step` hands out each token once."""
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        self._engine.add_request(
            request_id,
            tokens_input(token_ids),
            SamplingParams(**parameters, output_kind=RequestOutputKind.DELTA),
        )

    def step(self) -> list[tuple[str, list[int], list[float], str | None]]:
        """One step of all requests: id, new tokens, their log-probs, vLLM's reason for an end."""
        out = []
        for output in self._engine.step():
            choice = output.outputs[0]
            tokens = list(choice.token_ids)
            entries = choice.logprobs or ()
            log_probs = [entry[token].logprob for token, entry in zip(tokens, entries, strict=True)]
            out.append((output.request_id, tokens, log_probs, choice.finish_reason))
        return out

    def abort(self, request_ids: list[str]) -> None:
        """End requests; tokens of theirs that `step` has not handed out are gone."""
        self._engine.abort_request(request_ids)

    def update_weights(
        self, directory: str | Path, version: int, *, published: int | None = None
    ) -> None:
        """Load weights into every worker, call them `version`, drop what older ones computed.

        `published` is what the directory's manifest must say, None takes what is there.
        """
        call = self._engine.collective_rpc
        self._engine.set_weight_version(UNKNOWN)
        call("start_weight_update")
        call(
            "update_weights",
            kwargs={"update_info": {"directory": str(directory), "version": published}},
        )
        call("finish_weight_update")
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM kept KV blocks of older weights: requests are still running")
        self._engine.reset_mm_cache()
        self._engine.reset_encoder_cache()
        self._engine.set_weight_version(str(version))

    def sleep(self) -> None:
        """Give back the memory of weights and KV cache (on a GPU; a CPU keeps it)."""
        self._engine.set_weight_version(UNKNOWN)
        self._engine.sleep(level=2)

    def wake(self) -> None:
        """Take the memory again. The weights are without content until the next update."""
        self._engine.wake_up()

    def close(self) -> None:
        """End vLLM's workers and the process groups that it made here."""
        engine, self._engine = self._engine, None
        if engine is None:
            return
        from vllm.distributed.parallel_state import (
            destroy_distributed_environment,
            destroy_model_parallel,
        )

        engine.engine_core.shutdown()
        destroy_model_parallel()
        destroy_distributed_environment()
        del engine
        gc.collect()


@contextmanager
def _one_process() -> Iterator[None]:
    """On a CPU vLLM moves even a single worker to a process of its own, unless this is set."""
    name = "VLLM_ENABLE_V1_MULTIPROCESSING"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _no_compilation(device: str) -> None:
    """What TORCHDYNAMO_DISABLE says, where torch was imported before it was set."""
    if device == "cpu":
        import torch._dynamo.config

        torch._dynamo.config.disable = True
