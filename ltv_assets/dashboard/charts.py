"""Charts as inline SVG: plain numbers in, markup out; the same numbers give the same text.

What belongs here: drawing for the pages. What does not: computing figures. Colours are classes (``dashboard.css`` has Okabe and Ito's,
for light and dark); series also differ in dashes and marks. Every chart has labelled axes and a description; the page shows its figures
as a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from markupsafe import Markup, escape

WIDTH, HEIGHT = 480.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 72.0, 14.0, 14.0, 46.0
MOST_DAY_LABELS = 6

Number = float | None
Format = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """One series: a value for each place on the x axis, None where there is none; ``low`` and ``high`` are its interval.

    ``color`` 1..5 is its class; ``style``: ``line``, ``plain`` (without marks), ``band`` (line in its interval), ``dots``, or ``bound``
    (thin, dashed).
    """

    name: str
    values: Sequence[Number]
    color: int = 1
    style: str = "line"
    low: Sequence[Number] = ()
    high: Sequence[Number] = ()


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two bounds, at most ``most`` + 1 of them, steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    raw = span / most
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _present(values: Sequence[Number]) -> list[float]:
    return [float(v) for v in values if v is not None and math.isfinite(v)]


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


@dataclass(frozen=True)
class _Frame:
    """Scales and the parts of a chart that do not depend on its series."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.x0) / ((self.x1 - self.x0) or 1) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (min(max(value, self.y0), self.y1) - self.y0) / ((self.y1 - self.y0) or 1) * (HEIGHT - TOP - BOTTOM)

    def grid(self, marks: Sequence[tuple[float, str]]) -> str:
        lines = []
        for value, text in marks:
            y = _n(self.y(value))
            lines.append(f'<line class="grid" x1="{_n(LEFT)}" x2="{_n(WIDTH - RIGHT)}" y1="{y}" y2="{y}"/>')
            lines.append(f'<text class="tick" x="{_n(LEFT - 7)}" y="{y}" dy=".35em" text-anchor="end">{escape(text)}</text>')
        return "".join(lines)

    def below(self, marks: Sequence[tuple[float, str]]) -> str:
        base = HEIGHT - BOTTOM
        parts = [f'<line class="axis" x1="{_n(LEFT)}" x2="{_n(WIDTH - RIGHT)}" y1="{_n(base)}" y2="{_n(base)}"/>']
        for value, text in marks:
            x = _n(self.x(value))
            parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{_n(base)}" y2="{_n(base + 4)}"/>')
            parts.append(f'<text class="tick" x="{x}" y="{_n(base + 17)}" text-anchor="middle">{escape(text)}</text>')
        return "".join(parts)


