"""The four names of slime that `k15core.integrations.slime` imports, for machines without slime.

slime is on no package index. Where it can be imported, tests use its own; here stands what they
need of it: `Sample` (the fields that rollouts of text set), a `Dataset` over JSON lines, loaders.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any


class Status(Enum):
    PENDING = "pending"
    COMPLETED = "completed"
    TRUNCATED = "truncated"
    ABORTED = "aborted"


@dataclass
class Sample:
    group_index: int | None = None
    index: int | None = None
    prompt: str = ""
    tokens: list[int] = field(default_factory=list)
    response: str = ""
    response_length: int = 0
    label: str | None = None
    reward: Any = None
    loss_mask: list[int] | None = None
    weight_versions: list[str] = field(default_factory=list)
    rollout_log_probs: list[float] | None = None
    status: Status = Status.PENDING
    metadata: dict[str, Any] = field(default_factory=dict)
    session_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"status": self.status.value}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Sample:
        return Sample(**(data | {"status": Status(data["status"])}))

    def get_reward_value(self, args: Any) -> float:
        value = self.reward if not args.reward_key else self.reward[args.reward_key]
        return float(value)


Sample.Status = Status  # type: ignore[attr-defined]


class Dataset:
    def __init__(
        self, path: str, *, prompt_key: str, label_key: str, metadata_key: str, **_: Any
    ) -> None:
        rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
        self.origin_samples = [
            Sample(prompt=row[prompt_key], label=row[label_key], metadata=row[metadata_key])
            for row in rows
        ]

    def __len__(self) -> int:
        return len(self.origin_samples)


def load_function(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def install() -> None:
    """Make them importable under slime's names, unless slime itself is."""
    try:
        importlib.import_module("slime.utils.types")
        return
    except ImportError:
        pass
    parts = {
        "slime": {},
        "slime.utils": {},
        "slime.utils.data": {"Dataset": Dataset},
        "slime.utils.misc": {"load_function": load_function},
        "slime.utils.processing_utils": {
            "load_tokenizer": lambda *_, **__: None,
            "load_processor": lambda *_, **__: None,
        },
        "slime.utils.types": {"Sample": Sample},
    }
    for name, content in parts.items():
        sys.modules[name] = module = ModuleType(name)
        vars(module).update(content)
