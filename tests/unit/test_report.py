"""The pages of a run: whatever was measured, whatever is missing, whatever the texts hold."""

import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k15core.errors import InvalidInputError
from k15core.report.compare import write_comparison
from k15core.report.html import duration, write_report
from k15core.report.metrics import MetricsWriter
from k15core.report.picture import write_picture
from k15core.report.svg import Chart, plain_number, ticks
from k15core.report.texts import SHORTEST_LOOP, loop_in, shorten

RUN = Path(__file__).parents[1] / "data" / "run"
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Checks that elements nest, and collects tags, attributes and the ids that links name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.words += data


def lines_of(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def page_of(directory: Path, lines: list[dict[str, Any]]) -> Page:
    directory.mkdir(exist_ok=True)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Page(write_report(directory).read_text())


def test_a_recorded_run_has_every_section(tmp_path: Path) -> None:
    page = page_of(tmp_path, lines_of(RUN))
    ids = {value for name, value in page.attributes if name == "id"}
    links = {
        str(value)[1:] for name, value in page.attributes if name == "href" and "#" in str(value)
    }
    assert links == ids
    assert ids >= {
        "learning",
        "responses",
        "partial",
        "store",
        "repeats",
        "time",
        "optimisation",
        "recipe",
    }
    for words in (
        "Pass rate and response length",
        "length reward on",
        "steps checked",
        "Segments a trajectory",
        "Staleness",
        "by difficulty",
        "Supervised fine-tuning",
        "Gradient norm",
        "RL elicits and sharpens what SFT planted",
        "standard error",
    ):
        assert words in page.words, words


def test_the_store_is_told_by_its_histograms(tmp_path: Path) -> None:
    """Counts are added up over the run; stragglers share the last bar."""
    lines = [line for line in lines_of(RUN) if line["kind"] != "iteration"]
    for i, stale in ((1, {"0": 6, "1": 2}), (2, {"0": 1, "1": 1}), (3, {"30": 1, "40": 1})):
        segments = {"1": 3, "2": 1}
        lines.append(
            {"kind": "iteration", "iteration": i, "seconds": 1.0, "segments_histogram": segments}
            | {"staleness_histogram": stale}
            | {"length_histogram": {"edges": [0, 5, 10, 15], "counts": [1, 3, 0]}}
        )
    page_of(tmp_path, lines)
    text = (tmp_path / "report.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    for title in (
        "0 to 5 tokens: 3, 25 %",
        "5 to 10 tokens: 9, 75 %",
        "1 segments: 9, 75 %",
        "2 segments: 3, 25 %",
        "0 versions behind: 7, 58 %",
        "1 versions behind: 3, 25 %",
        "11 to 40 versions behind: 2, 17 %",
    ):
        assert f"<title>{title}</title>" in text, title
    assert "10 to 15 tokens" not in text


def test_the_headline_is_the_summary(tmp_path: Path) -> None:
    page = page_of(tmp_path, lines_of(RUN))
    held_out = [x for x in lines_of(RUN) if x["kind"] == "evaluation" and x["label"] == "held_out"]
    first, last = held_out[0], held_out[-1]
    for rate in (first["pass_rate"], last["pass_rate"]):
        assert f"{100 * rate:.0f}\N{NO-BREAK SPACE}%" in page.words
    for length in (first["mean_length"], last["mean_length"]):
        assert f"{length:.1f}" in page.words


def test_figures_are_well_formed(tmp_path: Path) -> None:
    page_of(tmp_path, lines_of(RUN))
    text = (tmp_path / "report.html").read_text()
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) >= 24, "each figure is drawn for wide and for narrow pages"
    for drawing in drawings:
        tree = ElementTree.fromstring(drawing)
        _, _, width, height = map(float, str(tree.get("viewBox")).split())
        assert width > 0
        assert height > 0
        assert tree.get("aria-label")
    assert "nan" not in re.sub(r"<text[^>]*>[^<]*|<title>[^<]*", "", "".join(drawings)).lower()


def test_nothing_is_loaded_and_nothing_runs(tmp_path: Path) -> None:
    page = page_of(tmp_path, lines_of(RUN))
    assert not set(page.tags) & {"script", "iframe", "img", "object", "embed", "base", "form"}
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "action", "srcset"):
            assert str(value).startswith(("#", "data:"))
    assert "url(" not in (tmp_path / "report.html").read_text()
    assert "@import" not in (tmp_path / "report.html").read_text()


