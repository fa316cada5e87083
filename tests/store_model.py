"""A naive store: a list of what happened, from which every answer is worked out anew.

A rewind filters the list; nothing is undone. It shares no idea with the real one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Fact:
    """Something that happened, with the newest policy version and the newest mark of its time."""

    kind: str
    subject: int
    version: int
    mark: int
    value: tuple = ()


@dataclass
class Trajectory:
    group_id: int
    tokens: list[tuple[int, float, int, int]] = field(
        default_factory=list
    )  # token, p, mask, version
    reason: str | None = None
    reward: float | None = None
    values: dict[tuple[str, int], float] = field(default_factory=dict)  # by column and position

    def take(self, fact: Fact) -> None:
        if fact.kind == "append":
            self.tokens += [(*token, fact.version) for token in fact.value[0]]
        elif fact.kind == "abort":
            self.tokens, self.values = [], {}
        elif fact.kind == "column":
            name, offset, values = fact.value
            for at, value in enumerate(values, offset):
                if at < len(self.tokens):
                    self.values[name, at] = value
        elif fact.kind == "finish":
            self.reason = fact.value[0]
        elif fact.kind == "reward":
            self.reward = fact.value[0]

    def column(self, name: str) -> list[float]:
        return [self.values.get((name, at), 0) for at in range(len(self.tokens))]

    def has_column(self, name: str) -> bool:
        return all((name, at) in self.values for at in range(len(self.tokens)))


@dataclass
class Group:
    version: int
    members: list[int]
    prompt: list[int]
    uses: int = 0
    dropped: bool = False


class ModelStore:
    def __init__(self, max_uses: int) -> None:
        self.max_uses = max_uses
        self.facts: list[Fact] = []
        self.marks: list[tuple[int, int, int, int]] = []  # id, version, next group, next trajectory
        self.next_group = self.next_trajectory = 0
        self.next_mark = 1
        self.version = 0
        self.holders: dict[int, tuple[int, float]] = {}
        self.last_epoch = 0
        self.refresh()

    def record(self, kind: str, subject: int, *value: object, version: int | None = None) -> None:
        self.version = max(self.version, version or 0)
        mark = self.marks[-1][0] if self.marks else 0
        at = self.version if version is None else version
        self.facts.append(Fact(kind, subject, at, mark, value))
        self.refresh()

    def refresh(self) -> None:
        self.groups: dict[int, Group] = {}
        self.trajectories: dict[int, Trajectory] = {}
        for fact in self.facts:
            if fact.kind == "group":
                first, k, prompt = fact.value
                members = list(range(first, first + k))
                self.groups[fact.subject] = Group(fact.version, members, prompt)
                for member in members:
                    self.trajectories[member] = Trajectory(fact.subject)
            elif fact.kind == "use":
                self.groups[fact.subject].uses += 1
            elif fact.kind == "drop":
                self.groups[fact.subject].dropped = True
            else:
                self.trajectories[fact.subject].take(fact)

    def alive(self, group_id: int) -> bool:
        group = self.groups[group_id]
        return group.uses < self.max_uses and not group.dropped

    def unfinished(self) -> list[int]:
        return [
            i
            for i, t in sorted(self.trajectories.items())
            if t.reason is None and self.alive(t.group_id)
        ]

    def complete(self) -> list[int]:
        members = {i: [self.trajectories[m] for m in g.members] for i, g in self.groups.items()}
        return [
            i
            for i in sorted(self.groups)
            if self.alive(i) and all(t.reward is not None for t in members[i])
        ]

    def oldest_version(self, group_id: int) -> int:
        group = self.groups[group_id]
        versions = [t[3] for m in group.members for t in self.trajectories[m].tokens]
        return min(versions, default=group.version)

    def size(self, group_id: int) -> int:
        group = self.groups[group_id]
        return sum(len(group.prompt) + len(self.trajectories[m].tokens) for m in group.members)

    def take(
        self,
        groups: int | None,
        tokens: int | None,
        version: int,
        max_staleness: int,
        columns: tuple[str, ...] = (),
        keys: dict[int, float] | None = None,
    ) -> list[int] | None:
        """Groups that a sample takes, smallest key first; None if the first exceeds the budget.

        A group goes by its id unless there are keys. One whose key is infinite is not taken.
        """
        taken: list[int] = []
        for group_id in sorted(self.complete(), key=lambda i: keys[i] if keys else i):
            if keys and keys[group_id] == math.inf:
                continue
            members = [self.trajectories[i] for i in self.groups[group_id].members]
            if not all(t.has_column(name) for t in members for name in columns):
                continue
            if version - self.oldest_version(group_id) > max_staleness:
                continue
            if groups is not None and len(taken) == groups:
                break
            if tokens is not None and sum(map(self.size, [*taken, group_id])) > tokens:
                if not taken:
                    return None
                break
            taken.append(group_id)
        return taken

    def mark(self, version: int) -> int:
        self.version = version
        self.marks.append((self.next_mark, version, self.next_group, self.next_trajectory))
        self.marks = self.marks[-2:]
        self.next_mark += 1
        return self.marks[-1][0]

    def rewind(self, mark: int) -> None:
        (_, version, next_group, next_trajectory) = next(m for m in self.marks if m[0] == mark)
        kept: list[Fact] = []
        restored: set[int] = set()  # an abort is undone, and so is what came after it
        cut: set[int] = set()
        for fact in self.facts:
            if fact.kind in ("use", "drop"):
                if fact.mark < mark and fact.subject not in cut:
                    kept.append(fact)
            elif fact.kind == "group":
                if fact.version <= version:
                    kept.append(fact)
                else:
                    cut.add(fact.subject)
            elif fact.version <= version and fact.subject not in restored:
                kept.append(fact)
            elif fact.kind == "abort":
                restored.add(fact.subject)
        known = {
            member
            for fact in kept
            if fact.kind == "group"
            for member in range(fact.value[0], fact.value[0] + fact.value[1])
        }
        groups = {fact.subject for fact in kept if fact.kind == "group"}
        self.facts = [
            fact
            for fact in kept
            if fact.subject in (groups if fact.kind in ("group", "use", "drop") else known)
        ]
        self.marks = [m for m in self.marks if m[0] <= mark]
        self.next_mark = mark + 1
        self.version = version
        self.holders.clear()
        self.refresh()
        self.next_group = max([next_group, *(i + 1 for i in self.groups)])
        self.next_trajectory = max([next_trajectory, *(i + 1 for i in self.trajectories)])
