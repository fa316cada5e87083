"""What a run says to the terminal while it goes on.

On a terminal: a panel that is redrawn in place, below the lines that stay. Elsewhere (a pipe, CI):
the lines alone, one for each stage, each held-out evaluation and every tenth iteration.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from k15core.report.schema import Record, number

if TYPE_CHECKING:
    from types import TracebackType

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.-:=+*#"


class LiveDisplay:
    """Shows the records of a run as they come; a context manager.

    `iterations` is how many the run will have, `length_reward_from` the first one (from 1) under
    the length reward, `every` how many iterations pass between two lines where there is no
    terminal. Records are those of metrics.jsonl, without their kind. `clock` counts seconds.
    """

    def __init__(
        self,
        name: str,
        iterations: int,
        *,
        length_reward_from: int | None = None,
        every: int = 10,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._iterations = iterations
        self._length_reward_from = length_reward_from
        self._every = max(1, every)
        self._console = console or Console(highlight=False)
        self._clock = clock
        self._phase, self._phase_began = "starting", clock()
        self._phases: dict[str, float] = {}
        """Seconds by phase, from the last rollout on: what the run did lately, in its order."""
        self._stage: str | None = None
        self._sft: Record = {}
        self._last: Record = {}
        self._held_out: Record = {}
        self._history: list[tuple[float | None, float | None]] = []
        self._resumed = self._repeats = 0
        self._times: deque[tuple[int, float]] = deque(maxlen=20)
        self._live: Live | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(self, console=self._console, refresh_per_second=4)

    def __enter__(self) -> LiveDisplay:
        if self._live is not None:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._phase = "stopped" if error is not None else "done"
            self._live.stop()

    def phase(self, name: str) -> None:
        """Say what the run does now: rollout, train, checkpoint, handover, evaluate, …"""
        self._end_phase()
        self._phase, self._phase_began = name, self._clock()
        if name != "sft":
            self._begin_timing()

    def _end_phase(self) -> None:
        if self._phase in ("rollout", "starting", "sft"):
            self._phases.clear()
        if self._phase != "starting":
            spent = self._clock() - self._phase_began
            self._phases[self._phase] = self._phases.get(self._phase, 0.0) + spent

    def event(self, text: str) -> None:
        """Print a line that stays."""
        if self._live is not None:
            self._console.print(text, markup=False, highlight=False)
        else:
            # Not through rich: it would wrap a line at the 80 columns that it assumes of a pipe.
            print(text, file=self._console.file, flush=True)

    def sft(self, record: Record) -> None:
        """Take in a record of supervised fine-tuning."""
        stage = str(record.get("stage"))
        if stage != self._stage:
            self._end_stage()
            self._stage = stage
            self._times.clear()
            self.event(f"SFT, {stage}: {record.get('steps')} steps")
        self._sft = record
        self._times.append((int(record.get("step") or 0), self._clock()))

    def iteration(self, record: Record) -> None:
        """Take in a record of one iteration."""
        i = int(record["iteration"])
        self._begin_timing()
        self._times.append((i, self._clock()))
        self._last = record
        self._history.append((number(record, "pass_rate"), number(record, "mean_length")))
        self._resumed += int(number(record, "resumed") or 0)
        self._repeats += int(number(record, "repeats_stopped") or 0)
        if self._live is None and i % self._every == 0:
            rate = _or_dash(record, "pass_rate", ".3f")
            figures = [
                f"iteration {i}/{self._iterations}: pass rate {rate}",
                _figure("length", number(record, "mean_length"), ".1f"),
                _figure("tok/s", number(record, "tokens_per_second"), ",.0f"),
                _figure("resumed", number(record, "resumed"), ".0f"),
                _figure("repeats stopped", float(self._repeats), ".0f"),
                _figure("staleness", number(record, "staleness_mean"), ".2f"),
                f"{_clock_face(self._seconds_left())} left",
            ]
            self.event(", ".join(filter(None, figures)))

    def evaluation(self, record: Record) -> None:
        """Take in an evaluation; the greedy controls get a line only before and after RL."""
        self._begin_timing()
        i, label = int(record["iteration"]), str(record["label"])
        if label == "held_out":
            self._held_out = record
        elif 0 < i < self._iterations:
            return
        when = "after SFT" if i == 0 else f"iteration {i}"
        figures = [
            f"{label.replace('_', ' ')}, {when}: pass rate {_or_dash(record, 'pass_rate', '.3f')}",
            _figure("length", number(record, "mean_length"), ".1f"),
        ]
        if label == "held_out":
            behaviour = record.get("behaviour") or {}
            figures += [
                _figure(name.replace("_", " "), number(behaviour, name), ".2f")
                for name in behaviour
            ]
        self.event(", ".join(filter(None, figures)))

    def _end_stage(self) -> None:
        """Tell how a stage of SFT ended. A stage may go on beyond the steps it announced."""
        if not self._sft:
            return
        probe = self._sft.get("probe") or {}
        figures = [
            _figure("loss", number(self._sft, "loss"), ".3f"),
            *(_figure(name.replace("_", " "), number(probe, name), ".3f") for name in probe),
            _figure("tok/s", number(self._sft, "tokens_per_second"), ",.0f"),
        ]
        told = ", ".join(filter(None, figures))
        self.event(f"SFT, {self._stage}: done after {self._sft.get('step')} steps, {told}")
        self._sft, self._stage = {}, None

    def _begin_timing(self) -> None:
        """From the first phase after SFT on, time is counted in iterations."""
        if self._stage is not None:
            self._end_stage()
            self._times.clear()
        if not self._times:
            self._times.append((int(self._last.get("iteration", 0)), self._clock()))

    def _seconds_left(self) -> float | None:
        if len(self._times) < 2:
            return None
        (first, begun), (last, now) = self._times[0], self._times[-1]
        total = int(self._sft.get("steps") or 0) if self._sft else self._iterations
        if last <= first or total < last:
            return None
        ahead = (now - begun) / (last - first) * (total - last)
        return max(0.0, ahead - (self._clock() - now))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        blocks = BLOCKS if options.encoding.startswith("utf") else ASCII_BLOCKS
        step, total, unit = self._progress()
        left = self._seconds_left()
        head = Table.grid(expand=True, padding=(0, 1))
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True, justify="right")
        head.add_row(
            Text.assemble((f"{unit} {step}/{total}", "bold"), ("  " + self._phase, "cyan")),
            ProgressBar(total=max(1, total), completed=step),
            Text("" if left is None else f"{_clock_face(left)} left", "dim"),
        )
        body = Table.grid(expand=True, padding=(0, 2))
        for _ in range(4):
            body.add_column(ratio=1, no_wrap=True)
        cells = [Text.assemble((f"{name} ", "dim"), value) for name, value in self._figures()]
        cells += [Text("")] * (-len(cells) % 4)
        for row in range(0, len(cells), 4):
            body.add_row(*cells[row : row + 4])
        width = max(8, min(60, options.max_width - 34))
        lines = Table.grid(padding=(0, 1))
        rates = [rate for rate, _ in self._history if rate is not None]
        lengths = [length for _, length in self._history if length is not None]
        if rates:
            lines.add_row(
                Text("pass rate", "dim"),
                Text(sparkline(rates, width, 0.0, 1.0, blocks), "green"),
                Text(f"{rates[0]:.2f} to {rates[-1]:.2f}"),
            )
        if lengths:
            lines.add_row(
                Text("length", "dim"),
                Text(sparkline(lengths, width, 0.0, max(lengths), blocks), "magenta"),
                Text(f"{lengths[0]:.1f} to {lengths[-1]:.1f} tokens"),
            )
        grid = Table.grid(expand=True)
        for part in (head, body, self._phase_line(), lines) if self._history else (head, body):
            grid.add_row(part)
        yield Panel(grid, title=f"k15 {self._name}", title_align="left", border_style="dim")

    def _phase_line(self) -> Text:
        """The phases since the last rollout with their seconds, the present one marked."""
        running = self._clock() - self._phase_began
        past = {} if self._phase == "rollout" else self._phases
        shown = Text("phases ", "dim")
        for name, spent in past.items():
            shown.append(f"{name} {spent:.1f} s  ", "dim")
        return shown.append(f"{self._phase} {running:.1f} s", "cyan")

    def _progress(self) -> tuple[int, int, str]:
        if self._sft:
            step, steps = int(self._sft.get("step") or 0), int(self._sft.get("steps") or 0)
            return step, steps, f"SFT, {self._stage}"
        return int(self._last.get("iteration", 0)), self._iterations, "iteration"

    def _figures(self) -> list[tuple[str, str]]:
        if self._sft:
            probe = self._sft.get("probe") or {}
            return [
                ("loss", _or_dash(self._sft, "loss", ".3f")),
                ("tok/s", _or_dash(self._sft, "tokens_per_second", ",.0f")),
                ("learning rate", _or_dash(self._sft, "learning_rate", ".1e")),
                *((str(name), _or_dash(probe, name, ".3f")) for name in probe),
            ]
        last = self._last
        return [
            ("pass rate", _or_dash(last, "pass_rate", ".3f")),
            ("length", _or_dash(last, "mean_length", ".1f")),
            ("tok/s", _or_dash(last, "tokens_per_second", ",.0f")),
            ("held out", _or_dash(self._held_out, "pass_rate", ".3f")),
            ("resumed", f"{_or_dash(last, 'resumed', '.0f')} ({self._resumed:,})"),
            ("repeats stopped", f"{self._repeats:,}"),
            ("staleness", _or_dash(last, "staleness_mean", ".2f")),
            ("length reward", self._length_reward()),
        ]

    def _length_reward(self) -> str:
        start = self._length_reward_from
        if start is None:
            return "off"
        return "on" if int(self._last.get("iteration", 0)) >= start else f"from {start}"


def sparkline(
    values: Sequence[float], width: int, low: float, high: float, blocks: str = BLOCKS
) -> str:
    """The values as a line of at most `width` characters, each the mean of its share of them."""
    width = min(width, len(values))
    line = ""
    for cell in range(width):
        share = values[cell * len(values) // width : (cell + 1) * len(values) // width]
        level = (sum(share) / len(share) - low) / (high - low) if high > low else 0.0
        line += blocks[min(len(blocks) - 1, max(0, int(level * len(blocks))))]
    return line


def _figure(name: str, value: float | None, form: str) -> str:
    return "" if value is None else f"{name} {value:{form}}"


def _or_dash(record: Record, name: str, form: str) -> str:
    value = number(record, name)
    return "-" if value is None else f"{value:{form}}"


def _clock_face(seconds: float | None) -> str:
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
