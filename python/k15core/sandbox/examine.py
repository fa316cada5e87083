"""What the sandbox can do on this machine, found out by looking and by trying."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from k15core._core import SandboxPool
from k15core.errors import Error
from k15core.sandbox.local import Capability, Sandbox, bind_list, read_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OPTIONAL = ("memory_bytes", "processes", "cpu_seconds", "cpus")
"""Limits that a caller may go without: what `Sandbox(allow_unenforced=...)` takes."""


@dataclass(frozen=True)
class Examination:
    """What was found. A sentence that is empty says that all is well.

    `capabilities` is what runs are held to; `runners` has a sentence for each runner on why it
    does not work here; `languages` one for each language on what is missing.
    """

    capabilities: list[Capability]
    runners: dict[str, str]
    languages: dict[str, str]


def examine(
    languages: Sequence[str | os.PathLike[str]] = (),
    binds: Mapping[str, str | os.PathLike[str]] | None = None,
) -> Examination:
    """Look at this machine and this process, and try every runner with one run.

    `languages` and `binds` are as `Sandbox` takes them.
    """
    names, capabilities, found = SandboxPool.examine(
        [read_table(path) for path in languages], bind_list(binds)
    )
    return Examination(
        capabilities=[Capability(*each) for each in capabilities],
        runners={name: _try(name) for name in names},
        languages=found,
    )


def _try(runner: str) -> str:
    """Why a run by `runner` fails here; empty if it does not."""
    try:
        with Sandbox(slots=1, runner=runner, allow_unenforced=OPTIONAL) as sandbox:
            result = sandbox.execute(["/bin/sh", "-c", "exit 0"])
    except Error as error:
        return str(error)
    return "" if result.verdict == "ok" else f"{result.verdict}: {result.message}"
