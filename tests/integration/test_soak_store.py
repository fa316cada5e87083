"""Some turnovers of the store's soak at a small capacity; `make soak-store` makes hours of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from soak.figures import MIB, Figures, Record
from soak.store import churn


def test_a_store_at_its_capacity_does_not_grow(tmp_path: Path) -> None:
    done = churn(
        tmp_path / "store",
        capacity=16 << 20,
        seconds=0,
        turnovers=4,
        workers=3,
        share=0,
        rate=0,
        seed=1,
        tell=lambda _: None,
    )
    assert done.faults() == [], done.table()
    assert min(done.world.counts[name] for name in ("openings", "marks", "rewinds")) > 0
    assert done.record.looks


STEADY = Figures(0, *[MIB] * 5, files=3, descriptors=9, live=0.9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("disk", 20 * MIB),
        ("allocated", 17 * MIB),
        ("mapped", 19 * MIB),
        ("files", 40),
        ("descriptors", 50),
        ("anonymous", 80 * MIB),
    ],
)
def test_what_grows_is_named(name: str, value: int) -> None:
    steady = [replace(STEADY, progress=step / 10) for step in range(11)]
    record = Record(capacity=16 * MIB, file_bytes=MIB, descriptors_before=5, looks=steady)
    assert record.faults() == []
    record.looks = steady[:7] + [replace(one, **{name: value}) for one in steady[7:]]
    (fault,) = record.faults()
    assert fault.startswith("memory grew" if name == "anonymous" else f"{name} rose to")
