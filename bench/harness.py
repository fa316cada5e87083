"""How a claim is measured: ours and each peer in turn, round by round, in one run.

Machines are noisy, so what counts is the median of ratios of interleaved pairs, never a time on its
own. A contender is a function that does the work once and returns its cost (seconds, or anything of
which less is better).
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

OUT = Path(__file__).parent / "out"
ROUNDS = 7

Contender = Callable[[], float]


class PeerUnavailableError(Exception):
    """A peer cannot be installed or does not run here; the text says why."""


@dataclass
class Entry:
    """One row of the table: our cost against one peer's or one limit's.

    `ours` and `peer` are in `unit`; `ratio` > 1 when ours is better; `ok` when it reaches `bar`.
    """

    name: str
    ours: float | None
    peer: float | None
    peer_name: str
    unit: str
    ratio: float | None
    bar: float | None
    ok: bool
    reason: str = ""
    pairs: list[tuple[float, float]] = field(default_factory=list)


def compare(
    name: str,
    ours: Contender,
    peers: Mapping[str, Contender | PeerUnavailableError],
    *,
    bars: Mapping[str, float | None],
    unit: str,
    figure: Callable[[float], float] = lambda cost: cost,
    rounds: int = ROUNDS,
    warmup: int = 1,
) -> list[Entry]:
    """Measure ours against each peer, A B C A B C …, after `warmup` rounds that do not count.

    `figure` turns a cost into what the table shows in `unit` (a rate, say). `bars` names the least
    acceptable ratio against each peer, None where there is a row but no bar.
    """
    able = {peer: run for peer, run in peers.items() if not isinstance(run, PeerUnavailableError)}
    costs: dict[str, list[float]] = {peer: [] for peer in able}
    our_costs: list[float] = []
    for turn in range(warmup + rounds):
        cost = ours()
        theirs = {peer: run() for peer, run in able.items()}
        if turn >= warmup:
            our_costs.append(cost)
            for peer, value in theirs.items():
                costs[peer].append(value)
    entries = []
    for peer, run in peers.items():
        bar = bars.get(peer)
        if isinstance(run, PeerUnavailableError):
            entries.append(
                Entry(name, None, None, peer, unit, None, bar, ok=False, reason=str(run))
            )
            continue
        pairs = list(zip(our_costs, costs[peer], strict=True))
        ratio = statistics.median(theirs / mine for mine, theirs in pairs)
        entries.append(
            Entry(
                name=name,
                ours=figure(statistics.median(our_costs)),
                peer=figure(statistics.median(costs[peer])),
                peer_name=peer,
                unit=unit,
                ratio=ratio,
                bar=bar,
                ok=bar is None or ratio >= bar,
                pairs=pairs,
            )
        )
    return entries


def compiled(source: Path, directory: Path) -> ctypes.CDLL:
    """The functions of a C file, compiled into a directory."""
    library = directory / source.with_suffix(".so").name
    command = ["cc", "-O3", "-msse4.2", "-shared", "-fPIC", "-o", str(library), str(source)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PeerUnavailableError(f"{' '.join(command)}: {error}") from error
    return ctypes.CDLL(str(library))


def peer_environment(
    name: str, requirements: list[str], *, no_deps: bool = False, borrow: bool = False
) -> Path:
    """The Python of one peer's own environment, `.venv-bench-NAME`, made at its first use.

    With `borrow`, packages that it lacks are taken from the environment that runs the bench: torch
    need not be installed a second time.
    """
    venv = Path(f".venv-bench-{name}").absolute()
    python, stamp = venv / "bin" / "python", venv / "requirements.txt"
    flags = ["--no-deps"] * no_deps + ["borrow"] * borrow
    wanted = "\n".join([*requirements, *flags])
    if not stamp.exists() or stamp.read_text() != wanted:
        install = [str(python), "-m", "pip", "install", "--quiet", *requirements]
        try:
            subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
            if borrow:  # before the installation, which then takes what is there
                own = Path(sysconfig.get_path("purelib", vars={"base": str(venv)}))
                own.joinpath("borrowed.pth").write_text(sysconfig.get_path("purelib"))
            subprocess.run(install + ["--no-deps"] * no_deps, check=True)
        except subprocess.CalledProcessError as error:
            raise PeerUnavailableError(f"{' '.join(requirements)}: {error}") from error
        stamp.write_text(wanted)
    return python


@contextmanager
def peer_process(python: Path, script: Path, *arguments: str) -> Iterator[Contender]:
    """A contender in another Python: the script answers each input line with one cost as JSON."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [str(python), str(script), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def once() -> float:
            requests.write("\n")
            requests.flush()
            line = answers.readline()
            if not line:
                raise PeerUnavailableError(f"{script.name} ended with {process.wait()}")
            return float(json.loads(line))

        try:
            yield once
        finally:
            requests.close()


def write_summary(entries: list[Entry]) -> Path:
    """Write bench/out/summary.json; rows of claims that did not run this time are kept."""
    OUT.mkdir(exist_ok=True)
    path = OUT / "summary.json"
    fresh = {entry.name for entry in entries}
    kept = (
        [row for row in json.loads(path.read_text()) if row["name"] not in fresh]
        if path.exists()
        else []
    )
    path.write_text(json.dumps(kept + [asdict(entry) for entry in entries], indent=1))
    return path


def table(entries: list[Entry]) -> str:
    """The rows as text, aligned."""

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:,.3g}" if value < 1e4 else f"{value:,.0f}"

    head = ("claim", "ours", "peer", "unit", "ratio", "bar", "", "against")
    rows = [
        (
            e.name,
            cell(e.ours),
            cell(e.peer),
            e.unit,
            cell(e.ratio),
            cell(e.bar),
            "ok" if e.ok else "MISS",
            e.peer_name + (f" ({e.reason})" if e.reason else ""),
        )
        for e in entries
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head) - 1)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False))
        + "  "
        + row[-1]
        for row in [head, *rows]
    )
