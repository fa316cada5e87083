"""`k15 engine serve` and the calls to it: the checkpoint engine, a sidecar that owns vLLM."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from k15core.cli import engine_place
from k15core.errors import InvalidInputError, ProcessDiedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from k15core.deploy.checkpoint_engine import EngineState, State
    from k15core.deploy.checkpoint_engine.service import Fetch
    from k15core.deploy.vllm.program import VllmProgram

LISTEN = "127.0.0.1:8300"

SERVE_NOTES = """how it is used:
  the trainer's process calls it over HTTP, once an iteration: start (vLLM takes its memory, on
  dummy weights), update (it reads the weights that the trainer has published), release (it gives
  the memory back). `k15 train` does so where a recipe names its URL; by hand:

    k15 engine start
    k15 engine update 3 --weights /dev/shm/run/weights
    k15 engine state

who may die:
  vLLM: it is started again and given its weights. This process: vLLM goes on, and the next
  `k15 engine serve` with the same --state takes it over. SIGTERM and Ctrl-C end both in order.

release:
  restart ends vLLM's process; nothing of it is left. sleep keeps the process, which is quicker;
  where that gives back too little (as on a CPU, where vLLM's sleep does nothing), it is ended.

anybody who reaches the address may stop vLLM or load other weights: bind it inside the pod.

vLLM's arguments:
  what stands behind -- goes to vLLM as it is, over the defaults that this command sets.

examples:
  k15 engine serve --model models/policy --weights /dev/shm/run/weights
  k15 engine serve --model models/policy --weights /dev/shm/run/weights --device cuda \\
      --release sleep --listen 0.0.0.0:8300 -- --tensor-parallel-size 8
  k15 engine serve --model models/policy --weights /dev/shm/run/weights \\
      --python .venv-vllm/bin/python
"""

CALL_NOTES = """exit code:
  0 if it is done, 1 if the engine failed or no sidecar answers, 2 if it was refused
"""

CALLS = {
    "state": "where the engine is",
    "start": "have vLLM run, on whatever weights; nothing if it does",
    "update": "have it serve with published weights",
    "drain": "have it take no more requests, and wait for those under way",
    "release": "have it give its memory back",
    "stop": "end vLLM's process",
}


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `engine` and what is below it to the command line."""
    top = commands.add_parser(
        "engine", help="the checkpoint engine: a sidecar that starts, updates and stops vLLM"
    )
    actions = top.add_subparsers(required=True, metavar="ACTION")
    raw = argparse.RawDescriptionHelpFormatter
    serve = actions.add_parser(
        "serve",
        help="own a vLLM process and answer calls over HTTP",
        usage="k15 engine serve --model DIR --weights DIR [options] [-- VLLM ARGUMENT ...]",
        description="Own one vLLM server process: start it on dummy weights when asked to, hand\n"
        "it published weights, have it give its memory back, start it again when it dies.",
        epilog=SERVE_NOTES,
        formatter_class=raw,
    )
    serve.add_argument("--model", required=True, metavar="DIR", help="a Hugging Face directory")
    serve.add_argument(
        "--weights", required=True, metavar="DIR", help="where the trainer publishes its weights"
    )
    serve.add_argument(
        "--state", metavar="DIR", help="where the state is kept (default: WEIGHTS.engine)"
    )
    serve.add_argument(
        "--listen", default=LISTEN, metavar="HOST:PORT", help=f"default: {LISTEN}; port 0: any"
    )
    serve.add_argument("--release", choices=("restart", "sleep"), default="restart")
    serve.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    serve.add_argument("--slots", type=int, default=64, help="streams at once (default: 64)")
    serve.add_argument(
        "--max-total-tokens",
        type=int,
        metavar="N",
        help="longest prompt and response together (default: what the model takes)",
    )
    serve.add_argument(
        "--python", metavar="FILE", help="the interpreter that has vLLM (default: this one)"
    )
    serve.add_argument(
        "--start-seconds",
        type=float,
        default=1800,
        metavar="S",
        help="how long vLLM may take to start (default: 1800)",
    )
    serve.add_argument(
        "--engine-host",
        default="127.0.0.1",
        metavar="HOST",
        help="the address at which vLLM itself listens (default: 127.0.0.1)",
    )
    serve.add_argument(
        "--fetch-host",
        metavar="HOST",
        help="let updates name weights of another node, which Mooncake brings into --weights; HOST "
        "is this node's address there",
    )
    serve.add_argument("--fetch-protocol", choices=("tcp", "rdma"), default="tcp")
    serve.add_argument("--fetch-device", default="", metavar="NAME", help="for rdma: which device")
    serve.add_argument(
        "--with-parent",
        action="store_true",
        help="end, vLLM first, when standard input does: with who started this",
    )
    serve.set_defaults(command=_serve)
    engine_place.add_command(actions)
    for name, summary in CALLS.items():
        call = actions.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=CALL_NOTES,
            formatter_class=raw,
        )
        call.add_argument(
            "--url", default=f"http://{LISTEN}", help=f"the sidecar's (default: http://{LISTEN})"
        )
        call.add_argument("--json", action="store_true", help="print it as one JSON object")
        if name == "update":
            call.add_argument("version", type=int, help="what the weights are called")
            call.add_argument(
                "--weights", metavar="DIR", help="where they are published (default: the sidecar's)"
            )
            call.add_argument(
                "--published",
                type=int,
                metavar="N",
                help="the version by which they are published there (default: what is there)",
            )
        call.set_defaults(command=_call, call=name)


