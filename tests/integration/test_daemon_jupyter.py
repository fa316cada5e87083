"""`/run_jupyter` where there is no ipykernel; tests/peers has the rest."""

from __future__ import annotations

from pathlib import Path

from daemons import daemon

TABLE = """
[jupyter]
file = "driver.py"
tools = { python3 = ["/usr/bin/python3", "/usr/local/bin/python3"] }
run = ["{python3}", "-I", "-S", "driver.py"]
"""


def test_a_kernel_that_is_missing_is_no_fault_of_the_cells(tmp_path: Path) -> None:
    (tmp_path / "jupyter.toml").write_text(TABLE)
    settings = f"[sandbox]\nslots = 1\nlanguages = ['{tmp_path}/jupyter.toml']"
    with daemon(settings=settings, home=tmp_path) as it:
        status, found = it.ask("POST", "/run_jupyter", {"cells": ["print(1)"]})
        assert (status, found["status"], found["cells"]) == (200, "SandboxError", [])
        assert "ipykernel is missing" in found["message"]
        assert "install" in found["message"]
        assert it.ask("GET", "/ready")[0] == 200