EVIL = (
    "</style></title><script>alert(1)</script><img src=x onerror=alert(1)>\"' {{ 7*7 }} & \ud800\0"
)


def poisoned(value: Any) -> Any:
    """Every text in a value, keys included, made hostile; what gives a line its meaning stays."""
    if isinstance(value, str):
        return EVIL + value
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    if isinstance(value, dict):
        keep = ("kind", "label", "when", "stage", "reward")
        return {k: v if k in keep else poisoned(v) for k, v in value.items()}
    return value


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    lines = [poisoned(line) for line in lines_of(RUN)]
    for line in lines:
        for name in (
            "behaviour",
            "by_difficulty",
            "success_by_difficulty",
            "phase_seconds",
            "probe",
        ):
            if name in line:
                line[name] = {EVIL + key: value for key, value in line[name].items()}
    loop = {"kind": "repetition", "iteration": 3, "trajectory_id": EVIL, "text": EVIL * 9}
    event = {"kind": "event", "iteration": 3, "text": EVIL}
    page = page_of(tmp_path / "evil", [*lines, loop, event])
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert "{{ 7*7 }}" in page.words
    shutil.copytree(tmp_path / "evil", tmp_path / "<b>two")
    compared = write_comparison([tmp_path / "evil", tmp_path / "<b>two"])
    assert not {"script", "img", "b"} & set(Page(compared.read_text()).tags) - {"b"}
    drawn = write_picture(tmp_path / "evil", tmp_path / "p.svg").read_text()
    assert "<script" not in drawn


def small() -> list[dict[str, Any]]:
    """A run with one line of each kind and shape, taken from the recorded one."""
    lines = lines_of(RUN)
    seen: dict[object, int] = {}
    kept = []
    for line in lines:
        key = (line["kind"], line.get("label"), line.get("when"), line.get("stage"))
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= (3 if line["kind"] in ("iteration", "evaluation") else 1):
            kept.append(line)
    kept.append(
        {"kind": "repetition", "iteration": 1, "trajectory_id": 7, "start": 2, "period": 3,
         "covered": 30, "loop_kind": "exact", "text": "a b " + "c d e " * 10}
    )  # fmt: skip
    return kept


