"""Clients that mean no good, or cannot do better, by the thousand: the daemon serves the others."""

from __future__ import annotations

import json
import random
import selectors
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from daemons import Daemon, client_of, daemon
from sandboxes import wait_until
from slowness import SLOW

from k15core.sandbox.local import DAEMON

READ = 1.0
"""Seconds in which a request's head, and then its body, must have come."""
PATIENCE = 60 * SLOW
"""Seconds after which a connection should have been closed: many times what the daemon takes."""
SETTINGS = f"""
log_requests = false
[http]
read_seconds = {READ}
write_seconds = {READ}
body_bytes = 65536
connections = 512
[sandbox]
slots = 2
"""


SECRET = b"only-in-the-environment"


@pytest.fixture(scope="module")
def besieged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("besieged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("K15_TEST_SECRET", SECRET.decode())
        with daemon(settings=SETTINGS, home=home) as found:
            yield found


PATHS = [b"/", b"/health", b"/ready", b"/metrics", b"/v1/languages", b"/openapi.json", b"/x", b"//"]


def connect(it: Daemon) -> socket.socket:
    host, port = it.address.split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def until_closed(connection: socket.socket) -> bytes:
    """What comes until the daemon closes; a reset ends it too, with what came before."""
    found = b""
    try:
        while block := connection.recv(1 << 16):
            found += block
    except (ConnectionResetError, BrokenPipeError):
        pass
    return found


def statuses(answers: bytes) -> list[int]:
    """The status of each answer on a connection."""
    return [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]]


def are_answers(found: list[int]) -> bool:
    return all(status < 500 or status in (503, 504) for status in found)


def descriptors(it: Daemon) -> int:
    return len(list(Path(f"/proc/{it.process.pid}/fd").iterdir()))


def connections(it: Daemon) -> int:
    """Connections that the daemon holds open."""
    port = int(it.address.split(":")[1])
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    held = [state for _, local, _, state, *_ in lines if int(local.split(":")[1], 16) == port]
    established, close_wait = "01", "08"
    return held.count(established) + held.count(close_wait)


def memory(it: Daemon) -> int:
    """Bytes that the daemon holds of its own."""
    words = Path(f"/proc/{it.process.pid}/status").read_text().split()
    return int(words[words.index("RssAnon:") + 1]) << 10


OTHERS = b"of-another-client"
RUN = json.dumps({"source": "print(1)", "language": "python"}).encode()


def post(path: bytes, body: bytes, *heads: bytes) -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: x", *heads]
    if not any(head.lower().startswith((b"content-length", b"transfer")) for head in heads):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + end
    return post(b"/v1/run", body, b"Transfer-Encoding: chunked")


def nested(depth: int) -> bytes:
    return b'{"source": "", "language": "python", "files": ' + b'{"a": ' * depth


def hostile(rng: random.Random) -> Iterator[bytes]:
    """Requests of every kind of wrong, without end."""
    while True:
        count = rng.randrange(1, 2000)
        yield post(b"/v1/run", RUN, b"Content-Length: %d" % (len(RUN) + count))
        yield post(b"/v1/run", RUN, b"Content-Length: %d" % rng.randrange(len(RUN)))
        yield post(b"/v1/run", RUN, b"Content-Length: -%d" % count)
        yield post(b"/v1/run", RUN, b"Content-Length: %d" % len(RUN), b"Content-Length: 3")
        yield post(b"/v1/run", RUN, b"Content-Length: 9" + b"9" * count)
        yield post(b"/v1/run", RUN, b"Content-Length: 4", b"Transfer-Encoding: chunked")
        yield post(b"/v1/run", b" " * 70_000 + RUN)
        yield post(b"/v1/batch", nested(rng.choice((10, 127, 128, 129, 10_000))))
        yield post(b"/run_code", b'{"code": ' + b"[" * rng.randrange(60_000))
        yield post(b"/v1/run", b'{"source": 1e%d}' % count)
        yield post(b"/v1/run", b'{"source": "\\ud800", "language": "python"}')
        yield post(b"/v1/run", rng.randbytes(count))
        yield post(b"/" + rng.randbytes(20), RUN)
        yield post(b"/v1/run?" + b"x" * count, b"{}", b"Expect: 100-continue")
        yield post(b"/v1/run", b"{}", b"X-K15-Client: " + rng.randbytes(9).hex().encode() * 8)
        yield post(b"/v1/run", b"{}", b"Content-Encoding: gzip")
        yield post(b"/v1/run", b"{}", b"Authorization: Basic " + b"=" * count)
        yield chunked(RUN[:9], RUN[9:], end=b"")
        yield chunked(RUN[:9], rng.randbytes(3), RUN[9:])
        yield chunked(*[b"x" * 30_000] * 4)
        yield chunked(RUN, end=b"%x\r\n" % (1 << 62) + rng.randbytes(count))
        yield chunked(RUN, end=rng.randbytes(4) + b"\r\n\r\n")
        yield b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * rng.randrange(2, 9) + rng.randbytes(9)
        yield post(b"/v1/run", b"{}") * rng.randrange(2, 9) + b"GET"
        yield b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * count
        yield b"GET /health HTTP/1.1\r\nx: " + b"y" * 70_000
        yield b"GET /health HTTP/%d.%d\r\n\r\n" % (count, count)
        yield b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        yield b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n" + rng.randbytes(count)
        yield b"GET /health HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"
        yield b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(count)
        yield b"\r\n" * count
        yield b"\0" * count


def send(it: Daemon, request: bytes) -> bytes:
    with connect(it) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
        except OSError:  # it was answered, and closed, before all of it was there
            pass
        return until_closed(connection)


