"""The warm runner: what it does like a start of its own, what is fresh, and what breaks it."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from python_programs import PROGRAMS
from sandboxes import children, groups, need, spawners

from k15core.errors import InvalidInputError
from k15core.sandbox import Limits, Sandbox
from k15core.types import RunResult

BOTH = ("direct", "warm")
HELPER = b"""
VALUE = [1]
class A:
    def __del__(self):
        print("a")
a = A()
"""


@pytest.fixture(scope="module")
def sandboxes() -> Iterator[dict[str, Sandbox]]:
    need("warm")
    with Sandbox(slots=1, runner="direct") as direct, Sandbox(slots=1, runner="warm") as warm:
        yield {"direct": direct, "warm": warm}


@pytest.fixture
def warm(sandboxes: dict[str, Sandbox]) -> Sandbox:
    return sandboxes["warm"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_behave_as_in_an_interpreter_of_their_own(
    sandboxes: dict[str, Sandbox], name: str
) -> None:
    def run(runner: str) -> tuple[object, ...]:
        result = sandboxes[runner].run(
            PROGRAMS[name],
            language="python",
            stdin=b"1 2\nthree\nfour\nfive" if "input" in name else b"",
            files={"helper.py": HELPER},
            fetch=["out.txt"],
            arguments=["one", "two words"],
            limits=Limits(wall_seconds=10),
        )
        shown = [re.sub(rb"0x[0-9a-f]{6,}", b"0x", text) for text in (result.stdout, result.stderr)]
        files = (result.files, result.refused_files)
        return result.verdict, result.exit_code, result.signal, *shown, *files

    assert run("warm") == run("direct")


def test_one_frame_lies_below_the_programs_own(warm: Sandbox) -> None:
    result = warm.run("import traceback; traceback.print_stack()", language="python")
    assert result.stderr.count(b"  File ") == 2, result


@pytest.mark.parametrize("draw", ["random.random()", "random.getrandbits(64)", "os.urandom(8)"])
def test_random_numbers_are_fresh_in_every_run(warm: Sandbox, draw: str) -> None:
    source = f"import os, random; print({draw})"
    seen = {warm.run(source, language="python").stdout for _ in range(8)}
    assert len(seen) == 8


def test_a_seeded_generator_is_the_same(sandboxes: dict[str, Sandbox]) -> None:
    source = "import random; random.seed(7); print(random.random(), random.sample(range(99), 9))"
    assert len({sandboxes[each].run(source, language="python").stdout for each in BOTH}) == 1


SEED = "print(hash('a string'), hash(b'bytes'))"


def test_a_hash_seed_serves_so_many_runs_and_no_more() -> None:
    need("warm")
    with Sandbox(slots=1, runner="warm", warm_runs=3) as sandbox:
        seeds = [sandbox.run(SEED, language="python").stdout for _ in range(12)]
    generations = [seeds[i : i + 3] for i in range(0, 12, 3)]
    assert [len(set(each)) for each in generations] == [1] * 4
    assert len(set(seeds)) == 4


def test_a_hash_seed_can_be_fresh_in_every_run() -> None:
    need("warm")
    with Sandbox(slots=1, runner="warm", warm_runs=1) as sandbox:
        seeds = {sandbox.run(SEED, language="python").stdout for _ in range(5)}
    assert len(seeds) == 5


def test_slots_have_seeds_of_their_own() -> None:
    need("warm")
    with Sandbox(slots=2, least_slots=2, runner="warm") as sandbox:
        jobs = [{"source": f"import time; time.sleep(0.3); {SEED}", "language": "python"}] * 2
        seeds = {result.stdout for result in sandbox.run_many(jobs)}
    assert len(seeds) == 2


def test_other_languages_and_programs_take_the_direct_way(warm: Sandbox) -> None:
    assert warm.run("echo $0", language="bash").stdout == b"main.sh\n"
    assert warm.run("int main(void) { return 3; }", language="c").exit_code == 3
    assert warm.execute(["/usr/bin/python3", "-c", "print(5)"]).stdout == b"5\n"
    assert warm.execute(["/bin/true"], times=5).verdict == "ok"
    deep = Limits(stack_bytes=1 << 30)
    assert warm.run("print(6)", language="python", limits=deep).stdout == b"6\n"


def test_nothing_of_a_run_is_left_in_the_zygote(warm: Sandbox) -> None:
    marks = [b"\xf3MARK-in-%d-\xf4" % i for i in range(4)]
    leave = """
