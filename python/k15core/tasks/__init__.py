"""Prompt sets: generated, and read from files.

A new task is a class that implements `k15core.types.Task`, and a line in `TASKS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from k15core.registry import make

if TYPE_CHECKING:
    from k15core.types import Task

TASKS = {
    "doors": "k15core.tasks.doors:DoorsTask",
    "jsonl": "k15core.tasks.jsonl:JsonlTask",
}


def make_task(kind: str, **settings: object) -> Task:
    """The task of a kind of `TASKS` with its settings; InvalidInputError for unknown ones."""
    return cast("Task", make("task", TASKS, kind, settings))
