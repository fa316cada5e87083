"""The pages of a run in a real browser: nothing is fetched, complains or overflows."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser

from k15core.report.compare import write_comparison
from k15core.report.html import write_report
from k15core.report.picture import write_picture

RUN = Path(__file__).parents[1] / "data" / "run"

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is missing: apt install chromium"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs")
    for name in ("one", "two"):
        (directory / name).mkdir()
        shutil.copy(RUN / "metrics.jsonl", directory / name)
    write_report(directory / "one")
    write_comparison([directory / "one", directory / "two"])
    write_picture(directory / "one", directory / "demo.svg")
    return directory


def is_quiet(browser: Browser, page: Path) -> None:
    assert browser.requests() == [page.resolve().as_uri()]
    assert browser.complaints() == []


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["one/report.html", "compare.html"])
def test_a_page_is_whole(browser: Browser, runs: Path, name: str, width: int, dark: bool) -> None:
    browser.open(runs / name, width=width, dark=dark)
    is_quiet(browser, runs / name)
    shown = "[...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width)"
    assert browser.evaluate(f"{shown}.length") >= 4
    assert browser.evaluate(f"{shown}.every(s => s.getBoundingClientRect().height > 40)")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    # Text of figures stays legible: the drawing is not scaled down to fit.
    assert browser.evaluate(f"Math.min(...{shown}.map(s => s.getScreenCTM().a))") > 0.6
    ink, paper = (
        browser.evaluate(f"getComputedStyle(document.body).{name}.match(/\\d+/g).map(Number)")
        for name in ("color", "backgroundColor")
    )
    assert (sum(ink) > sum(paper)) == dark


def test_the_browser_would_notice(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<script>console.log('x'); null.y</script><img src='http://127.0.0.1:9/x.png'>")
    browser.open(page, width=800)
    assert len(browser.complaints()) >= 2
    assert browser.requests()[1:] == ["http://127.0.0.1:9/x.png"]


def test_the_pages_own_policy_stops_what_slips_through(
    browser: Browser, runs: Path, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    text = (runs / "one" / "report.html").read_text()
    page.write_text(text.replace("<main>", "<main><script>document.title = 'taken'</script>"))
    browser.open(page, width=800)
    assert browser.evaluate("document.title") == "doors-seed0: k15core run"


def test_the_picture_stands_alone(browser: Browser, runs: Path) -> None:
    for dark in (False, True):
        browser.open(runs / "demo.svg", width=900, dark=dark)
        is_quiet(browser, runs / "demo.svg")
        fill = browser.evaluate(
            "getComputedStyle(document.querySelector('rect')).fill.match(/\\d+/g).map(Number)"
        )
        assert (sum(fill) < 384) == dark
