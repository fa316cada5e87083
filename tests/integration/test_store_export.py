"""`k15 store export`: every format holds what the store holds."""

from __future__ import annotations

import importlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from k15core import Prompt, Store
from k15core.cli import main
from k15core.types import FINISH_REASONS

PER_TOKEN = {
    "input_ids": "tokens",
    "loss_mask": "loss_mask",
    "rollout_log_probs": "log_probs",
    "versions": "versions",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, dict[str, Any]]]:
    """A store of scored, finished, unfinished, empty and used-up trajectories; what it holds."""
    directory = tmp_path_factory.mktemp("written") / "store"
    rng = np.random.default_rng(0)
    with Store(directory, file_bytes=1 << 20, capacity_bytes=16 << 20) as store:
        for group in range(150):
            prompt = Prompt(group % 7, rng.integers(0, 99, 1 + group % 5, dtype=np.int32), "")
            store.add_group(prompt, 3)
        for lease in store.lease(450, now=0, duration=1):
            place, n = lease.trajectory_id, int(rng.integers(0, 9))
            if n:
                tokens = rng.integers(0, 99, n, dtype=np.int32)
                mask = rng.integers(0, 2, n).astype(np.uint8)
                log_probs = -rng.random(n, dtype=np.float32)
                store.append(place, lease.epoch, 0, tokens, log_probs, 3, loss_mask=mask)
            if place % 10 == 9:
                continue
            store.finish(place, lease.epoch, FINISH_REASONS[place % 3])
            if place % 10 != 8:
                store.set_reward(place, place / 10)
        used = store.sample(groups=2, version=3, max_staleness=9).trajectory_ids.tolist()
        assert len(used) == 6
        return directory, {i: dict(store.trajectory(i)) for i in range(450) if i not in used}


def check(row: dict[str, Any], view: dict[str, Any]) -> None:
    for name in ("trajectory_id", "group_id", "prompt_id", "state", "finish_reason"):
        assert row[name] == view[name], name
    assert row["reward"] == (None if view["reward"] is None else pytest.approx(view["reward"]))
    p = row["prompt_length"]
    assert row["input_ids"][:p] == view["prompt_tokens"].tolist()
    for name, source in PER_TOKEN.items():
        assert np.array_equal(row[name][p:], view[source]), name
        assert len(row[name]) == len(row["input_ids"])


def selected(views: dict[int, dict[str, Any]], unscored: bool) -> list[dict[str, Any]]:
    return [view for view in views.values() if unscored or view["state"] == "scored"]


@pytest.mark.parametrize("unscored", [False, True])
def test_numpy(
    written: tuple[Path, dict[int, dict[str, Any]]], tmp_path: Path, unscored: bool
) -> None:
    directory, views = written
    out = tmp_path / "arrays"
    options = ["--unscored"] * unscored
    assert (
        main(["store", "export", str(directory), "--to", "numpy", "--out", str(out), *options]) == 0
    )
    found = {path.stem: np.load(path, mmap_mode="r") for path in out.iterdir()}
    expected = selected(views, unscored)
    assert len(found["cu_seqlens"]) == len(expected) + 1
    for place, view in enumerate(expected):
        span = slice(found["cu_seqlens"][place], found["cu_seqlens"][place + 1])
        reason, reward = found["finish_reasons"][place], found["rewards"][place]
        row = {name: found[name][span].tolist() for name in PER_TOKEN}
        row |= {
            name: found[f"{name}s"][place] for name in ("trajectory_id", "group_id", "prompt_id")
        }
        row |= {"prompt_length": found["prompt_lengths"][place], "state": view["state"]}
        row["finish_reason"] = None if reason == 255 else FINISH_REASONS[reason]
        row["reward"] = None if np.isnan(reward) else reward
        check(row, view)


@pytest.mark.parametrize("unscored", [False, True])
@pytest.mark.parametrize("to", ["arrow", "hf"])
def test_tables(
    written: tuple[Path, dict[int, dict[str, Any]]], tmp_path: Path, to: str, unscored: bool
) -> None:
    needs = "needs {}, which `make test-peers` installs into an environment of its own"
    pa = pytest.importorskip("pyarrow", reason=needs.format("pyarrow"))
    directory, views = written
    out = tmp_path / "deeper" / "table"
    if to == "hf":
        datasets = pytest.importorskip("datasets", reason=needs.format("datasets"))
    options = ["--unscored"] * unscored
    assert main(["store", "export", str(directory), "--to", to, "--out", str(out), *options]) == 0
    if to == "hf":
        rows = list(datasets.load_from_disk(str(out)))
    else:
        with pa.memory_map(str(out)) as file:
            rows = pa.ipc.open_file(file).read_all().to_pylist()
    expected = selected(views, unscored)
    assert len(rows) == len(expected)
    for row, view in zip(rows, expected, strict=True):
        check(row, view)
    assert [path.name for path in out.parent.iterdir()] == ["table"]


