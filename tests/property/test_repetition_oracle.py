"""The detector, through its binding, against the definition of a loop applied at every token."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from k15core import Loop, RepetitionDetector

MAX_PERIOD = 12


def tail(tokens: list[int], period: int) -> int:
    """How long the tail is that has this period."""
    length = min(period, len(tokens))
    while length < len(tokens) and tokens[-1 - length] == tokens[-1 - length + period]:
        length += 1
    return length


pieces = st.one_of(
    st.lists(st.integers(0, 2), max_size=20),
    st.builds(
        lambda unit, copies: unit * copies,
        st.lists(st.integers(0, 2), min_size=1, max_size=MAX_PERIOD + 2),
        st.integers(1, 12),
    ),
)
streams = st.lists(pieces, max_size=6).map(
    lambda lists: [token for part in lists for token in part]
)


@settings(max_examples=300, deadline=None)
@given(streams, st.integers(2, 4), st.integers(2, 30), st.integers(0, 100))
def test_neither_early_nor_late(
    tokens: list[int], min_repeats: int, min_covered: int, resumed_at: int
) -> None:
    detector = RepetitionDetector(
        3, max_period=MAX_PERIOD, min_repeats=min_repeats, min_covered=min_covered, near=False
    )
    least = {p: max(min_repeats * p, min_covered) for p in range(1, MAX_PERIOD + 1)}
    replay = np.array(tokens[:resumed_at], np.int32)
    replayed = detector.extend(2, replay)
    for count in range(1, len(tokens) + 1):
        now = tokens[:count]
        loop = detector.push(now[-1])
        tails = {p: tail(now, p) for p in least}
        if loop is None:
            assert all(2 * (tails[p] + 1) <= 3 * least[p] for p in least), "missed"
        else:
            assert loop.period == min(p for p in least if tails[p] >= least[p]), "early"
            covered = tails[loop.period]
            assert loop == Loop(count - covered, loop.period, covered, "exact")
        if count > resumed_at and replayed is None:
            found = detector.push_many(np.array([2]), np.array(now[-1:], np.int32))
            assert found == ([] if loop is None else [(2, loop)])
        if loop is not None:
            assert replayed in (None, loop)
            return
    assert replayed is None
