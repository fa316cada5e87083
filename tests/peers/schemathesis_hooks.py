"""What schemathesis loads: how it reads a batch's answer, and programs that mostly can run."""

from __future__ import annotations

import json
from typing import Any

import schemathesis


@schemathesis.deserializer("application/x-ndjson")
def read_lines(_: Any, response: Any) -> Any:
    # The schema is that of a line: the last, which every answer has, stands for all.
    return json.loads(response.content.splitlines()[-1])


@schemathesis.hook
def map_body(_: Any, body: Any) -> Any:
    """A made-up language is no language: three of four become one that is there."""
    programs = [body, body.get("submission")] if isinstance(body, dict) else []
    for program in programs:
        if isinstance(program, dict) and isinstance(program.get("language"), str):
            is_kept = len(program["language"]) % 4 == 3
            program["language"] = program["language"] if is_kept else "python"
    return body