import json, os, random, sys, builtins, threading, decimal
json.left = builtins.left = sys.left = "state"
random.seed(1); os.environ["LEFT"] = "1"; sys.path.append("left"); decimal.getcontext().prec = 3
sys.modules["left"] = sys; sys.setrecursionlimit(12345); os.chdir("/usr"); os.umask(0o777)
kept = sys.argv[1] * 1000
"""
    # What a run was given is looked for in all memory of the next, which is a copy of the zygote's.
    look = """
import json, os, random, sys, builtins, decimal
found = [hasattr(m, "left") for m in (json, sys, builtins)]
print(found, "LEFT" in os.environ, sys.path, "left" in sys.modules, sys.getrecursionlimit(),
      decimal.getcontext().prec, os.getcwd(), len(sys.argv))
begin, end = b"\\xf3MAR", b"K-in-"
for line in open("/proc/self/maps"):
    span, may, *_, name = line.split(" ")
    if may[0] == "r" and "[v" not in name:
        start, stop = (int(each, 16) for each in span.split("-"))
        with open("/proc/self/mem", "rb", 0) as memory:
            memory.seek(start)
            text = memory.read(stop - start)
        at = text.find(begin)
        while at >= 0:
            if text[at + 4 : at + 9] == end: print("FOUND", name)
            at = text.find(begin, at + 1)
"""
    for mark in marks:
        words = [mark.decode("utf-8", "surrogateescape")] if mark.isascii() else ["\u00f3MARK-in-x"]
        result = warm.run(
            leave,
            language="python",
            stdin=mark * 100,
            files={"f": mark * 100},
            arguments=words,
        )
        assert result.verdict == "ok", result
        result = warm.run(look, language="python")
        assert result.verdict == "ok", result
        first, *found = result.stdout.decode().splitlines()
        assert found == [], found
        assert first.startswith("[False, False, False] False ['/tmp', ")
        assert first.endswith("False 1000 28 /tmp 1")


FIND_KEY = """
import ctypes, struct
words = set()
for line in open("/proc/self/maps"):
    span, may, *_, name = line.split(" ")
    if may[:2] == "rw":
        start, stop = (int(each, 16) for each in span.split("-"))
        text = ctypes.string_at(start, stop - start)
        words.update(struct.unpack(f"{len(text) // 8}Q", text))
call = ctypes.CDLL(None, use_errno=True).syscall
for word in words:
    if word >> 48 not in (0, 0xFFFF):
        call(435, 0, 0, 0, 0, 0, ctypes.c_ulong(word))  # clone3: the filter answers ENOSYS
        if ctypes.get_errno() != 38:
            print("FOUND")
print(len(words) > 10_000)
"""


def test_the_key_of_the_filter_is_not_in_a_runs_memory(warm: Sandbox) -> None:
    result = warm.run(FIND_KEY, language="python")
    assert (result.verdict, result.stdout) == ("ok", b"True\n"), result


def zygotes() -> list[int]:
    """Zygotes of this process: interpreters that are children of its spawners' spawners."""
    found = []
    for guard in spawners():
        for spawner in children(guard):
            for first in children(spawner):
                if b"os.read(0, 65536)" in Path(f"/proc/{first}/cmdline").read_bytes():
                    found += [first, *children(first)]
    return found


def test_a_killed_zygote_costs_no_verdict() -> None:
    need("warm")
    with Sandbox(slots=1, runner="warm") as sandbox:
        for which in (0, 1, 0, 1):
            sandbox.run("", language="python")
            pids = zygotes()
            assert len(pids) >= 2
            os.kill(pids[which], signal.SIGKILL)
            result = sandbox.run("print('here')", language="python")
            assert (result.verdict, result.stdout) == ("ok", b"here\n"), result