def changed(lines: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The run with one field, also one inside a field, missing or of another type, everywhere."""
    absent = object()
    paths: set[tuple[str, ...]] = set()
    for line in lines:
        for key, value in line.items():
            paths.add((key,))
            if isinstance(value, dict) and key != "recipe":
                paths |= {(key, inner) for inner in list(value)[:2]}
    for path in sorted(paths - {("kind",)}):
        for other in (absent, None, "x", -3, 1e30, [{}], {"x": "y"}):
            copy = json.loads(json.dumps(lines))
            for line in copy:
                place = line
                for key in path[:-1]:
                    place = place.get(key) or {}
                if path[-1] in place:
                    if other is absent:
                        del place[path[-1]]
                    else:
                        place[path[-1]] = other
            yield f"{'.'.join(path)} = {'absent' if other is absent else other!r}", copy


def test_any_field_may_be_missing_or_wrong(tmp_path: Path) -> None:
    pages = refused = 0
    for name, lines in changed(small()):
        try:
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (tmp_path / "metrics.jsonl").write_text(text)
            write_report(tmp_path)
            pages += 1
        except InvalidInputError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"with {name}") from error
    assert pages > 200
    assert refused > 50


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    lines = lines_of(RUN)
    page = page_of(tmp_path, lines[:1])
    assert "no iterations and no evaluations yet" in page.words
    assert "No evaluation on held-out prompts" in page.words
    for n in (2, 5, 25, 40):
        page_of(tmp_path, lines[:n])


def test_repeats_are_shown_with_their_loop(tmp_path: Path) -> None:
    page = page_of(tmp_path, small())
    assert "exact repeat from token 2, period 3, 30 tokens covered" in page.words
    text = (tmp_path / "report.html").read_text()
    (first,) = re.findall(r'loop first">([^<]*)', text)
    assert sorted(first.split()) == ["c", "d", "e"]


def test_versions_have_colours(tmp_path: Path) -> None:
    page_of(tmp_path, lines_of(RUN))
    text = (tmp_path / "report.html").read_text()
    assert 'class="piece segment1" title="version ' in text
    assert 'class="piece segment2" title="version ' in text


def test_a_comparison_needs_two_runs_that_can_be_read(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(RUN / "metrics.jsonl", tmp_path / name)
    with pytest.raises(InvalidInputError, match="expected at least two"):
        write_comparison([tmp_path / "a"])
    with pytest.raises(InvalidInputError, match="no such run directory"):
        write_comparison([tmp_path / "a", tmp_path / "c"])
    path = write_comparison([tmp_path / "a", tmp_path / "b"])
    assert path == tmp_path / "compare.html"
    page = Page(path.read_text())
    assert "pass rate at the end" in page.words
    assert "Pass rate over tokens" in page.words


def test_a_comparison_of_runs_without_measurements(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with MetricsWriter(tmp_path / name, tensorboard=False) as metrics:
            metrics.write("run", name=name, seed=1)
    page = Page(write_comparison([tmp_path / "a", tmp_path / "b"]).read_text())
    assert "svg" not in page.tags
    assert "seed" in page.words


def test_a_picture_is_one_svg_file(tmp_path: Path) -> None:
    tree = ElementTree.parse(write_picture(RUN, tmp_path / "docs" / "demo.svg"))
    assert tree.getroot().tag.endswith("svg")
    with pytest.raises(InvalidInputError, match=r"expected a name that ends in \.svg"):
        write_picture(RUN, tmp_path / "demo.png")
    with MetricsWriter(tmp_path / "a", tensorboard=False) as metrics:
        metrics.write("run", name="a", seed=1)
    with pytest.raises(InvalidInputError, match="no evaluation to draw"):
        write_picture(tmp_path / "a", tmp_path / "demo.svg")


def oracle(text: str) -> tuple[int, int]:
    """The tail that repeats with some period at least twice and covers most, by definition."""
    best = (len(text), 0)
    for period in range(1, len(text) // 2 + 1):
        start = len(text) - period
        while start > 0 and text[start - 1] == text[start - 1 + period]:
            start -= 1
        covered = len(text) - start
        if covered >= max(2 * period, SHORTEST_LOOP) and start < best[0]:
            best = (start, period)
    return best


@given(
    st.text("ab", max_size=40)
    | st.tuples(st.text("abc", max_size=5), st.text("abc", min_size=6, max_size=9)).map(
        lambda parts: parts[0] + 2 * parts[1]
    )
    | st.text("ab ", max_size=9).map(lambda s: "xb" + s * 7)
)
def test_a_loop_is_found_where_it_begins(text: str) -> None:
    assert loop_in(text) == oracle(text)


@given(
    st.floats(-1e6, 1e6, allow_nan=False), st.floats(1e-6, 1e6), st.integers(1, 10)
)  # fmt: skip
def test_ticks_are_round_and_inside(low: float, span: float, about: int) -> None:
    values = ticks(low, low + span, about)
    slack = span * 1e-6 + abs(low) * 1e-9
    assert all(low - slack <= value <= low + span + slack for value in values)
    assert len(values) <= about + 1
    assert values == sorted(values)


def test_texts_of_numbers() -> None:
    assert [plain_number(x) for x in (0, 0.25, 40, 4000, 12000, 3e6, 4e-4)] == [
        "0", "0.25", "40", "4000", "12 k", "3 M", "4e-4",
    ]  # fmt: skip
    assert [duration(x) for x in (0.484, 42.4, 118, 7500)] == [
        "0.48 s", "42 s", "1 m 58 s", "2 h 05 m",
    ]  # fmt: skip
    assert shorten("abc", 3) == "abc"
    assert shorten("abcdefgh", 4) == "ab […4 characters…] gh"


def test_labels_do_not_touch() -> None:
    chart = Chart(200, 100, (0, 1), (0, 1))
    chart.labels([(0.0, "a", ""), (0.0, "b", ""), (0.01, "c", ""), (None, "d", "")])
    places = sorted(float(y) for y in re.findall(r' y="([\d.]+)"', chart.body()))
    assert len(places) == 3
    assert min(b - a for a, b in pairwise(places)) >= 13.9
    assert places[-1] <= chart.bottom + 4
