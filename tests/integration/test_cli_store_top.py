"""`k15 store top` beside a process that has the store open."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from k15core import Prompt, Store
from k15core.cli import main

DEADLINE = 120.0
# What a shell starts in the background ignores Ctrl-C, and so would our children.
PROGRAM = """
import signal, sys
from k15core.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""
WORD = [sys.executable, "-c", PROGRAM]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Open and served: of two groups one is unfinished, with a lease that has run out and one that
    has not."""
    with Store(tmp_path / "store", capacity_bytes=8 << 20) as store:
        for _ in range(2):
            store.add_group(Prompt(1, np.arange(10, dtype=np.int32), "42"), 3, version=4)
        tokens = np.arange(100, dtype=np.int32)
        for lease in store.lease(4, now=time.time(), duration=1000):
            who = (lease.trajectory_id, lease.epoch)
            store.append(*who, 0, tokens, -np.ones(100, np.float32), 5 if who[0] < 3 else 4)
            if lease.trajectory_id < 3:
                store.finish(*who, "stop")
                store.set_reward(lease.trajectory_id, 1.0)
        store.lease(1, now=time.time() - 10, duration=2)
        with store.serve(tmp_path / "socket"):
            yield store


def look(tmp_path: Path, *more: str) -> list[str]:
    return ["store", "top", str(tmp_path / "store"), "--every", "0.05", *more]


@pytest.mark.usefixtures("store")
def test_one_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(look(tmp_path, "--once")) == 0
    said = capsys.readouterr().out
    assert f"process {os.getpid()}" in said or "not known to be open" in said
    assert "3 unfinished (1 begun), 0 finished, 3 scored, 0 gone" in said
    assert "2: 1 to be sampled, 0 used up or removed" in said
    assert "400 of responses, 0.0/s in, 0.0/s out" in said
    assert "staleness     0: 1, 1: 1" in said
    assert "who holds them the opener's --socket would say" in said
    assert main(look(tmp_path, "--socket", str(tmp_path / "socket"))) == 0, "no terminal: once"
    said = capsys.readouterr().out
    assert "(1 begun, 2 leased)" in said
    assert re.search(r"2 held, 1 past their deadline, deadlines in \d+ s", said), said
    assert "of 8.0 MiB" in said


def test_frames_as_json(store: Store, tmp_path: Path) -> None:
    """What is appended between two frames is in their rates."""
    words = [*WORD, *look(tmp_path, "--json", "--socket", str(tmp_path / "socket"))]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as top:
        assert top.stdout is not None
        first = json.loads(top.stdout.readline())
        assert first["trajectories"]["scored"] == 3
        assert first["capacity_bytes"] == 8 << 20
        assert first["flow"]["tokens_in"] == 400
        (lease,) = store.lease(1, now=time.time(), duration=9)
        who = (lease.trajectory_id, lease.epoch)
        tokens = np.arange(7, dtype=np.int32)
        store.append(*who, 0, tokens, -np.ones(7, np.float32), 5)
        assert len(store.sample(groups=1, version=5, max_staleness=1)) == 3
        seen: list[dict[str, Any]] = [first]
        while seen[-1]["flow"]["tokens_out"] == 0:
            seen.append(json.loads(top.stdout.readline()))
        assert seen[-1]["flow"]["tokens_in"] == 407
        assert seen[-1]["flow"]["tokens_out"] == 300
        for name in ("tokens_in", "tokens_out", "groups_out"):
            assert max(frame["rates"][name] for frame in seen) > 0
        top.stdout.close()  # as `head` does
        assert top.wait(DEADLINE) == 0


@pytest.mark.usefixtures("store")
def test_a_terminal_is_redrawn_until_ctrl_c(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    with subprocess.Popen(
        [*WORD, *look(tmp_path)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
    ) as top:
        os.close(theirs)
        seen = b""
        while seen.count(b"trajectories") < 3:
            seen += os.read(ours, 1 << 16)
        top.send_signal(2)
        assert top.wait(DEADLINE) == 0
    os.close(ours)
    assert b"at most" in seen
    assert b"Traceback" not in seen


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refusal(*words: str) -> str:
        assert main(["store", "top", *words]) == 2
        return capsys.readouterr().err

    assert "expected the directory of a store" in refusal(str(tmp_path / "missing"))
    with Store(tmp_path / "store"):
        pass
    here = str(tmp_path / "store")
    assert "--every = 0.0: expected 0.05 to 3600 seconds" in refusal(here, "--every", "0")
    assert "--max-uses = 0: expected at least 1" in refusal(here, "--max-uses", "0")
    assert "no store is served here" in refusal(here, "--socket", str(tmp_path / "none"))
    (path,) = (tmp_path / "store").glob("*.log")
    content = bytearray(path.read_bytes())
    content[128 + 20] ^= 1
    path.write_bytes(content)
    assert main(["store", "top", here, "--once"]) == 1
    assert f"`k15 store verify {here}` names every damage" in capsys.readouterr().out
