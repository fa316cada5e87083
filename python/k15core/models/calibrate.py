"""Checks, on the machine at hand, what decode.py rests on: the same bits in any company.

Products of random numbers are compared bit for bit between the sizes that generation will use. A
library that switches to another kernel at some size sums in another order, and random numbers show
it; sizes on the wrong side of such a switch are then not used.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from k15core.models.decode import ROW_MULTIPLE, Decoder

REFERENCE_ROWS = 256
HEAD_ROWS = 4096
"""Of a large vocabulary this many outputs stand for all."""


@torch.inference_mode()
def calibrate(decoder: Decoder) -> None:
    """Raise `decoder.min_rows`, and let its cache choose lengths, until nothing depends on them.

    Warns where no row count up to REFERENCE_ROWS will do (seen with no CPU library so far): runs
    then repeat exactly only in the same company.
    """
    generator = torch.Generator(decoder.device).manual_seed(0)
    decoder.cache.calibrate(generator)
    reference = max(REFERENCE_ROWS, decoder.width(decoder.rows))
    weights = {
        w.shape: w
        for w in (*decoder.matrices()[:-1], decoder.head[:HEAD_ROWS])
        if w.dtype == decoder.head.dtype
    }
    least = max(_least_rows(decoder, w, reference, generator) for w in weights.values())
    if least > REFERENCE_ROWS:
        warnings.warn(
            f"matrix products of {REFERENCE_ROWS} rows or fewer depend on the number of rows here: "
            "a resumed run may part from an uninterrupted one",
            stacklevel=2,
        )
        return
    decoder.min_rows = least


def _least_rows(
    decoder: Decoder, weight: Tensor, reference: int, generator: torch.Generator
) -> int:
    """The least row count from which on the tried counts give the bits of `reference` rows."""
    x = torch.randn(
        reference, weight.shape[1], device=weight.device, dtype=weight.dtype, generator=generator
    )

    def product(rows: Tensor) -> Tensor:
        with decoder.threads(len(rows)):
            return F.linear(rows, weight)

    wanted, least = product(x), decoder.min_rows
    near = {least + i * ROW_MULTIPLE for i in range(4)}
    doubled = {least << i for i in range(8)}
    for rows in sorted((near | doubled | {n + ROW_MULTIPLE for n in doubled}), reverse=True):
        if rows <= reference:
            order = torch.randperm(rows, device=x.device, generator=generator)
            if not torch.equal(product(x[order]), wanted[order]):
                return rows + ROW_MULTIPLE
    return least
