import numpy as np
import pytest

from k15core import Error, _core

GOLDEN = 0x9E3779B97F4A7C15
MASK = 2**64 - 1


def splitmix64(x: int) -> int:
    z = (x + GOLDEN) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_uniforms_equal_python_integers() -> None:
    ids, at = np.arange(-3, 50, dtype=np.int64), np.arange(53, dtype=np.int64) ** 3
    want = [
        ((splitmix64(splitmix64(splitmix64(9) ^ (int(i) & MASK)) ^ int(t)) >> 12) + 0.5) / 2**52
        for i, t in zip(ids, at, strict=True)
    ]
    np.testing.assert_array_equal(_core.uniforms(9, ids, at), want)


def test_lengths_must_agree() -> None:
    with pytest.raises(Error, match=r"positions = 2 entries: expected 3"):
        _core.uniforms(0, np.zeros(3, np.int64), np.zeros(2, np.int64))
