"""The daemon's page in a real browser: a person runs a program and sees what became of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from daemons import START, Daemon, daemon
from slowness import SLOW

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is missing: apt install chromium"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    with daemon("--slots", "2") as found:
        yield found


def open_page(browser: Browser, it: Daemon, *, width: int = 1000, dark: bool = False) -> None:
    browser.open(it.url + "/", width=width, dark=dark)
    browser.wait_for("document.querySelectorAll('#language option').length > 3", seconds=START)


def fill(browser: Browser, **values: str) -> None:
    for name, value in values.items():
        browser.evaluate(f"document.getElementById({json.dumps(name)}).value = {json.dumps(value)}")


def shown(browser: Browser, name: str) -> str:
    """The text that a person sees there; empty where nothing is shown."""
    return str(browser.evaluate(f"document.getElementById({json.dumps(name)}).innerText"))


def run(browser: Browser, source: str, *, language: str = "python", stdin: str = "") -> str:
    """Run a program by a click; the verdict."""
    fill(browser, source=source, language=language, stdin=stdin)
    browser.evaluate("document.getElementById('run').click()")
    browser.wait_for("!document.getElementById('run').disabled", seconds=60 * SLOW)
    return shown(browser, "verdict")


def is_quiet(browser: Browser, it: Daemon) -> None:
    assert browser.complaints() == []
    assert {url for url in browser.requests() if not url.startswith(it.url + "/")} == set()


def test_a_program_is_run_and_its_end_is_shown(browser: Browser, running: Daemon) -> None:
    open_page(browser, running)
    browser.wait_for(
        "document.getElementById('load').innerText === '0 of 2 slots busy, 0 waiting'",
        seconds=START,
    )
    assert run(browser, "print(input()[::-1])", stdin="abc") == "ok"
    assert shown(browser, "stdout") == "cba\n"
    assert not browser.evaluate("document.getElementById('stderr').checkVisibility()")
    assert shown(browser, "exit") == "0"
    for name, pattern in [("wall", r"[\d.]+ m?s"), ("cpu", r"[\d.]+ m?s"), ("memory", r".+")]:
        assert re.fullmatch(pattern, shown(browser, name)), name
    assert run(browser, "import sys; print('no', file=sys.stderr); exit(3)") == "nonzero_exit"
    assert (shown(browser, "exit"), shown(browser, "stderr")) == ("3", "no\n")
    assert shown(browser, "stderr-name") == "Standard error"
    assert run(browser, "import os; os.write(1, b'\\xff\\x00x')") == "ok"
    assert shown(browser, "stdout").endswith("x")
    if running.ask("GET", "/v1/languages")[1]["cpp"] == "":
        assert run(browser, "int main() { return x; }", language="cpp") == "compile_error"
        assert shown(browser, "stderr-name") == "The compiler's messages"
        assert "error:" in shown(browser, "stderr")
    is_quiet(browser, running)


def test_what_a_program_prints_is_text(browser: Browser, running: Daemon) -> None:
    open_page(browser, running)
    attack = (
        "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
        f"<iframe src={running.url}/metrics></iframe></pre><h1>taken</h1>"
    )
    elements = browser.evaluate("document.querySelectorAll('*').length")
    assert (
        run(browser, f"import sys; print({attack!r}); print({attack!r}, file=sys.stderr)") == "ok"
    )
    assert shown(browser, "stdout") == shown(browser, "stderr") == attack + "\n"
    assert browser.evaluate("document.title") == "k15 sandbox"
    assert browser.evaluate("document.querySelectorAll('*').length") == elements
    is_quiet(browser, running)
    # Nor does what is wrong with a request become part of the page.
    name = "<b>x</b>"
    browser.evaluate(f"document.getElementById('language').append(new Option('x', '{name}'))")
    assert run(browser, "x", language=name) == "not run"
    assert shown(browser, "message").startswith(f'language = "{name}": expected')


def test_the_policy_stops_what_the_page_would_let_through(
    browser: Browser, running: Daemon
) -> None:
    open_page(browser, running)
    browser.evaluate("document.body.append(document.createElement('script'))")
    browser.evaluate(
        "(() => { const s = document.querySelector('body > script:last-child');"
        " try { s.textContent = 'document.title = 1' } catch {} })()"
    )
    assert browser.evaluate("document.title") == "k15 sandbox"
    fetched = browser.call(
        "Runtime.evaluate",
        expression="fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'stopped')",
        awaitPromise=True,
        returnByValue=True,
    )
    assert fetched["result"]["value"] == "stopped"
    assert any("Content Security Policy" in complaint for complaint in browser.complaints())


def test_it_can_be_used_by_the_keyboard(browser: Browser, running: Daemon) -> None:
    open_page(browser, running)
    order = []
    for _ in range(4):
        browser.press("Tab", code=9)
        order.append(browser.evaluate("document.activeElement.id"))
    assert order == ["language", "source", "stdin", "run"]
    browser.press("Tab", code=9, modifiers=8)
    browser.press("Tab", code=9, modifiers=8)
    browser.call("Input.insertText", text="print('typed')")
    browser.press("Enter", code=13, modifiers=2)
    browser.wait_for("document.getElementById('verdict').innerText === 'ok'", seconds=60 * SLOW)
    assert shown(browser, "stdout") == "typed\n"
    unnamed = (
        "[...document.querySelectorAll('select, input, textarea')].filter(e => !e.labels.length)"
    )
    assert browser.evaluate(f"{unnamed}.length") == 0
    is_quiet(browser, running)


def test_a_run_can_be_stopped(browser: Browser, running: Daemon) -> None:
    open_page(browser, running)
    fill(browser, source="import time; time.sleep(99)", language="python")
    browser.evaluate("document.getElementById('run').click()")
    running.wait_until_gauge('slots{state="busy"}', 1)
    browser.wait_for(
        "document.getElementById('load').innerText.startsWith('1 of 2')", seconds=START
    )
    browser.evaluate("document.getElementById('stop').click()")
    browser.wait_for("document.getElementById('verdict').innerText === 'stopped'", seconds=START)
    running.wait_until_gauge('slots{state="busy"}', 0)


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_in_light_and_in_dark(
    browser: Browser, running: Daemon, width: int, dark: bool
) -> None:
    open_page(browser, running, width=width, dark=dark)
    run(browser, "print('x' * 5000)")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = (
        browser.evaluate(f"getComputedStyle(document.body).{name}.match(/\\d+/g).map(Number)")
        for name in ("color", "backgroundColor")
    )
    assert (sum(ink) > sum(paper)) == dark


def test_a_daemon_with_a_token_is_asked_with_it(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token-of-enough-letters")
    with daemon("--slots", "1", settings=f"token_file = '{tmp_path}/token'", home=tmp_path) as it:
        browser.open(it.url + "/", width=1000)
        visible = "document.getElementById('token').checkVisibility()"
        browser.wait_for(visible, seconds=START)
        fill(browser, token="a-token-of-enough-letters")
        browser.evaluate("document.getElementById('token').dispatchEvent(new Event('change'))")
        browser.wait_for("document.querySelectorAll('#language option').length > 3", seconds=START)
        assert run(browser, "print(7)") == "ok"
        assert browser.evaluate("localStorage.length + document.cookie.length") == 0
        assert it.ask("GET", "/")[0] == 200
        assert "a-token" not in it.said


def test_a_page_of_another_site_runs_nothing(running: Daemon) -> None:
    body = {"source": "print(1)", "language": "python"}
    for site, status in [
        ("cross-site", 403),
        ("same-site", 403),
        ("same-origin", 200),
        ("none", 200),
    ]:
        assert running.ask("POST", "/v1/run", body, {"Sec-Fetch-Site": site})[0] == status
    assert running.ask("GET", "/health", None, {"Sec-Fetch-Site": "cross-site"})[0] == 200
