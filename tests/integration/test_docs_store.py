"""The program in docs/store.md runs and does what the page says."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "store.md"


def test_several_processes(tmp_path: Path) -> None:
    _, section = PAGE.read_text().split("## Several processes\n")
    lines = section.splitlines()
    start = lines.index("    import multiprocessing")
    end = next(i for i in range(start, len(lines)) if lines[i] and not lines[i].startswith(" "))
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent("\n".join(lines[start:end])))
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (ran.stdout, ran.stderr) == ("16 responses, 1728 tokens\n", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "buffer",
        "buffer.sock.lock",
        "program.py",
    ]
