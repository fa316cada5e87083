"""`k15 engine`: the sidecar as a command, and the calls to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from k15core.cli import main

PACKAGE = Path(__file__).parents[2] / "python"
CONFIG = {
    "num_attention_heads": 2,
    "hidden_size": 64,
    "vocab_size": 97,
    "max_position_embeddings": 512,
    "num_hidden_layers": 1,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return directory


@pytest.fixture
def sidecar(tmp_path: Path, model: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """One whose vLLM does not start: `python` is a program that says what it was called with."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "called with $*"\nexit 3\n')
    python.chmod(0o755)
    words = ["--model", str(model), "--weights", str(tmp_path / "weights"), "--python", str(python)]
    command = [sys.executable, "-m", "k15core.cli", "engine", "serve", "--listen", "127.0.0.1:0"]
    serving = subprocess.Popen(
        [*command, *words, "--", "--tensor-parallel-size", "8"],
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert serving.stdout is not None
    first = serving.stdout.readline()
    assert first.startswith("checkpoint engine: http://127.0.0.1:")
    yield serving, first.split()[-1]
    serving.kill()
    serving.communicate()


def test_calls_say_what_the_sidecar_says(
    sidecar: tuple[subprocess.Popen[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    serving, url = sidecar
    assert main(["engine", "state", "--url", url]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["phase       stopped", "weights     none"]
    assert main(["engine", "update", "3", "--url", url]) == 2
    assert "no version of weights is there" in capsys.readouterr().err
    assert main(["engine", "drain", "--url", url]) == 2
    assert "the engine is stopped: expected `start` first" in capsys.readouterr().err
    assert main(["engine", "start", "--url", url]) == 1
    said = capsys.readouterr().err
    assert "ended with code 3 while starting" in said
    assert "called with -m k15core.deploy.vllm.launch" in said
    assert "--load-format dummy" in said
    assert said.rstrip().endswith("--tensor-parallel-size 8")
    assert main(["engine", "state", "--url", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["phase"] == "failed"
    serving.send_signal(signal.SIGTERM)
    _, told = serving.communicate()
    assert serving.returncode == 0
    phases = [line.split()[1] for line in told.splitlines() if line[:2].isdigit()]
    assert phases == ["stopped", "starting", "failed", "releasing", "stopped"]
    assert main(["engine", "state", "--url", url]) == 1
    assert "expected `k15 engine serve` to run there" in capsys.readouterr().err


def test_what_makes_no_sense_is_refused(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve = ["engine", "serve", "--weights", str(tmp_path / "w"), "--model", str(model)]
    assert main([*serve, "--listen", "8300"]) == 2
    assert "--listen = '8300': expected HOST:PORT" in capsys.readouterr().err
    assert main([*serve, "--max-total-tokens", "513", "--listen", "127.0.0.1:0"]) == 2
    assert "max_total_tokens = 513: expected at most the model's" in capsys.readouterr().err
