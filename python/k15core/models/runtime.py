"""How torch uses this process: threads, denormals, and memory that is kept once it is had."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from k15core.errors import InvalidInputError

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEEP = 1 << 30

WORTH_THREADS = 4_000_000
"""Multiplications of a matrix product from which on torch's threads pay: to hand half of it to a
second one took 10-20 us where it was measured, what 1.5 million take."""


def configure(threads: int, device: str = "cpu") -> None:
    """Set torch's threads for this process, and glibc's malloc to keep what is freed.

    Refuses a `device` on which a tensor cannot be made.

    By default malloc gives large blocks back at every free, so that each step of training faults
    its activations in anew: on small models, and in virtual machines, that costs more than the
    arithmetic. Where the C library is not glibc, memory is left as it is.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInputError(
            f"device = {device!r}: expected one that torch can use here ({reason})"
        ) from error
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    libc.mallopt(_M_MMAP_THRESHOLD, _KEEP)
    libc.mallopt(_M_TRIM_THRESHOLD, 2 * _KEEP - 1)


@contextmanager
def threads_for(multiplications: int) -> Iterator[int]:
    """Torch's threads only where matrix products are large enough for them; one otherwise.

    Yields how many threads our own kernels may use meanwhile: torch's number where it uses one, and
    one where it uses them, since its threads stay at their processors for a while after each
    product.
    """
    threads = torch.get_num_threads()
    if threads == 1 or multiplications >= WORTH_THREADS:
        yield 1
        return
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
