"""The lines of metrics.jsonl: their kinds, and the rules that writing and reading share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from k15core.errors import InvalidInputError

Record = dict[str, Any]

REQUIRED: dict[str, dict[str, type]] = {
    "run": {"name": str, "seed": int},
    "sft": {"stage": str, "step": int},
    "iteration": {"iteration": int},
    "evaluation": {"iteration": int, "label": str},
    "transcript": {"iteration": int, "when": str},
    "repetition": {"iteration": int, "text": str},
    "event": {"iteration": int, "text": str},
}
"""The kinds of lines and what each must hold; every other field may be absent: not measured."""


SHAPES: dict[str, type] = {
    "recipe": dict,
    "probe": dict,
    "length_quantiles": list,
    "length_histogram": dict,
    "stopped_by": dict,
    "segments_histogram": dict,
    "staleness_histogram": dict,
    "success_by_difficulty": dict,
    "phase_seconds": dict,
    "timeline": list,
    "by_difficulty": dict,
    "behaviour": dict,
    "segments": list,
}
"""Optional fields that are not single values; null where they were not measured."""


NUMBERS = frozenset({
    "covered", "ended_by_span", "finished", "gradient_norm", "groups_dropped", "groups_pending",
    "groups_skipped", "groups_trained", "iterations", "kl", "learning_rate", "length_reward_from",
    "loss", "mean_length", "new_prompts", "parameters", "pass_rate", "period", "prompt_id",
    "prompts", "repeats_stopped", "resumed", "reward", "seconds", "staleness_max", "staleness_mean",
    "start", "steps", "temperature", "threads", "tokens", "tokens_masked", "tokens_per_second",
    "tokens_saved", "version",
})  # fmt: skip
"""Optional fields that are numbers, or null."""


def number(record: Mapping[str, Any], *path: str) -> float | None:
    """The number at a path of keys, or None where it is absent or null."""
    value: Any = record
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def fault_of(record: object) -> str | None:
    """What is wrong with a line, or None."""
    if not isinstance(record, dict):
        return "not a JSON object; expected one object a line"
    required = REQUIRED.get(str(record.get("kind")))
    if required is None:
        return f"kind is {record.get('kind')!r}; expected one of {', '.join(REQUIRED)}"
    for name, expected in required.items():
        value = record.get(name)
        if not isinstance(value, expected) or isinstance(value, bool):
            kind, wanted = record["kind"], expected.__name__
            return f"{name} of a line of kind {kind!r} is {value!r}; expected {wanted}"
    for name, expected in SHAPES.items():
        value = record.get(name)
        if value is not None and not isinstance(value, expected):
            wanted = "an object" if expected is dict else "a list"
            return f"{name} is {value!r}; expected {wanted}"
    for name in NUMBERS & record.keys():
        value = record[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            return f"{name} is {value!r}; expected a number"
    return None


def plain(name: str, value: object) -> object:
    """The value in JSON's types; a number that is not finite becomes None.

    Raises InvalidInputError for what JSON cannot hold.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): plain(f"{name}.{k}", v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain(f"{name}[{i}]", v) for i, v in enumerate(value)]
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return plain(name, value.tolist())
    raise InvalidInputError(
        f"{name} is a {type(value).__name__}; "
        "expected a number, text, None, or a list or mapping of them"
    )
