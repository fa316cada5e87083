"""Every answer of MultiPL-E through a daemon, language by language, with why answers failed.

The answers are a language model's that nobody has verified: a failure is a fault of ours only where
a test's own library, the time or the sandbox was in the way. `--list` prints each failure.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from daemons import client_of, daemon
from language_programs import binds
from multipl_e import FOLDER, LANGUAGES, Problem, problems

from k15core.sandbox import Client, Submission
from k15core.types import RunResult

FILES = {"java": {"org/javatuples/Unit.java": b"package org.javatuples; public class Unit {}"}}
"""Java's programs import a package that few of them use."""
REASONS = {
    "compile_error": "does not compile",
    "nonzero_exit": "fails its tests",
    "signalled": "fails its tests",
    "wall_limit": "does not end",
    "cpu_limit": "does not end",
    "memory_limit": "takes too much memory",
    "output_limit": "prints too much",
}
"""Verdicts that are the answer's own fault."""
LIBRARIES = {"lua": "luaunit", "perl": "Test/Deep.pm", "ruby": "test/unit", "java": "javatuples"}
"""What tests need beside the language, as its absence is named in what a run says."""


def reason(problem: Problem, result: RunResult) -> str:
    """Why an answer failed, in words; what was not its own fault starts with a capital."""
    said = (result.stdout + result.stderr).decode(errors="replace") + result.message
    library = LIBRARIES.get(problem.language)
    if library and library in said and result.verdict != "ok":
        missing = ("not found", "cannot load", "Can't locate", "does not exist")
        if any(word in said for word in missing):
            return f"Library {library} is not here"
    return REASONS.get(result.verdict, f"Verdict {result.verdict}")


def run_all(client: Client, kind: str) -> list[tuple[Problem, RunResult]]:
    """Every answer of a language with what became of it."""
    language = LANGUAGES[kind]
    every = problems(kind)
    files = FILES.get(language, {})
    jobs = [Submission(source=each.program(), language=language, files=files) for each in every]
    return list(zip(every, client.run_many(jobs), strict=True))


def last_words(result: RunResult) -> str:
    said = (result.stderr or result.stdout).decode(errors="replace") + result.message
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if "rror" in line or "ssert" in line or "panic" in line]
    return (telling or lines or [""])[0][:110]


def main() -> int:
    words = argparse.ArgumentParser(prog="soak.multipl_e", description=__doc__)
    words.add_argument("languages", nargs="*", default=sorted(LANGUAGES), metavar="LANGUAGE")
    words.add_argument("--list", action="store_true", help="print each failure")
    given = words.parse_args()
    if not FOLDER.is_dir():
        sys.exit(f"{FOLDER} is not there: set K15_SHARED_DATA to the folder of data sets")
    ours = 0
    settings = "[sandbox.binds]\n" + "".join(f"'{k}' = '{v}'\n" for k, v in binds().items())
    with (
        tempfile.TemporaryDirectory() as home,
        daemon(settings=settings, home=Path(home)) as running,
        client_of(running, patience=3600) as client,
    ):
        for kind in given.languages:
            if missing := client.languages()[LANGUAGES[kind]]:
                print(f"{kind:5} not run: {missing}", flush=True)
                continue
            ended = run_all(client, kind)
            failed = [pair for pair in ended if pair[1].verdict != "ok"]
            why = Counter(reason(*pair) for pair in failed)
            ours += sum(count for name, count in why.items() if name[0].isupper())
            shown = ", ".join(f"{count} {name}" for name, count in why.most_common())
            print(f"{kind:5} {len(ended) - len(failed)} of {len(ended)} pass; {shown}", flush=True)
            if given.list:
                for problem, result in failed:
                    line = f"{problem.name}: {reason(problem, result)}: {last_words(result)}"
                    print(f"      {line}", flush=True)
    return 1 if ours else 0


if __name__ == "__main__":
    sys.exit(main())
