"""`/run_jupyter` with a real ipykernel."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from daemons import Daemon, daemon

NEEDS = "needs ipykernel, which `make test-peers` installs into an environment of its own"
pytest.importorskip("ipykernel", reason=NEEDS)

TABLE = """
# What ipykernel needs may lie in several folders: see scripts/test_peers.sh.
[jupyter]
file = "driver.py"
tools = { python3 = ["/opt/python/bin/python3"] }
run = ["{python3}", "-B", "driver.py"]
environment = ["PYTHONPATH={packages}"]
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("home")
    folders = dict.fromkeys(path for path in sys.path if path.endswith("site-packages"))
    binds = {f"/opt/packages/{number}": path for number, path in enumerate(folders)}
    table = TABLE.replace("{packages}", ":".join(binds))
    (home / "jupyter.toml").write_text(table)
    binds["/opt/python"] = sys.base_prefix
    settings = f"""
    [sandbox]
    slots = 2
    languages = ["{home}/jupyter.toml"]
    binds = {{ {", ".join(f'"{target}" = "{path}"' for target, path in binds.items())} }}
    """
    with daemon(settings=settings, home=home) as found:
        yield found


def jupyter(running: Daemon, *cells: str, **fields: object) -> dict[str, Any]:
    body = {"cells": list(cells)} | fields
    status, found = running.ask("POST", "/run_jupyter", body)
    assert status == 200, found
    return dict(found)


def test_cells_share_a_kernel(running: Daemon) -> None:
    found = jupyter(
        running,
        "a = 'hello'",
        "a",
        "print(a)\nimport sys\nsys.stderr.write('to stderr\\n');",
        "assert False, 'so'",
        "print(a)",
    )
    assert (found["status"], found["message"]) == ("Success", "")
    assert found["driver"]["status"] == "Finished"
    assert (found["driver"]["return_code"], found["driver"]["stdout"]) == (0, "")
    nothing = {"stdout": "", "stderr": "", "display": [], "error": []}
    cells = found["cells"]
    assert cells[0] == nothing
    assert cells[1] == nothing | {"display": [{"text/plain": "'hello'"}]}
    assert cells[2] == nothing | {"stdout": "hello\n", "stderr": "to stderr\n"}
    (error,) = cells[3]["error"]
    assert (error["ename"], error["evalue"]) == ("AssertionError", "so")
    assert any("assert" in line for line in error["traceback"])
    assert cells[4] == nothing | {"stdout": "hello\n"}


def test_what_is_shown_has_its_media_type(running: Daemon) -> None:
    code = "from IPython.display import HTML, display\ndisplay(HTML('<b>x</b>'))\nHTML('<i>y</i>')"
    (cell,) = jupyter(running, code)["cells"]
    assert [each["text/html"] for each in cell["display"]] == ["<b>x</b>", "<i>y</i>"]


def test_processes_of_a_cell_print_where_it_prints(running: Daemon) -> None:
    fork = "from multiprocessing import get_context\np = get_context('fork').Process(target=print,"
    fork += " args=('forked',))\np.start(); p.join()"
    found = jupyter(running, "!echo from a shell", fork)
    assert [cell["stdout"].strip() for cell in found["cells"]] == ["from a shell", "forked"]


def test_files_go_in_and_out(running: Daemon) -> None:
    content = bytes(range(256))
    files = {"in/a.bin": base64.b64encode(content).decode()}
    code = "open('out.bin', 'wb').write(open('in/a.bin', 'rb').read()[::-1])"
    found = jupyter(running, code, files=files, fetch_files=["out.bin", "not-there"])
    assert list(found["files"]) == ["out.bin"]
    assert base64.b64decode(found["files"]["out.bin"]) == content[::-1]


@pytest.mark.parametrize("timeouts", [{"cell_timeout": 1}, {"total_timeout": "1.5"}])
def test_a_cell_that_is_out_of_time(running: Daemon, timeouts: dict[str, object]) -> None:
    cells = ("print(1)", "import time\nprint(2, flush=True)\ntime.sleep(99)", "print(3)")
    found = jupyter(running, *cells, **timeouts)
    assert found["status"] == "Failed"
    assert found["driver"]["status"] == "TimeLimitExceeded"
    assert found["cells"][0]["stdout"] == "1\n"
    assert len(found["cells"]) == 2
    again = jupyter(running, "print(4)")
    assert again["cells"][0]["stdout"] == "4\n"


def test_a_cell_that_ends_the_kernel(running: Daemon) -> None:
    found = jupyter(running, "print(1)", "import os; os._exit(3)", "print(3)")
    assert found["status"] == "Failed"
    assert [len(cell["error"]) for cell in found["cells"]] == [0, 1]
    assert found["cells"][1]["error"][0]["ename"] == "DeadKernelError"
    # One that takes along who drives it, or stops that for ever.
    killed = jupyter(running, "import os, signal; os.kill(os.getppid(), signal.SIGKILL)")
    assert (killed["status"], killed["driver"]["return_code"]) == ("Failed", -9)
    assert killed["cells"] == []


def test_more_memory_than_it_may_have(running: Daemon) -> None:
    found = jupyter(running, "x = bytearray(10**9)", memory_limit_MB=256)
    assert found["status"] == "Failed" or found["cells"][0]["error"][0]["ename"] == "MemoryError"


def test_a_cell_does_not_read_input_and_reaches_no_network(running: Daemon) -> None:
    found = jupyter(running, "input()", "import socket; socket.create_connection(('127.0.0.1', 1))")
    names = [cell["error"][0]["ename"] for cell in found["cells"]]
    assert names == ["StdinNotImplementedError", "OSError"]


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({}, "cells"),
        ({"cells": "print(1)"}, "cells"),
        ({"cells": [1]}, "0"),
        ({"cells": [], "kernel": "julia"}, "kernel"),
        ({"cells": [], "total_timeout": "soon"}, "total_timeout"),
        ({"cells": [], "total_timeout": 1e6}, "body"),
    ],
)
def test_requests_that_are_wrong(running: Daemon, body: object, place: str) -> None:
    status, found = running.ask("POST", "/run_jupyter", body)
    assert status == 422
    assert found["detail"][0]["loc"][-1] == place
