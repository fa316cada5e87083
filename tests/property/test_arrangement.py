"""Moves sort rows into classes of length, without losing or moving more than they must."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from k15core.rollout.embedded.arrange import arrangement, length_classes

ROWS = st.lists(st.one_of(st.none(), st.integers(0, 2000)), max_size=40)


def test_classes_double() -> None:
    lengths = np.array([0, 1, 128, 129, 256, 257, 512, 513, 1024, 1025])
    assert length_classes(lengths).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 4]


@given(ROWS)
def test_arrangement(rows: list[int | None]) -> None:
    active = np.array([row is not None for row in rows], bool)
    lengths = np.array([row or 0 for row in rows], np.int64)
    sources, targets, bounds = arrangement(active, lengths)

    placed = list(rows)
    for source in sources:
        placed[source] = None
    for source, target in zip(sources, targets, strict=True):
        assert placed[target] is None  # a hole, or a row that moves too
        placed[target] = rows[source]
    running = [row for row in rows if row is not None]
    assert sorted(row for row in placed if row is not None) == sorted(running)
    assert all(row is not None for row in placed[: len(running)])

    classes = length_classes(np.array([row for row in placed if row is not None], np.int64))
    assert (np.diff(classes) <= 0).all()
    assert bounds == sorted({0, len(running), *(np.nonzero(np.diff(classes))[0] + 1).tolist()}) or (
        running == [] and bounds == [0, 0]
    )
    assert not set(sources.tolist()) & {
        i
        for i, row in enumerate(rows[: len(running)])
        if row is not None and length_classes(lengths[i : i + 1])[0] == classes[i]
    }
