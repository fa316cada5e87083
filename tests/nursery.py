"""Processes that are to be killed by the hundred, forked from one that has imported everything.

A start takes milliseconds. What a child writes on its standard output goes to a file, which
outlives it. A child that a test does not kill dies with the nursery, and that with the test.

python nursery.py    reads `start FILE MODULE FUNCTION WORDS…`, answers with a process id; reads
                     `kill PID`, answers with the wait status
"""

from __future__ import annotations

import ctypes
import importlib
import os
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

DEADLINE = 240.0
PR_SET_PDEATHSIG = 1


class Nursery:
    """The test's side."""

    def __init__(self, mother: subprocess.Popen[str]) -> None:
        self.mother = mother

    def start(self, said: Path, module: str, function: str, *words: object) -> int:
        """A child that calls `module.function(*words)`, all words strings."""
        return self.ask("start", said, module, function, *words)

    def kill(self, child: int) -> None:
        """kill -9, and wait until it is gone."""
        status = self.ask("kill", child)
        assert os.WIFSIGNALED(status), f"{child} ended by itself: {status}"
        assert os.WTERMSIG(status) == signal.SIGKILL

    def ask(self, *words: object) -> int:
        assert self.mother.stdin is not None
        assert self.mother.stdout is not None
        self.mother.stdin.write(shlex.join(map(str, words)) + "\n")
        self.mother.stdin.flush()
        return int(self.mother.stdout.readline())


@contextmanager
def nursery(*modules: str) -> Iterator[Nursery]:
    """One that has `modules` imported."""
    command = [sys.executable, __file__, *modules]
    # A process with threads must not fork.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as mother:
        yield Nursery(mother)
        # Leaving closes its standard input, which ends it.


class Ear:
    """What the children of a folder have said since it was asked last, in whole lines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.heard: dict[Path, int] = {}

    def listen(self) -> str:
        return "".join(self.news(path) for path in sorted(self.folder.glob("*.said")))

    def news(self, path: Path) -> str:
        with path.open("rb") as said:
            said.seek(self.heard.get(path, 0))
            text = said.read()
        text = text[: text.rfind(b"\n") + 1]
        self.heard[path] = self.heard.get(path, 0) + len(text)
        return text.decode()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def main() -> None:
    children: set[int] = set()
    try:
        for line in sys.stdin:
            verb, *words = shlex.split(line)
            if verb == "start":
                answer = fork(*words)
                children.add(answer)
            else:
                answer = kill(int(words[0]))
                children.remove(int(words[0]))
            print(answer, flush=True)
    finally:
        for child in children:
            kill(child)


def kill(child: int) -> int:
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def fork(said: str, module: str, function: str, *words: str) -> int:
    mother = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != mother:
            os._exit(1)
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 1)
        getattr(importlib.import_module(module), function)(*words)
    except BaseException:  # noqa: BLE001 - it must not return into its mother's loop
        traceback.print_exc()
    os._exit(1)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    main()
