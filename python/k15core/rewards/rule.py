r"""Rewards by rule: how the response ends, its last number, its boxed answer.

Each scores 1 or 0, and 0 where the response has no answer. For expressions that can be written in
more than one way, use `rewards.math`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from k15core.errors import InvalidInputError
from k15core.rewards.extract import last_boxed, last_number, to_number

if TYPE_CHECKING:
    from k15core.types import Prompt


class EndingReward:
    """1 if the response ends with `template`, word by word, `{answer}` filled in.

    A final word `stop` is passed over: an end-of-sequence token which some engines show.
    """

    def __init__(self, *, template: str = "! {answer}", stop: str | None = ".") -> None:
        if "{answer}" not in template:
            raise InvalidInputError(f"template is {template!r}: expected it to hold {{answer}}")
        self._template = template
        self._stop = stop

    async def score(self, prompt: Prompt, response: str) -> float:
        """1 if the response's last words are the template's, else 0."""
        words = response.split()
        if words and words[-1] == self._stop:
            words.pop()
        expected = self._template.replace("{answer}", prompt.answer).split()
        return float(words[-len(expected) :] == expected)


class NumberReward:
    """1 if the last number of the response equals the answer.

    With `marker` (such as "####") only what follows its last appearance counts, and a response
    without it has no answer. `tolerance` is relative to the answer, 0 for equality of decimals
    (`18`, `18.0` and `$18.00` are equal).
    """

    def __init__(self, *, marker: str | None = None, tolerance: float = 0.0) -> None:
        if not 0 <= tolerance < 1:
            raise InvalidInputError(f"tolerance is {tolerance}: expected 0 to 1")
        self._marker = marker
        self._tolerance = tolerance

    async def score(self, prompt: Prompt, response: str) -> float:
        """1 if the numbers are equal, else 0. InvalidInputError if the answer is not a number."""
        expected = to_number(prompt.answer)
        if expected is None:
            raise InvalidInputError(
                f"answer of prompt {prompt.prompt_id} is {prompt.answer!r}: expected a number"
            )
        if self._marker is not None:
            _, marker, response = response.rpartition(self._marker)
            if not marker:
                return 0.0
        number = last_number(response)
        if number is None:
            return 0.0
        if number == expected:
            return 1.0
        return float(abs(float(number) - float(expected)) <= self._tolerance * abs(float(expected)))


class BoxedReward:
    r"""1 if what the response boxes last, `\boxed{…}`, is the answer as LaTeX.

    Compared as numbers where both are, else as text without what only sets the type: blanks,
    `\left`, `\right`, `\text{…}`, `\dfrac` for `\frac`.
    """

    async def score(self, prompt: Prompt, response: str) -> float:
        """1 if the boxed answer is the expected one, else 0."""
        boxed = last_boxed(response)
        if boxed is None:
            return 0.0
        # An answer may itself be written \boxed{…}.
        expected = last_boxed(prompt.answer)
        expected = prompt.answer if expected is None else expected
        numbers = to_number(boxed), to_number(expected)
        if None not in numbers:
            return float(numbers[0] == numbers[1])
        return float(_plain(boxed) == _plain(expected))


_SETTING = re.compile(
    r"\\(?:left|right|displaystyle|limits)(?![A-Za-z])"
    r"|\\[!,;: ]|~|\s|\$|\^\{?\\circ\}?|\\(?:%|degree)"
)
_SHORT_FRACTION = re.compile(r"\\frac(\d)(\d)")
_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}")


def _plain(latex: str) -> str:
    latex = _TEXT.sub(r"\1", latex)
    latex = latex.replace("dfrac", "frac").replace("tfrac", "frac")
    latex = _SETTING.sub("", latex).rstrip(".")
    return _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", latex)
