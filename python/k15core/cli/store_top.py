"""`k15 store top`: how a store is doing, while another process works with it.

What the log says is read from its files without a lock, so that the opener does not notice. Leases
and the capacity are known to the opener alone: they are asked for at its socket, if it serves one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from k15core.cli.units import byte_size
from k15core.errors import ConflictError, CorruptionError, DisconnectedError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from k15core._core import SharedStore, StoreWatcher

NOTES = """what is shown:
  trajectories  unfinished (begun: they have tokens; leased: a worker holds them), finished but not
                scored, scored, gone (their group was used up or removed, and a mark keeps it)
  tokens        response tokens appended and taken in batches, a second, between two frames
  staleness     groups that can still be trained on, by versions behind the newest
  bytes         live: still needed; kept: only for a return to a mark; dead: the rest of what is
                written, freed with the file that it is in
  leases        given, a second. Who holds how many, and the capacity, only the opener knows: give
                its socket if it serves one (Store.serve). Deadlines are taken as times of the clock
                time.time()

The store may be open or not; nothing is locked or changed. The first look reads the log's records
without their tokens, later ones what was added. Without a terminal one frame is printed, as with
--once; it takes as long as --every, because rates need two looks.

exit code:
  0, 1 if a record is damaged, 2 if there is no store

examples:
  k15 store top runs/doors/store
  k15 store top buffer/ --socket buffer.sock --every 5
  k15 store top buffer/ --json | jq -c '[.version, .rates.tokens_in]'
