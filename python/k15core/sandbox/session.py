"""A sandbox of a daemon that lives over several steps."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from k15core.errors import SandboxError
from k15core.sandbox.data import as_json, from_json, result_of, to_json
from k15core.sandbox.runs import RunsOne

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from k15core.sandbox.limits import Limits
    from k15core.sandbox.submission import Submission
    from k15core.types import RunResult


class Asks(Protocol):
    """Sends a request and gives its answer, until the daemon has taken it."""

    def __call__(self, method: str, path: str, body: bytes, *, once: bool = ...) -> dict[str, Any]:
        """Its JSON. With `once` it is sent again only where it has not begun."""
        ...


@dataclass(frozen=True)
class SessionFile:
    """An entry of a session's work directory.

    `kind` is file, directory or link, `bytes` a file's length, `mode` its permissions in octal and
    `target` what a link says.
    """

    path: str
    kind: str
    bytes: int
    mode: str
    target: str | None = None


class Session(RunsOne):
    """A work directory that every step finds as the one before has left it.

    Each step is a run of its own in a sandbox of its own: files, directories and links of the work
    directory stay, with permissions and times; processes, pipes and memory do not. A step that the
    sandbox fails, or whose files are more than `disk_bytes` in the end, leaves what was there
    before, and its result's `message` says so. What `run` is given, its source and `files`, stays
    too.

    The session ends with `close`, `lease_seconds` after its last use, or with the daemon. Then, and
    when the connection breaks during a step, a call raises SandboxError. One step at a time.
    """

    def __init__(
        self, ask: Asks, *, lease_seconds: float | None = None, limits: Limits | None = None
    ) -> None:
        asked: dict[str, object] = {} if limits is None else {"limits": limits.given()}
        if lease_seconds is not None:
            asked["lease_seconds"] = lease_seconds
        self._ask = ask
        self._path = f"/v1/sessions/{_send(ask, '/v1/sessions', asked)['session_id']}"

    def write(
        self,
        files: Mapping[str, bytes],
        *,
        executables: Mapping[str, bytes] | None = None,
        delete: Sequence[str] = (),
    ) -> None:
        """Remove `delete`, then write `files` by relative path: all of it or nothing.

        A file that is there keeps its permissions; `executables` can be executed. A directory is
        removed with all that is in it. InvalidInputError for a path that leaves the work directory
        or leads through a link, and where the session's disk is too small.
        """
        asked = {
            "files": {path: to_json(content) for path, content in files.items()},
            "executables": {path: to_json(each) for path, each in (executables or {}).items()},
            "delete": list(delete),
        }
        _send(self._ask, f"{self._path}/files", asked)

    def read(self, path: str) -> bytes:
        """A file's content. InvalidInputError if it is no regular file, or reached by a link."""
        found = self._ask("GET", f"{self._path}/files?path={quote(path)}", b"")
        return from_json(found["content"])

    def files(self) -> list[SessionFile]:
        """All that lies in the work directory, in the order of paths."""
        found = self._ask("GET", f"{self._path}/files", b"")["files"]
        return [SessionFile(**each) for each in found]

    def execute(
        self,
        command: str | Sequence[str],
        *,
        stdin: bytes = b"",
        files: Mapping[str, bytes] | None = None,
        fetch: Sequence[str] = (),
        limits: Limits | None = None,
    ) -> RunResult:
        """One step: a command, as a line for the sandbox's shell or as words."""
        return self._step(
            {
                "command": command if isinstance(command, str) else list(command),
                "stdin": to_json(stdin),
                "files": {path: to_json(content) for path, content in (files or {}).items()},
                "fetch": list(fetch),
                "limits": {} if limits is None else limits.given(),
            }
        )

    def renew(self) -> float:
        """Begin the lease anew: the seconds that are left. Every other call does so too."""
        return float(_send(self._ask, f"{self._path}/renew", {})["expires_in"])

    def close(self) -> None:
        """End the session, and the step that is under way."""
        self._ask("DELETE", self._path, b"", once=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # It may have ended before, by its lease or with the daemon.
        with contextlib.suppress(SandboxError):
            self.close()

    def _run(self, submission: Submission) -> RunResult:
        return self._step(as_json(submission))

    def _step(self, asked: Mapping[str, object]) -> RunResult:
        found = _send(self._ask, f"{self._path}/run", asked, once=True)
        del found["kept"]
        return result_of(found)


def _send(
    ask: Asks, path: str, asked: Mapping[str, object], *, once: bool = False
) -> dict[str, Any]:
    return ask("POST", path, json.dumps(asked).encode(), once=once)