def test_groups_that_may_be_used_again_are_exported(
    written: tuple[Path, dict[int, dict[str, Any]]], tmp_path: Path
) -> None:
    directory, views = written
    out = tmp_path / "arrays"
    words = ["store", "export", str(directory), "--to", "numpy", "--out", str(out)]
    assert main([*words, "--max-uses", "2"]) == 0
    assert len(np.load(out / "rewards.npy")) == len(selected(views, False)) + 6
    assert main([*words, "--max-uses", "0"]) == 2


COLUMNS = {"values": "float64", "image": "uint16", "reward": "int8", "reward_column": "int32"}
WRITTEN = {
    "values": "values",
    "image": "image",
    "reward": "reward_column",
    "reward_column": "reward_column_column",
}
"""Under which name each is written: a reward is exported of every store."""


@pytest.mark.parametrize("to", ["numpy", "arrow", "hf"])
def test_columns_of_the_stores_own(tmp_path: Path, to: str) -> None:
    needs = "needs {}, which `make test-peers` installs into an environment of its own"
    if to != "numpy":
        pa = pytest.importorskip("pyarrow", reason=needs.format("pyarrow"))
    if to == "hf":
        datasets = pytest.importorskip("datasets", reason=needs.format("datasets"))
    rng = np.random.default_rng(1)
    with Store(tmp_path / "store", columns=COLUMNS) as store:
        prompt = Prompt(0, np.array([7, 7], np.int32), "")
        ids = store.add_group(prompt, 3)
        for n, lease in enumerate(store.lease(3, now=0, duration=1)):
            tokens = rng.integers(0, 99, n, dtype=np.int32)
            if n:
                store.append(ids[n], lease.epoch, 0, tokens, np.zeros(n, np.float32), 0)
            store.finish(ids[n], lease.epoch, "stop")
            store.set_reward(ids[n], 1.0)
            for name, dtype in COLUMNS.items():
                store.set_column(ids[n], name, rng.integers(0, 99, n).astype(dtype))
        # One value of two: the other is 0.
        store.set_column(ids[2], "values", np.array([0.5]), offset=1)
        views = [store.trajectory(i) for i in ids]
    out = tmp_path / "out"
    assert main(["store", "export", str(tmp_path / "store"), "--to", to, "--out", str(out)]) == 0
    if to == "numpy":
        packed = {path.stem: np.load(path) for path in out.iterdir()}
        cu = packed["cu_seqlens"]
        rows = [{n: packed[w][a:b] for n, w in WRITTEN.items()} for a, b in pairwise(cu)]
        assert {n: packed[w].dtype for n, w in WRITTEN.items()} == COLUMNS
    else:
        if to == "hf":
            found = list(datasets.load_from_disk(str(out)))
        else:
            with pa.memory_map(str(out)) as file:
                table = pa.ipc.open_file(file).read_all()
            kinds = {n: table.schema.field(w).type.value_type for n, w in WRITTEN.items()}
            assert kinds == {n: pa.from_numpy_dtype(dtype) for n, dtype in COLUMNS.items()}
            found = table.to_pylist()
        assert [row["reward"] for row in found] == [1.0, 1.0, 1.0]
        rows = [{n: np.array(row[w]) for n, w in WRITTEN.items()} for row in found]
    for row, view in zip(rows, views, strict=True):
        for name in COLUMNS:
            np.testing.assert_array_equal(row[name], [0, 0, *view["columns"][name]], err_msg=name)


def test_an_empty_store(tmp_path: Path) -> None:
    Store(tmp_path / "store").close()
    out = tmp_path / "out"
    assert (
        main(["store", "export", str(tmp_path / "store"), "--to", "numpy", "--out", str(out)]) == 0
    )
    assert np.load(out / "input_ids.npy").shape == (0,)
    assert np.load(out / "cu_seqlens.npy").tolist() == [0]


def test_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    words = ["store", "export", str(store), "--out", str(out), "--to"]
    assert main([*words, "numpy"]) == 2
    assert "store" in capsys.readouterr().err
    with Store(store):
        assert main([*words, "numpy"]) == 2
        assert "open" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*"))
    real = importlib.import_module

    def without(name: str, *rest: Any) -> Any:
        if name in ("pyarrow", "datasets"):
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    for to, package in (("arrow", "pyarrow"), ("hf", "pyarrow")):
        assert main([*words, to]) == 2
        said = capsys.readouterr().err
        assert f"needs the package {package}" in said
        assert f"pip install 'k15core[{to}]'" in said
    out.mkdir()
    assert main([*words, "numpy"]) == 2
    assert "expected a name that is not taken" in capsys.readouterr().err
