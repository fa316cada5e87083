"""The vLLM server as a program: its command line, its environment, and how it is spoken to.

It holds no process. `VllmServer` keeps one; the checkpoint engine keeps one by means of its own
(`deploy.checkpoint_engine.EngineProgram` is what it asks of a server).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import k15core
from k15core.deploy.vllm.arguments import command_line, environment
from k15core.deploy.vllm.control import VllmControl
from k15core.errors import Error, InvalidInputError, ProcessDiedError

if TYPE_CHECKING:
    from collections.abc import Mapping

SERVER_ARGUMENTS = {"enable_scale_out": True, "disable_uvicorn_access_log": True}
"""Token ids in and out are served under vLLM's scale-out paths only."""


class VllmProgram:
    """A vLLM 0.32.0 server with these arguments.

    `arguments` are those of `engine_arguments`, and any others of vLLM's command line by the same
    names: they are passed through untouched. `extra` are words of that command line as they are.
    `environment` is put over this process's own. `python` is the interpreter of the environment
    that has vLLM, by default this one. `call_seconds` is how long a control call may take.
    """

    def __init__(
        self,
        arguments: Mapping[str, Any],
        *,
        extra: tuple[str, ...] = (),
        device: str = "cpu",
        environment: Mapping[str, str] | None = None,
        python: str | None = None,
        call_seconds: float = 600.0,
    ) -> None:
        self._words = [*command_line({**SERVER_ARGUMENTS, **arguments}), *extra]
        self._device = device
        self._environment = dict(environment or {})
        self._python = python or sys.executable
        self._call_seconds = call_seconds

    def command(self, listening: int, lifeline: int = -1) -> list[str]:
        """The command line of a server that inherits the bound socket `listening`.

        Where `lifeline` is not -1 it is a pipe whose end is the server's: see `launch`.
        """
        launch = [self._python, "-m", "k15core.deploy.vllm.launch"]
        return [*launch, str(listening), str(lifeline), *self._words]

    def environment(self) -> dict[str, str]:
        """Variables to put over this process's own."""
        mine = {**os.environ, **self._environment}
        defaults = {**environment(self._device), "VLLM_LOGGING_LEVEL": "INFO"}
        if self._device == "cpu":
            # A single worker then lives in the engine core's process: one that starts, and that
            # holds torch in memory, less. vLLM wants it apart where it binds threads to cores.
            defaults["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        # The workers import k15core, which their environment may not have.
        home = str(Path(k15core.__file__).parents[1])
        paths = [home, *filter(None, [mine.get("PYTHONPATH")])]
        return {
            **{name: value for name, value in defaults.items() if name not in mine},
            **self._environment,
            "VLLM_SERVER_DEV_MODE": "1",
            "PYTHONPATH": os.pathsep.join(paths),
        }

    def control(self, url: str) -> VllmControl:
        """The control calls of the server at `url`."""
        return VllmControl(url, seconds=self._call_seconds)

    def is_healthy(self, url: str) -> bool:
        """Whether it answers within a second, and its engine lives."""
        return self.control(url).is_healthy(seconds=1.0)

    def version(self, url: str) -> int | None:
        """Of the weights that it samples with, by its engine's report; None for dummy ones."""
        return self.control(url).version()

    def update(self, url: str, directory: str, version: int, published: int) -> None:
        """Load what is published in `directory`: see `VllmControl.update_weights`.

        Raises InvalidInputError where vLLM could not load it.
        """
        try:
            self.control(url).update_weights(directory, version, published=published)
        except ProcessDiedError:
            raise
        except Error as error:
            raise InvalidInputError(str(error)) from error

    def drain(self, url: str) -> None:
        """Take no more requests, and wait for those under way. `update` and `resume` end it."""
        self.control(url).drain(wait=True)

    def resume(self, url: str) -> None:
        """Take requests again."""
        self.control(url).resume()

    def sleep(self, url: str) -> None:
        """Give the memory of weights and caches back; what runs is aborted first."""
        self.control(url).sleep()

    def wake(self, url: str) -> None:
        """Take the memory again; weights are without content until `update`."""
        self.control(url).wake()
