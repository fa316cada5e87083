"""Holds the arrows of ARCHITECTURE.md: an import may only point down, and never sideways."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "python" / "k15core"

LAYERS = [
    {"cli"},
    {"controller"},
    {"rollout", "trainer", "rewards", "integrations"},
    {"deploy", "algorithms", "tasks", "models", "sandbox", "report"},
    {"types", "config", "registry"},
    {"packing"},
    {"_core", "errors"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}

# A package that only the named places may import.
ONLY_IN = {
    "torch": ("trainer", "rollout", "models", "algorithms", "deploy", "integrations"),
    "vllm": ("rollout/vllm", "deploy/vllm"),
    "megatron": ("trainer/megatron",),
    "slime": ("integrations/slime",),
    "torchrl": ("integrations/torchrl",),
    "tensordict": ("integrations/tensordict", "integrations/torchrl", "integrations/verl"),
    "verl": ("integrations/verl",),
    "pyarrow": ("integrations/export",),
    "datasets": ("integrations/export",),
    "ray": ("integrations/ray", "integrations/transfer_queue", "deploy/ray"),
    "transfer_queue": ("integrations/transfer_queue",),
    "mooncake": ("deploy/mooncake",),
    "etcd3gw": ("deploy/etcd",),
}

FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports inside the package are absolute"
            yield node.module or ""
            if node.module == "k15core":
                yield from (f"k15core.{alias.name}" for alias in node.names)


def faults(place: str, source: str) -> list[str]:
    """What a file at `place` (relative to the package, no suffix) imports that it must not."""
    room = place.split("/")[0]
    found = []
    for name in imported(ast.parse(source)):
        top, *rest = name.split(".")
        if top == "k15core" and rest and rest[0] != room:
            other = rest[0]
            if other not in LEVEL:
                found.append(f"{place} imports {name}, a room that the map does not have")
            elif LEVEL[other] <= LEVEL[room]:
                found.append(f"{place} imports {name}: arrows point down only")
        elif top in ONLY_IN and not any(
            place == home or place.startswith(f"{home}/") for home in ONLY_IN[top]
        ):
            found.append(f"{place} imports {top}: only {', '.join(ONLY_IN[top])} may")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    place = str(path.relative_to(ROOT).with_suffix("")).removesuffix("/__init__")
    assert place.split("/")[0] in LEVEL, f"{place} is in no room of the map"
    assert faults(place, path.read_text()) == []


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("types", "import k15core.rollout.base"),
        ("rollout/partial", "from k15core.trainer import base"),
        ("rollout/partial", "def f():\n    from k15core.controller import loop"),
        ("report/html", "import torch"),
        ("rollout/embedded", "import vllm"),
        ("tasks/doors", "from k15core import rewards"),
        ("integrations/slime", "from k15core.rewards import rule"),
        ("rollout/partial", "from k15core.integrations import packed"),
        ("controller/loop", "import torchrl"),
    ],
)
def test_a_wrong_arrow_is_found(place: str, source: str) -> None:
    assert faults(place, source)