def _labels(x_label: str, y_label: str) -> str:
    middle = _n((TOP + HEIGHT - BOTTOM) / 2)
    return (
        f'<text class="label" x="{_n((LEFT + WIDTH - RIGHT) / 2)}" y="{_n(HEIGHT - 6)}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text class="label" transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )


def _wrapped(title: str, body: str) -> Markup:
    return Markup(
        f'<svg class="chart" viewBox="0 0 {_n(WIDTH)} {_n(HEIGHT)}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg">{body}</svg>'
    )


def _runs(points: Sequence[tuple[float, Number]]) -> list[list[tuple[float, float]]]:
    """Stretches of neighbouring points that have a value."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is None or not math.isfinite(y):
            runs.append([])
        else:
            runs[-1].append((x, float(y)))
    return [run for run in runs if run]


def _path(frame: _Frame, run: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{_n(frame.x(x))} {_n(frame.y(y))}" for x, y in run)


def _mark(frame: _Frame, x: float, y: float, color: int) -> str:
    """A mark whose form goes with its colour: circle, square, diamond, triangle."""
    a, b = frame.x(x), frame.y(y)
    if color in (1, 5):
        return f'<circle class="m c{color}" cx="{_n(a)}" cy="{_n(b)}" r="3.4"/>'
    if color == 2:
        return f'<rect class="m c2" x="{_n(a - 3.2)}" y="{_n(b - 3.2)}" width="6.4" height="6.4"/>'
    corners = [(0, -4.4), (4.2, 0), (0, 4.4), (-4.2, 0)] if color == 3 else [(0, -4.2), (4.2, 3.4), (-4.2, 3.4)]
    return f'<polygon class="m c{color}" points="{" ".join(f"{_n(a + p)},{_n(b + q)}" for p, q in corners)}"/>'


def _series(frame: _Frame, xs: Sequence[float], line: Line) -> str:
    parts = []
    if line.style == "band" and line.low and line.high:
        edges = [(x, lo, hi) for x, lo, hi in zip(xs, line.low, line.high, strict=True)]
        for run in _runs([(x, lo if hi is not None else None) for x, lo, hi in edges]):
            at = dict(zip(xs, line.high, strict=True))
            upper = [(x, float(at[x] or 0.0)) for x, _ in reversed(run)]
            if len(run) == 1:
                a, y = _n(frame.x(run[0][0])), run[0][1]
                parts.append(
                    f'<line class="whisker c{line.color}" x1="{a}" x2="{a}" y1="{_n(frame.y(y))}" y2="{_n(frame.y(upper[0][1]))}"/>'
                )
            else:
                parts.append(f'<path class="band c{line.color}" d="{_path(frame, run)}L{_path(frame, upper)[1:]}Z"/>')
    elif line.low and line.high:
        for x, lo, hi in zip(xs, line.low, line.high, strict=True):
            if lo is not None and hi is not None:
                a = _n(frame.x(x))
                parts.append(f'<line class="whisker c{line.color}" x1="{a}" x2="{a}" y1="{_n(frame.y(lo))}" y2="{_n(frame.y(hi))}"/>')
    points = list(zip(xs, line.values, strict=True))
    if line.style != "dots":
        kind = "bound" if line.style == "bound" else "l"
        parts += [f'<path class="{kind} c{line.color}" d="{_path(frame, run)}"/>' for run in _runs(points) if len(run) > 1]
    if line.style == "dots" or (line.style in ("line", "band") and len(points) <= 31):
        parts += [_mark(frame, x, float(y), line.color) for x, y in points if y is not None and math.isfinite(y)]
    return "".join(parts)


def over_days(days: Sequence[str], lines: Sequence[Line], *, title: str, y_label: str, show: Format, from_zero: bool = True) -> Markup:
    """Series over days (``YYYY-MM-DD``, in order, at their true distances). Pointing at a day shows its values."""
    every = [v for line in lines for v in (*_present(line.values), *_present(line.low), *_present(line.high))]
    if not days or not every:
        return Markup("")
    low, high = (0.0 if from_zero and min(every) >= 0 else min(every)), max(every)
    room = (high - low or abs(high) or 1.0) * 0.08
    at = [float((date.fromisoformat(day) - date.fromisoformat(days[0])).days) for day in days]
    frame = _Frame(-0.5, at[-1] + 0.5, low if low == 0 else low - room, high + room)
    step = max(1, math.ceil((at[-1] + 1) / MOST_DAY_LABELS))
    shown = [(at[-1] - n, str(date.fromisoformat(days[-1]) - timedelta(days=n))[5:]) for n in range(0, int(at[-1]) + 1, step)]
    body = frame.grid([(t, show(t)) for t in ticks(frame.y0, frame.y1)]) + frame.below(shown)
    body += "".join(_series(frame, at, line) for line in lines)
    half = (WIDTH - LEFT - RIGHT) / (at[-1] + 1) / 2
    for i, day in enumerate(days):
        told = [day]
        for line in lines:
            value = line.values[i]
            if value is not None and math.isfinite(value):
                spread = ""
                if line.low and line.low[i] is not None and line.high[i] is not None:
                    spread = f" ({show(float(line.low[i] or 0))} to {show(float(line.high[i] or 0))})"
                told.append(f"{line.name}: {show(value)}{spread}")
        if len(told) > 1:
            body += (
                f'<rect class="hit" x="{_n(frame.x(at[i]) - half)}" y="{_n(TOP)}" width="{_n(2 * half)}" '
                f'height="{_n(HEIGHT - TOP - BOTTOM)}">'
                f"<title>{escape(chr(10).join(told))}</title></rect>"
            )
    return _wrapped(title, body + _labels("day of the impression", y_label))


@dataclass(frozen=True)
class Curve:
    """Points (x, y) of one curve; ``style`` as in `Line`; ``low`` and ``high`` are intervals of y."""

    name: str
    x: Sequence[float]
    y: Sequence[Number]
    color: int = 1
    style: str = "line"
    low: Sequence[Number] = ()
    high: Sequence[Number] = ()


def curves(
    found: Sequence[Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    show_x: Format,
    show_y: Format,
    x_max: float = 0.0,
    y_max: float = 0.0,
) -> Markup:
    """Curves from the origin over linear axes; ``x_max`` and ``y_max`` fix an axis that is otherwise as long as its values."""
    xs = [v for c in found for v in _present(list(c.x))]
    ys = [v for c in found for v in (*_present(c.y), *_present(c.high))]
    if not xs or not ys:
        return Markup("")
    frame = _Frame(0.0, x_max or max(xs) * 1.04, 0.0, y_max or max(ys) * 1.06)
    body = frame.grid([(t, show_y(t)) for t in ticks(frame.y0, frame.y1)])
    body += frame.below([(t, show_x(t)) for t in ticks(frame.x0, frame.x1)])
    for curve in found:
        body += _series(frame, list(curve.x), Line(curve.name, curve.y, curve.color, curve.style, curve.low, curve.high))
        if curve.style == "dots":
            for x, y in zip(curve.x, curve.y, strict=True):
                if y is not None and math.isfinite(y):
                    body += (
                        f'<circle class="hit" cx="{_n(frame.x(x))}" cy="{_n(frame.y(y))}" r="10"><title>'
                        f"{escape(f'{curve.name}: {show_y(y)} at {show_x(x)}')}</title></circle>"
                    )
    return _wrapped(title, body + _labels(x_label, y_label))


def interval_bar(value: float, low: float, high: float, top: float, *, told: str) -> Markup:
    """A value and its interval as a small horizontal bar of a table's row; ``top`` is the right end of every row's scale."""
    width, height = 160.0, 18.0

    def at(amount: float) -> float:
        return 2 + (width - 4) * min(max(amount, 0.0), top) / (top or 1.0)

    return Markup(
        f'<svg class="spark" viewBox="0 0 {_n(width)} {_n(height)}" role="img" aria-label="{escape(told)}">'
        f'<rect class="bar c1" x="2" y="5" width="{_n(max(at(value) - 2, 0.5))}" height="8"/>'
        f'<line class="whisker ink" x1="{_n(at(low))}" x2="{_n(at(high))}" y1="9" y2="9"/>'
        f'<line class="whisker ink" x1="{_n(at(low))}" x2="{_n(at(low))}" y1="5" y2="13"/>'
        f'<line class="whisker ink" x1="{_n(at(high))}" x2="{_n(at(high))}" y1="5" y2="13"/>'
        f"<title>{escape(told)}</title></svg>"
    )


def push_bar(value: float, top: float, *, told: str) -> Markup:
    """A signed value as a bar to the right (up) or left (down) of the middle."""
    width, height = 160.0, 16.0
    length = (width / 2 - 2) * min(abs(value) / (top or 1.0), 1.0)
    x = width / 2 if value >= 0 else width / 2 - length
    return Markup(
        f'<svg class="spark" viewBox="0 0 {_n(width)} {_n(height)}" role="img" aria-label="{escape(told)}">'
        f'<rect class="bar c{1 if value >= 0 else 4}" x="{_n(x)}" y="3" width="{_n(max(length, 0.5))}" height="10"/>'
        f'<line class="axis" x1="{_n(width / 2)}" x2="{_n(width / 2)}" y1="0" y2="{_n(height)}"/><title>{escape(told)}</title></svg>'
    )
