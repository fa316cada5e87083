"""`k15 store export`."""

from __future__ import annotations

import argparse

NOTES = """formats:
  numpy   a directory of .npy files: packed tokens with cu_seqlens, no package needed
  arrow   one Arrow IPC file, a row a trajectory; needs pyarrow (k15core[arrow])
  hf      a directory for datasets.load_from_disk; needs datasets (k15core[hf])
Each has the columns that the store declares, one entry a token.

exit code:
  0, 1 if the store is damaged so that it does not open, 2 if there is no store, it is open, the
  output is there already or a package is missing

examples:
  k15 store export runs/doors/store --to numpy --out doors/
  k15 store export buffer/ --to hf --out dataset/ --unscored
"""


def add_command(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `export` to the actions of `k15 store`."""
    parser = actions.add_parser(
        "export",
        help="write trajectories as NumPy arrays, an Arrow file or an HF data set",
        description="Write the scored trajectories of a store that nobody has open, for other "
        "tools.\nChanges nothing in the store.",
        epilog=NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", metavar="DIR", help="the store's directory")
    parser.add_argument("--to", required=True, choices=("numpy", "arrow", "hf"), help="the format")
    parser.add_argument(
        "--out", required=True, metavar="PATH", help="what to write; must not exist"
    )
    parser.add_argument(
        "--unscored", action="store_true", help="what is unfinished or not scored yet, too"
    )
    parser.add_argument(
        "--max-uses",
        metavar="N",
        type=int,
        default=1,
        help="how often a group may be sampled before it counts as gone (default: 1)",
    )
    parser.set_defaults(command=_export)


def _export(options: argparse.Namespace) -> int:
    from k15core.errors import CorruptionError, InvalidInputError
    from k15core.integrations.export import export_store

    if options.max_uses < 1:
        raise InvalidInputError(f"--max-uses = {options.max_uses}: expected at least 1")
    try:
        n = export_store(
            options.directory,
            options.to,
            options.out,
            unscored=options.unscored,
            max_uses=options.max_uses,
        )
    except CorruptionError as error:
        print(f"k15: {error}. `k15 store verify {options.directory}` names every damage")
        return 1
    print(f"{n} trajectories: {options.out}")
    return 0
