"""The daemon: SandboxFusion's contract, its own, and how it lives and dies."""

from __future__ import annotations

import base64
import json
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from daemons import Daemon, client_of, daemon, need_daemon
from sandboxes import groups, wait_until

from k15core.errors import InvalidInputError, SandboxError
from k15core.sandbox import Client, Limits, Sandbox, Submission
from k15core.types import RunResult


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    with daemon("--slots", "2") as found:
        yield found


def run_code(running: Daemon, code: str, **fields: object) -> dict[str, Any]:
    status, found = running.ask("POST", "/run_code", {"code": code, "language": "python"} | fields)
    assert status == 200, found
    assert set(found) == {
        "status",
        "message",
        "compile_result",
        "run_result",
        "executor_pod_name",
        "files",
    }
    return dict(found)


def test_a_program_that_ends_well(running: Daemon) -> None:
    found = run_code(running, "print(input())", stdin="here")
    assert (found["status"], found["message"], found["compile_result"]) == ("Success", "", None)
    result = found["run_result"]
    assert result.pop("execution_time") > 0
    assert result == {"status": "Finished", "return_code": 0, "stdout": "here\n", "stderr": ""}
    assert running.ask("GET", "/v1/ping") == (200, "pong")


@pytest.mark.parametrize(
    ("code", "fields", "status", "return_code"),
    [
        ("exit(3)", {}, "Finished", 3),
        ("import os; os.kill(os.getpid(), 11)", {}, "Finished", -11),
        ("x = bytearray(10**9)", {"memory_limit_MB": 64}, "Finished", 1),
        ("import time; time.sleep(60)", {"run_timeout": 0.3}, "TimeLimitExceeded", None),
        ("while True: pass", {"run_timeout": "0.3"}, "TimeLimitExceeded", None),
    ],
)
def test_a_program_that_fails(
    running: Daemon, code: str, fields: dict[str, object], status: str, return_code: int | None
) -> None:
    found = run_code(running, code, **fields)
    assert found["status"] == "Failed"
    result = found["run_result"]
    if "memory_limit_MB" in fields:  # Python's own MemoryError, or the kernel's kill
        assert result["return_code"] in (1, -9)
        return
    assert (result["status"], result["return_code"]) == (status, return_code)


def test_files_go_in_and_out(running: Daemon) -> None:
    content = bytes(range(256))
    files = {"in/a.bin": base64.b64encode(content).decode(), "passed-over": None}
    code = "open('out.bin', 'wb').write(open('in/a.bin', 'rb').read()[::-1])"
    found = run_code(running, code, files=files, fetch_files=["out.bin", "not-there"])
    assert list(found["files"]) == ["out.bin"]
    assert base64.b64decode(found["files"]["out.bin"]) == content[::-1]


def test_what_is_compiled_says_so(running: Daemon) -> None:
    if running.ask("GET", "/v1/languages")[1]["cpp"]:
        pytest.skip("C++ is compiled: apt install g++")
    good = '#include <cstdio>\nint main() { puts("here"); return 4; }'
    for _ in range(2):  # compiled, and found compiled
        found = run_code(running, good, language="cpp")
        assert found["status"] == "Failed"
        assert found["compile_result"]["return_code"] == 0
        assert found["run_result"]["return_code"] == 4
        assert found["run_result"]["stdout"] == "here\n"
    found = run_code(running, "int main() { return x; }", language="cpp")
    assert found["status"] == "Failed"
    assert found["compile_result"]["status"] == "Finished"
    assert found["compile_result"]["return_code"] != 0
    assert "x" in found["compile_result"]["stderr"]
    assert found["run_result"] is None
    slow = '#include "x.h"\nint main() { return 0; }'
    # Without a word: messages might fill the output before the time is over.
    header = b"#if __INCLUDE_LEVEL__ < 100\n" + b"#include __FILE__\n" * 8 + b"#endif\n"
    files = {"x.h": base64.b64encode(header).decode()}
    found = run_code(running, slow, language="cpp", files=files, compile_timeout=0.05)
    assert found["status"] == "Failed"
    assert found["compile_result"]["status"] == "TimeLimitExceeded"