def is_told_nothing(answers: bytes) -> bool:
    """Whether no path of the daemon's, no environment and no other client's data is in answers."""
    secrets = (
        SECRET,
        bytes(DAEMON.parent),
        b"besieged",
        b"/sys/fs/cgroup",
        b"/run/k15core",
        OTHERS,
    )
    return not any(secret in answers for secret in secrets)


def test_thousands_of_requests_that_are_wrong(besieged: Daemon) -> None:
    requests = hostile(random.Random(5))
    held = []
    with ThreadPoolExecutor(16) as pool, client_of(besieged) as client:
        for _ in range(4):
            batch = [next(requests) for _ in range(33 * 16)]
            sent = pool.map(send, [besieged] * len(batch), batch)
            others = f"{OTHERS.decode()!r}, open('{OTHERS.decode()}', 'w').write('x')"
            stdout = client.run(f"print({others})", language="python", stdin=OTHERS).stdout
            assert OTHERS in stdout
            for request, found in zip(batch, sent, strict=True):
                assert are_answers(statuses(found)), (request[:300], found)
                assert is_told_nothing(found), (request[:300], found)
            held.append(memory(besieged))
    assert besieged.ask("GET", "/ready")[0] == 200
    # The allocator keeps what the first of them took.
    assert held[-1] < held[0] + (64 << 20), held
    assert descriptors(besieged) < 100


def test_what_a_program_or_a_question_can_find_out(besieged: Daemon) -> None:
    look = """
import os, subprocess
print(dict(os.environ), os.listdir('/'), os.listdir('/tmp'), os.listdir('/proc'))
for name in ('environ', 'cmdline', 'mountinfo', 'cgroup', 'maps'):
    for pid in ('self', '1', str(os.getppid())):
        try:
            print(open(f'/proc/{pid}/{name}').read())
        except OSError as error:
            print(error)
"""
    with client_of(besieged) as client:
        client.run("x", language="python", files={OTHERS.decode(): OTHERS}, stdin=OTHERS)
        found = client.run(look, language="python")
    assert found.verdict == "ok"
    assert is_told_nothing(found.stdout + found.stderr), found
    last = b"Connection: close"
    questions = [b"GET " + path + b" HTTP/1.1\r\n" + last + b"\r\n\r\n" for path in PATHS]
    for fields in (
        {"language": "cobol"},
        {"language": "racket"},
        {"files": {"../x": ""}},
        {"fetch": ["/etc/passwd", "../x"]},
        {"arguments": ["\0"]},
        {"limits": {"memory_bytes": 1}},
        {"limits": {"cpus": 1e9}},
    ):
        body = json.dumps({"source": "x", "language": "python"} | fields).encode()
        questions.append(post(b"/v1/run", body, last))
        questions.append(post(b"/run_code", body.replace(b"source", b"code"), last))
    for question in questions:
        with connect(besieged) as connection:
            connection.sendall(question)
            answer = until_closed(connection)
        assert len(statuses(answer)) == 1
        assert is_told_nothing(answer), (question, answer)


def trickle(it: Daemon, starts: list[bytes], clients: int) -> Counter[int]:
    """What `clients` are answered that send a start, then a byte now and then, and never all."""
    answered = Counter[int]()
    waiting: set[socket.socket] = set()
    selector = selectors.DefaultSelector()
    for number in range(clients):
        connection = connect(it)
        connection.sendall(starts[number % len(starts)])
        connection.setblocking(False)
        waiting.add(connection)
        selector.register(connection, selectors.EVENT_READ)
    deadline = time.monotonic() + PATIENCE
    while waiting:
        assert time.monotonic() < deadline, f"{len(waiting)} connections are still open"
        for key, _ in selector.select(0.05):
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            try:
                block = connection.recv(1 << 16)
            except ConnectionResetError:
                block = b""
            answered.update(statuses(block))
            if not block:
                selector.unregister(connection)
                waiting.remove(connection)
                connection.close()
        for connection in waiting:
            try:
                connection.send(b"y")
            except OSError:  # it is closed, which the next look tells
                continue
    return answered


def test_hundreds_of_clients_that_send_slowly(besieged: Daemon) -> None:
    before = descriptors(besieged)
    head = post(b"/v1/run", b"", b"Content-Length: 60000")
    with ThreadPoolExecutor(1) as pool, client_of(besieged) as client:
        slow = pool.submit(trickle, besieged, [head, head.removesuffix(b"\r\n\r\n")], 400)
        while not slow.done():
            assert client.run("print(6 * 7)", language="python").stdout == b"42\n"
        answered = slow.result()
    assert answered.pop(408) == 200
    assert not answered, "a head that never ends is closed without a word"
    assert besieged.ask("GET", "/ready")[0] == 200
    assert descriptors(besieged) <= before + 50


def test_who_does_not_read_is_given_up(besieged: Daemon) -> None:
    program = {"source": "print('x' * 900_000)", "language": "python"}
    body = json.dumps({"submission": program, "cases": [{}] * 1000}).encode()
    silent = []
    for _ in range(3):
        connection = connect(besieged)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(post(b"/v1/batch", body))
        silent.append(connection)
    with client_of(besieged) as client:
        for _ in range(5):
            assert client.run("print(6 * 7)", language="python").stdout == b"42\n"
    # Their connections are closed and the rest of their cases is not run: nobody waits for it.
    assert wait_until(lambda: connections(besieged) == 0, seconds=PATIENCE)
    besieged.wait_until_gauge('slots{state="busy"}', 0)
    besieged.wait_until_gauge("waiting", 0)
    ran = 'runs_total{language="python",verdict="ok"}'
    assert besieged.gauge(ran) < 1000
    for connection in silent:
        connection.close()