def _serve(options: argparse.Namespace) -> int:
    from k15core.deploy.checkpoint_engine import CheckpointEngine, Service

    host, _, port = options.listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise InvalidInputError(f"--listen = {options.listen!r}: expected HOST:PORT")
    weights = os.path.abspath(options.weights)  # noqa: PTH100 - links stay as they are
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    if options.with_parent:
        threading.Thread(target=_set_at_end_of_input, args=(ended,), daemon=True).start()
    with (
        _fetch(options, weights) as fetch,
        CheckpointEngine(
            _program(options),
            options.state or f"{weights}.engine",
            host=options.engine_host,
            release=options.release,
            start_seconds=options.start_seconds,
            observer=_Teller(),
        ) as engine,
    ):
        service = Service(engine, host=host, port=int(port), weights=weights, fetch=fetch)
        thread = threading.Thread(target=service.serve)
        thread.start()
        print(f"checkpoint engine: {service.url}", flush=True)
        ended.wait()
        engine.stop()
        service.shutdown()
        thread.join()
    return 0


def _set_at_end_of_input(ended: threading.Event) -> None:
    while sys.stdin.read(4096):
        pass
    ended.set()


@contextmanager
def _fetch(options: argparse.Namespace, weights: str) -> Iterator[Fetch | None]:
    """What brings weights of another node here, where it was asked for."""
    if options.fetch_host is None:
        yield None
        return
    from k15core.deploy.mooncake import WeightReceiver

    with WeightReceiver(
        weights,
        host=options.fetch_host,
        protocol=options.fetch_protocol,
        device=options.fetch_device,
    ) as receiver:
        yield lambda address: receiver.fetch(address).version


def _program(options: argparse.Namespace) -> VllmProgram:
    from k15core.deploy.vllm.arguments import ModelShape, engine_arguments
    from k15core.deploy.vllm.program import VllmProgram

    longest = options.max_total_tokens
    if longest is None:
        longest = ModelShape.from_directory(options.model).max_positions
    arguments = engine_arguments(
        options.model,
        max_total_tokens=longest,
        slots=options.slots,
        device=options.device,
        load="dummy",
    )
    return VllmProgram(
        arguments,
        extra=tuple(options.program_arguments),
        device=options.device,
        python=options.python,
    )


class _Teller:
    """Says each new phase in a line."""

    def __init__(self) -> None:
        self._said = ""

    def __call__(self, state: State) -> None:
        if state.phase == self._said:
            return
        self._said = state.phase
        parts = [] if state.process is None else [f"pid {state.process.pid}"]
        parts += [] if state.loaded is None else [f"version {state.loaded}"]
        parts += [state.last_error] if state.last_error and state.phase == "failed" else []
        told = f" ({', '.join(parts)})" if parts else ""
        print(f"{time.strftime('%H:%M:%S')} {state.phase}{told}", file=sys.stderr, flush=True)


def _call(options: argparse.Namespace) -> int:
    from k15core.deploy.checkpoint_engine import CheckpointEngineClient

    client = CheckpointEngineClient(options.url, patience=0)
    given: dict[str, Any] = {}
    if options.call == "update":
        weights = options.weights and os.path.abspath(options.weights)  # noqa: PTH100
        given = {
            "directory": weights,
            "version": options.version,
            "published": options.published,
        }
    try:
        state: EngineState = getattr(client, options.call)(**given)
    except ProcessDiedError as error:
        print(f"k15: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(state), indent=2) if options.json else "\n".join(_describe(state)))
    return 0


def _describe(state: EngineState) -> list[str]:
    weights = "none" if state.version is None else f"version {state.version}"
    lines = [
        f"phase       {state.phase}, for {max(0.0, time.time() - state.since):.0f} s"
        if state.since
        else f"phase       {state.phase}",
        f"weights     {weights}{f' of {state.directory}' if state.directory else ''}",
        f"vLLM        {f'pid {state.pid} at {state.url}' if state.pid else 'none'}, "
        f"{state.incarnation} started so far",
    ]
    if state.memory:
        held, left = (state.memory[name] / (1 << 20) for name in ("held", "left"))
        lines.append(
            f"released    {held - left:.0f} of {held:.0f} MiB ({state.memory['kind']} memory)"
        )
    if state.last_error:
        lines.append(f"last error  {state.last_error}")
    return lines
