"""With which arguments and environment vLLM is started, in process and as a server.

The caller's arguments go to vLLM as they are; ours are defaults beneath them, except for the few
that the contract of a rollout stands on. Written against vLLM 0.32.0.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

BACKEND = "k15core_shared_memory"
"""Our weight transfer engine's name in vLLM's registry."""

EXTENSION = "k15core.deploy.vllm.worker.WorkerExtension"

LARGEST_CPU_CACHE = 4 << 30
"""Bytes of KV cache that vLLM gets on a CPU unless the caller says otherwise."""

UNKNOWN = "default"
"""What vLLM calls weights that nobody named."""

LoadFormat = Literal["directory", "dummy"]


@dataclass(frozen=True)
class ModelShape:
    """What a rollout must know of a model that vLLM runs, of whatever family."""

    vocabulary: int
    max_positions: int
    cache_bytes_a_token: int
    """Keys and values in float32."""

    @classmethod
    def from_directory(cls, directory: str | Path) -> ModelShape:
        """Read `directory`/config.json, the only file that a start on dummy weights needs."""
        path = Path(directory) / "config.json"
        try:
            config = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InvalidInputError(
                f"model directory {directory}: config.json cannot be read ({error}), expected a "
                "Hugging Face model directory"
            ) from error
        config = config.get("text_config", config)
        try:
            heads, hidden = config["num_attention_heads"], config["hidden_size"]
            kv_heads = config.get("num_key_value_heads") or heads
            head_dim = config.get("head_dim") or hidden // heads
            return cls(
                vocabulary=config["vocab_size"],
                max_positions=config["max_position_embeddings"],
                cache_bytes_a_token=8 * config["num_hidden_layers"] * kv_heads * head_dim,
            )
        except KeyError as error:
            raise InvalidInputError(f"{path}: no {error}, expected a decoder's config") from error


def engine_arguments(
    model: str | Path,
    *,
    max_total_tokens: int,
    slots: int,
    device: str,
    load: LoadFormat,
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The fields of vLLM's `EngineArgs` by name: `given` over our defaults.

    Defaults: room for `slots` streams of `max_total_tokens` tokens; no tokenizer, since ids go in
    and out; on a CPU float32, eager, every prefill in one piece, and a cache for all slots up to
    4 GiB; on a GPU vLLM's sleep mode, by which memory is given back. Raises InvalidInputError where
    `given` contradicts what the engines rely on: log-probs of the sampled distribution, our way of
    handing weights over.
    """
    if load not in ("directory", "dummy"):
        raise InvalidInputError(f"load = {load!r}: expected directory or dummy")
    for name, value in (("slots", slots), ("max_total_tokens", max_total_tokens)):
        if value < 1:
            raise InvalidInputError(f"{name} = {value}: expected a count of at least 1")
    shape = ModelShape.from_directory(model)
    if max_total_tokens > shape.max_positions:
        raise InvalidInputError(
            f"max_total_tokens = {max_total_tokens}: expected at most the model's "
            f"max_position_embeddings = {shape.max_positions}"
        )
    fixed: dict[str, Any] = {
        "model": str(model),
        "logprobs_mode": "processed_logprobs",
        "worker_extension_cls": EXTENSION,
        "weight_transfer_config": {"backend": BACKEND},
    }
    defaults: dict[str, Any] = {
        "max_model_len": max_total_tokens,
        "max_num_seqs": slots,
        "load_format": "dummy" if load == "dummy" else "auto",
        "skip_tokenizer_init": True,
        "enable_prefix_caching": True,
        "generation_config": "vllm",
        "disable_log_stats": True,
    }
    if device == "cpu":
        block = 32
        blocks = slots * -(-max_total_tokens // block) + 1
        wanted = blocks * block * shape.cache_bytes_a_token
        defaults |= {
            "dtype": "float32",
            "enforce_eager": True,
            # After a part of a prefill vLLM takes back its noise: no generator on a CPU can.
            "enable_chunked_prefill": False,
            "block_size": block,
            "kv_cache_memory_bytes": min(wanted, LARGEST_CPU_CACHE),
        }
    else:
        defaults["enable_sleep_mode"] = True
    own = dict(given or {})
    for name, value in fixed.items():
        if name in own and own[name] != value:
            raise InvalidInputError(
                f"engine_args: {name} = {own[name]!r}: expected {value!r}, which the engine needs"
            )
    longest = own.get("max_model_len", max_total_tokens)
    if isinstance(longest, int) and longest < max_total_tokens:
        raise InvalidInputError(
            f"engine_args: max_model_len = {longest}: expected at least max_total_tokens = "
            f"{max_total_tokens}"
        )
    return {**defaults, **own, **fixed}


def environment(device: str) -> dict[str, str]:
    """Environment variables that vLLM wants on a device; the caller's own win over them.

    On a CPU: threads where the scheduler puts them, as many as OMP_NUM_THREADS says; no
    compilation, which would take seconds and a C++ compiler at the first request for log-probs.
    """
    wanted = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    if device == "cpu":
        wanted |= {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            "TORCHDYNAMO_DISABLE": "1",
        }
    return wanted


def set_environment(device: str, target: MutableMapping[str, str] | None = None) -> None:
    """Put `environment` beneath what `target` (this process's environment) has."""
    target = os.environ if target is None else target
    for name, value in environment(device).items():
        target.setdefault(name, value)


def command_line(arguments: Mapping[str, Any]) -> list[str]:
    """Arguments of `EngineArgs` and of the server as its command line takes them.

    True is `--name`, False `--no-name`, None is left out, mappings and lists are JSON.
    """
    words: list[str] = []
    for name, value in arguments.items():
        option = name.replace("_", "-")
        if value is None:
            continue
        if value is True or value is False:
            words.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, (dict, list, tuple)):
            words += [f"--{option}", json.dumps(value)]
        else:
            words += [f"--{option}", str(value)]
    return words


def version_of(label: str) -> int | None:
    """The number in vLLM's label of a weight version; None where nobody has set one."""
    return None if label == UNKNOWN else int(label)
