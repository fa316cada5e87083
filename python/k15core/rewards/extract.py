r"""Finds the answer in a response: the last number, `\boxed{…}` or block of code."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

# A sign counts unless it subtracts ("5-3" holds 5 and 3); commas only between thousands.
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}])-)?\$?"
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*")


def last_number(text: str) -> Decimal | None:
    """The last number in the text, or None. `1,000`, `$5`, `-2.50` and `.5` are numbers."""
    found = _NUMBER.findall(text)
    return to_number(found[-1]) if found else None


def to_number(text: str) -> Decimal | None:
    """The number that the whole text states, blanks, `$`, `,` and a final `%` or `.` aside."""
    plain = text.strip().rstrip(".%").replace(",", "").replace("\\$", "").replace("$", "").strip()
    try:
        number = Decimal(plain)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def last_boxed(text: str) -> str | None:
    r"""What stands in the last complete `\boxed{…}`, braces inside of it balanced, or None.

    `\{` and `\}` are signs and do not count as braces; `\boxed 5` boxes one sign.
    """
    for start in reversed([match.end() for match in _BOXED.finditer(text)]):
        content = _group(text, start)
        if content is not None:
            return content.strip()
    return None


def _group(text: str, start: int) -> str | None:
    if start >= len(text):
        return None
    if text[start] != "{":
        return text[start]
    depth = 0
    at = start
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == "{":
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : at]
        at += 1
    return None


_FENCE = re.compile(r"^[ ]{0,3}(`{3,}|~{3,})(.*)$")


def last_code_block(text: str) -> str | None:
    """The last fenced block of a text (CommonMark 4.5), without its fences.

    All of a text that has no fences; None if its last block is never closed.
    """
    found: str | None = text
    fence = ""
    block: list[str] = []
    for line in text.split("\n"):
        match = _FENCE.match(line)
        if fence:
            closes = match and match[1].startswith(fence) and not match[2].strip()
            if closes:
                found, fence = "\n".join(block), ""
            else:
                block.append(line)
        elif match and "`" not in match[2]:
            fence, block, found = match[1], [], None
    return found
