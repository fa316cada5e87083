"""The engine over HTTP, on a stand-in that streams as vLLM does; vLLM itself is in tests/peers."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from generation import Story, run, stories

from k15core.errors import Error, InvalidInputError, ProcessDiedError
from k15core.rollout.vllm import VllmFleet, VllmServerEngine
from k15core.rollout.vllm.event_stream import events

CONFIG = {
    "vocab_size": 97,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "max_position_embeddings": 4096,
}


def next_token(ids: list[int]) -> int:
    """The stand-in's policy: a function of all tokens so far, so that a lost one would show."""
    value = 0
    for token in ids:
        value = (value * 31 + token + 1) % 1_000_003
    return 2 + value % 95


class Weights:
    """Of no parameter: the stand-in has none."""

    def tensors(self) -> list[tuple[str, object]]:
        return []


class StandIn(ThreadingHTTPServer):
    """Streams in parts of any size. `cut_after` and `abort_after` are the token at which each
    stream is cut off, and at which it is aborted."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.version = "0"
        self.cut_after: int | None = None
        self.abort_after: int | None = None
        self.refusal: str | None = None
        self.open, self.most_open, self.served = 0, 0, 0
        self.lock = threading.Lock()
        self.random = random.Random(0)

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that the engine closed."""


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandIn

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.tell({"weight_version": self.server.version})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        if "token_ids" not in body:
            self.server.version = body.get("new_version", self.server.version)
            return self.tell({"success": True})
        if self.server.refusal is not None:
            return self.tell({"error": self.server.refusal}, 400)
        with self.server.lock:
            self.server.open += 1
            self.server.served += 1
            self.server.most_open = max(self.server.most_open, self.server.open)
        try:
            self.stream(body)
        finally:
            with self.server.lock:
                self.server.open -= 1

    def tell(self, content: dict, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def stream(self, body: dict) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        ids, asked = list(body["token_ids"]), body["sampling_params"]
        for n in range(1, asked["max_tokens"] + 1):
            if self.server.cut_after == n:
                return self.connection.close()
            ids.append(next_token(ids))
            last = n == asked["max_tokens"] or ids[-1] in asked["stop_token_ids"]
            aborted = self.server.abort_after == n
            span = {"version": self.server.version, "start": 0, "end": n}
            choice = {
                "token_ids": [ids[-1]],
                "logprobs": {"content": [{"token_id": ids[-1], "logprob": -ids[-1] / 8}]},
                "finish_reason": "abort" if aborted else "length" if last else None,
                "weight_versions": [span] if last or aborted else None,
            }
            self.send(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
            if last or aborted:
                break
        self.send(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")
        return None

    def send(self, content: bytes) -> None:
        """In chunks whose bounds mean nothing."""
        while content:
            with self.server.lock:
                size = self.server.random.randint(1, 200)
            part, content = content[:size], content[size:]
            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")


@contextmanager
def serving() -> Iterator[StandIn]:
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with serving() as server:
        yield server


def url(server: StandIn) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture
def engine(stand_in: StandIn, tmp_path: Path) -> VllmServerEngine:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return VllmServerEngine(
        tmp_path,
        max_total_tokens=400,
        eos_token_ids=[5],
        slots=3,
        chunk_tokens=4,
        url=url(stand_in),
    )


def check(story: Story, budget: int) -> None:
    expected: list[int] = []
    while len(expected) < budget and (not expected or expected[-1] != 5):
        expected.append(next_token(story.prompt + expected))
    assert story.tokens == expected
    assert story.log_probs == [-token / 8 for token in expected]
    assert story.reason == ("stop" if expected[-1] == 5 else "length")


def test_streams_come_whole_however_they_are_cut(engine: VllmServerEngine) -> None:
    told = stories([[3, n] for n in range(20)])
    budgets = [1 + 7 * n % 60 for n in range(20)]
    run(engine, told, budgets)
    for story, budget in zip(told, budgets, strict=True):
        check(story, budget)


def test_no_more_requests_are_open_than_the_server_needs(
    engine: VllmServerEngine, stand_in: StandIn
) -> None:
    run(engine, stories([[3, n] for n in range(40)]), 30)
    assert 1 <= stand_in.most_open <= 2 * 3


def test_stopped_streams_are_resumed_where_they_were(engine: VllmServerEngine) -> None:
    told = stories([[4, n] for n in range(12)])

    async def drive() -> None:
        by_id = {story.trajectory_id: story for story in told}

        def start(given: list[Story]) -> None:
            for story in given:
                story.reason = None
            engine.start(
                [story.lease() for story in given],
                max_new_tokens=[50 - len(story.tokens) for story in given],
                temperature=1.0,
                seed=0,
            )

        start(told)
        seen = 0
        async for chunk in engine.chunks():
            story = by_id[chunk.trajectory_id]
            story.add(chunk)
            seen += 1
            # Stop and start again in the same breath, while the rest goes on.
            if seen % 5 == 0 and seen < 60 and story.reason is None:
                engine.stop([chunk.trajectory_id, 999])
                ready = engine._streams.ready
                rest = [c for c in ready if c.trajectory_id == chunk.trajectory_id]
                for late in rest:  # as a store must have them before a lease is made
                    ready.remove(late)
                    story.add(late)
                if len(story.tokens) < 50 and story.reason is None:
                    start([story])

    asyncio.run(drive())
    for story in told:
        check(story, 50)


def test_a_connection_that_ends_early_is_a_process_that_died(
    engine: VllmServerEngine, stand_in: StandIn
) -> None:
    stand_in.cut_after = 7
    told = stories([[3, n] for n in range(4)])
    with pytest.raises(ProcessDiedError, match="ended a stream in its middle"):
        run(engine, told, 40)
    stand_in.cut_after = None
    again = stories([[3, n] for n in range(4)])
    run(engine, again, 40)
    for story in again:
        check(story, 40)
    stand_in.shutdown()
    stand_in.server_close()
    with pytest.raises(ProcessDiedError, match="does not answer GET /weight_info"):
        run(engine, again, 40)


def test_what_the_server_refuses_is_told(engine: VllmServerEngine, stand_in: StandIn) -> None:
    stand_in.refusal = "no such parameter"
    with pytest.raises(InvalidInputError, match=r"with 400: .*no such parameter"):
        run(engine, stories([[3]]), 40)


def test_streams_of_a_drained_server_are_let_go(
    engine: VllmServerEngine, stand_in: StandIn
) -> None:
    stand_in.abort_after = 6
    told = stories([[9, n] for n in range(4)])
    run(engine, told, 40)
    for story in told:
        assert (len(story.tokens), story.reason) == (6, None)
    assert len(engine._streams) == 0


def test_other_weights_than_expected_are_an_error(
    engine: VllmServerEngine, stand_in: StandIn
) -> None:
    async def drive() -> None:
        lease = stories([[3]])[0].lease()
        engine.start([lease], max_new_tokens=[30], temperature=1.0, seed=0)
        stand_in.version = "8"  # somebody else updates it
        async for _ in engine.chunks():
            pass

    with pytest.raises(Error, match="sampled with weights 8, expected 0"):
        asyncio.run(drive())
    with pytest.raises(InvalidInputError, match="start with weights of version 8: expected 0"):
        run(engine, stories([[3]]), 4)


def test_a_consumer_that_goes_away_ends_the_streams(engine: VllmServerEngine) -> None:
    async def drive() -> None:
        given = stories([[3, n] for n in range(8)])
        engine.start([s.lease() for s in given], max_new_tokens=[90] * 8, temperature=1.0, seed=0)
        chunks = engine.chunks()
        await anext(chunks)
        await chunks.aclose()
        assert len(engine._streams) == 0
        assert not engine._requests

    asyncio.run(drive())


def test_one_server_is_named_at_most(engine: VllmServerEngine, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="expected one of them"):
        VllmServerEngine(
            tmp_path, max_total_tokens=9, eos_token_ids=[], url="http://a:1",
            checkpoint_engine="http://b:2",
        )  # fmt: skip
    with pytest.raises(InvalidInputError, match="release = 'never'"):
        VllmServerEngine(tmp_path, max_total_tokens=9, eos_token_ids=[], release="never")
    engine.close()
    engine.close()
    with pytest.raises(InvalidInputError, match="closed"):
        engine.acquire()


def test_events_end_at_the_last_one(stand_in: StandIn) -> None:
    async def drive() -> int:
        parts = urlsplit(url(stand_in))
        body = {"token_ids": [3], "sampling_params": {"max_tokens": 9, "stop_token_ids": []}}
        return len([e async for e in events(parts.hostname, parts.port, "/x", body)])

    assert asyncio.run(drive()) == 9


def test_a_fleet_is_who_the_file_names(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    members = tmp_path / "members"
    with serving() as first, serving() as second, serving() as third, socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        absent = f"http://127.0.0.1:{silent.getsockname()[1]}"  # nobody listens there

        def name(*servers: StandIn) -> None:
            lines = [f"{url(server)}  # one" for server in servers]
            members.write_text("\n".join(["", absent, *lines]))

        def served(fleet: VllmFleet, version: int) -> list[bool]:
            fleet.update_weights(Weights(), version)
            before = [server.served for server in (first, second, third)]
            told = stories([[3, n] for n in range(12)])
            run(fleet, told, 20)
            for story in told:
                check(story, 20)
                assert set(story.versions) == {version}
            after = [server.served for server in (first, second, third)]
            return [a > b for a, b in zip(after, before, strict=True)]

        def fleet_of(**changes: object) -> VllmFleet:
            settings = {
                "members": members, "max_total_tokens": 400, "eos_token_ids": [5], "by": "url",
                "start_seconds": 0.0,
            }  # fmt: skip
            return VllmFleet(tmp_path, **{**settings, **changes})

        for content, message in ((None, "No such file"), ("# none", "at least one address")):
            if content is not None:
                members.write_text(content)
            with pytest.raises(InvalidInputError, match=message):
                fleet_of()
        name()
        with pytest.raises(ProcessDiedError, match="does not answer"):
            fleet_of()
        with pytest.raises(InvalidInputError, match="by = 'name'"):
            fleet_of(by="name")
        name(first, second)
        fleet = fleet_of()
        assert served(fleet, 1) == [True, True, False]
        name(first, second, third)
        assert served(fleet, 2) == [True, True, True]
        name(third, second)
        assert served(fleet, 3) == [False, True, True]
        second.cut_after = 3  # it dies in the middle of a rollout: the third one goes on with all
        assert served(fleet, 4) == [False, True, True]
        assert len(fleet.lost) == 1
        second.cut_after = None
        assert served(fleet, 5) == [False, True, True]
        assert fleet.lost == ()
        fleet.close()
