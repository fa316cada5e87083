"""What schemathesis loads: how a batch is read; programs and sessions that mostly are there."""

from __future__ import annotations

import json
import os
from typing import Any

import schemathesis


@schemathesis.deserializer("application/x-ndjson")
def read_lines(_: Any, response: Any) -> Any:
    # The schema is that of a line: the last, which every answer has, stands for all.
    return json.loads(response.content.splitlines()[-1])


@schemathesis.hook
def map_path_parameters(context: Any, parameters: Any) -> Any:
    """A made-up session is no session: most become the one that the test has opened."""
    if parameters and "id" in parameters and context.operation.method != "delete":
        is_kept = len(str(parameters["id"])) % 4 == 3
        parameters["id"] = parameters["id"] if is_kept else os.environ["K15_TEST_SESSION"]
    return parameters


@schemathesis.hook
def map_body(_: Any, body: Any) -> Any:
    """A made-up language is no language: three of four become one that is there."""
    programs = [body, body.get("submission")] if isinstance(body, dict) else []
    for program in programs:
        if isinstance(program, dict) and isinstance(program.get("language"), str):
            is_kept = len(program["language"]) % 4 == 3
            program["language"] = program["language"] if is_kept else "python"
    return body
