"""A daemon under schemathesis, which makes requests of all kinds from its OpenAPI document."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import openapi
import pytest
from daemons import daemon, need_daemon

NEEDS = "needs schemathesis, which `make test-peers` installs into an environment of its own"
pytest.importorskip("schemathesis", reason=NEEDS)

from openapi_spec_validator import validate

EXAMPLES = 50
"""Requests for each endpoint, beside those that try each field's edges."""

CONFIG = """
seed = 1

[checks]
# A request of the right form can make no sense.
positive_data_acceptance.enabled = false
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "503", "504"]

# SandboxFusion's server takes numbers as text, and fields that it does not know.
[[operations]]
include-path = "/run_code"
checks.negative_data_rejection.enabled = false

[[operations]]
include-path = "/run_jupyter"
checks.negative_data_rejection.enabled = false
"""


def test_the_document_is_openapi() -> None:
    need_daemon()
    validate(openapi.document())


def test_no_request_breaks_it_and_every_answer_is_documented(tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    hooks = Path(__file__).with_name("schemathesis_hooks.py")
    environment = os.environ | {"SCHEMATHESIS_HOOKS": hooks.stem, "PYTHONPATH": str(hooks.parent)}
    command = [str(Path(sys.executable).with_name("st"))]
    command += ["--config-file", str(tmp_path / "schemathesis.toml"), "run", "--no-color"]
    command += ["--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES)]
    command += ["--generation-database", "none", "--request-timeout", "120"]
    with daemon("--slots", "2") as it:
        session = it.ask("POST", "/v1/sessions", {})[1]["session_id"]
        environment["K15_TEST_SESSION"] = session
        done = subprocess.run(
            [*command, f"{it.url}/openapi.json"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        requests = [line for line in it.log if line["event"] == "request"]
        faults = [line for line in it.log if line["event"] == "fault"]
        assert it.ask("GET", "/ready")[0] == 200
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert not faults
    ran = [line for line in requests if line["path"] == "/v1/run" and line["status"] == 200]
    assert len(ran) > EXAMPLES // 10, "programs are to be run, not only refused"
    stepped = [line for line in requests if line["path"].startswith("/v1/sessions/{id}/")]
    assert any(line["status"] == 200 for line in stepped), "of a session that is there, too"
