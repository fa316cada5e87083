"""The sandbox in this process."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from k15core._core import SandboxPool
from k15core.errors import InvalidInputError
from k15core.sandbox.limits import Limits
from k15core.sandbox.runs import Runs
from k15core.sandbox.submission import Submission, as_submission
from k15core.types import RunResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

SPAWNER = Path(__file__).parents[1] / "_bin" / "k15-spawner"
"""The program that slots are made of; it comes with the package."""
DAEMON = SPAWNER.with_name("k15-sandboxd")
"""The daemon, which comes with the package too."""


@dataclass(frozen=True)
class Capability:
    """One thing that runs are held to: whether this host enforces it, how, and else what to do."""

    name: str
    enforced: bool
    how: str
    remedy: str


class Sandbox(Runs):
    """Runs sources of untrusted programs, each in a sandbox of its own.

    A run has fresh pid, mount and IPC namespaces, no network, a read-only root with the host's
    programs and libraries, and a file system of fixed size at /tmp, in which it starts. It has no
    capabilities, a user of its own, and a list of system calls that it may make. Nothing of one run
    is visible to the next.

    `runner` is how a run is started: "direct" by the kernel's own calls, "crun" as an OCI container
    by crun 1.8 or newer, with the same walls and limits; "crun-plain" likewise with every namespace
    fresh and a /dev with terminals, for images that expect them; "warm" by a copy of an interpreter
    that has started already, for programs in `python`, and the direct way for all others; "auto"
    takes the direct one.

    The interpreters of the warm runner have imported what programs use most, and `warm_modules`
    (numpy, say), which must be there and start no threads. Each serves `warm_runs` runs, one after
    the other, and is then replaced by one that was started meanwhile. These runs share what an
    interpreter draws when it starts, the seed of `hash` for strings and its addresses; `random` and
    `numpy.random` are seeded anew in every run. `warm_runs=1` makes all of it fresh, at the price
    of a start for every run, beside the run before. `rust/sandbox/src/spawner/zygote.py` has what
    else a program can tell.

    `slots` is how many runs there can be at once; one slot is made in advance (`least_slots`), the
    others when they are needed, and given up again when they are not. `limits` are for runs that
    ask for nothing else.

    `root` is a directory with another root file system, or an image of an OCI image layout on disk:
    "oci:DIRECTORY", or "oci:DIRECTORY:NAME" where it holds several. An image is unpacked once, into
    `image_cache` (/var/cache/k15core for root, else below ~/.cache), and its environment is the
    runs' too; they start in /tmp all the same, where their files are. With `writable_root` each run
    can change what its image has as the owner of all of it, and make files at the top of any root;
    what it writes counts against `disk_bytes` and is gone when it ends (runners direct and crun).
    `binds` shows further files or directories of the host, read-only: a path of the sandbox, and
    what is seen there.
    `languages` are files of languages in TOML that add to the built-in table.

    A host that cannot enforce a limit is refused (UnenforceableError says what to do) unless
    `allow_unenforced` names it: `memory_bytes`, `processes`, `cpu_seconds` or `cpus`.
    On cgroup v2 a process alone in its cgroup, with what it has started, lives in a group below it
    for as long as it has a sandbox: docs/cgroup-v2.md.

    An ordinary user has the same walls (in a user namespace, by the direct runner) and the limits
    of whatever cgroups were delegated to it. Runs are then this user to the kernel: a file that
    only this user may read must not lie in what `binds` or `root` show.

    All methods can be called from several threads at once and release the GIL. A process that was
    forked from this one cannot use the sandbox: it opens its own.

    >>> with Sandbox(slots=2) as sandbox:
    ...     result = sandbox.run("print(6 * 7)", language="python")
    >>> result.verdict, result.stdout
    ('ok', b'42\\n')
    """

    def __init__(
        self,
        *,
        slots: int | None = None,
        runner: str = "auto",
        limits: Limits | None = None,
        least_slots: int = 1,
        root: str | os.PathLike[str] | None = None,
        image_cache: str | os.PathLike[str] | None = None,
        writable_root: bool = False,
        binds: Mapping[str, str | os.PathLike[str]] | None = None,
        languages: Sequence[str | os.PathLike[str]] = (),
        warm_modules: Sequence[str] = (),
        warm_runs: int = 128,
        allow_unenforced: Sequence[str] = (),
    ) -> None:
        self._slots = slots if slots is not None else os.cpu_count() or 1
        self._pool = SandboxPool(
            os.fspath(SPAWNER),
            runner=runner,
            slots=_count("slots", self._slots),
            least_slots=_count("least_slots", least_slots),
            limits=(limits or Limits()).given(),
            root=None if root is None else os.fspath(root),
            image_cache=image_cache,
            writable_root=writable_root,
            binds=bind_list(binds),
            languages=[read_table(path) for path in languages],
            warm_modules=list(warm_modules),
            warm_runs=_count("warm_runs", warm_runs),
            allow_unenforced=list(allow_unenforced),
        )
        self._threads: ThreadPoolExecutor | None = None

    def run_many(self, jobs: Sequence[Submission | Mapping[str, Any]]) -> list[RunResult]:
        """Run many sources, keeping every slot busy; results are in the order of `jobs`.

        A job is a `Submission` or a mapping of its fields.
        """
        submissions = [_as_dict(as_submission(job)) for job in jobs]
        return [RunResult(**result) for result in self._pool.run_many(submissions)]

    async def run_many_async(
        self, jobs: Sequence[Submission | Mapping[str, Any]]
    ) -> list[RunResult]:
        """`run_many` without blocking the event loop."""
        return await self._in_thread(lambda: self.run_many(jobs))

    def execute(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        files: Mapping[str, bytes] | None = None,
        executables: Mapping[str, bytes] | None = None,
        fetch: Sequence[str] = (),
        limits: Limits | None = None,
        times: int = 1,
    ) -> RunResult:
        """Run a program by its path in the sandbox, with nothing searched or added.

        It is run `times` times, one run after the other, each in a sandbox of its own; the result
        is the last one's.
        """
        plain = {path: (content, False) for path, content in (files or {}).items()}
        executable = {path: (content, True) for path, content in (executables or {}).items()}
        result = self._pool.execute(
            list(arguments),
            environment=[f"{name}={value}" for name, value in (environment or {}).items()],
            stdin=stdin,
            files=plain | executable,
            fetch=list(fetch),
            limits=(limits or Limits()).given(),
            times=_count("times", times),
        )
        return RunResult(**result)

    def languages(self) -> dict[str, str]:
        """The languages by name, each with a sentence on what is missing for it here.

        The sentence is empty where nothing is missing. A run in a language whose tools are missing
        is refused with that sentence.
        """
        return self._pool.languages()

    def capabilities(self) -> list[Capability]:
        """What runs are held to here, and what not."""
        return [Capability(*each) for each in self._pool.capabilities()]

    @property
    def limits(self) -> Limits:
        """The limits of a run that asks for nothing else."""
        return Limits(**self._pool.limits())

    @property
    def runner(self) -> str:
        """The name of the runner in use."""
        return self._pool.runner

    @property
    def slots(self) -> int:
        """How many runs there can be at once."""
        return self._slots

    @property
    def open_slots(self) -> int:
        """How many slots are made at the moment."""
        return self._pool.open_slots

    def close(self) -> None:
        """End the slots and remove all that was made. Runs under way are waited for."""
        if self._threads is not None:
            self._threads.shutdown()
        self._pool.close()

    def _run(self, submission: Submission) -> RunResult:
        return RunResult(**self._pool.run(_as_dict(submission)))

    def _executor(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._slots, thread_name_prefix="k15-sandbox")
        return self._threads


def _as_dict(submission: Submission) -> dict[str, object]:
    return {
        "source": submission.source,
        "language": submission.language,
        "arguments": list(submission.arguments),
        "stdin": submission.stdin,
        "files": dict(submission.files),
        "fetch": list(submission.fetch),
        "limits": (submission.limits or Limits()).given(),
    }


def _count(field_name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidInputError(f"{field_name} = {value!r}: expected a count of at least 0")
    return value


def bind_list(binds: Mapping[str, str | os.PathLike[str]] | None) -> list[tuple[str, str]]:
    """Pairs of what is shown and where."""
    return [(os.fspath(source), target) for target, source in (binds or {}).items()]


def read_table(path: str | os.PathLike[str]) -> str:
    """The text of a file of languages; InvalidInputError if there is none."""
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        message = f"languages = {os.fspath(path)!r}: expected a file of languages in TOML: {error}"
        raise InvalidInputError(message) from error
