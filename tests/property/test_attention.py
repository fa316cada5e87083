"""The attention kernel against float64 NumPy, and its promise: a token's bits are its own."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k15core._core import attend_cached
from k15core.errors import InvalidInputError

TILE = 16


@dataclass
class Case:
    """A cache of stale NaNs and sequences that are fed to it."""

    H: int
    K: int
    D: int
    lengths: list[int]
    seed: int

    @property
    def capacity(self) -> int:
        return -(-max(self.lengths) // TILE) * TILE

    def cache(self) -> tuple[np.ndarray, np.ndarray]:
        shape = (len(self.lengths) * self.K, self.capacity, self.D)
        return np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)

    def qkv(self, row: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self.seed, row])
        n = self.lengths[row]
        scale = rng.choice([0.1, 1.0, 4.0])
        return [
            (scale * rng.standard_normal((n, heads, self.D))).astype(np.float32)
            for heads in (self.H, self.K, self.K)
        ]

    def wanted(self, row: int) -> tuple[np.ndarray, float]:
        """[n, H * D] in float64, and what fp32 may be off: scores are rounded before exp."""
        q, k, v = (x.astype(np.float64) for x in self.qkv(row))
        n = len(q)
        shared = np.repeat(np.arange(self.K), self.H // self.K)
        scores = np.einsum("qhd,khd->hqk", q, k[:, shared]) / np.sqrt(self.D)
        error = (1e-6 + 5e-7 * abs(scores).max()) * abs(v).max()
        scores[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return np.einsum("hqk,khd->qhd", weights, v[:, shared]).reshape(n, -1), error


@st.composite
def cases(draw: st.DrawFn) -> Case:
    K = draw(st.integers(1, 3))
    H = K * draw(st.integers(1, 3))
    D = draw(st.sampled_from([1, 2, 6, 16, 31, 32, 40, 64, 80]))
    lengths = draw(st.lists(st.integers(1, 150), min_size=1, max_size=4))
    return Case(H, K, D, lengths, draw(st.integers(0, 1000)))


def feed(
    case: Case,
    cache: tuple[np.ndarray, np.ndarray],
    parts: list[tuple[int, int, int]],
    threads: int = 1,
    asked: np.ndarray | None = None,
) -> list[np.ndarray]:
    """One call with pieces (row, start, stop), a token of nobody between them: their results, 7
    where nobody asks."""
    inputs: list[list[np.ndarray]] = [[], [], []]
    rows, places, spans, at = [], [], [], 0
    for row, start, stop in parts:
        for column, x in zip(inputs, case.qkv(row), strict=True):
            column += [x[start:stop], np.full_like(x[:1], np.nan)]
        rows += [row] * (stop - start) + [-1]
        places += [*range(start, stop), 0]
        spans.append((at, at + stop - start))
        at += stop - start + 1
    q, k, v = map(np.concatenate, inputs)
    out = np.full((at, case.H * case.D), 7, np.float32)
    attend_cached(np.array(rows), np.array(places), q, k, v, *cache, out, threads, asked)
    assert (out[np.array(rows) < 0] == 7).all()
    return [out[start:stop] for start, stop in spans]


@settings(deadline=None, max_examples=150)
@given(case=cases(), data=st.data())
def test_results_are_attention_and_depend_on_their_row_alone(
    case: Case, data: st.DataObject
) -> None:
    rows = range(len(case.lengths))
    at_once = feed(case, case.cache(), [(row, 0, case.lengths[row]) for row in rows])
    for row in rows:
        wanted, error = case.wanted(row)
        np.testing.assert_allclose(at_once[row], wanted, rtol=0, atol=error)
    # The same in steps of random sizes, in random company, on any number of threads.
    cache, done, got = case.cache(), [0 for _ in rows], [[] for _ in rows]
    while todo := [row for row in rows if done[row] < case.lengths[row]]:
        some = data.draw(st.lists(st.sampled_from(todo), min_size=1, unique=True))
        parts = []
        for row in some:
            stop = data.draw(st.integers(done[row] + 1, case.lengths[row]))
            parts.append((row, done[row], stop))
            done[row] = stop
        threads = data.draw(st.integers(1, 4))
        for (row, *_), part in zip(parts, feed(case, cache, parts, threads), strict=True):
            got[row].append(part)
    for row in rows:
        assert np.concatenate(got[row]).tobytes() == at_once[row].tobytes()


@settings(deadline=None, max_examples=100)
@given(case=cases(), share=st.sampled_from([0.0, 0.1, 0.5, 0.9]), threads=st.integers(1, 3))
def test_where_nobody_asks_keys_and_values_are_kept_all_the_same(
    case: Case, share: float, threads: int
) -> None:
    parts = [(row, 0, length) for row, length in enumerate(case.lengths)]
    whole, cache = case.cache(), case.cache()
    wanted = feed(case, whole, parts)
    asked = np.random.default_rng(case.seed).random(sum(case.lengths) + len(parts)) < share
    at = 0
    for full, got in zip(wanted, feed(case, cache, parts, threads, asked), strict=True):
        mask = asked[at : at + len(full)]
        assert got[mask].tobytes() == full[mask].tobytes()
        assert (got[~mask] == 7).all()
        at += len(full) + 1
    for kept, all_kept in zip(cache, whole, strict=True):
        assert kept.tobytes() == all_kept.tobytes()


def arguments() -> dict[str, np.ndarray]:
    return {
        "rows": np.array([0, 1]),
        "positions": np.array([3, 5]),
        "q": np.ones((2, 4, 8), np.float32),
        "k": np.ones((2, 2, 8), np.float32),
        "v": np.ones((2, 2, 8), np.float32),
        "keys": np.zeros((4, 16, 8), np.float32),
        "values": np.zeros((4, 16, 8), np.float32),
        "out": np.zeros((2, 32), np.float32),
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rows": np.array([0, 2])}, "rows = 2: expected a row below 2"),
        ({"positions": np.array([3, 16])}, "positions = 16: expected a place below 16"),
        ({"positions": np.array([3, -1])}, "positions = 1: expected a place of at least 0"),
        ({"positions": np.array([3])}, "positions = 1: expected a place of at least 0"),
        ({"q": np.ones((2, 3, 8), np.float32)}, "q = 3 heads for 2 key heads: expected a multiple"),
        ({"v": np.ones((2, 2, 7), np.float32)}, "v = 14 numbers a token: expected 2 heads of 8"),
        ({"k": np.ones((1, 2, 8), np.float32)}, "k = 1 tokens: expected one for each of rows"),
        ({"q": np.ones((2, 8, 4), np.float32).transpose(0, 2, 1)}, "q = a token with gaps"),
        ({"keys": np.zeros((4, 17, 8), np.float32)}, "keys = 17 places a row"),
        ({"values": np.zeros((2, 16, 8), np.float32)}, "values = 256 numbers: expected 512"),
        ({"out": np.zeros((1, 32), np.float32)}, "out = 32 numbers: expected 64"),
        ({"threads": 1, "asked": np.ones(1, bool)}, "asked = 1: expected one for each of rows"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(
    wrong: dict[str, np.ndarray], message: str
) -> None:
    given = arguments() | wrong
    with pytest.raises(InvalidInputError) as caught:
        attend_cached(*given.values())
    assert str(caught.value).startswith(message)
    for name in ("keys", "values", "out"):
        assert not given[name].any()
