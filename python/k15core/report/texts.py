"""Transcripts and repetitions as pieces of text that a page can colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from k15core.report.metrics import Metrics
from k15core.report.schema import Record, number

SHOWN_CHARACTERS = 4000
"""Of a longer text the middle is left out."""

SHORTEST_LOOP = 12
"""Characters that a repeating tail must cover to be shown as a loop: any text may end in "ll"."""


@dataclass(frozen=True)
class Piece:
    """A stretch of a response: its text, a class for its colour, and what it is called."""

    text: str
    css: str
    name: str


@dataclass(frozen=True)
class Transcript:
    """One response as the page shows it."""

    when: str
    iteration: int
    prompt: str
    answer: str
    pieces: list[Piece]
    reward: float | None
    finish_reason: str


@dataclass(frozen=True)
class Repetition:
    """A stopped response: what came before the loop, its first period, the rest of the loop."""

    iteration: int
    trajectory_id: Any
    start: Any
    period: Any
    covered: Any
    near: bool
    before: str
    first: str
    rest: str


def transcript(record: Record) -> Transcript:
    """A transcript line of metrics.jsonl, its segments coloured in the order of their versions."""
    segments = [s for s in record.get("segments") or [] if isinstance(s, dict)]
    versions = sorted({number(s, "version") or 0 for s in segments})
    room = max(200, SHOWN_CHARACTERS // max(1, len(segments)))
    return Transcript(
        when=str(record["when"]),
        iteration=int(record["iteration"]),
        prompt=shorten(str(record.get("prompt", "")), SHOWN_CHARACTERS),
        answer=str(record.get("answer", "")),
        pieces=[
            Piece(
                text=shorten(str(s.get("text", "")), room),
                css=f"segment{versions.index(number(s, 'version') or 0) % 6 + 1}"
                if len(versions) > 1
                else "",
                name=f"version {s.get('version', '?')}",
            )
            for s in segments
        ],
        reward=number(record, "reward"),
        finish_reason=str(record.get("finish_reason", "")),
    )


def pairs(metrics: Metrics, most: int = 6) -> list[tuple[Transcript, Transcript | None]]:
    """Transcripts from before RL, each with the one after RL to the same prompt."""
    after = {r.get("prompt_id"): r for r in metrics.transcripts if r["when"] == "after"}
    before = [r for r in metrics.transcripts if r["when"] == "before"]
    return [
        (transcript(r), transcript(after[key]) if (key := r.get("prompt_id")) in after else None)
        for r in before[:most]
    ]


def of_several_versions(metrics: Metrics, most: int = 4) -> list[Transcript]:
    """Transcripts from during RL, those with the most segments first: half right, half not."""
    during = [transcript(r) for r in metrics.transcripts if r["when"] == "during"]
    during.sort(key=lambda t: -len(t.pieces))
    right = [t for t in during if (t.reward or 0.0) >= 1.0]
    wrong = [t for t in during if (t.reward or 0.0) < 1.0]
    shown = right[: max(most // 2, most - len(wrong))]
    return shown + wrong[: most - len(shown)]


def repetition(record: Record) -> Repetition:
    """A repetition line of metrics.jsonl with its loop found again in the text."""
    text = str(record["text"])
    start, period = loop_in(text)
    return Repetition(
        iteration=int(record["iteration"]),
        trajectory_id=record.get("trajectory_id"),
        start=record.get("start"),
        period=record.get("period"),
        covered=record.get("covered"),
        near=record.get("loop_kind") == "near",
        before=shorten(text[:start], 1200),
        first=shorten(text[start : start + period], 600),
        rest=shorten(text[start + period :], 1200),
    )


def loop_in(text: str) -> tuple[int, int]:
    """Where the tail of a text begins to repeat, in characters, and its period.

    The period is the one that covers most, the shortest of these; it must fit at least twice. A
    text without one gives its length and 0. (Metrics count loops in tokens, which a text does not
    show; a period of tokens is one of characters as well.)
    """
    tail = text[::-1]
    n, left, right = len(tail), 0, 0
    same = [0] * n  # same[p]: how far tail[p:] agrees with tail (the Z function)
    best = (max(0, n - SHORTEST_LOOP + 1), 0)
    for p in range(1, n):
        reach = min(same[p - left], right - p) if p < right else 0
        while p + reach < n and tail[reach] == tail[p + reach]:
            reach += 1
        same[p] = reach
        if p + reach > right:
            left, right = p, p + reach
        if reach >= p and n - p - reach < best[0]:
            best = (n - p - reach, p)
    return best if best[1] else (n, 0)


def shorten(text: str, most: int) -> str:
    """The text, its middle left out where it is longer than `most` characters."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} […{len(text) - 2 * half:,} characters…] {text[-half:]}"
