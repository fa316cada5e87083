"""The daemon's OpenAPI document, and whether an answer is what it says."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from k15core.sandbox.local import DAEMON


@cache
def document() -> dict[str, Any]:
    printed = subprocess.run([DAEMON, "--openapi"], capture_output=True, check=True, timeout=60)
    return dict(json.loads(printed.stdout))


@cache
def _closed() -> Any:
    """The document's components with no field allowed that it does not name."""

    def close(schema: object) -> object:
        if isinstance(schema, list):
            return [close(each) for each in schema]
        if not isinstance(schema, dict):
            return schema
        closed = {name: close(value) for name, value in schema.items()}
        if isinstance(schema.get("properties"), dict) and "type" in schema:
            closed.setdefault("additionalProperties", False)
        return closed

    return close(document()["components"])


def validator(schema: Mapping[str, Any], *, closed: bool = False) -> Draft202012Validator:
    """A validator of a schema of the document; with `closed` it forbids what is not named."""
    components = _closed() if closed else document()["components"]
    return Draft202012Validator(dict(schema) | {"components": components})


def operation(method: str, path: str) -> dict[str, Any] | None:
    """What the document says of a request; None if it does not know it."""
    words = path.partition("?")[0].split("/")
    for template, methods in document()["paths"].items():
        wanted = template.split("/")
        if len(wanted) == len(words) and all(
            want == word or want.startswith("{") for want, word in zip(wanted, words, strict=True)
        ):
            return dict(methods[method.lower()]) if method.lower() in methods else None
    return None


def check_answer(
    method: str, path: str, status: int, headers: Mapping[str, str], text: str
) -> None:
    """Fail unless the document has this answer to this request."""
    wanted = operation(method, path)
    if wanted is None:
        assert status in (401, 404, 405), (method, path, status)
        assert set(json.loads(text)) == {"error"}
        return
    where = f"{method} {path}: {status}"
    assert str(status) in wanted["responses"], f"{where} is not documented"
    answer = wanted["responses"][str(status)]
    for name, header in answer["headers"].items():
        known = document()["components"]["headers"][header["$ref"].rpartition("/")[2]]
        assert not known["required"] or name in headers, f"{where} without {name}"
    ((media, content),) = answer["content"].items()
    assert headers["content-type"].partition(";")[0] == media.partition(";")[0], where
    values = [text]
    if media == "application/json":
        values = [json.loads(text)]
    elif media == "application/x-ndjson":
        values = list(map(json.loads, text.splitlines()))
    check = validator(content["schema"], closed=True)
    for value in values:
        faults = [f"{fault.json_path}: {fault.message}" for fault in check.iter_errors(value)]
        assert not faults, (where, faults)


def undocumented(requests: list[dict[str, Any]]) -> set[str]:
    """The answers among a daemon's log lines that the document does not have."""
    found = set()
    for line in requests:
        wanted = operation(line["method"], line["path"])
        if wanted is not None and str(line["status"]) not in wanted["responses"]:
            found.add(f"{line['method']} {line['path']}: {line['status']}")
    return found
