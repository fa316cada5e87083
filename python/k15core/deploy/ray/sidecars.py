"""Checkpoint engines over the nodes of a Ray cluster: placed, started again, more or fewer of them.

Ray keeps an actor for each, on a node with room for it, and starts it elsewhere when its node is
gone. Where they are stands in a file, which `VllmFleet` reads at each hand-over.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from k15core.errors import InvalidInputError, ProcessDiedError

SECONDS_TO_END = 60.0
"""How long a sidecar may take to end vLLM in order."""


class RaySidecars:
    """`count` checkpoint engines (`k15 engine serve`), each an actor of a Ray cluster.

    `arguments` are those of the command, without its addresses and directories: each listens at its
    node's address, on a port of its own, fetches weights by Mooncake into `weights`/NUMBER there,
    and ends with its actor. `engine_arguments` go to vLLM as they are. `cpus` and `gpus` are what
    Ray reserves for each, `strategy` is Ray's ("SPREAD" over nodes, or "DEFAULT"). `members` is the
    file of addresses.

    Joins the cluster of `address`, by default the one that Ray finds, unless this process is in
    one.
    """

    def __init__(
        self,
        count: int,
        arguments: Sequence[str],
        *,
        members: str | Path,
        weights: str | Path = "/dev/shm/k15core-engines",
        engine_arguments: Sequence[str] = (),
        cpus: float = 1.0,
        gpus: float = 0.0,
        strategy: str = "SPREAD",
        address: str | None = None,
    ) -> None:
        if not ray.is_initialized():
            ray.init(address=address or "auto", log_to_driver=False)
        self._members, self._weights = Path(members), str(weights)
        self._arguments, self._behind = list(arguments), ["--", *engine_arguments]
        self._options: dict[str, Any] = {
            "num_cpus": cpus,
            "num_gpus": gpus,
            "scheduling_strategy": strategy,
            "max_restarts": -1,
            "max_task_retries": -1,
        }
        self._actors: list[Any] = []
        self._made = 0
        self.scale(count)

    def __len__(self) -> int:
        return len(self._actors)

    def scale(self, count: int) -> None:
        """Have so many: the newest are ended first, others begin where there is room."""
        if count < 0:
            raise InvalidInputError(f"count = {count}: expected at least 0")
        leaving = self._actors[count:]
        self._actors = self._actors[:count]
        if leaving:
            self.refresh(seconds=SECONDS_TO_END)  # who is in the file is called
        _end(leaving)
        actor = ray.remote(_Sidecar)
        while len(self._actors) < count:
            own = ["--weights", f"{self._weights}/{self._made}"]
            arguments = [*self._arguments, *own, *self._behind]
            self._actors.append(actor.options(**self._options).remote(arguments))
            self._made += 1

    def refresh(self, *, seconds: float = 60.0) -> list[str]:
        """Have those that ended started again, and the file name all that answer in time."""
        asked = [actor.url.remote() for actor in self._actors]
        ready = ray.wait(asked, num_returns=len(asked), timeout=seconds)[0] if asked else []
        found = []
        for answer in filter(ready.__contains__, asked):  # in the order in which they were made
            with suppress(RayError):
                found.append(str(ray.get(answer)))
        content = "".join(f"{url}\n" for url in found)
        if not self._members.exists() or self._members.read_text() != content:
            fresh = self._members.with_suffix(".fresh")
            fresh.write_text(content)
            fresh.replace(self._members)
        return found

    def close(self) -> None:
        """End all of them. A second call does nothing."""
        actors, self._actors = self._actors, []
        _end(actors)


def _end(actors: Sequence[Any]) -> None:
    """Let each end its vLLM in order, then end it; one that is waiting for room just goes."""
    ending = [actor.close.remote() for actor in actors]
    if ending:
        ray.wait(ending, num_returns=len(ending), timeout=SECONDS_TO_END)
    for actor in actors:
        ray.kill(actor)


class _Sidecar:
    """The actor: one `k15 engine serve`, started again where it ends."""

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = arguments
        self._node = ray.util.get_node_ip_address()
        self._port = "0"
        self._process: subprocess.Popen[str] | None = None

    def url(self) -> str:
        """Where it answers."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        return f"http://{self._node}:{self._port}"

    def close(self) -> None:
        """End it, vLLM first."""
        if self._process is not None:
            self._process.terminate()
            self._process.communicate()

    def _start(self) -> None:
        places = ["--listen", f"{self._node}:{self._port}", "--engine-host", self._node]
        command = [sys.executable, "-m", "k15core.cli", "engine", "serve", "--with-parent", *places]
        self._process = subprocess.Popen(
            [*command, "--fetch-host", self._node, *self._arguments],
            stdin=subprocess.PIPE,  # ends when this actor does
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # Mooncake's engine writes there too.
            if line.startswith("checkpoint engine: "):
                self._port = line.rstrip().rpartition(":")[2]
                return
        raise ProcessDiedError(f"{' '.join(command)} ended with {self._process.wait()}")