def test_a_language_that_is_not_here_is_no_fault_of_the_program(running: Daemon) -> None:
    found = run_code(running, "(displayln 1)", language="racket")
    assert found["status"] == "SandboxError"
    assert "racket" in found["message"]
    assert found["run_result"] is None


def test_a_request_that_is_wrong_is_told_as_its_server_tells(running: Daemon) -> None:
    status, found = running.ask("POST", "/run_code", {"language": "cobol"})
    assert status == 422
    assert [fault["loc"] for fault in found["detail"]] == [["body", "code"], ["body", "language"]]
    assert found["detail"][0]["type"] == "missing"
    assert found["detail"][1]["msg"].startswith("Input should be 'python', 'cpp'")
    for fields in ({"files": {"../x": "eA=="}}, {"run_timeout": 1e9}, {"run_timeout": "nan?"}):
        body = {"code": "", "language": "python"} | fields
        status, found = running.ask("POST", "/run_code", body)
        assert status == 422, found
        assert found["detail"][0]["msg"]


JOBS = [
    Submission(source="print(input()[::-1])", language="python", stdin=b"abc"),
    Submission(source="import os; os.write(1, bytes(range(256)))", language="python"),
    Submission(source="import sys; print(sys.argv[1:])", language="python", arguments=["a", "b"]),
    Submission(
        source="open('b', 'w').write(open('a').read())",
        language="python",
        files={"a": b"\xff\x00"[1:]},
        fetch=["b", "c"],
    ),
    Submission(source="exit(7)", language="python"),
    Submission(source="kill -6 $$", language="bash"),
    Submission(source="while True: pass", language="python", limits=Limits(cpu_seconds=0.2)),
    # Without an end: a short one may be over before it is stopped, or not.
    Submission(
        source="while True: print('x' * 999)", language="python", limits=Limits(output_bytes=10)
    ),
]


def essence(result: RunResult) -> dict[str, object]:
    measured = ("cpu_seconds", "wall_seconds", "peak_memory")
    return {name: value for name, value in vars(result).items() if name not in measured}


def test_the_client_can_be_exchanged_for_the_sandbox(running: Daemon) -> None:
    with Sandbox(slots=2) as sandbox, client_of(running) as client:
        here, there = sandbox.run_many(JOBS), client.run_many(JOBS)
        assert [essence(each) for each in here] == [essence(each) for each in there]
        assert client.languages() == sandbox.languages()
        for broken in (
            {"language": "cobol"},
            {"language": "python", "files": {"/etc/x": b""}},
            {"language": "python", "limits": Limits(memory_bytes=1)},
        ):
            with pytest.raises(InvalidInputError) as ours:
                sandbox.run("", **broken)  # type: ignore[arg-type]
            with pytest.raises(InvalidInputError) as theirs:
                client.run("", **broken)  # type: ignore[arg-type]
            assert str(ours.value) == str(theirs.value)
        with pytest.raises(InvalidInputError, match="memory_bytes = 1099511627776: expected at"):
            client.run("", language="python", limits=Limits(memory_bytes=1 << 40))


async def test_the_client_in_an_event_loop(running: Daemon) -> None:
    with client_of(running) as client:
        one = await client.run_async("print(1)", language="python")
        many = await client.run_many_async([{"source": "print(2)", "language": "python"}] * 5)
    assert [one.stdout, *(each.stdout for each in many)] == [b"1\n"] + [b"2\n"] * 5


def test_no_daemon_is_no_verdict() -> None:
    refused = r"http://127\.0\.0\.1:9: .*refused"
    with (
        Client("http://127.0.0.1:9", patience=0.2) as client,
        pytest.raises(SandboxError, match=refused),
    ):
        client.run("", language="python")
    with pytest.raises(InvalidInputError, match="url = 'ftp://x'"):
        Client("ftp://x")


