"""A small chart in SVG: axes, lines, dots, bars, bands, labels beside the lines that they name.

Colours come from the page: marks carry class names, and the style sheet gives these a colour in
light and in dark. Coordinates given to a chart are data; texts are escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

Point = tuple[float, float | None]
Format = Callable[[float], str]


def plain_number(value: float) -> str:
    """A number as an axis shows it: 0.25, 1.5, 40, 12 k, 3 M."""
    for limit, suffix in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= limit:
            scale = 1e3 if suffix == " k" else limit
            return f"{value / scale:.3g}{suffix}"
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.4g}"


def percent(value: float) -> str:
    """A ratio as a percentage that no line break tears apart: 39 %, 3.1 %."""
    if 0 < abs(value) < 0.0995 and round(1000 * value) % 10:
        return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"
    return f"{100 * value:.0f}\N{NO-BREAK SPACE}%"


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round values between low and high, steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [round((first + i) * step, 12) for i in range(count)]


class Chart:
    """One plot area with its axes. Draw in the order back to front, then `svg`.

    `x` and `y` are (low, high) of the data; `left`, `right`, `top`, `bottom` are margins in units
    of the drawing, of which there are `width` by `height`.
    """

    def __init__(
        self,
        width: float,
        height: float,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        left: float = 40,
        right: float = 14,
        top: float = 22,
        bottom: float = 24,
    ) -> None:
        self.width, self.height = width, height
        self.left, self.right = left, width - right
        self.top, self.bottom = top, height - bottom
        self._x = (x[0], x[1] if x[1] > x[0] else x[0] + 1)
        self._y = (y[0], y[1] if y[1] > y[0] else y[0] + 1)
        self._parts: list[str] = []

    def at_x(self, value: float) -> float:
        """The place of a data value along the width."""
        low, high = self._x
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def at_y(self, value: float) -> float:
        """The place of a data value along the height; outside the range it is cut to the edge."""
        low, high = self._y
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return self.bottom - share * (self.bottom - self.top)

    def axes(
        self,
        x_label: str = "",
        y_label: str = "",
        *,
        x_ticks: Sequence[float] | None = None,
        y_ticks: Sequence[float] | None = None,
        x_format: Format = plain_number,
        y_format: Format = plain_number,
    ) -> None:
        """Grid lines with their values, a base line, and what the axes count."""
        for value in ticks(*self._y, about=4) if y_ticks is None else y_ticks:
            y = self.at_y(value)
            self._line(self.left, y, self.right, y, "grid")
            self.text(self.left - 6, y + 3.5, y_format(value), "tick", "end")
        about = 6 if self.right - self.left > 300 else 4
        for value in ticks(*self._x, about=about) if x_ticks is None else x_ticks:
            x = self.at_x(value)
            self._line(x, self.bottom, x, self.bottom + 4, "axis")
            self.text(x, self.bottom + 16, x_format(value), "tick", "middle")
        self._line(self.left, self.bottom, self.right, self.bottom, "axis")
        if y_label:
            self.text(self.left - 34, self.top - 10, y_label, "axis-name")
        if x_label:
            self.text(self.right, self.bottom + 32, x_label, "axis-name", "end")

    def line(self, points: Iterable[Point], css: str) -> None:
        """A line through the points; one that has no value breaks it."""
        path, pen_down = "", False
        for x, y in points:
            if y is None:
                pen_down = False
                continue
            path += f"{'L' if pen_down else 'M'}{self.at_x(x):.1f} {self.at_y(y):.1f}"
            pen_down = True
        if path:
            self._parts.append(f'<path class="line {css}" d="{path}"/>')

    def band(self, edges: Sequence[tuple[float, float, float]], css: str) -> None:
        """The area between (x, low, high)."""
        if len(edges) > 1:
            there = [f"{self.at_x(x):.1f} {self.at_y(high):.1f}" for x, _, high in edges]
            back = [f"{self.at_x(x):.1f} {self.at_y(low):.1f}" for x, low, _ in reversed(edges)]
            self._parts.append(f'<path class="area {css}" d="M{"L".join(there + back)}Z"/>')

    def dots(self, points: Iterable[Point], css: str, *, name: str = "", radius: float = 3) -> None:
        """A dot at each point; pointing at it shows the name and the values."""
        for x, y in points:
            if y is not None:
                title = f"{name}: {plain_number(x)}, {y:.4g}"
                self._parts.append(
                    f'<circle class="dot {css}" cx="{self.at_x(x):.1f}" cy="{self.at_y(y):.1f}" '
                    f'r="{radius}"><title>{escape(title)}</title></circle>'
                )

    def bar(
        self, x: tuple[float, float], y: tuple[float, float], css: str, *, title: str = "",
        opacity: float | None = None, gap: float = 0.0,
    ) -> None:  # fmt: skip
        """A rectangle between two values of x and two of y, `gap` taken off its right side."""
        left, right = self.at_x(x[0]), self.at_x(x[1]) - gap
        top, bottom = self.at_y(max(y)), self.at_y(min(y))
        shade = "" if opacity is None else f' fill-opacity="{opacity:.3f}"'
        inner = f"<title>{escape(title)}</title>" if title else ""
        self._parts.append(
            f'<rect class="area {css}" x="{left:.1f}" y="{top:.1f}" '
            f'width="{max(0.5, right - left):.1f}" height="{max(0.0, bottom - top):.1f}"'
            f"{shade}>{inner}</rect>"
        )

    def mark(self, x: float, label: str = "") -> None:
        """A dashed vertical line at x, what follows it tinted, with a label at the top."""
        place = self.at_x(x)
        self._parts.append(
            f'<rect class="after" x="{place:.1f}" y="{self.top}" '
            f'width="{max(0.0, self.right - place):.1f}" height="{self.bottom - self.top:.1f}"/>'
        )
        self._line(place, self.top, place, self.bottom, "mark")
        if label:
            self.text(place + 5, self.top - 6, label, "mark-name")

    def rule(self, x: float) -> None:
        """A thin vertical line at x."""
        self._line(self.at_x(x), self.top, self.at_x(x), self.bottom, "mark")

    def labels(self, named: Iterable[tuple[float | None, str, str]], *, apart: float = 14) -> None:
        """Names (y value, text, class) right of the plot, moved apart where they would touch."""
        kept = sorted((self.at_y(y), text, css) for y, text, css in named if y is not None)
        places = [place for place, _, _ in kept]
        for i in range(1, len(places)):
            places[i] = max(places[i], places[i - 1] + apart)
        floor = self.bottom
        for i in reversed(range(len(places))):
            places[i] = min(places[i], floor)
            floor = places[i] - apart
        for place, (_, text, css) in zip(places, kept, strict=True):
            self.text(self.right + 7, place + 3.5, text, f"label {css}")

    def key(self, named: Iterable[tuple[str, str]]) -> None:
        """Squares of colour with their names, in a row above the plot."""
        x, y = self.left, self.top - 20
        for css, name in named:
            self._parts.append(
                f'<rect class="area {css}" x="{x:.1f}" y="{y:.1f}" width="10" height="10" rx="2"/>'
            )
            self.text(x + 15, y + 9, name, "axis-name")
            x += 34 + 6.4 * len(name)

    def text(self, x: float, y: float, text: str, css: str, anchor: str = "start") -> None:
        """A text at a place of the drawing."""
        side = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self._parts.append(
            f'<text class="{css}" x="{x:.1f}" y="{y:.1f}"{side}>{escape(text)}</text>'
        )

    def _line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        self._parts.append(
            f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
        )

    def body(self) -> str:
        """What was drawn, without the element around it."""
        return "".join(self._parts)


def svg(charts: Sequence[Chart], label: str) -> str:
    """Charts one below the other as one <svg> element, described by `label` to those who hear."""
    width = max(chart.width for chart in charts)
    height = sum(chart.height for chart in charts)
    parts, y = [], 0.0
    for chart in charts:
        parts.append(f'<g transform="translate(0 {y:g})">{chart.body()}</g>')
        y += chart.height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(label, quote=True)}">{"".join(parts)}</svg>'
    )
