"""`k15 store` on whole, damaged, open and missing stores: what it says and what it exits with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from log_reader import HEADER, Record, flip, log_files, records
from store_every_kind import OPTIONS, write_every_kind

from k15core import Store
from k15core.cli import main


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("written")
    write_every_kind(directory)
    return directory


def damaged(written: Path, tmp_path: Path) -> tuple[Path, Record]:
    copy = Path(shutil.copytree(written, tmp_path / "copy"))
    found = [record for path in log_files(copy) for record in records(path)]
    record = [r for r in found if r.kind == "Append"][-2]
    flip(record.path, record.offset + HEADER + 20, 1)
    return copy, record


def test_verify(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "verify", str(written)]) == 0
    assert "an opening takes it up as it is" in capsys.readouterr().out
    copy, record = damaged(written, tmp_path)
    assert main(["store", "verify", str(copy)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == (
        f"{record.path}: offset {record.offset}: record {record.number} (Append of trajectory "
        f"{record.subject}): its payload does not match its checksum, "
        f"{record.end - record.offset} bytes"
    )
    assert "refuses it" in said[-1]
    assert main(["store", "verify", str(copy), "--json"]) == 1
    (damage,) = json.loads(capsys.readouterr().out)["damages"]
    assert damage["subject_id"] == record.subject


def test_inspect(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "inspect", str(written)]) == 0
    said = capsys.readouterr().out
    for kind in ("MovedAppend", "Mark", "unfinished", "staleness"):
        assert kind in said
    assert main(["store", "inspect", str(written), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kinds"]["Append"]["records"] > 0
    copy, _ = damaged(written, tmp_path)
    assert main(["store", "inspect", str(copy)]) == 1
    assert "k15 store verify" in capsys.readouterr().out
    newest = str(found["next_trajectory_id"] - 1)
    assert main(["store", "inspect", str(written), "--trajectory", newest, "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert one["tokens"] == sum(segment["n"] for segment in one["segments"])
    assert main(["store", "inspect", str(written), "--trajectory", newest]) == 0
    assert f"trajectory {newest} of group" in capsys.readouterr().out


def test_repair(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy, record = damaged(written, tmp_path)
    assert main(["store", "repair", str(copy)]) == 0
    said = capsys.readouterr().out
    assert f"record {record.number} (Append" in said
    assert f"trajectory {record.subject}: " in said or "kept: " in said
    assert main(["store", "repair", str(copy)]) == 0
    assert "nothing to repair" in capsys.readouterr().out
    Store(copy, **OPTIONS).close()


@pytest.mark.parametrize("action", ["verify", "inspect", "repair"])
def test_bad_input(action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", action, str(tmp_path / "missing")]) == 2
    assert "expected the directory of a store" in capsys.readouterr().err
    with Store(tmp_path / "open", **OPTIONS):
        assert main(["store", action, str(tmp_path / "open")]) == 2
    assert "another opener holds it" in capsys.readouterr().err
    assert main(["store", "inspect", str(tmp_path / "open"), "--max-uses", "0"]) == 2
    assert "--max-uses = 0: expected at least 1" in capsys.readouterr().err
    assert main(["store", "inspect", str(tmp_path / "open"), "--trajectory", "7"]) == 2
    assert "trajectory_id = 7" in capsys.readouterr().err
