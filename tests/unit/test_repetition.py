import ast
import doctest
import threading
from pathlib import Path

import numpy as np
import pytest

import k15core
from k15core import Loop, RepetitionDetector, _core
from k15core.errors import InvalidInputError

STUB = Path(k15core.__file__).parent / "_core.pyi"


def tokens(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def test_the_example_of_the_stub_runs() -> None:
    classes = [node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ClassDef)]
    (text,) = [ast.get_docstring(node) for node in classes if node.name == "RepetitionDetector"]
    test = doctest.DocTestParser().get_doctest(text or "", {}, "stub", None, None)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


def test_it_is_the_same_class_by_either_name() -> None:
    assert RepetitionDetector is _core.RepetitionDetector


@pytest.mark.parametrize(
    ("period", "found"), [(1, True), (100, True), (16384, True), (16385, False)]
)
def test_extend_finds_a_loop_where_it_begins(period: int, found: bool) -> None:
    detector = RepetitionDetector(near=False)
    noise = np.random.default_rng(0).integers(0, 50_000, 1000).astype(np.int32)
    assert detector.extend(0, noise) is None
    least = max(4 * period, 256)
    unit = np.arange(period, dtype=np.int32) + 50_000
    stuck = np.resize(unit, least * 3 // 2)
    loop = detector.extend(0, stuck)
    if not found:
        assert loop is None
        return
    assert isinstance(loop, Loop)
    assert (loop.start, loop.period, loop.kind) == (1000, period, "exact")
    assert least <= loop.covered <= len(stuck)


def test_a_loop_that_began_before_a_resume_is_caught() -> None:
    detector = RepetitionDetector(2, min_covered=12)
    assert detector.extend(1, tokens(9, 1, 2, 3, 1, 2, 3, 1, 2, 3)) is None
    seen = [
        detector.push_many(np.array([0, 1]), tokens(8 + at % 7 * at, 1 + at % 3)) for at in range(8)
    ]
    found = [pair for pairs in seen for pair in pairs]
    assert len(found) == 1
    stream, loop = found[0]
    assert (stream, loop.start, loop.period) == (1, 1, 3)


def test_a_stream_reports_once_until_it_is_reset() -> None:
    detector = RepetitionDetector(near=False)
    stuck = np.zeros(10_000, np.int32)
    first = detector.extend(0, stuck)
    assert first is not None
    assert detector.extend(0, stuck) is None
    assert detector.push(0) is None
    detector.reset(0)
    assert detector.extend(0, stuck) == first


def test_a_near_repeat_has_no_period() -> None:
    rng = np.random.default_rng(1)
    sane = rng.integers(0, 50_000, 2000).astype(np.int32)
    stuck = np.resize(np.arange(60, dtype=np.int32), 6000)
    stuck[::131] = rng.integers(0, 50_000, len(stuck[::131]))
    detector = RepetitionDetector()
    assert detector.extend(0, sane) is None
    loop = detector.extend(0, stuck)
    assert loop is not None
    assert (loop.kind, loop.period) == ("near", 0)
    assert abs(loop.start - 2000) < 100
    silent = RepetitionDetector(near=False)
    assert silent.extend(0, sane) is None
    assert silent.extend(0, stuck) is None


def test_arrays_need_not_be_contiguous() -> None:
    detector = RepetitionDetector(min_covered=8)
    assert detector.extend(0, np.zeros((20, 2), np.int32)[:, 1]) is not None


def test_bad_input_is_named() -> None:
    def refused(call: object, *arguments: object, **keywords: object) -> str:
        with pytest.raises(InvalidInputError) as caught:
            call(*arguments, **keywords)  # type: ignore[operator]
        return str(caught.value)

    make = RepetitionDetector
    assert refused(make, 0) == "streams = 0: expected 1 to 1048576"
    assert refused(make, -1) == "streams = -1: expected a positive count"
    assert refused(make, max_period=16385) == "max_period = 16385: expected 1 to 16384"
    assert refused(make, min_repeats=1) == "min_repeats = 1: expected 2 to 64"
    assert refused(make, near_novelty=1.0).startswith("near_novelty = 1: expected a share")
    assert refused(make, near_max_window=8).startswith("near_max_window = 8: expected 1024")
    detector = make(2)
    assert (
        refused(detector.push, 2**31) == "token = 2147483648: expected a token id that fits 32 bits"
    )
    assert refused(detector.reset, -1) == "stream = -1: expected a slot, counted from 0"
    assert refused(detector.extend, 2, tokens(1)) == "stream = 2: expected a slot from 0 to 1"
    for wrong in (tokens(1).astype(np.int64), tokens(1)[None], [1]):
        message = refused(detector.push_many, np.array([0]), wrong)
        assert message.startswith("tokens = ")
        assert message.endswith(": expected a one-dimensional array of int32")
        assert refused(detector.extend, 0, wrong) == message
    outside, short = np.array([0, 5]), np.array([0])
    assert (
        refused(detector.push_many, outside, tokens(1, 2))
        == "stream = 5: expected a slot from 0 to 1"
    )
    assert refused(detector.push_many, short, tokens(1, 2)) == (
        "tokens = 2 entries: expected 1, one for each of streams"
    )


def test_a_detector_may_be_shared_by_threads() -> None:
    detector = RepetitionDetector(4, near=False)
    found: list[Loop | None] = [None] * 4
    sane = np.random.default_rng(2).integers(0, 50_000, 300_000).astype(np.int32)

    def work(stream: int) -> None:
        detector.extend(stream, sane)
        found[stream] = detector.extend(stream, np.full(1000, stream, np.int32))

    threads = [threading.Thread(target=work, args=(stream,)) for stream in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [loop and loop.start for loop in found] == [len(sane)] * 4
