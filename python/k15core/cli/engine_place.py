"""`k15 engine place`: sidecars on the nodes of a Ray cluster, for a fleet that rolls out."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from pathlib import Path

from k15core.errors import InvalidInputError

NOTES = """nodes need k15core, vLLM and Mooncake; they fetch the weights from the trainer's node:

  engine: {kind: vllm_fleet, members: engines.txt, transfer: {host: HEAD}}

more or fewer: where COUNT is a file, it is read again every ten seconds; what is new joins the
fleet at its next hand-over, what is gone leaves it.

examples:
  k15 engine place 4 --members engines.txt --model /shared/models/policy --device cuda --gpus 8 \\
      -- --tensor-parallel-size 8
"""

SECONDS = 10.0


def add_command(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `place` to what is below `engine`."""
    place = actions.add_parser(
        "place",
        help="have Ray keep sidecars on the nodes of a cluster",
        usage="k15 engine place COUNT --members FILE --model DIR [options] [-- VLLM ARGUMENT ...]",
        description="Have Ray keep COUNT sidecars on nodes with room, and start them again where\n"
        "they end. FILE has their addresses, for `{kind: vllm_fleet, members: FILE}`.\n"
        "Runs until it is ended, and ends them then.",
        epilog=NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    place.add_argument("count", metavar="COUNT", help="a number, or a file that holds one")
    place.add_argument("--members", required=True, metavar="FILE", help="where addresses go")
    place.add_argument("--model", required=True, metavar="DIR", help="seen by all nodes")
    place.add_argument(
        "--weights",
        default="/dev/shm/k15core-engines",
        metavar="DIR",
        help="where weights are fetched to on each node (default: /dev/shm/k15core-engines)",
    )
    place.add_argument("--release", choices=("restart", "sleep"), default="sleep")
    place.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    place.add_argument("--slots", type=int, default=64, help="streams at once (default: 64)")
    place.add_argument("--max-total-tokens", type=int, metavar="N", help="as for serve")
    place.add_argument("--cpus", type=float, default=1.0, help="of a sidecar (default: 1)")
    place.add_argument("--gpus", type=float, default=0.0, help="of a sidecar (default: 0)")
    place.add_argument("--strategy", default="SPREAD", help="Ray's: SPREAD (the default), DEFAULT")
    place.add_argument("--address", help="the cluster's (default: the one that Ray finds)")
    place.set_defaults(command=_place)


def _place(options: argparse.Namespace) -> int:
    from k15core.deploy.ray import RaySidecars

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    arguments = ["--model", os.path.abspath(options.model), "--device", options.device]  # noqa: PTH100
    arguments += ["--release", options.release, "--slots", str(options.slots)]
    if options.max_total_tokens is not None:
        arguments += ["--max-total-tokens", str(options.max_total_tokens)]
    sidecars = RaySidecars(
        _count(options.count),
        arguments,
        engine_arguments=options.program_arguments,
        members=options.members,
        weights=options.weights,
        cpus=options.cpus,
        gpus=options.gpus,
        strategy=options.strategy,
        address=options.address,
    )
    told: list[str] = []
    try:
        while not ended.is_set():
            sidecars.scale(_count(options.count))
            found = sidecars.refresh()
            if found != told:
                print(f"{len(found)} of {len(sidecars)}: {' '.join(found)}", flush=True)
                told = found
            ended.wait(SECONDS)
    finally:
        sidecars.close()
    return 0


def _count(text: str) -> int:
    """A number, or what a file says now."""
    if text.isdigit():
        return int(text)
    try:
        found = Path(text).read_text().strip()
    except OSError as error:
        raise InvalidInputError(
            f"COUNT = {text}: {error.strerror}, expected a number or a file that holds one"
        ) from error
    if not found.isdigit():
        raise InvalidInputError(f"COUNT = {text}: it holds {found!r}, expected a number")
    return int(found)
