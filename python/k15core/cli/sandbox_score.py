"""`k15 sandbox score`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from k15core.sandbox import Client, Limits, Sandbox
    from k15core.types import RunResult

NOTES = """completions:
  JSON lines {"task_id": ..., "completion": ...} with what follows the problem's prompt, or
  {"task_id": ..., "solution": ...} with a whole program; a line is a sample.
  Without --completions each problem's own canonical_solution is run: all of them should pass.

exit code:
  0; 1 if the sandbox failed for some programs: nothing is known of them, so there is no pass@k;
  2 for files that make no sense

examples:
  k15 sandbox score HumanEval.jsonl.gz
  k15 sandbox score HumanEval.jsonl.gz --completions samples.jsonl --k 1 --k 10 --out scored.jsonl
  k15 sandbox score HumanEval.jsonl.gz --url http://127.0.0.1:8080
"""
SECONDS = 30.0
"""That a program may take."""


def add_command(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `score` to the actions of `k15 sandbox`."""
    parser = actions.add_parser(
        "score",
        help="run completions of HumanEval's problems and say which pass",
        description="Run completions of problems in HumanEval's format (its jsonl or jsonl.gz),\n"
        "each with the problem's test, in sandboxes of this process or in a daemon.",
        epilog=NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("problems", metavar="PROBLEMS", help="the file of problems")
    parser.add_argument("--completions", metavar="FILE", help="what is scored")
    parser.add_argument(
        "--k", metavar="K", type=int, action="append", help="print pass@K (default: 1)"
    )
    parser.add_argument("--out", metavar="FILE", help="write a JSON line for each program")
    parser.add_argument("--url", help="a daemon's, instead of sandboxes here")
    parser.add_argument(
        "--token-file", metavar="FILE", help="what the daemon wants to know (or K15_TOKEN is set)"
    )
    parser.add_argument("--slots", type=int, help="programs at once (default: the processors)")
    parser.set_defaults(command=_score)


def _score(options: argparse.Namespace) -> int:
    from k15core.sandbox import Client, Limits, Sandbox
    from k15core.sandbox.humaneval import pass_at_k, read_problems, read_programs

    problems = read_problems(options.problems)
    if options.completions:
        programs = list(read_programs(options.completions, problems))
    else:
        programs = [
            (task, each.program(each.canonical_solution)) for task, each in problems.items()
        ]
    samples = Counter(task for task, _ in programs)
    least = min(samples.values(), default=0)
    for k in options.k or [1]:
        if not 1 <= k <= least:
            raise InvalidInputError(f"--k = {k}: expected 1 to {least}, the fewest of a problem")
    with ExitStack() as stack:
        sandbox: Sandbox | Client
        if options.url:
            token = _token(options.token_file)
            sandbox = Client(options.url, token=token, connections=options.slots or 64)
        else:
            sandbox = Sandbox(slots=options.slots)
        stack.enter_context(sandbox)
        start = time.monotonic()
        limits = Limits(wall_seconds=SECONDS, cpu_seconds=SECONDS)
        results = asyncio.run(_run(sandbox, [source for _, source in programs], limits))
    seconds = time.monotonic() - start
    passed = Counter(
        task for (task, _), each in zip(programs, results, strict=True) if each.verdict == "ok"
    )
    if options.out:
        _write(options.out, [task for task, _ in programs], results)
    verdicts = Counter(each.verdict for each in results)
    print(f"{len(results)} programs for {len(samples)} problems in {seconds:.1f} s")
    print(", ".join(f"{name} {count}" for name, count in verdicts.most_common()))
    if unknown := verdicts["sandbox_error"]:
        said = next(each.message for each in results if each.verdict == "sandbox_error")
        print(f"no pass@k: the sandbox failed {unknown} times ({said}), which is no verdict")
        return 1
    for k in options.k or [1]:
        share = sum(pass_at_k(n, passed[task], k) for task, n in samples.items()) / len(samples)
        print(f"pass@{k} {share:.4f}")
    return 0


async def _run(
    sandbox: Sandbox | Client, sources: Sequence[str], limits: Limits
) -> list[RunResult]:
    """Run them all; a line on a terminal says how far it is."""
    done = passed = 0

    async def one(source: str) -> RunResult:
        nonlocal done, passed
        result = await sandbox.run_async(source, language="python", limits=limits)
        done, passed = done + 1, passed + (result.verdict == "ok")
        if sys.stderr.isatty():
            print(f"\r{done} of {len(sources)}, {passed} passed", end="", file=sys.stderr)
        return result

    results = await asyncio.gather(*map(one, sources))
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    return results


def _token(path: str | None) -> str | None:
    if path is None:
        return os.environ.get("K15_TOKEN")
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"--token-file = {path!r}: expected a token: {error}") from error


def _write(path: str, tasks: Sequence[str], results: Sequence[RunResult]) -> None:
    with Path(path).open("w") as out:
        for task, result in zip(tasks, results, strict=True):
            line = {
                "task_id": task,
                "passed": None if result.verdict == "sandbox_error" else result.verdict == "ok",
                "verdict": result.verdict,
                "message": result.message,
                "stderr": result.stderr.decode(errors="replace")[-2000:],
                "wall_seconds": result.wall_seconds,
            }
            out.write(json.dumps(line) + "\n")
