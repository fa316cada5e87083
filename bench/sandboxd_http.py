"""The daemon against the same sandbox in this process: what HTTP costs a run.

The load generator is a program in Rust (rust/sandboxd/examples/load.rs) with 64 connections that
are kept, or made anew for each request. Generator and daemon share the processors; in this process
nothing but the runs takes their time.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.harness import Contender, Entry, PeerUnavailableError, compare
from k15core.errors import Error
from k15core.sandbox import Sandbox
from k15core.sandbox.local import DAEMON

NAME = "sandboxd.http"
CONNECTIONS = 64
SLOTS = os.cpu_count() or 1
STATIC = """
[static]
file = "main.c"
package = "gcc libc6-dev"
tools = { gcc = ["/usr/bin/gcc"] }
compile = ["{gcc}", "-O2", "-static", "-o", "main", "main.c"]
artifacts = ["main"]
run = ["./main"]
"""
WORK = [
    ("print", "print(1)", "python", 512, 0.8),
    ("static_true", "int main(void) { return 0; }", "static", 2048, 0.6),
]
"""Name, source, language, runs a round, bar."""


def generator() -> Path:
    """The load generator, compiled: `make bench` has done it before."""
    command = ["cargo", "build", "--quiet", "--release", "--package", "k15-sandboxd"]
    try:
        subprocess.run([*command, "--example", "load"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PeerUnavailableError(f"cargo: {error}") from error
    return Path("target/release/examples/load").absolute()


@contextmanager
def daemon(table: Path) -> Iterator[str]:
    """A daemon like the sandbox beside it; its address."""
    settings = table.with_name("sandboxd.toml")
    settings.write_text(
        'listen = "127.0.0.1:0"\nlog_requests = false\n[queue]\nstart_within_seconds = 600\n'
        f'[sandbox]\nrunner = "warm"\nslots = {SLOTS}\nlanguages = ["{table}"]\n'
    )
    command = [str(DAEMON), "--config", str(settings)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            yield str(json.loads(process.stderr.readline())["address"])
        finally:
            process.terminate()
            process.stderr.read()


def over_http(load: Path, address: str, body: Path, runs: int, keeps: str) -> Contender:
    command = [str(load), address, str(CONNECTIONS), str(runs), keeps, str(body)]

    def once() -> float:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return float(json.loads(done.stdout)["seconds"]) / runs

    return once


def in_process(sandbox: Sandbox, job: dict[str, str], runs: int) -> Contender:
    def once() -> float:
        start = time.perf_counter()
        results = sandbox.run_many([job] * runs)
        seconds = time.perf_counter() - start
        assert all(result.verdict == "ok" for result in results), results[0]
        return seconds / runs

    return once


def run() -> list[Entry]:
    entries: list[Entry] = []
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        table = Path(temporary) / "static.toml"
        table.write_text(STATIC)
        try:
            load = generator()
            address = stack.enter_context(daemon(table))
            sandbox = stack.enter_context(Sandbox(slots=SLOTS, runner="warm", languages=[table]))
        except (Error, PeerUnavailableError, ValueError) as error:
            peer = "in process"
            return [Entry(NAME, None, None, peer, "", None, 0.8, ok=False, reason=str(error))]
        for name, source, language, runs, bar in WORK:
            job = {"source": source, "language": language}
            body = Path(temporary) / f"{name}.json"
            body.write_text(json.dumps(job))
            peer = "the same sandbox in process"
            for suffix, keeps, least, rounds in [
                ("", "keep", bar, 7),
                (".new_connections", "new", None, 3),
            ]:
                entries += compare(
                    f"{NAME}.{name}{suffix}",
                    over_http(load, address, body, runs, keeps),
                    {peer: in_process(sandbox, job, runs)},
                    bars={peer: least},
                    unit="runs/s",
                    figure=lambda seconds: 1 / seconds,
                    rounds=rounds,
                )
    return entries
