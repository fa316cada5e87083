"""Streams that are hard on a repetition detector, and ordinary ones. Each is int32 [length]."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Stream = NDArray[np.int32]
Maker = Callable[[np.random.Generator, int], Stream]

VOCABULARY = 50_000

PERIODS = (1, 2, 3, 7, 16, 63, 64, 65, 100, 256, 1000, 1024, 1800, 4095, 4096, 8192, 16383, 16384)
"""Each as a plain loop and as one in which a token changes before the fourth copy is complete."""


def random(vocabulary: int) -> Maker:
    return lambda draws, length: draws.integers(0, vocabulary, length, np.int32)


def periodic(period: int) -> Maker:
    return lambda draws, length: np.resize(random(VOCABULARY)(draws, period), length)


def nearly_periodic(period: int, vocabulary: int = VOCABULARY) -> Maker:
    """A token changes every 3.9 periods, so that there never are four copies."""

    def make(draws: np.random.Generator, length: int) -> Stream:
        tokens = np.resize(random(vocabulary)(draws, period), length)
        changed = np.arange(period, length, int(3.9 * period))
        tokens[changed] = draws.integers(VOCABULARY, 2 * VOCABULARY, len(changed))
        return tokens

    return make


def table(columns: int, equal: int) -> Maker:
    """Rows of equal columns; behind each `equal` of them one that counts."""

    def make(draws: np.random.Generator, length: int) -> Stream:
        tokens = np.resize(random(VOCABULARY)(draws, columns), length)
        for column in range(0, columns, equal + 1):
            counting = tokens[column::columns]
            counting[:] = np.arange(len(counting))
        return tokens

    return make


def copies_of_itself(segment: int, reach: int) -> Maker:
    """Segments copied from anywhere in the last `reach` tokens: hardly anything is ever new."""

    def make(draws: np.random.Generator, length: int) -> Stream:
        tokens = random(VOCABULARY)(draws, length)
        for at in range(reach, length - segment, segment):
            start = at - draws.integers(segment, reach)
            tokens[at : at + segment] = tokens[start : start + segment]
        return tokens

    return make


def fibonacci_word(_draws: np.random.Generator, length: int) -> Stream:
    """Every tail of it almost repeats at many distances, none of them often enough."""
    shorter, longer = [0], [0, 1]
    while len(longer) < length:
        shorter, longer = longer, longer + shorter
    return np.array(longer[:length], np.int32)


def kinds() -> Iterator[tuple[str, Maker, int, bool]]:
    """Name, maker, tokens a stream, and whether near-repeats are watched for.

    On a handful of symbols every text is a near-repeat; the watch is off there, so that the streams
    run on. Long periods need long streams for their checks to come due.
    """
    yield "random", random(VOCABULARY), 131_072, True
    for symbols in (2, 3):
        yield f"random of {symbols} symbols", random(symbols), 131_072, False
    yield "fibonacci word", fibonacci_word, 32_768, False
    for columns, equal in ((8, 3), (20, 9), (64, 31), (300, 99)):
        yield f"table of {columns} columns", table(columns, equal), 32_768, True
    for segment, reach in ((27, 2000), (60, 1500)):
        yield f"copies of itself, {segment}", copies_of_itself(segment, reach), 32_768, True
    for period in (64, 16384):
        name = f"nearly period {period}, 2 symbols"
        yield name, nearly_periodic(period, 2), 131_072, False
    for period in PERIODS:
        length = 32_768 if period <= 1024 else 131_072
        yield f"period {period}", periodic(period), length, True
        yield f"nearly period {period}", nearly_periodic(period), length, True
