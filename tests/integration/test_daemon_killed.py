"""A daemon that is killed under load and started again, a few times; `make soak-daemon`: fifty."""

from __future__ import annotations

from pathlib import Path

from daemons import need_daemon
from soak.daemon import kills


def test_clients_recover_and_nothing_is_left(tmp_path: Path) -> None:
    need_daemon()
    assert kills(3, tmp_path) == []
