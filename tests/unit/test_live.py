"""The live display: a panel on a terminal, a few plain lines elsewhere."""

import io
import os
import pty
import re
import subprocess
import sys

from rich.console import Console

from k15core.report.live import LiveDisplay, sparkline

# A whole small run: two stages of SFT, twelve iterations, three evaluations, a word to keep.
RUN = """
import sys
from k15core.report.live import LiveDisplay
with LiveDisplay("r", 12, length_reward_from=7, every=5) as live:
    live.phase("sft")
    for stage in ("textbook", "mixed"):
        for step in (5, 10, 15):
            live.sft({"stage": stage, "step": step, "steps": max(10, step), "loss": 0.25,
                      "tokens_per_second": 12345.0, "probe": {"misread": 0.125}})
    live.evaluation({"iteration": 0, "label": "held_out", "pass_rate": 0.375, "mean_length": 7.0})
    for i in range(1, 13):
        for phase in ("rollout", "reward", "train", "handover"):
            live.phase(phase)
        live.iteration({"iteration": i, "pass_rate": i / 12, "mean_length": 9.5, "resumed": 4,
                        "repeats_stopped": 1, "staleness_mean": 0.5, "tokens_per_second": 2e4})
        if i % 6 == 0:
            live.evaluation({"iteration": i, "label": "held_out", "pass_rate": 0.5,
                             "mean_length": 8.0, "behaviour": {"caught": 0.75}})
            live.evaluation({"iteration": i, "label": "greedy", "pass_rate": 0.625})
    live.event("[a word] that stays")
"""

LINES = """\
SFT, textbook: 10 steps
SFT, textbook: done after 15 steps, loss 0.250, misread 0.125, tok/s 12,345
SFT, mixed: 10 steps
SFT, mixed: done after 15 steps, loss 0.250, misread 0.125, tok/s 12,345
held out, after SFT: pass rate 0.375, length 7.0
iteration 5/12: pass rate 0.417, length 9.5, tok/s 20,000, resumed 4, repeats stopped 5, \
staleness 0.50, 0:00 left
held out, iteration 6: pass rate 0.500, length 8.0, caught 0.75
iteration 10/12: pass rate 0.833, length 9.5, tok/s 20,000, resumed 4, repeats stopped 10, \
staleness 0.50, 0:00 left
held out, iteration 12: pass rate 0.500, length 8.0, caught 0.75
greedy, iteration 12: pass rate 0.625
[a word] that stays
"""


def test_a_pipe_gets_plain_lines_and_no_flood() -> None:
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    out = subprocess.run(
        [sys.executable, "-c", RUN], capture_output=True, text=True, check=True, env=environment
    )
    assert out.stderr == ""
    assert re.sub(r"\d:\d\d left", "0:00 left", out.stdout) == LINES
    assert out.stdout.isascii()


def test_a_terminal_gets_a_panel_and_the_lines_stay() -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    with subprocess.Popen(
        [sys.executable, "-c", RUN], stdout=theirs, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        said = b""
        try:
            while block := os.read(ours, 65536):
                said += block
        except OSError:  # the other end closed: how a pseudo-terminal says end of file
            pass
    os.close(ours)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode())
    lines = [line.rstrip() for line in re.split(r"\r?\n|\r", text)]
    for line in LINES.splitlines():
        if "iteration 5/" not in line and "iteration 10/" not in line:
            assert line in lines, f"{line!r} did not stay"
    assert "\x1b[1A" in said.decode(), "the panel is not redrawn in place"
    panel = "\n".join(lines[-8:])
    assert re.search(r"iteration 12/12 +done", panel)
    assert "resumed 4 (48)" in panel
    assert "repeats stopped 12" in panel
    assert re.search(r"pass rate ▁.*█ 0\.08 to 1\.00", panel)


def rendered(width: int, every: float, *, encoding: str = "utf-8") -> str:
    """The panel of a run after two iterations of ten, `every` seconds each, and one more second."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    now = [0.0]
    live = LiveDisplay("r", 10, console=console, clock=lambda: now[0])
    for i in (1, 2):
        live.phase("rollout")
        now[0] += every - 2
        live.phase("train")
        now[0] += 2
        live.iteration({"iteration": i, "pass_rate": 0.5, "mean_length": None})
    live.phase("handover")
    now[0] += 1
    with console.capture() as capture:
        console.print(live)
    return capture.get()


def test_what_is_left_is_told_from_the_iterations_so_far() -> None:
    text = rendered(100, 6.0)
    assert "handover" in text
    assert "0:47 left" in text, "8 iterations of 6 s, less the second since the last one"
    assert "length -" in text, "what was not measured is a dash"


def test_the_phases_since_the_last_rollout_are_told_with_their_seconds() -> None:
    assert "phases rollout 4.0 s  train 2.0 s  handover 1.0 s" in rendered(100, 6.0)


def test_a_narrow_terminal_and_one_without_unicode_are_served() -> None:
    for width in (30, 60, 200):
        lines = rendered(width, 3.0).splitlines()
        assert {len(line) for line in lines} == {width}
    assert rendered(80, 3.0, encoding="ascii").isascii()


def test_a_sparkline_keeps_to_its_width_and_its_scale() -> None:
    assert sparkline([0.0, 1.0], 10, 0.0, 1.0) == "▁█"
    assert sparkline([0.0] * 50 + [1.0] * 50, 4, 0.0, 1.0) == "▁▁██"
    assert sparkline([3.0, 3.0], 4, 3.0, 3.0) == "▁▁"
    assert sparkline([-1.0, 2.0], 4, 0.0, 1.0) == "▁█"
    assert sparkline([], 4, 0.0, 1.0) == ""
