"""The patches of scripts/break_defences.py fit the sources, so that it can break what it names."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "break_defences.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("break_defences", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclass looks for it
    spec.loader.exec_module(module)
    return module


def test_each_patch_has_one_place(script: ModuleType) -> None:
    for one in script.BREAKS:
        for name, old, new in one.patches:
            count = (script.ROOT / script.SOURCES / name).read_text().count(old)
            assert (count, old == new) == (1, False), (one.defence, name, old)


def test_what_was_broken_last_is_newer_than_what_was_built(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "TREE", tmp_path / "tree")
    script.copy_tree()
    broken = script.TREE / script.SOURCES / "spawner" / "setup.rs"
    same = broken.with_name("child.rs")
    broken.write_text(broken.read_text() + "// broken")
    for path in (broken, same):
        os.utime(path, (2_000_000_000, 2_000_000_000))  # when it was built
    script.copy_tree()
    original = script.ROOT / script.SOURCES / "spawner" / "setup.rs"
    assert broken.read_text() == original.read_text()
    assert broken.stat().st_mtime not in (original.stat().st_mtime, 2_000_000_000)
    assert same.stat().st_mtime == 2_000_000_000
