"""The daemon's OpenAPI document against the daemon."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import openapi
import pytest
from daemons import Daemon, daemon, need_daemon
from jsonschema import Draft202012Validator

from k15core.types import RunResult


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    with daemon("--slots", "2") as found:
        yield found


PROGRAM = {
    "source": "print(input())",
    "language": "python",
    "arguments": ["a"],
    "stdin": {"base64": "eA=="},
    "files": {"a": "text", "b": {"base64": "/w=="}},
    "fetch": ["a"],
    "limits": {
        "cpu_seconds": 9.5,
        "wall_seconds": 9.5,
        "memory_bytes": 1 << 28,
        "processes": 32,
        "disk_bytes": 1 << 20,
        "disk_files": 64,
        "output_bytes": 1 << 20,
        "open_files": 64,
        "stack_bytes": 1 << 24,
        "cpus": None,
    },
    "compile_limits": {},
}
BODIES: dict[str, dict[str, Any]] = {
    "/run_code": {
        "code": "print(1)",
        "language": "python",
        "compile_timeout": 10.0,
        "run_timeout": 10.0,
        "memory_limit_MB": 256,
        "stdin": "x",
        "files": {"a": "eA==", "b": None},
        "fetch_files": ["a"],
        "args": ["x"],
    },
    "/run_jupyter": {
        "cells": ["1"],
        "cell_timeout": 0.0,
        "total_timeout": 45.0,
        "memory_limit_MB": 256,
        "kernel": "python3",
        "files": {"a": "eA==", "b": None},
        "fetch_files": ["a"],
    },
    "/v1/run": PROGRAM,
    "/v1/sessions": {"lease_seconds": 5.0, "limits": PROGRAM["limits"]},
    "/v1/batch": {
        "submission": PROGRAM,
        "cases": [{"stdin": "x", "arguments": ["b"], "expected": "x"}, {}],
        "checker": {"kind": "floats", "tolerance": 0.5},
        "stop_at_first_failure": True,
    },
}
"""For each path that takes a body (and has no part that varies) one that has every field."""


def schema_of(path: str) -> dict[str, Any]:
    return dict(
        openapi.document()["paths"][path]["post"]["requestBody"]["content"]["application/json"][
            "schema"
        ]
    )


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return schema | openapi.document()["components"]["schemas"][name] if name else schema


def test_it_is_served_as_it_is_printed(running: Daemon) -> None:
    document = openapi.document()
    assert running.ask("GET", "/openapi.json") == (200, document)
    assert document["openapi"].startswith("3.1.")
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    names = [each["operationId"] for path in document["paths"].values() for each in path.values()]
    assert len(names) == len(set(names))


def test_the_names_that_python_knows() -> None:
    need_daemon()
    schemas = openapi.document()["components"]["schemas"]
    assert set(schemas["RunAnswer"]["properties"]) == {each.name for each in fields(RunResult)}
    said = (RunResult.__doc__ or "").partition(";")[0].replace(",", " ").split()
    verdicts = [each["const"] for each in schemas["Verdict"]["oneOf"]]
    assert said[said.index("ok") :] == verdicts


def test_each_path_takes_the_methods_that_it_says(running: Daemon) -> None:
    for path, methods in openapi.document()["paths"].items():
        connection = running.connect()
        connection.request("OPTIONS", path)
        response = connection.getresponse()
        assert response.status == 405, path
        taken = set(response.headers["Allow"].lower().split(",")) - {"head"}
        assert taken == set(methods), path
        connection.close()


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*at, key))


def changed(body: Any, at: tuple[Any, ...], to: object) -> Any:
    if not at:
        return to
    whole = copy.deepcopy(body)
    inner = whole
    for key in at[:-1]:
        inner = inner[key]
    if to is KeyError:
        del inner[at[-1]]
    else:
        inner[at[-1]] = to
    return whole


def variants(body: Any) -> Iterator[Any]:
    """The body itself, and changed at each place: another type, a field missing, one too many."""
    yield body
    for at in places(body):
        value = body
        for key in at:
            value = value[key]
        for other in ([[]], True, "text", -1.5, None, {"unknown_field": [[]]}):
            yield changed(body, at, other)
        if at and isinstance(at[-1], str):
            yield changed(body, at, KeyError)
        if isinstance(value, dict):
            yield changed(body, at, value | {"unknown_field": 1})
            # A deserializer may take it for the object: fields are in the code's order.
            yield changed(body, at, list(value.values()))
            yield changed(body, at, [])


def test_there_is_a_body_for_each_path_and_it_has_every_field() -> None:
    need_daemon()
    paths = openapi.document()["paths"]
    taking = {path for path in paths if "requestBody" in paths[path].get("post", {})}
    assert set(BODIES) == {path for path in taking if "{" not in path}
    for path, body in BODIES.items():
        assert set(body) == set(resolved(schema_of(path))["properties"])
    schemas = openapi.document()["components"]["schemas"]
    assert set(PROGRAM["limits"]) == set(schemas["LimitChanges"]["properties"])
    assert set(BODIES["/v1/batch"]["cases"][0]) == set(schemas["BatchCase"]["properties"])


@pytest.mark.parametrize("path", BODIES)
def test_the_document_and_the_code_agree_on_what_is_taken(running: Daemon, path: str) -> None:
    check = openapi.validator(schema_of(path))
    assert check.is_valid(BODIES[path])
    disagree = []
    for body in variants(BODIES[path]):
        status, _ = running.ask("POST", path, body)  # which checks the answer
        assert status in (200, 400, 422)
        is_taken, is_valid = status == 200, check.is_valid(body)
        # Some values of the right type make no sense; SandboxFusion's takes text for numbers, too.
        if is_taken and not is_valid and path not in ("/run_code", "/run_jupyter"):
            disagree.append(body)
        if is_valid and not is_taken and body == BODIES[path]:
            disagree.append(body)
    assert not disagree


def test_defaults_are_what_is_done_without_a_field(running: Daemon) -> None:
    for path, body in BODIES.items():
        schema = resolved(schema_of(path))
        least = {name: body[name] for name in schema.get("required", [])}
        defaults = {
            name: field["default"]
            for name, field in schema["properties"].items()
            if "default" in field
        }
        assert set(defaults) == set(schema["properties"]) - set(schema.get("required", [])), path
        assert running.ask("POST", path, least | defaults)[0] == 200, path
        assert running.ask("POST", path, least)[0] == 200, path


def test_it_needs_no_token_and_tells_nothing_of_this_daemon(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token-of-enough-letters")
    settings = f"token_file = '{tmp_path}/token'\npod_name = 'pod'"
    with daemon("--slots", "1", settings=settings, home=tmp_path) as it:
        assert it.ask("GET", "/openapi.json") == (200, openapi.document())
        for path, methods in openapi.document()["paths"].items():
            for method, about in methods.items():
                status, _ = it.ask(method.upper(), path.replace("{", "").replace("}", ""))
                assert (status == 401) == (about.get("security") != []), path
