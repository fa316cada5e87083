"""`k15 sandbox run`, `serve` and `doctor`; `score` is in sandbox_score.py."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from k15core.cli import sandbox_score
from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    from k15core.sandbox import Examination, Limits
    from k15core.types import RunResult

LANGUAGES = {
    ".py": "python",
    ".c": "c",
    ".cc": "cpp",
    ".cpp": "cpp",
    ".cxx": "cpp",
    ".rs": "rust",
    ".go": "go",
    ".java": "java",
    ".js": "javascript",
    ".mjs": "javascript",
    ".ts": "typescript",
    ".sh": "bash",
    ".bash": "bash",
    ".pl": "perl",
    ".rb": "ruby",
    ".php": "php",
    ".lua": "lua",
}
"""The language of a file, by its suffix."""

EXIT_CODES = {
    "output_limit": 120,
    "compile_error": 121,
    "memory_limit": 122,
    "cpu_limit": 123,
    "wall_limit": 124,
    "sandbox_error": 125,
}
"""What `k15 sandbox run` exits with where the program has no exit code of its own."""

RUN_NOTES = """exit code:
  the program's own, or 128 + N if signal N ended it; 120 for too much output, 121 if it does not
  compile, 122 memory, 123 processor time, 124 wall time, 125 if the sandbox itself failed, 2 for
  a command that makes no sense. The verdict is on the last line of stderr; --json has all of it.

limits (the defaults are for all languages; some have others):
  cpu_seconds=10  wall_seconds=15  memory_bytes=512M  processes=64  disk_bytes=64M
  disk_files=4096  output_bytes=1M  open_files=256  stack_bytes=64M  cpus=(all)

examples:
  k15 sandbox run answer.py --stdin input.txt
  k15 sandbox run main.cpp --limit cpu_seconds=2 --limit memory_bytes=256M -- one two
  k15 sandbox run job.py --file data/table.csv --file config.json=defaults.json
  k15 sandbox run main.rs --bind /opt/rust="$(rustc --print sysroot)"
  echo 'print(6 * 7)' | k15 sandbox run - --language python
"""

DOCTOR_NOTES = """exit code:
  0 if every limit can be enforced and a runner works, else 1
"""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `sandbox` and what is below it to the command line."""
    top = commands.add_parser("sandbox", help="run untrusted programs; see what this host can do")
    actions = top.add_subparsers(required=True, metavar="ACTION")
    raw = argparse.RawDescriptionHelpFormatter

    run = actions.add_parser(
        "run",
        help="run one program in a sandbox",
        usage="k15 sandbox run [options] FILE [-- ARGUMENT ...]",
        description="Run one program in a fresh sandbox: no network, a read-only root with this\n"
        "host's programs, an empty /tmp to start in, and nothing kept afterwards.",
        epilog=RUN_NOTES,
        formatter_class=raw,
    )
    run.add_argument("source", metavar="FILE", help="the program's source; - reads it from stdin")
    run.add_argument("--language", help="its language (default: by the file's suffix)")
    run.add_argument(
        "--stdin", metavar="FILE", help="what it reads; - hands on our own (default: nothing)"
    )
    run.add_argument(
        "--limit",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        dest="limits",
        help="change a limit; numbers of bytes may end in K, M or G; may be given again",
    )
    run.add_argument(
        "--file",
        metavar="[NAME=]PATH",
        action="append",
        default=[],
        dest="files",
        help="a file for its directory, under the same name or another; may be given again",
    )
    run.add_argument("--runner", default="auto", help="how it is started (default: auto)")
    _add_tools(run)
    run.add_argument(
        "--allow-unenforced",
        metavar="LIMIT",
        action="append",
        default=[],
        help="run even if this host cannot enforce this limit; may be given again",
    )
    run.add_argument("--json", action="store_true", help="print the result as one JSON object")
    run.set_defaults(command=_run)

    serve = actions.add_parser(
        "serve",
        help="the daemon: run programs for whoever asks over HTTP (--help tells more)",
        add_help=False,
    )
    serve.set_defaults(command=_serve)

    sandbox_score.add_command(actions)

    doctor = actions.add_parser(
        "doctor",
        help="what this host can enforce, and how to mend what it cannot",
        description="Look at this host and this process: which limits can be enforced, which\n"
        "runners work, which languages are there, and what to do about the rest.",
        epilog=DOCTOR_NOTES,
        formatter_class=raw,
    )
    _add_tools(doctor)
    doctor.add_argument("--json", action="store_true", help="print it as one JSON object")
    doctor.set_defaults(command=_doctor)


def split_arguments(words: list[str]) -> tuple[list[str], list[str]]:
    """A command line parted into ours and the arguments of the program that is run.

    These stand behind `--`; `sandbox serve` hands on all that it is given.
    """
    if words[:2] == ["sandbox", "serve"]:
        return words[:2], words[2:]
    if words[:2] not in (["sandbox", "run"], ["engine", "serve"]) or "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _add_tools(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bind",
        metavar="TARGET=PATH",
        action="append",
        default=[],
        dest="binds",
        help="show a file or directory of this host at TARGET, read-only; may be given again",
    )
    parser.add_argument(
        "--languages",
        metavar="TOML",
        action="append",
        default=[],
        help="a table of languages over the built-in one; may be given again",
    )