"""

Fields = dict[str, Any]

#: Deadlines farther away than this are times of another clock.
_DAY = 86400.0

#: So often the log is read at least, in seconds: files of a busy store are soon used again.
_READ_EVERY = 0.2


def add_command(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `top` to `k15 store`."""
    parser = actions.add_parser(
        "top",
        help="watch a store that is in use",
        description="Show how a store is doing while another process works with it: trajectories\n"
        "by state, staleness, tokens in and out, leases, bytes.",
        epilog=NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", metavar="DIR", help="the store's directory")
    parser.add_argument("--socket", metavar="PATH", help="where its opener serves it")
    parser.add_argument(
        "--every", metavar="SECONDS", type=float, default=1.0, help="time between frames (1)"
    )
    parser.add_argument("--once", action="store_true", help="print one frame and stop")
    parser.add_argument("--json", action="store_true", help="one JSON object a line for each frame")
    parser.add_argument(
        "--max-uses",
        metavar="N",
        type=int,
        default=1,
        help="how often a group may be sampled before it counts as gone (1)",
    )
    parser.set_defaults(command=_top)


def _top(options: argparse.Namespace) -> int:
    from k15core._core import StoreWatcher

    if not 0.05 <= options.every <= 3600:
        raise InvalidInputError(f"--every = {options.every}: expected 0.05 to 3600 seconds")
    if options.max_uses < 1:
        raise InvalidInputError(f"--max-uses = {options.max_uses}: expected at least 1")
    watcher = StoreWatcher(options.directory, max_uses=options.max_uses)
    opener = Opener(options.directory, options.socket)
    try:
        if options.json:
            for frame in frames(watcher, opener, options.every):
                print(json.dumps(frame), flush=True)
                if options.once:
                    break
        elif options.once or not sys.stdout.isatty():
            print("\n".join(describe(next(frames(watcher, opener, options.every)))))
        else:
            _live(frames(watcher, opener, options.every))
    except CorruptionError as error:
        print(f"k15: {error}. `k15 store verify {options.directory}` names every damage")
        return 1
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # `| head`: Python would complain again when it closes the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


class Opener:
    """The process that has the store open, as far as it can be asked."""

    def __init__(self, directory: str, socket: str | None) -> None:
        self._lock = Path(directory) / "lock"
        self._socket = socket
        self._store = self._connect()

    def _connect(self) -> SharedStore | None:
        from k15core._core import SharedStore

        return None if self._socket is None else SharedStore(self._socket)

    def facts(self) -> Fields:
        """Its process id, its capacity and its leases; None for what is not known."""
        facts: Fields = {"open_by": lock_holder(self._lock), "capacity_bytes": None, "held": None}
        try:
            self._store = self._store or self._connect()
            if self._store is not None:
                facts["capacity_bytes"] = self._store.stats()["capacity_bytes"]
                deadlines = sorted(deadline for _, _, deadline in self._store.leases())
                overdue = sum(0 < time.time() - each < _DAY for each in deadlines)
                facts["held"] = len(deadlines)
                facts["overdue"], facts["next_deadlines"] = overdue, deadlines[overdue:][:3]
        except DisconnectedError:
            pass  # it may come back
        return facts


def lock_holder(lock: Path) -> int | None:
    """The process that holds a lock on a file, as far as the system tells."""
    try:
        state, locks = lock.stat(), Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    place = f"{os.major(state.st_dev):02x}:{os.minor(state.st_dev):02x}:{state.st_ino}"
    for line in locks:
        fields = line.split()
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == place and int(fields[4]) > 0:
            return int(fields[4])
    return None


def frames(watcher: StoreWatcher, opener: Opener, every: float) -> Iterator[Fields]:
    """What is seen, every so many seconds; the first after the first pause, for the rates."""
    last, at = watcher.look(), time.monotonic()
    while True:
        try:
            while (left := at + every - time.monotonic()) > 0:
                time.sleep(min(left, _READ_EVERY))
                watcher.read()
            found = watcher.look()
        except ConflictError:
            continue
        now = time.monotonic()
        same = found["restarts"] == last["restarts"]
        rates = {
            name: (count - last["flow"][name]) / (now - at) if same else None
            for name, count in found["flow"].items()
        }
        last, at = found, now
        yield {"time": time.time(), **found, "rates": rates, **opener.facts()}


def describe(frame: Fields) -> list[str]:
    """A frame as lines of text."""
    states, groups, rates = frame["trajectories"], frame["groups"], frame["rates"]
    dead = frame["bytes_written"] - frame["bytes_live"]
    room = byte_size(frame["bytes_allocated"])
    if frame["capacity_bytes"] is not None:
        room += f" of {byte_size(frame['capacity_bytes'])}"
    leased = "" if frame["held"] is None else f", {frame['held']} leased"
    opened = "not known to be open" if frame["open_by"] is None else f"process {frame['open_by']}"
    return [
        f"opener        {opened}",
        f"trajectories  {states['unfinished']:,} unfinished ({frame['begun']:,} begun{leased}), "
        f"{states['finished']:,} finished, {states['scored']:,} scored, {states['gone']:,} gone",
        f"groups        {groups['all']:,}: {groups['ready']:,} to be sampled, {groups['gone']:,} "
        "used up or removed",
        f"tokens        {frame['tokens']:,} of responses, {_rate(rates['tokens_in'])} in, "
        f"{_rate(rates['tokens_out'])} out",
        f"versions      {frame['version']} is the newest, an unfinished trajectory spans "
        f"{frame['most_versions']} at most",
        "staleness     "
        + (", ".join(f"{age}: {n:,}" for age, n in frame["staleness"].items()) or "no groups"),
        f"leases        {_leases(frame)}",
        "marks         "
        + (", ".join(f"{id_} (version {v})" for id_, v in frame["marks"].items()) or "none"),
        f"bytes         {byte_size(frame['bytes_written'])} written: "
        f"{byte_size(frame['bytes_live'])} live, {byte_size(frame['bytes_kept'])} of it kept for "
        f"marks, {byte_size(dead)} dead",
        f"files         {frame['files']} and {frame['spare_files']} spare, {room}",
    ]


def _leases(frame: Fields) -> str:
    given = f"{_rate(frame['rates']['leases'])} given"
    if frame["held"] is None:
        return f"{given}; who holds them the opener's --socket would say"
    told = f"{given}, {frame['held']} held"
    if frame["overdue"]:
        told += f", {frame['overdue']} past their deadline"
    ahead = [deadline - time.time() for deadline in frame["next_deadlines"]]
    if ahead and abs(ahead[0]) < _DAY:
        told += ", deadlines in " + ", ".join(f"{max(0.0, each):.0f}" for each in ahead) + " s"
    elif ahead:
        told += f", the next until {frame['next_deadlines'][0]:g}"
    return told


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"


def _live(seen: Iterator[Fields]) -> None:
    """Redraw in place, with the history of the rates below."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from k15core.report.live import ASCII_BLOCKS, BLOCKS, sparkline

    console = Console(highlight=False)
    blocks = BLOCKS if console.encoding.startswith("utf") else ASCII_BLOCKS
    history: deque[Fields] = deque(maxlen=600)
    with Live(console=console, auto_refresh=False) as live:
        for frame in seen:
            history.append(frame["rates"])
            lines = describe(frame)
            for name, label in (("tokens_in", "in"), ("tokens_out", "out")):
                rates = [each[name] or 0.0 for each in history]
                drawn = sparkline(rates, max(8, console.width - 30), 0.0, max(rates), blocks)
                lines.append(f"{label:14}{drawn} {_rate(max(rates))} at most")
            live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"), refresh=True)
