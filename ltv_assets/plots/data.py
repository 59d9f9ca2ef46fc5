"""Plots of data and training: samples, missing values, drift, importances, learning curves. Next to read: ``canvas.py``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from ltv_assets.plots import canvas
from ltv_assets.plots.canvas import BLUE, GREY, ORANGE, PINK, RED, SERIES, SKY, no_data, render

LOW_TO_HIGH = LinearSegmentedColormap.from_list("low to high", [BLUE, PINK, ORANGE])
"""Monotone in lightness for every colour vision, and never grey."""
PSI_NOTICEABLE, PSI_LARGE = 0.1, 0.25
"""Customary thresholds of the population stability index: below .1 stable, above .25 another population."""


def sampling_histogram(
    edges_log1p: ArrayLike,
    before: ArrayLike,
    after: ArrayLike,
    *,
    within: str,
    names: tuple[str, str] = ("before", "after"),
    title: str = "Sampling",
) -> bytes:
    """Rows per bin of revenue before and after a sampling plan, logarithmic counts.

    ``before`` and ``after`` have one count for revenue = 0 followed by one for each of the equal-width bins of log1p(revenue)
    that ``edges_log1p`` bounds (so one more element than bins, hence as many elements as edges). ``within``: the horizon in words.
    """
    edges = np.asarray(edges_log1p, dtype=np.float64).ravel()
    counts = [np.nan_to_num(np.asarray(c, dtype=np.float64).ravel()) for c in (before, after)]
    if any(c.size != edges.size for c in counts):
        raise ValueError(f"expected {edges.size} counts (zero bin + {max(edges.size - 1, 0)} bins), found {[c.size for c in counts]}")
    if not edges.size or sum(c.sum() for c in counts) <= 0:
        return no_data(title, "no rows in any bin")

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        x = np.arange(edges.size)
        for offset, count, name, series in zip((-0.2, 0.2), counts, names, SERIES, strict=False):
            axes.bar(
                x + offset,
                count,
                0.4,
                color=series.color,
                hatch=series.hatch,
                edgecolor="white",
                linewidth=0,
                label=f"{name}: {canvas.count(count.sum())} rows",
            )
        texts = ["$0", *(f"{canvas.usd(math.expm1(a))} to {canvas.usd(math.expm1(b))}" for a, b in itertools.pairwise(edges))]
        step = math.ceil(edges.size / 24)
        axes.set_xticks(
            x[::step], texts[::step], rotation=35 if edges.size > 4 else 0, ha="right" if edges.size > 4 else "center", fontsize=8
        )
        axes.set(yscale="log", ylim=(0.5, 3 * max(c.max() for c in counts)))
        axes.set_title(title)
        axes.set_xlabel(f"revenue within {within} (USD)")
        axes.set_ylabel("rows (logarithmic axis)")
        canvas.log_axis(axes.yaxis, canvas.count)
        axes.grid(visible=False, axis="x")
        axes.legend(loc="upper right")

    return render(draw, width=7.2)


def feature_importances(
    names: Sequence[str], gain: ArrayLike, split: ArrayLike | None = None, *, top: int = 20, title: str = "Feature importances"
) -> bytes:
    """The ``top`` features by share of total gain as bars; with ``split``, their share of all splits as diamonds."""
    values = np.nan_to_num(np.asarray(gain, dtype=np.float64).ravel(), posinf=0.0, neginf=0.0)
    if values.size != len(names):
        raise ValueError(f"expected one gain per name ({len(names)}), found {values.size}")
    total = values.sum()
    if total <= 0:
        return no_data(title, "the model made no split")
    order = np.argsort(-values, kind="stable")[:top]
    order = order[values[order] > 0][::-1]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        y, share = np.arange(order.size), values[order] / total
        axes.barh(y, share, color=SKY, label="share of gain")
        ends = share
        if split is not None:
            splits = np.nan_to_num(np.asarray(split, dtype=np.float64).ravel())
            of_all = splits[order] / max(splits.sum(), 1.0)
            axes.plot(of_all, y, linestyle="none", marker="D", color=RED, markersize=4, label="share of splits")
            ends = np.maximum(share, of_all)
        axes.set_yticks(y, [canvas.shorten(names[i], 44) for i in order], fontsize=8)
        axes.set_ylim(-0.7, order.size - 0.3)
        axes.set_title(f"{title}: {order.size} of the {np.count_nonzero(values)} in use")
        axes.set_xlabel("share of the total (%)")
        canvas.bar_labels(axes, share.tolist(), [f"{100 * v:.1f} %" for v in share], ends.tolist())
        canvas.percent_axis(axes.xaxis)
        axes.grid(visible=False, axis="y")
        axes.legend(loc="lower right")

    return render(draw, width=7.2, height=1.3 + 0.21 * max(order.size, 3))


def shap_summary(names: Sequence[str], contributions: ArrayLike, values: ArrayLike, *, top: int = 12, title: str = "SHAP values") -> bytes:
    """Effect of the ``top`` features on the raw score: a point per row and feature, coloured by the feature's rank among the rows.

    ``contributions`` and ``values`` are (rows, features); values that are missing are grey. Features are ordered by their mean
    absolute contribution, the points of one feature are stacked where they are dense.
    """
    if not len(names):
        return no_data(title, "no feature contributes")
    shap, inputs = (np.asarray(a, dtype=np.float64).reshape(-1, len(names)) for a in (contributions, values))
    if shap.shape != inputs.shape:
        raise ValueError(f"expected one value per contribution {shap.shape}, found {inputs.shape}")
    rows = np.isfinite(shap).all(axis=1)
    shap, inputs = shap[rows], inputs[rows]
    strength = np.abs(shap).mean(axis=0) if shap.size else np.zeros(len(names))
    order = np.argsort(-strength, kind="stable")[:top]
    order = order[strength[order] > 0][::-1]
    if not order.size:
        return no_data(title, "no feature contributes")
    height = 1.5 + 0.27 * max(order.size, 3)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for y, feature in enumerate(order):
            x, shown = shap[:, feature], inputs[:, feature]
            known = np.isfinite(shown)
            offsets = y + 0.38 * _swarm(x, float(np.ptp(shap[:, order])))
            axes.scatter(x[~known], offsets[~known], s=5, color=GREY, linewidths=0, rasterized=True)
            share = np.searchsorted(np.sort(shown[known]), shown[known], side="right") / max(known.sum(), 1)
            points = axes.scatter(x[known], offsets[known], c=share, vmin=0, vmax=1, cmap=LOW_TO_HIGH, s=5, linewidths=0, rasterized=True)
        axes.axvline(0, color=GREY, linewidth=1)
        axes.set_yticks(range(order.size), [canvas.shorten(names[i], 40) for i in order], fontsize=8)
        axes.set_ylim(-0.7, order.size - 0.3)
        axes.set_title(f"{title}, {canvas.count(len(shap))} rows")
        axes.set_xlabel("contribution to the raw score (log-odds or log USD)")
        bar = figure.colorbar(points, ax=axes, ticks=[0, 1], pad=0.01, aspect=40)
        bar.ax.set_yticklabels(["low", "high"], fontsize=8)
        bar.set_label("value of the feature; grey: missing", fontsize=8)
        bar.outline.set_visible(False)  # type: ignore[operator]

    return render(draw, width=7.2, height=height)


def _swarm(x: np.ndarray, spread: float) -> np.ndarray:
    """Vertical offsets in -1..1 that fan out points of about the same x, alternately up and down, denser places wider."""
    column = np.round((x - x.min()) / (spread or 1.0) * 100).astype(np.int64)
    order = np.argsort(column, kind="stable")
    first = np.searchsorted(column[order], column[order], side="left")
    place = np.empty(x.size, dtype=np.int64)
    place[order] = np.arange(x.size) - first
    offsets = (place + 1) // 2 * np.where(place % 2, 1, -1)
    return offsets / max(np.abs(offsets).max(), 6)


def training_curves(
    curves: Mapping[str, ArrayLike], *, metric: str = "RMSLE", best_iteration: int | None = None, title: str = "Training"
) -> bytes:
    """One line per named curve (a figure after each boosting round), and the round that was kept."""
    known = {name: np.asarray(c, dtype=np.float64).ravel() for name, c in curves.items()}
    known = {name: c for name, c in known.items() if np.isfinite(c).any()}
    if not known:
        return no_data(title, "no round was recorded")

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for (name, curve), series in zip(known.items(), SERIES, strict=False):
            rounds = np.arange(1, curve.size + 1)
            marker = series.marker if curve.size < 30 else ""
            axes.plot(
                rounds,
                curve,
                color=series.color,
                linestyle=series.line,
                marker=marker,
                label=f"{name}: {curve[np.isfinite(curve)][-1]:.4f} at the end",
            )
        if best_iteration is not None and best_iteration > 0:
            axes.axvline(best_iteration, color=GREY, linestyle=":", linewidth=1.3, label=f"kept: round {best_iteration}")
        axes.set_title(title)
        axes.set_xlabel("boosting round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(metric)
        axes.legend(loc="best")

    return render(draw)


def rows_by_hour(rows: Mapping[str, ArrayLike], *, missing: Sequence[int] = (), title: str = "Rows by hour") -> bytes:
    """Rows in each of the 24 hours of a day as stacked bars, one part per name; missing hours are marked.

    Every value of ``rows`` has 24 counts; ``missing`` are hours 0..23.
    """
    counts = {name: np.nan_to_num(np.asarray(c, dtype=np.float64).ravel()) for name, c in rows.items()}
    if any(c.size != 24 for c in counts.values()):
        raise ValueError(f"expected 24 counts per name, found {[c.size for c in counts.values()]}")
    if sum(c.sum() for c in counts.values()) <= 0:
        return no_data(title, "no rows in any hour")

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        hours, bottom = np.arange(24), np.zeros(24)
        for (name, count), series in zip(counts.items(), SERIES, strict=False):
            if count.sum() > 0:
                label = f"{name}: {canvas.count(count.sum())}"
                axes.bar(hours, count, 0.8, bottom, color=series.color, hatch=series.hatch, edgecolor="white", linewidth=0, label=label)
                bottom = bottom + count
        if len(missing):
            axes.plot(
                list(missing), np.zeros(len(missing)), linestyle="none", marker="X", color=RED, label=f"hours missing: {len(missing)}"
            )
        axes.set_title(title)
        axes.set_xticks(hours[::2], [f"{h:02d}" for h in hours[::2]])
        axes.set_xlim(-0.7, 23.7)
        axes.set_ylim(0, 1.25 * float(bottom.max()))
        axes.set_xlabel("hour (UTC)")
        axes.set_ylabel("rows")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: canvas.count(value)))
        axes.grid(visible=False, axis="x")
        axes.legend(loc="upper right", ncols=3)

    return render(draw, width=7.2, height=2.8)


def missing_shares(shares: Mapping[str, float], *, title: str = "Missing values by group") -> bytes:
    """Share of missing values per group of columns, largest on top; groups whose share is unknown are left out."""
    found = sorted((float(v), str(k)) for k, v in shares.items() if math.isfinite(float(v)))
    if not found:
        return no_data(title, "no group of columns")

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        values = [v for v, _ in found]
        axes.barh(range(len(found)), values, color=SKY)
        axes.set_yticks(range(len(found)), [canvas.shorten(k, 36) for _, k in found], fontsize=8)
        axes.set_ylim(-0.7, len(found) - 0.3)
        axes.set_xlim(0, 1)
        axes.set_title(title)
        axes.set_xlabel("share of values that are missing (%)")
        canvas.bar_labels(axes, values, [f"{100 * v:.1f} %" for v in values])
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
        canvas.percent_axis(axes.xaxis)
        axes.grid(visible=False, axis="y")

    return render(draw, height=1.3 + 0.24 * max(len(found), 3))


def psi_bars(names: Sequence[str], psi: ArrayLike, *, top: int = 10, title: str = "Most shifted features") -> bytes:
    """The ``top`` features by population stability index against an earlier day, with the customary thresholds as lines."""
    values = np.asarray(psi, dtype=np.float64).ravel()
    if values.size != len(names):
        raise ValueError(f"expected one value per name ({len(names)}), found {values.size}")
    order = [i for i in np.argsort(-np.nan_to_num(values, nan=-1.0), kind="stable") if np.isfinite(values[i])][:top][::-1]
    if not order:
        return no_data(title, "nothing to compare with")

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        shown = values[order]
        y = np.arange(len(order))
        axes.barh(y, shown, color=[RED if v >= PSI_LARGE else BLUE if v >= PSI_NOTICEABLE else SKY for v in shown])
        top_value = max(float(shown.max()), 0.0)
        for limit, text, line in ((PSI_NOTICEABLE, "noticeable", "--"), (PSI_LARGE, "large", ":")):
            if top_value >= 0.5 * limit:
                axes.axvline(limit, color=GREY, linestyle=line, zorder=0.9, label=f"{text}: {limit:g}")
        axes.set_yticks(y, [canvas.shorten(names[i], 44) for i in order], fontsize=8)
        axes.set_ylim(-0.7, len(order) - 0.3)
        axes.set_xlim(0, max(axes.get_xlim()[1], 0.02))
        axes.set_title(title)
        axes.set_xlabel("population stability index (nats)")
        canvas.bar_labels(axes, shown.tolist(), [f"{v:.3f}" for v in shown])
        axes.grid(visible=False, axis="y")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower right")

    return render(draw, width=7.2, height=1.3 + 0.26 * max(len(order), 3))
