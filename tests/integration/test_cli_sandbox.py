"""`k15 sandbox`: a program's output, verdict and exit code; what the doctor finds; bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sandboxes import RUNNERS, need

from k15core.cli import main
from k15core.cli.sandbox import EXIT_CODES, LANGUAGES
from k15core.sandbox import examine


def run(*words: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    command = [sys.executable, "-m", "k15core.cli", "sandbox", *words]
    ended = subprocess.run(command, input=stdin, capture_output=True, check=False)
    return ended.returncode, ended.stdout, ended.stderr


def source(folder: Path, text: str, name: str = "main.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_program_with_everything(tmp_path: Path) -> None:
    need()
    (tmp_path / "data.txt").write_text("data")
    (tmp_path / "input").write_bytes(b"in\xff")
    program = source(
        tmp_path,
        "import sys, pathlib\nsys.stdout.buffer.write(sys.stdin.buffer.read())\n"
        "print(sys.argv[1:], pathlib.Path('data.txt').read_text(), pathlib.Path('d/x').read_text())"
        "\nprint('said', file=sys.stderr)\nsys.exit(5)\n",
    )
    code, out, err = run(
        "run", program, "--stdin", str(tmp_path / "input"), "--file", str(tmp_path / "data.txt"),
        "--file", f"d/x={tmp_path / 'data.txt'}", "--limit", "memory_bytes=64M",
        "--limit", "cpu_seconds=1.5", "--", "--one", "--", "two",
    )  # fmt: skip
    assert (code, out) == (5, b"in\xff['--one', '--', 'two'] data data\n"), err
    said, verdict = err.decode().splitlines()
    assert said == "said"
    assert verdict.startswith("k15: nonzero_exit (exit code 5): cpu 0.")


def test_what_is_bound_is_seen(tmp_path: Path) -> None:
    need()
    tmp_path.chmod(0o755)  # a run is a stranger to this user's files
    program = source(tmp_path, "cat /opt/here/main.sh", "main.sh")
    code, out, _ = run("run", program, "--bind", f"/opt/here={tmp_path}")
    assert (code, out) == (0, b"cat /opt/here/main.sh")


def test_source_and_input_from_the_standard_input(tmp_path: Path) -> None:
    need()
    code, out, _ = run("run", "-", "--language", "bash", stdin=b"echo $((6 * 7))")
    assert (code, out) == (0, b"42\n")
    code, out, _ = run(
        "run", source(tmp_path, "cat", "main.sh"), "--stdin", "-", stdin=b"handed on"
    )
    assert (code, out) == (0, b"handed on")


def test_a_result_as_json(tmp_path: Path) -> None:
    need()
    program = source(tmp_path, "import os; os.write(1, b'\\xff1'); os.abort()")
    code, out, err = run("run", program, "--json")
    result = json.loads(out)
    assert (code, err) == (128 + 6, b"")
    assert (result["verdict"], result["signal"], result["stdout"]) == ("signalled", 6, "\ufffd1")


@pytest.mark.parametrize(
    ("text", "limit", "verdict"),
    [
        ("while True: pass", "cpu_seconds=0.1", "cpu_limit"),
        ("import time; time.sleep(9)", "wall_seconds=0.1", "wall_limit"),
        ("x = 'x' * 10 ** 9", "memory_bytes=32M", "memory_limit"),
        ("print('x' * 3000)", "output_bytes=2K", "output_limit"),
    ],
)
def test_a_verdict_has_its_exit_code(tmp_path: Path, text: str, limit: str, verdict: str) -> None:
    need()
    code, _, err = run("run", source(tmp_path, text), "--limit", limit)
    assert code == EXIT_CODES[verdict]
    assert err.splitlines()[-1].startswith(f"k15: {verdict}".encode())


def test_every_suffix_is_of_a_language() -> None:
    assert set(LANGUAGES.values()) == set(examine().languages)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "nowhere.py"], "nowhere.py: No such file"),
        (["run", "main.xyz"], "main.xyz: expected --language"),
        (["run", "-"], "-: expected --language"),
        (["run", "-", "--language", "bash", "--stdin", "-"], "--stdin = '-'"),
        (["run", "main.py", "--language", "cobol"], 'language = "cobol": expected one of'),
        (["run", "main.py", "--runner", "magic"], 'runner = "magic": expected one of auto'),
        (["run", "main.py", "--limit", "memory=1"], "--limit = 'memory=1': expected one of"),
        (["run", "main.py", "--limit", "processes=1.5"], "expected processes=NUMBER"),
        (["run", "main.py", "--limit", "processes=0"], "processes = 0: expected between"),
        (["run", "main.py", "--file", "nowhere.txt"], "nowhere.txt: No such file"),
        (["run", "main.py", "--file", "../x=main.py"], 'files = "../x": expected a path'),
        (["run", "main.py", "--languages", "main.py"], "languages = line 1: expected a table"),
        (["run", "main.py", "--allow-unenforced", "isolation"], 'allow_unenforced = "isolation"'),
        (["run", "main.py", "--bind", "/opt"], "--bind = '/opt': expected TARGET=PATH"),
        (["run", "main.py", "--bind", "/opt=/nowhere"], "binds = /nowhere: expected a path"),
        (["doctor", "--languages", "nowhere.toml"], "languages = 'nowhere.toml': expected a file"),
    ],
)
def test_what_makes_no_sense(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    says: str,
) -> None:
    need()
    monkeypatch.chdir(tmp_path)
    for name in ("main.py", "main.xyz"):
        source(tmp_path, "print(1)", name)
    assert main(["sandbox", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert says in said.err


def test_the_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    found = examine()
    assert set(found.runners) == set(RUNNERS)
    healthy = all(each.enforced for each in found.capabilities) and "" in found.runners.values()
    assert main(["sandbox", "doctor"]) == (0 if healthy else 1)
    page = capsys.readouterr().out
    for name in [*found.runners, *found.languages, *(each.name for each in found.capabilities)]:
        assert f" {name} " in page
    assert main(["sandbox", "doctor", "--json"]) == (0 if healthy else 1)
    told = json.loads(capsys.readouterr().out)
    assert told["languages"] == found.languages
    assert {each["name"] for each in told["capabilities"]} >= {"memory_bytes", "isolation"}


def test_the_doctor_names_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "own.toml"
    table.write_text(
        '[cobol]\nfile = "a"\npackage = "gnucobol"\ntools = { cobc = ["/no/cobc"] }\nrun = ["a"]\n'
    )
    main(["sandbox", "doctor", "--languages", str(table)])
    line = next(each for each in capsys.readouterr().out.splitlines() if "cobol " in each)
    assert line.split()[:2] == ["NO", "cobol"]
    assert line.endswith("apt install gnucobol")
