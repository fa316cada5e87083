"""Every language of the built-in table, on what every language must do."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from language_programs import PROGRAMS, Programs, binds
from sandboxes import need

from k15core.cli.sandbox import LANGUAGES
from k15core.errors import InvalidInputError
from k15core.sandbox import Limits, Sandbox, Submission

ROOT = Path(__file__).parents[2]
COMPILED = [name for name, programs in PROGRAMS.items() if programs.broken is not None]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    need()
    with Sandbox(slots=2, binds=binds()) as sandbox:
        yield sandbox


@pytest.fixture(params=sorted(PROGRAMS))
def language(request: pytest.FixtureRequest, sandbox: Sandbox) -> str:
    name: str = request.param
    need_language(sandbox, name)
    return name


def need_language(sandbox: Sandbox, name: str) -> None:
    missing = sandbox.languages()[name]
    if missing:
        pytest.skip(f"{name}: {missing}")


@pytest.fixture
def programs(language: str) -> Programs:
    return PROGRAMS[language]


def test_the_table_and_the_programs_are_of_the_same_languages(sandbox: Sandbox) -> None:
    assert set(sandbox.languages()) == set(PROGRAMS)


def test_the_page_on_languages_says_what_the_table_says(tmp_path: Path) -> None:
    need()
    page = (ROOT / "docs" / "languages.md").read_text()
    table = tomllib.loads((ROOT / "rust/sandbox/src/language/languages.toml").read_text())
    suffixes: dict[str, list[str]] = {}
    for suffix, name in sorted(LANGUAGES.items()):
        suffixes.setdefault(name, []).append(suffix)
    for name, language in table.items():
        words = [name, language["file"], " ".join(suffixes[name]), language["package"]]
        assert f"| {' | '.join(words)} |" in page
    own = tmp_path / "awk.toml"
    own.write_text(page.partition("```toml\n")[2].partition("```")[0])
    with Sandbox(slots=1, languages=[own]) as sandbox:
        need_language(sandbox, "awk")
        result = sandbox.run("{ print $2 }", language="awk", stdin=b"one two\n")
        assert (result.verdict, result.stdout) == ("ok", b"two\n")


def test_input_arguments_and_output(sandbox: Sandbox, language: str, programs: Programs) -> None:
    result = sandbox.run(
        programs.total, language=language, stdin=b"3 4\n-1\n", arguments=["one", "--two", "a b"]
    )
    assert (result.verdict, result.stdout) == ("ok", b"6\none|--two|a b\n"), result
    assert result.stderr == b""
    nothing = sandbox.run(programs.total, language=language)
    assert (nothing.verdict, nothing.stdout) == ("ok", b"0\n\n"), nothing


def test_exit_code(sandbox: Sandbox, language: str, programs: Programs) -> None:
    result = sandbox.run(programs.leave, language=language)
    assert (result.verdict, result.exit_code) == ("nonzero_exit", 7), result


def test_an_error_that_nobody_catches(sandbox: Sandbox, language: str, programs: Programs) -> None:
    result = sandbox.run(programs.fail, language=language)
    assert result.verdict in ("nonzero_exit", "signalled"), result
    assert result.stdout == b"before\n"
    assert b"boom" in result.stderr


def test_time_limits(sandbox: Sandbox, language: str, programs: Programs) -> None:
    limits = Limits(cpu_seconds=0.5, wall_seconds=20)
    result = sandbox.run(programs.spin, language=language, limits=limits)
    assert result.verdict == "cpu_limit", result
    assert result.cpu_seconds >= 0.5
    result = sandbox.run(programs.spin, language=language, limits=Limits(wall_seconds=0.3))
    assert result.verdict == "wall_limit", result


def test_memory_limit(sandbox: Sandbox, language: str, programs: Programs) -> None:
    # At its limit a large interpreter first gives up its own text, page by page: on a busy machine
    # it may be a while until nothing is left to give.
    limits = Limits(memory_bytes=128 << 20, cpu_seconds=120, wall_seconds=240)
    result = sandbox.run(programs.hog, language=language, limits=limits)
    assert result.verdict == "memory_limit", result
    assert 64 << 20 < result.peak_memory <= 128 << 20


@pytest.mark.parametrize("name", COMPILED)
def test_a_source_that_does_not_compile(sandbox: Sandbox, name: str) -> None:
    need_language(sandbox, name)
    broken = PROGRAMS[name].broken
    assert broken is not None
    result = sandbox.run(broken, language=name)
    assert result.verdict == "compile_error", result
    assert result.message == "compiling ended with nonzero_exit"
    assert b"main" in (result.stdout + result.stderr).lower(), "it says where"


def test_one_source_with_many_inputs(sandbox: Sandbox, language: str, programs: Programs) -> None:
    jobs = [
        Submission(source=programs.total, language=language, stdin=f"{i} {i}".encode())
        for i in range(12)
    ]
    results = sandbox.run_many(jobs)
    assert [result.stdout for result in results] == [f"{2 * i}\n\n".encode() for i in range(12)]
    if language in COMPILED:
        # Compiling takes tenths of seconds; its time is in no run's.
        assert max(result.cpu_seconds for result in results) < 1


def test_a_language_whose_tool_is_missing_names_the_package(tmp_path: Path) -> None:
    need()
    table = tmp_path / "own.toml"
    table.write_text(
        '[cobol]\nfile = "main.cob"\npackage = "gnucobol"\n'
        'tools = { cobc = ["/usr/bin/k15-cobc"] }\n'
        'compile = ["{cobc}", "-x", "main.cob"]\nartifacts = ["main"]\nrun = ["./main"]\n'
        '[shout]\nfile = "text"\ntools = { tr = ["/nowhere/tr", "/usr/bin/tr"] }\n'
        'run = ["{tr}", "a-z", "A-Z"]\n'
    )
    with Sandbox(slots=1, languages=[table]) as sandbox:
        says = "cobc is none of /usr/bin/k15-cobc; on Debian and Ubuntu: apt install gnucobol"
        assert sandbox.languages()["cobol"] == says
        with pytest.raises(InvalidInputError, match="apt install gnucobol"):
            sandbox.run("", language="cobol")
        assert sandbox.languages()["shout"] == ""
        assert sandbox.run("", language="shout", stdin=b"loud").stdout == b"LOUD"


def test_what_the_owner_said_counts_more_than_what_a_language_usually_gets() -> None:
    need()
    with Sandbox(slots=1, limits=Limits(memory_bytes=48 << 20)) as sandbox:
        need_language(sandbox, "java")
        result = sandbox.run(PROGRAMS["java"].hog, language="java")
        assert result.verdict == "memory_limit"
        assert result.peak_memory <= 48 << 20
