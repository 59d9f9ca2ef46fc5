"""Plots of forecasts of groups: what is expected of each, how sure that is, and what came. Next to read: ``canvas.py``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from ltv_assets.plots import canvas
from ltv_assets.plots.canvas import BLUE, RED, SKY, no_data, render


def forecast_intervals(
    names: Sequence[str],
    expected: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    title: str,
    within: str,
    observed: ArrayLike | None = None,
) -> bytes:
    """Expected value and 80 % interval of every group, first group on top, on a logarithmic axis; diamonds are what came.

    Ends and outcomes below a quarter of the smallest expected value are drawn there, at the left edge. ``within``: the horizon in
    words.
    """
    columns = [np.asarray(a, dtype=np.float64) for a in (expected, low, high)]
    known = np.logical_and.reduce([np.isfinite(a) for a in columns])
    middle, below, above = (a[known] for a in columns)
    if not len(middle) or not middle.max() > 0.0:
        return no_data(title, "no group of which anything is expected")
    came = None if observed is None else np.asarray(observed, dtype=np.float64)[known]
    shown_names = [canvas.shorten(name, 36) for name, chosen in zip(names, known, strict=True) if chosen]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        floor = float(middle[middle > 0.0].min()) / 4.0
        y = np.arange(len(middle))[::-1]
        axes.hlines(y, np.maximum(below, floor), np.maximum(above, floor), color=SKY, linewidth=5, alpha=0.8)
        axes.plot(np.maximum(middle, floor), y, linestyle="none", marker="o", color=BLUE)
        shown = [Line2D([], [], color=SKY, linewidth=5), Line2D([], [], color=BLUE, marker="o", linestyle="none")]
        labels = ["80 % interval", "expected"]
        if came is not None:
            axes.plot(np.maximum(came, floor), y, linestyle="none", marker="D", color=RED, markersize=4)
            shown.append(Line2D([], [], color=RED, marker="D", linestyle="none"))
            labels.append("came")
        axes.set(xscale="log", ylim=(-0.8, len(middle) - 0.2))
        axes.set_yticks(y, labels=shown_names)
        axes.set_title(title)
        axes.set_xlabel(f"revenue within {within} (USD, each row capped)")
        canvas.log_axis(axes.xaxis, lambda value: f"{value:,.10g}".replace(",", " "))
        axes.legend(shown, labels, loc="lower right")

    return render(draw, height=min(max(1.4 + 0.21 * len(middle), 2.6), 9.0))
