"""The server's process: `python -m k15core.deploy.vllm.launch SOCKET LIFELINE VLLM_ARGUMENTS…`.

vLLM's own entry point with three things before it. SOCKET is the number of an inherited socket that
is bound, so that nobody can take its port in between. Where LIFELINE is not -1 it is a pipe's end
that reads end-of-file when the owner dies; the whole process group ends then. Workers learn this
process's id, and end the group when it does (`worker.py`): vLLM 0.32.0 leaves its engine core
behind, with its memory, when the HTTP process is killed.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading

from k15core.deploy.vllm.group import end_own_group

SERVER_PID = "K15CORE_VLLM_SERVER_PID"


def end_group_at_eof(file: int) -> None:
    """Watch a pipe in a thread; kill this process's group when its other end is closed."""

    def watch() -> None:
        while os.read(file, 64):
            pass
        end_own_group()

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def end_group_with(pid: int) -> None:
    """Watch a process in a thread; kill this process's group when that one has ended."""
    try:
        file = os.pidfd_open(pid)
    except ProcessLookupError:
        end_own_group()
        raise

    def watch() -> None:
        select.select([file], [], [])
        end_own_group()

    threading.Thread(target=watch, name="server watch", daemon=True).start()


def main(words: list[str]) -> None:
    """Serve until a signal ends it."""
    lifeline, arguments = int(words[1]), words[2:]
    if lifeline >= 0:
        end_group_at_eof(lifeline)
    os.environ[SERVER_PID] = str(os.getpid())
    listening = socket.socket(fileno=int(words[0]))
    host, port = listening.getsockname()[:2]

    import asyncio

    from vllm.entrypoints.launchers.api_server.entry import run_server_worker
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parser = make_arg_parser(FlexibleArgumentParser())
    args = parser.parse_args([*arguments, "--host", host, "--port", str(port)])
    configure_logging_from_args(args)
    validate_parsed_serve_args(args)
    asyncio.run(run_server_worker(f"http://{host}:{port}", listening, args))


if __name__ == "__main__":
    main(sys.argv[1:])