def test_a_zygote_killed_in_the_middle_of_a_run_costs_no_verdict() -> None:
    need("warm")
    with Sandbox(slots=1, runner="warm") as sandbox:
        sandbox.run("", language="python")
        results: list[RunResult] = []
        source = "import time; time.sleep(1); print('here')"
        run = threading.Thread(
            target=lambda: results.append(sandbox.run(source, language="python"))
        )
        run.start()
        time.sleep(0.3)
        os.kill(zygotes()[1], signal.SIGKILL)
        run.join()
        assert (results[0].verdict, results[0].stdout) == ("ok", b"here\n"), results


def test_limits_hold_and_the_zygote_stays() -> None:
    need("warm")
    with Sandbox(slots=1, runner="warm") as sandbox:
        sandbox.run("", language="python")
        before = zygotes()[:2]
        for source, verdict in [
            ("x = bytearray(1 << 30)", "memory_limit"),
            ("import os\nx = []\nwhile 1:\n    x.append(os.urandom(1 << 16))", "memory_limit"),
            ("import time; time.sleep(60)", "wall_limit"),
            ("while True: pass", "cpu_limit"),
            ("print('fine')", "ok"),
            # Little memory of its own, and still it is the one that is killed.
            (
                "import ctypes, os\nc = ctypes.CDLL(None)\n"
                "os.chdir('/tmp')\nf = os.open('f', 66)\n"
                "while 1: os.memfd_create('x'), os.write(os.memfd_create('y'), bytes(1 << 20))",
                "memory_limit",
            ),
        ]:
            # On a busy machine a run may wait for a processor longer than it may use one.
            limits = Limits(
                cpu_seconds=2 if verdict == "cpu_limit" else 30,
                wall_seconds=5 if verdict == "wall_limit" else 60,
                memory_bytes=16 << 20,
                disk_bytes=1 << 20,
            )
            result = sandbox.run(source, language="python", limits=limits)
            assert result.verdict == verdict, (source, result)
        assert zygotes()[:2] == before


def test_memory_of_the_zygote_is_not_the_runs(warm: Sandbox) -> None:
    result = warm.run("print(1)", language="python")
    assert 0 < result.peak_memory < 6 << 20
    result = warm.run("x = bytearray(50 << 20)", language="python")
    assert 50 << 20 < result.peak_memory < 60 << 20


def test_modules_on_request() -> None:
    need("warm")
    source = "import sys; print('xml.dom.minidom' in sys.modules, 'wave' in sys.modules)"
    with Sandbox(slots=1, runner="warm", warm_modules=["xml.dom.minidom"]) as sandbox:
        assert sandbox.run(source, language="python").stdout == b"True False\n"


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        ({"warm_modules": ["no_such"]}, 'warm_modules = "no_such": expected a module that'),
        ({"warm_modules": ["a b"]}, 'warm_modules = "a b": expected names of modules'),
        ({"warm_runs": 0}, "warm_runs = 0: expected at least 1"),
        ({"warm_runs": -1}, "warm_runs = -1: expected a count"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(arguments: dict[str, Any], start: str) -> None:
    need("warm")
    with pytest.raises(InvalidInputError) as refused:
        Sandbox(slots=1, runner="warm", **arguments)
    assert str(refused.value).startswith(start)


def test_modules_that_start_threads_are_refused(tmp_path: Path) -> None:
    need("warm")
    (tmp_path / "threaded.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(99,), daemon=True).start()\n"
    )
    table = tmp_path / "languages.toml"
    table.write_text(
        '[python]\nfile = "main.py"\nrun = ["/usr/bin/python3", "main.py"]\n'
        'environment = ["PYTHONPATH=/more"]\n'
    )
    binds = {"/more/threaded.py": tmp_path / "threaded.py"}
    with pytest.raises(InvalidInputError, match="modules that start no thread"):
        Sandbox(slots=1, runner="warm", languages=[table], binds=binds, warm_modules=["threaded"])


def test_closing_leaves_nothing() -> None:
    need("warm")
    kept = (spawners(), groups(), zygotes())
    sandbox = Sandbox(slots=2, least_slots=2, runner="warm", warm_runs=2)
    for _ in range(3):
        sandbox.run("", language="python")
    pids = [pid for pid in zygotes() if pid not in kept[2]]
    assert len(pids) >= 4
    sandbox.close()
    assert (spawners(), groups(), zygotes()) == kept
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
