"""Programs of MultiPL-E in every language that it has: right answers pass, wrong ones do not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from language_programs import binds
from multipl_e import FOLDER, HARNESS, LANGUAGES, SOLVED, solved_problems
from sandboxes import need

from k15core.sandbox import Sandbox, Submission

# Java's programs import a package that few of them use.
FILES = {"java": {"org/javatuples/Unit.java": b"package org.javatuples; public class Unit {}"}}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    need()
    with Sandbox(slots=2, binds=binds()) as sandbox:
        yield sandbox


@pytest.mark.parametrize("kind", sorted(LANGUAGES))
def test_right_answers_pass_and_wrong_ones_do_not(sandbox: Sandbox, kind: str) -> None:
    language = LANGUAGES[kind]
    missing = sandbox.languages()[language]
    if missing:
        pytest.skip(f"{language}: {missing}")
    if not FOLDER.is_dir():
        pytest.skip(f"{FOLDER} is not there: set K15_SHARED_DATA to the folder of data sets")
    if language in HARNESS:
        package, program = HARNESS[language]
        if sandbox.run(program, language=language).verdict != "ok":
            pytest.skip(f"the tests in {language} need a library: apt install {package}")
    problems = solved_problems(kind)
    assert len(problems) == len(SOLVED[kind])

    def run(sources: list[str]) -> list[str]:
        files = FILES.get(language, {})
        jobs = [Submission(source=each, language=language, files=files) for each in sources]
        return [result.verdict for result in sandbox.run_many(jobs)]

    verdicts = run([problem.program() for problem in problems])
    refused = {p.name: v for p, v in zip(problems, verdicts, strict=True) if v != "ok"}
    assert not refused
    # A body that is useless must get as far as the tests and fail there.
    assert set(run([p.wrong_program() for p in problems[:3]])) <= {"nonzero_exit", "signalled"}
