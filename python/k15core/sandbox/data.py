"""The daemon's JSON: bytes, what is run, and results."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from k15core.types import RunResult

if TYPE_CHECKING:
    from typing import Any

    from k15core.sandbox.submission import Submission


def to_json(content: bytes) -> str | dict[str, str]:
    """Bytes in the daemon's JSON: a string where they are UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode()}


def from_json(data: str | dict[str, str]) -> bytes:
    """The bytes that `to_json` was given."""
    if isinstance(data, str):
        return data.encode()
    return base64.b64decode(data["base64"])


def result_of(found: dict[str, Any]) -> RunResult:
    """The result that an answer of the daemon tells."""
    files = {path: from_json(content) for path, content in found["files"].items()}
    output = {name: from_json(found[name]) for name in ("stdout", "stderr")}
    return RunResult(**(found | output | {"files": files}))


def as_json(submission: Submission) -> dict[str, object]:
    """What `POST /v1/run` takes."""
    limits = submission.limits
    return {
        "source": submission.source,
        "language": submission.language,
        "arguments": list(submission.arguments),
        "stdin": to_json(submission.stdin),
        "files": {path: to_json(content) for path, content in submission.files.items()},
        "fetch": list(submission.fetch),
        "limits": {} if limits is None else limits.given(),
    }