def _run(options: argparse.Namespace) -> int:
    from k15core.sandbox import Sandbox

    language = options.language or _language(options.source)
    if options.source == "-" and options.stdin == "-":
        raise InvalidInputError("--stdin = '-': expected a file, as FILE takes our standard input")
    source = _read(options.source)
    try:
        text = source.decode()
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{options.source}: expected UTF-8 text: {error}") from error
    stdin = b"" if options.stdin is None else _read(options.stdin)
    limits, files = _limits(options.limits), _files(options.files)
    with Sandbox(
        slots=1,
        runner=options.runner,
        languages=options.languages,
        binds=_binds(options.binds),
        allow_unenforced=options.allow_unenforced,
    ) as sandbox:
        result = sandbox.run(
            text,
            language=language,
            stdin=stdin,
            files=files,
            arguments=options.program_arguments,
            limits=limits,
        )
    if options.json:
        print(json.dumps(_as_dict(result), indent=2))
    else:
        sys.stdout.buffer.write(result.stdout)
        sys.stdout.buffer.flush()
        sys.stderr.buffer.write(result.stderr)
        print(verdict_line(result), file=sys.stderr)
    return exit_code(result)


def _serve(options: argparse.Namespace) -> int:
    from k15core.sandbox.local import DAEMON

    if not DAEMON.is_file():
        raise InvalidInputError(f"{DAEMON} is missing: `make build` makes it")
    os.execv(DAEMON, [DAEMON.name, *options.program_arguments])


def verdict_line(result: RunResult) -> str:
    """A run in one line: the verdict, what ended it, and what it took."""
    ended = ""
    if result.verdict == "nonzero_exit":
        ended = f" (exit code {result.exit_code})"
    elif result.verdict == "signalled":
        ended = f" (signal {result.signal})"
    elif result.message:
        ended = f" ({result.message})"
    cut = ", output cut" if result.truncated else ""
    return (
        f"k15: {result.verdict}{ended}: cpu {result.cpu_seconds:.3f} s, wall "
        f"{result.wall_seconds:.3f} s, peak memory {result.peak_memory / 2**20:.1f} MiB{cut}"
    )


def exit_code(result: RunResult) -> int:
    """What `k15 sandbox run` exits with after this run."""
    if result.verdict in ("ok", "nonzero_exit") and result.exit_code is not None:
        return result.exit_code
    if result.verdict == "signalled" and result.signal is not None:
        return 128 + result.signal
    return EXIT_CODES.get(result.verdict, EXIT_CODES["sandbox_error"])


def _as_dict(result: RunResult) -> dict[str, object]:
    """The result with its bytes as text; what is no UTF-8 is replaced."""
    values = asdict(result)
    for name in ("stdout", "stderr"):
        values[name] = values[name].decode(errors="replace")
    del values["files"], values["refused_files"]
    return values


def _language(source: str) -> str:
    suffix = Path(source).suffix
    if source == "-" or suffix not in LANGUAGES:
        raise InvalidInputError(
            f"{source}: expected --language, as the name does not tell; known are "
            + " ".join(LANGUAGES)
        )
    return LANGUAGES[suffix]


def _read(path: str) -> bytes:
    return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()


def _files(words: list[str]) -> dict[str, bytes]:
    files = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals:
            name, path = Path(word).name, word
        files[name] = _read(path)
    return files


def _binds(words: list[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    for (target, _, path), word in zip(pairs, words, strict=True):
        if not (target and path):
            raise InvalidInputError(f"--bind = {word!r}: expected TARGET=PATH")
    return {target: path for target, _, path in pairs}


def _limits(words: list[str]) -> Limits:
    from k15core.sandbox import Limits

    kinds = {each.name: "float" in str(each.type) for each in fields(Limits)}
    values: dict[str, Any] = {}  # ints where the fields are ints
    for word in words:
        name, _, value = word.partition("=")
        if name not in kinds:
            raise InvalidInputError(f"--limit = {word!r}: expected one of {', '.join(kinds)}")
        scale = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(value[-1:].upper(), 1)
        number = value[:-1] if scale > 1 else value
        try:
            values[name] = float(number) if kinds[name] and scale == 1 else int(number) * scale
        except ValueError:
            expected = f"{name}=NUMBER" + ("" if kinds[name] else ", perhaps with K, M or G")
            raise InvalidInputError(f"--limit = {word!r}: expected {expected}") from None
    return Limits(**values)


def _doctor(options: argparse.Namespace) -> int:
    from k15core.sandbox import examine

    found = examine(options.languages, _binds(options.binds))
    works = any(not reason for reason in found.runners.values())
    enforced = all(each.enforced for each in found.capabilities)
    if options.json:
        print(json.dumps(asdict(found) | {"works": works}, indent=2))
    else:
        print(_describe(found))
    return 0 if works and enforced else 1


def _describe(found: Examination) -> str:
    lines = ["runners"]
    lines += [_line(not reason, name, reason or "works") for name, reason in found.runners.items()]
    lines += ["", "what a run is held to"]
    for each in found.capabilities:
        lines.append(_line(each.enforced, each.name, each.how))
        if not each.enforced:
            lines.append(f"{'':22}to mend it: {each.remedy}.")
    lines += ["", "languages"]
    for name, missing in found.languages.items():
        lines.append(_line(not missing, name, missing or "there"))
    return "\n".join(lines)


def _line(well: bool, name: str, says: str) -> str:
    return f"  {'yes' if well else 'NO':4} {name:15} {says}"