def test_a_token_opens_the_door(tmp_path: Path) -> None:
    token = "a-token-of-enough-letters"
    (tmp_path / "token").write_text(token + "\n")
    with daemon("--slots", "1", settings=f"token_file = '{tmp_path}/token'", home=tmp_path) as it:
        body = {"code": "print(1)", "language": "python"}
        basic = base64.b64encode(f"user:{token}".encode()).decode()
        for headers, expected in [
            ({}, 401),
            ({"Authorization": "Bearer no"}, 401),
            ({"Authorization": f"Bearer {token}x"}, 401),
            ({"Authorization": f"Bearer {token}"}, 200),
            ({"Authorization": f"Basic {basic}"}, 200),
            ({"Authorization": "Basic *"}, 401),
        ]:
            assert it.ask("POST", "/run_code", body, headers)[0] == expected, headers
        assert it.ask("GET", "/metrics")[0] == 401
        assert it.ask("GET", "/health")[0] == 200
        with client_of(it, token=token) as client:
            assert client.run("print(2)", language="python").stdout == b"2\n"
        with client_of(it) as client, pytest.raises(SandboxError, match="401"):
            client.run("", language="python")


@pytest.mark.parametrize(
    ("settings", "words", "message"),
    [
        ("slotz = 3", [], "slotz"),
        ("[sandbox]\nslots = -1", [], "slots"),
        ("[queue]\nstart_within_seconds = -1", [], "queue.start_within_seconds = -1"),
        ("", ["--listen", "0.0.0.0:1"], 'listen = "0.0.0.0:1": expected token_file'),
        ("", ["--listen", "somewhere"], 'listen = "somewhere"'),
        ("token_file = '/does/not/exist'", [], "/does/not/exist"),
        ("[sandbox.limits]\nmemory_bytes = 1", [], "sandbox.limits: memory_bytes = 1"),
    ],
)
def test_settings_that_make_no_sense(
    settings: str, words: list[str], message: str, tmp_path: Path
) -> None:
    need_daemon()
    (tmp_path / "x.toml").write_text(settings)
    command = [sys.executable, "-m", "k15core.cli", "sandbox", "serve"]
    command += ["--config", str(tmp_path / "x.toml"), *words, "--slots", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode in (1, 2), done
    assert message in done.stderr


def test_settings_are_printed_whole(tmp_path: Path) -> None:
    need_daemon()
    command = [sys.executable, "-m", "k15core.cli", "sandbox", "serve", "--check-config"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (tmp_path / "x.toml").write_text(printed)
    command += ["--config", str(tmp_path / "x.toml")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == printed


def test_who_goes_away_has_his_run_killed(running: Daemon) -> None:
    connection = running.connect()
    body = json.dumps({"source": "import time; time.sleep(99)", "language": "python"})
    connection.request("POST", "/v1/run", body)
    running.wait_until_gauge('slots{state="busy"}', 1)
    connection.close()
    running.wait_until_gauge('slots{state="busy"}', 0)
    assert run_code(running, "print(1)")["status"] == "Success"


def test_who_cannot_start_in_time_is_told_at_once(tmp_path: Path) -> None:
    settings = "[queue]\nstart_within_seconds = 0.5\n[sandbox]\nslots = 1"
    with (
        daemon(settings=settings, home=tmp_path) as it,
        client_of(it) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        long = it.connect()
        body = {"source": "import time; time.sleep(99)", "language": "python"}
        body["limits"] = {"wall_seconds": 120}  # type: ignore[assignment]
        long.request("POST", "/v1/run", json.dumps(body))
        it.wait_until_gauge('slots{state="busy"}', 1)
        for _ in range(2):
            connection = it.connect()
            connection.request("POST", "/run_code", b'{"code": "", "language": "python"}')
            response = connection.getresponse()
            assert response.status == 504
            assert int(response.headers["Retry-After"]) >= 1
            connection.close()
        # The client asks again until its turn comes.
        run = pool.submit(client.run, "print(1)", language="python")
        long.close()
        assert run.result().stdout == b"1\n"


def test_twice_what_it_can_do_and_nobody_is_wronged(tmp_path: Path) -> None:
    settings = "[queue]\nstart_within_seconds = 0.2\n[sandbox]\nslots = 2"
    with daemon(settings=settings, home=tmp_path) as it, client_of(it, connections=16) as client:
        jobs = [
            {"source": f"import time; time.sleep(0.05); print({i})", "language": "python"}
            for i in range(100)
        ]
        results = client.run_many(jobs)
        assert [each.stdout for each in results] == [f"{i}\n".encode() for i in range(100)]
        text = it.ask("GET", "/metrics")[1]
        assert 'k15_sandboxd_runs_total{language="python",verdict="ok"} 100' in text


def test_a_daemon_that_is_told_to_stop_finishes_what_runs() -> None:
    with daemon("--slots", "1") as it, client_of(it, patience=0) as client:
        with ThreadPoolExecutor(2) as pool:
            source = "import time; time.sleep(4); print('done')"
            first = pool.submit(client.run, source, language="python")
            it.wait_until_gauge('slots{state="busy"}', 1)
            second = pool.submit(client.run, source, language="python")
            it.wait_until_gauge("waiting", 1)
            assert it.stop() == 0
            assert first.result().stdout == b"done\n"
            with pytest.raises(SandboxError, match="stopping"):
                second.result()
        events = [line["event"] for line in it.log if line["event"] != "request"]
        assert events == ["listening", "stopping", "stopped"]
        assert groups(it.process.pid) == []


def test_a_daemon_that_is_killed_leaves_nothing_and_its_clients_recover(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/socket"
    need_daemon()
    jobs = [
        {"source": f"import time; time.sleep(0.02); print({i})", "language": "python"}
        for i in range(150)
    ]
    first = Daemon("--slots", "2", listen=address)
    with client_of(first, connections=8) as client, ThreadPoolExecutor(1) as pool:
        runs = pool.submit(client.run_many, jobs)
        assert wait_until(
            lambda: first.gauge('runs_total{language="python",verdict="ok"}') >= 20, seconds=60
        )
        first.kill()
        second = Daemon("--slots", "2", listen=address)
        results = runs.result()
        assert [each.stdout for each in results] == [f"{i}\n".encode() for i in range(150)]
        assert second.stop() == 0
    for it in (first, second):
        assert wait_until(lambda pid=it.process.pid: not groups(pid), seconds=20)
    assert not (tmp_path / "socket").exists()


def test_the_socket_of_a_living_daemon_is_not_taken(tmp_path: Path) -> None:
    need_daemon()
    first = Daemon("--slots", "1", listen=f"unix:{tmp_path}/socket")
    try:
        command = [first.process.args[0], "--listen", f"unix:{tmp_path}/socket"]  # type: ignore[index]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 1
        assert "in use" in done.stderr
        assert oct((tmp_path / "socket").stat().st_mode)[-3:] == "660"
    finally:
        assert first.stop() == 0


def broken_requests(rng: random.Random) -> Iterator[bytes]:
    """Requests that are malformed, huge or cut, as raw bytes."""
    body = json.dumps({"code": "print(1)", "language": "python"}).encode()
    head = b"POST /run_code HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    whole = head % len(body) + body
    for _ in range(200):
        at = rng.randrange(len(whole))
        yield whole[:at] + bytes([rng.randrange(256)]) + whole[at + 1 :]
        yield whole[:at]
    deep = b"[" * 100_000
    yield head % len(deep) + deep
    yield head % (1 << 40) + b"{}"
    yield b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n"
    yield b"GET /health HTTP/1.1\r\n" + b"".join(b"h%d: x\r\n" % i for i in range(500)) + b"\r\n"
    yield b"POST /v1/run HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"
    yield rng.randbytes(5000)


def test_whatever_is_sent_it_is_not_the_daemons_fault(running: Daemon) -> None:
    host, port = running.address.split(":")
    for request in broken_requests(random.Random(3)):
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            try:
                connection.sendall(request)
                connection.shutdown(socket.SHUT_WR)
                answer = connection.recv(64)
            except (ConnectionResetError, BrokenPipeError):
                continue
        assert not answer or int(answer.split()[1]) < 500, (request[:200], answer)
    assert run_code(running, "print(1)")["status"] == "Success"
    assert running.ask("GET", "/ready")[0] == 200


def batch(running: Daemon, cases: list[object], **fields: object) -> list[dict[str, Any]]:
    """The lines of an answer of /v1/batch."""
    source = "import sys; a, b = input().split(); print(int(a) + int(b), *sys.argv[1:])"
    submission = {"source": source, "language": "python"}
    body = {"submission": submission, "cases": cases} | fields
    status, found = running.ask("POST", "/v1/batch", body)
    assert status == 200, found
    lines = [found] if isinstance(found, dict) else map(json.loads, found.splitlines())
    return list(lines)


def test_one_source_with_many_cases(running: Daemon) -> None:
    cases: list[object] = [{"stdin": f"{i} {i}", "expected": f"{2 * i}"} for i in range(20)]
    cases[7] = {"stdin": "1 1", "expected": "3"}
    cases[9] = {"stdin": "one", "expected": "3"}
    cases[11] = {"stdin": "1 2", "arguments": ["x"], "expected": "3 x"}
    cases[13] = {"stdin": "1 2"}
    *lines, total = batch(running, cases)
    assert total == {"done": True, "cases": 20, "run": 20, "passed": 18}
    assert lines[0]["case"] == 0
    assert sorted(line["case"] for line in lines) == list(range(20))
    assert {line["case"] for line in lines if not line["passed"]} == {7, 9}
    (failed,) = [line for line in lines if line["case"] == 9]
    assert (failed["verdict"], failed["exit_code"], failed["stdout"]) == ("nonzero_exit", 1, "")
    assert failed["cpu_seconds"] > 0


def test_a_case_that_makes_no_sense_is_told_so(running: Daemon) -> None:
    cases: list[object] = [{"stdin": "1 1"}, {"stdin": "1 1", "arguments": ["\0"]}]
    *_, line, total = batch(running, cases)
    assert (line["verdict"], line["passed"], line["case"]) == ("sandbox_error", None, 1)
    assert line["message"].startswith('arguments = "\\0": expected no NUL')
    assert (total["run"], total["passed"]) == (2, 1)


def test_a_batch_can_stop_at_the_first_failure(running: Daemon) -> None:
    cases: list[object] = [{"stdin": "1 1", "expected": "3"}] * 50
    line, total = batch(running, cases, stop_at_first_failure=True)
    assert (line["case"], line["passed"]) == (0, False)
    assert total == {"done": True, "cases": 50, "run": 1, "passed": 0}
    cases = [{"stdin": "1 1", "expected": "2"}] * 5 + cases
    total = batch(running, cases, stop_at_first_failure=True)[-1]
    assert total["run"] in (5, 6), "one of those before it may not have ended"


def test_checkers_of_a_batch(running: Daemon) -> None:
    cases: list[object] = [{"stdin": "1 1", "expected": "2.0000001"}]
    for checker, passed in (
        ({"kind": "tokens"}, 0),
        ({"kind": "exact"}, 0),
        ({"kind": "floats"}, 1),
        ({"kind": "floats", "tolerance": 1e-9}, 0),
    ):
        assert batch(running, cases, checker=checker)[-1]["passed"] == passed


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"cases": [{}]}, "missing field `submission`"),
        ({"submission": {"source": "", "language": "python"}, "cases": []}, "cases = []"),
        ({"submission": {"source": "", "language": "x"}, "cases": [{}]}, 'language = "x"'),
        ({"submission": {"source": "", "language": "python"}, "cases": [{}], "more": 1}, "`more`"),
        ({"submission": {"source": "", "language": "python"}, "cases": [{"in": 1}]}, "`in`"),
    ],
)
def test_a_batch_that_makes_no_sense(running: Daemon, body: object, message: str) -> None:
    status, found = running.ask("POST", "/v1/batch", body)
    assert status == 400
    assert message in found["error"]["message"]


def test_who_leaves_a_batch_ends_it(running: Daemon) -> None:
    connection = running.connect()
    source = "import sys, time\nif sys.stdin.read(): time.sleep(99)"
    submission = {"source": source, "language": "python"}
    cases = [{"stdin": ""}] + [{"stdin": "x"}] * 8
    connection.request("POST", "/v1/batch", json.dumps({"submission": submission, "cases": cases}))
    response = connection.getresponse()
    assert json.loads(response.readline())["passed"]
    running.wait_until_gauge('slots{state="busy"}', 2)
    response.close()
    connection.close()
    running.wait_until_gauge('slots{state="busy"}', 0)
    running.wait_until_gauge("waiting", 0)


def test_paths_and_methods_that_are_not_there(running: Daemon) -> None:
    assert running.ask("GET", "/nothing")[0] == 404
    assert running.ask("GET", "/run_code")[0] == 405
    connection = running.connect()
    connection.request("GET", "/health", headers={"X-Request-Id": "mine-1"})
    assert connection.getresponse().headers["X-Request-Id"] == "mine-1"
    connection.close()
