"""How many policy versions a trajectory may span, and what becomes of one that would span more.

A trajectory that is resumed under version v spans v less its oldest token's version, plus 1. The
decision is taken where it would be resumed, and is a function of its versions and v: a run that was
killed takes it again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from k15core.types import Lease, Store

BeyondMaxVersions = Literal["finish", "drop", "mask"]

CHOICES: tuple[BeyondMaxVersions, ...] = ("finish", "drop", "mask")


@dataclass
class Sorted:
    """What became of leases: those to go on with, responses that ended, groups that are gone."""

    leases: list[Lease] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)
    dropped_groups: list[int] = field(default_factory=list)
    dropped: set[int] = field(default_factory=set)
    """All trajectories of the dropped groups."""


class VersionBound:
    """Ends what would span more than `max_versions` versions; None is no bound.

    "finish" ends the response where it is, with the finish reason "length"; "drop" removes its
    group; "mask" lets it go on, and leaves its old tokens to the `max_segment_staleness` of
    `Store.sample`: with `max_versions` - 1 no trained token is older than the others' bound allows.
    """

    def __init__(
        self, store: Store, max_versions: int | None, beyond: BeyondMaxVersions = "finish"
    ) -> None:
        if max_versions is not None and max_versions < 1:
            raise InvalidInputError(
                f"max_versions = {max_versions}: expected a count of at least 1, or None"
            )
        if beyond not in CHOICES:
            raise InvalidInputError(
                f"beyond_max_versions = {beyond!r}: expected {', '.join(CHOICES)}"
            )
        self.store = store
        self.max_versions = max_versions
        self.beyond = beyond

    def sort(self, leases: Sequence[Lease], version: int, now: float) -> Sorted:
        """Apply the bound to leased, unfinished trajectories that are to go on under `version`.

        A group of which another worker holds a member at `now` is not dropped yet: what is too old
        in it is given back, for the next call to look at.
        """
        found = Sorted()
        too_old: dict[int, list[Lease]] = {}
        for lease in leases:
            if not self._is_too_old(lease, version):
                found.leases.append(lease)
            elif self.beyond == "finish":
                self.store.finish(lease.trajectory_id, lease.epoch, "length")
                found.finished.append(lease.trajectory_id)
            else:
                group_id = self.store.trajectory(lease.trajectory_id)["group_id"]
                too_old.setdefault(group_id, []).append(lease)
        ours = {lease.trajectory_id for lease in leases}
        for group_id, members in sorted(too_old.items()):
            everyone = self.store.group(group_id)["trajectory_ids"]
            if any(self._is_held(who, now) for who in everyone if who not in ours):
                for lease in members:
                    self.store.release(lease.trajectory_id, lease.epoch)
            else:
                found.dropped_groups.append(group_id)
                found.dropped.update(everyone)
        if found.dropped_groups:
            self.store.drop_groups(found.dropped_groups)
        found.leases = [one for one in found.leases if one.trajectory_id not in found.dropped]
        return found

    def _is_too_old(self, lease: Lease, version: int) -> bool:
        if self.max_versions is None or self.beyond == "mask" or not lease.response_length:
            return False
        # Versions of a response never fall: its first token is the oldest.
        return version - int(lease.versions[lease.prompt_length]) >= self.max_versions

    def _is_held(self, trajectory_id: int, now: float) -> bool:
        deadline = self.store.trajectory(trajectory_id)["deadline"]
        return deadline is not None and deadline > now
