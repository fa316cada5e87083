"""What the sandbox of this process, that of a daemon and a session have in common."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, TypedDict, TypeVar

from k15core.sandbox.submission import Submission

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor
    from types import TracebackType
    from typing import Any, Self, Unpack

    from k15core.sandbox.limits import Limits
    from k15core.types import RunResult

_T = TypeVar("_T")


class Inputs(TypedDict, total=False):
    """What `run` takes beside a source and its language."""

    stdin: bytes
    files: Mapping[str, bytes] | None
    fetch: Sequence[str]
    arguments: Sequence[str]
    limits: Limits | None


class RunsOne(ABC):
    """Runs sources, one a call; a context manager that closes itself."""

    def run(
        self,
        source: str,
        *,
        language: str,
        stdin: bytes = b"",
        files: Mapping[str, bytes] | None = None,
        fetch: Sequence[str] = (),
        arguments: Sequence[str] = (),
        limits: Limits | None = None,
    ) -> RunResult:
        """Run one source and wait for its end.

        `files` are put into the work directory by relative path; `fetch` names files of it that are
        wanted back, in `RunResult.files` (those that are no regular files, or that a link leads to,
        are in `refused_files` with the reason). A source that is compiled is compiled once for all
        its inputs. Raises InvalidInputError for what makes no sense; a program that fails is a
        verdict, not an exception.
        """
        submission = Submission(
            source=source,
            language=language,
            arguments=arguments,
            stdin=stdin,
            files=files or {},
            fetch=fetch,
            limits=limits,
        )
        return self._run(submission)

    @abstractmethod
    def close(self) -> None:
        """Let go of everything. Runs under way are waited for."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @abstractmethod
    def _run(self, submission: Submission) -> RunResult: ...


class Runs(RunsOne):
    """Runs many sources at once, too, and without blocking."""

    @abstractmethod
    def run_many(self, jobs: Sequence[Submission | Mapping[str, Any]]) -> list[RunResult]:
        """Run many sources, as many at once as can be; results are in the order of `jobs`.

        A job is a `Submission` or a mapping of its fields.
        """

    async def run_async(self, source: str, *, language: str, **inputs: Unpack[Inputs]) -> RunResult:
        """`run` without blocking the event loop. A cancelled task does not end the run."""
        return await self._in_thread(partial(self.run, source, language=language, **inputs))

    async def run_many_async(
        self, jobs: Sequence[Submission | Mapping[str, Any]]
    ) -> list[RunResult]:
        """`run_many` without blocking the event loop."""
        return await self._in_thread(partial(self.run_many, jobs))

    @abstractmethod
    def _executor(self) -> Executor:
        """Threads that calls without blocking wait in."""

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._executor(), work)
