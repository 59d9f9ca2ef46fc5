"""Common parts of all plots: size, colours, axes, "no data", PNG, Markdown.

Plots use matplotlib's ``Figure`` on the Agg canvas, never pyplot, so there is no display and no global figure. The style
starts from matplotlib's defaults, not from the user's settings, and the PNG has no date and no version: the same arrays
give the same bytes. Colours are Okabe and Ito's (2008), which are distinct with every common colour vision. Series also
differ in line style and marker, bars in hatching, for black-and-white prints.
"""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from numpy.typing import ArrayLike, NDArray
from PIL import Image

Floats = NDArray[np.float64]

DPI = 100
COLORS = 96  # a palette makes the files two to three times smaller than RGBA, without visible loss in line art
WIDTH, HEIGHT = 6.4, 4.0
LAYOUT: Literal["constrained"] | None = "constrained"  # makes room for every label; a third of the time a picture takes

BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK = "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#8a8a8a"


class Series(NamedTuple):
    """Colour, line style, marker and hatching of one series."""

    color: str
    line: str
    marker: str
    hatch: str


SERIES = (
    Series(BLUE, "-", "o", ""),
    Series(ORANGE, "--", "s", "//"),
    Series(GREEN, "-.", "^", ".."),
    Series(RED, ":", "D", "xx"),
    Series(PINK, (0, (5, 1, 1, 1, 1, 1)), "v", "\\\\"),  # type: ignore[arg-type]
    Series(SKY, (0, (7, 2)), "P", "oo"),  # type: ignore[arg-type]
    Series(BLACK, (0, (1, 2)), "X", "++"),  # type: ignore[arg-type]
)

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.6,
    "legend.frameon": True,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.facecolor": "white",
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
    "text.parse_math": False,  # a dollar sign in a category is plain text
    "path.simplify": True,
}

LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}

Draw = Callable[[Figure], None]


def render(draw: Draw, *, width: float = WIDTH, height: float = HEIGHT) -> bytes:
    """PNG of what ``draw`` puts on an empty figure of ``width`` x ``height`` inches at 100 dots per inch."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # names in other scripts show as boxes
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(width, height), dpi=DPI, layout=LAYOUT, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        draw(figure)
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    buffer = io.BytesIO()
    image.quantize(COLORS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def no_data(title: str, reason: str) -> bytes:
    """A plot with the reason why there is nothing to draw."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_title(title)
        axes.set_axis_off()
        axes.text(0.5, 0.55, "no data", ha="center", va="center", fontsize=16, color=GREY, transform=axes.transAxes)
        axes.text(0.5, 0.42, reason, ha="center", va="center", color=GREY, transform=axes.transAxes)

    return render(draw, height=2.4)


def to_markdown_image(png: bytes, alt: str) -> str:
    """The plot inline, as ``![alt](data:image/png;base64,...)``: no other file is needed."""
    text = alt.replace("[", "(").replace("]", ")").replace("\n", " ")
    return f"![{text}](data:image/png;base64,{base64.b64encode(png).decode('ascii')})"


# ---------------------------------------------------------------------- small helpers shared by the pictures


def finite(*columns: ArrayLike) -> tuple[Floats, ...]:
    """The columns as float64 without the rows in which any of them is NaN or infinite."""
    arrays = [np.asarray(c, dtype=np.float64).ravel() for c in columns]
    keep = np.logical_and.reduce([np.isfinite(a) for a in arrays])
    return tuple(a[keep] for a in arrays)


def shorten(name: object, length: int = 40) -> str:
    """Shorten a long name in the middle, where names of features differ least."""
    text = str(name)
    head = (length - 1) * 2 // 3
    return text if len(text) <= length else f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def count(value: float) -> str:
    """A number of rows with thin groups of three: 14 400."""
    return f"{value:,.0f}".replace(",", " ")


def usd(value: float) -> str:
    """An amount in short form: 0, 0.05, 1.5, 20, 3k, 1.2M."""
    for limit, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"${value / limit:.3g}{letter}"
    return f"${value:.2g}" if abs(value) < 10 else f"${value:.0f}"


def percent_axis(axis: object) -> None:
    """Ticks of a share 0..1 in percent."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))  # type: ignore[attr-defined]


def log_axis(axis: object, text: Callable[[float], str], most: int = 7) -> None:
    """Ticks of a logarithmic axis at 1, 2, 5 times a power of ten, thinned to powers of ten when they are too many."""
    low, high = axis.get_view_interval()  # type: ignore[attr-defined]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        marks = [d * 10.0**p for p in powers for d in digits if low * (1 - 1e-9) <= d * 10.0**p <= high * (1 + 1e-9)]
        if len(marks) <= most:
            break
    axis.set_major_locator(FixedLocator(marks))  # type: ignore[attr-defined]
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))  # type: ignore[attr-defined]
    axis.set_minor_formatter(NullFormatter())  # type: ignore[attr-defined]


def percent(value: float) -> str:
    """A share as a percentage with the digits it needs: 0.02 %, 1.5 %, 97 %."""
    return f"{100 * value:.4g} %"


def bar_labels(axes: Axes, values: Sequence[float], texts: Sequence[str], ends: Sequence[float] | None = None) -> None:
    """Figures at the right of horizontal bars (or of ``ends``), with room for them."""
    right = [max(v, 0.0) for v in values] if ends is None else ends
    for y, (x, text) in enumerate(zip(right, texts, strict=True)):
        axes.annotate(text, (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, bbox=LABEL_BOX)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + 0.14 * (high - low))


def usd_log_axis(axis: object) -> None:
    """Ticks in USD on an axis whose positions are log1p(USD)."""
    marks = np.array([0.0, *(digit * 10.0**power for power in range(-1, 7) for digit in (1, 2, 5))])
    low, high = axis.get_view_interval()  # type: ignore[attr-defined]
    span = high - low
    shown: list[float] = []
    for mark in marks[(np.log1p(marks) >= low - 1e-9) & (np.log1p(marks) <= high + 1e-9)]:
        if not shown or np.log1p(mark) - np.log1p(shown[-1]) >= span / 11:
            shown.append(float(mark))
    axis.set_ticks(np.log1p(shown), labels=[usd(v) for v in shown])  # type: ignore[attr-defined]
