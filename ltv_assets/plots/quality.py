"""Plots of the quality of predictions: calibration, ranking, money, zeros, errors. Next to read: ``canvas.py``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ltv_assets.modeling.evaluation import metrics
from ltv_assets.plots import canvas
from ltv_assets.plots.canvas import BLACK, BLUE, GREY, ORANGE, RED, SERIES, SKY, Floats, finite, no_data, render


def reliability_curve(
    payer: ArrayLike, probability: ArrayLike, *, bins: int = 10, title: str = "Reliability of buyer probability"
) -> bytes:
    """Observed payer rate (95 % Wilson interval) against mean predicted probability in equal-count bins, both axes logarithmic.

    Bins without a payer are open triangles at the lower edge.
    """
    flag, p = finite(payer, probability)
    if not flag.size:
        return no_data(title, "no rows with a probability")
    table = metrics.reliability(flag, p, bins)
    error = metrics.ece(flag, p, bins)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        positive = np.concatenate([table.mean_probability, table.rate, table.high])
        positive = positive[positive > 0]
        top = min(max(float(positive.max()) * 1.6, 1e-3), 1.0)
        floor = max(float(positive.min()) / 2, top / 5000)  # three to four decades; smaller values are drawn at the edge
        x, y = np.clip(table.mean_probability, floor, 1), np.clip(table.rate, floor, 1)
        axes.plot([floor / 2, 1], [floor / 2, 1], color=GREY, linestyle="--", linewidth=1.2, label="perfect")
        spread = np.vstack([y - np.clip(table.low, floor, y), np.clip(table.high, y, 1) - y])
        some = table.rate > 0
        axes.errorbar(x, y, yerr=spread, fmt="none", ecolor=SKY, elinewidth=2, capsize=3)
        axes.plot(x[some], y[some], color=BLUE, marker="o", label=f"observed in bins of {canvas.count(table.rows.mean())} rows")
        if not some.all():
            axes.plot(x[~some], y[~some], linestyle="none", marker="v", markerfacecolor="white", color=BLUE, label="no payer in the bin")
        axes.axhline(max(flag.mean(), floor), color=RED, linestyle=":", linewidth=1.2, label=f"payer rate {100 * flag.mean():.2f} %")
        axes.set(xscale="log", yscale="log", xlim=(0.75 * floor, top), ylim=(0.75 * floor, top))
        axes.set_title(f"{title}: ECE {error:.4f}")
        axes.set_xlabel("mean predicted probability (%)")
        axes.set_ylabel("observed payer rate (%)")
        for axis in (axes.xaxis, axes.yaxis):
            canvas.log_axis(axis, canvas.percent)
        axes.legend(loc="upper left")

    return render(draw)


def gain_curves(revenue: ArrayLike, scores: Mapping[str, ArrayLike], *, title: str = "Revenue found in the best rows") -> bytes:
    """Cumulative share of revenue against share of rows, best scores first, for each named score and for the perfect order.

    The legend gives the share captured by the top 10 %. ``scores`` are aligned with ``revenue``, e.g. model, reference, oracle.
    """
    names = list(scores)
    truth, *values = finite(revenue, *scores.values())
    if truth.sum() <= 0:
        return no_data(title, "no revenue in these rows")

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _curve(axes, *metrics.gain_curve(truth, truth), "perfect order", GREY, "-", 1.2)
        for name, score, series in zip(names, values, SERIES, strict=False):
            share, gained = metrics.gain_curve(truth, score)
            caught = metrics.revenue_capture(truth, score, 0.1)
            _curve(axes, share, gained, f"{canvas.shorten(name, 24)}: {100 * caught:.1f} % in the top 10 %", series.color, series.line, 1.7)
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2, label="random order")
        axes.axvline(0.1, color=GREY, linewidth=0.8, zorder=0)
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        axes.set_title(title)
        axes.set_xlabel("share of impressions, best scores first (%)")
        axes.set_ylabel("share of revenue (%)")
        canvas.percent_axis(axes.xaxis)
        canvas.percent_axis(axes.yaxis)
        axes.legend(loc="lower right")

    return render(draw)


def revenue_against_spend(
    revenue: ArrayLike, scores: Mapping[str, ArrayLike], *, price: ArrayLike | None = None, title: str = "Revenue captured against spend"
) -> bytes:
    """Share of revenue against share of the budget when impressions are bought by falling score; logarithmic budget axis.

    ``price`` is the cost of each impression (any unit); without it all cost the same, and the budget is a share of impressions.
    """
    names = list(scores)
    cost = np.ones(np.asarray(revenue).size) if price is None else price
    truth, paid, *values = finite(revenue, cost, *scores.values())
    if truth.sum() <= 0 or paid.sum() <= 0:
        return no_data(title, "no revenue or no spend in these rows")

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        start = max(1e-3, 1 / truth.size)
        rows = np.unique(np.concatenate([[0], np.geomspace(1, truth.size, 300)]))
        marks = [x for x in (0.01, 0.05, 0.1) if x > start]
        for name, score, series in zip(names, values, SERIES, strict=False):
            spent = metrics.cumulative_capture(paid, score, rows) / paid.sum()
            caught = metrics.cumulative_capture(truth, score, rows) / truth.sum()
            axes.plot(spent, caught, color=series.color, linestyle=series.line, label=canvas.shorten(name, 24))
            at = np.interp(marks, spent, caught)
            axes.plot(marks, at, linestyle="none", marker=series.marker, color=series.color)
            if series is SERIES[0]:
                for x, y in zip(marks, at, strict=True):
                    axes.annotate(f"{100 * y:.0f} %", (x, y), xytext=(-5, 5), textcoords="offset points", ha="right", fontsize=8.5)
        even = np.geomspace(start, 1, 50)
        axes.plot(even, even, color=GREY, linestyle=":", linewidth=1.2, label="bought at random")
        axes.set(xscale="log", xlim=(start, 1), ylim=(0, 1.02))
        axes.set_title(title)
        axes.set_xlabel(f"share of {'impressions' if price is None else 'the budget'} bought, best scores first (%)")
        axes.set_ylabel("share of revenue (%)")
        canvas.log_axis(axes.xaxis, canvas.percent)
        canvas.percent_axis(axes.yaxis)
        axes.legend(loc="upper left")

    return render(draw)


def decile_chart(
    revenue: ArrayLike,
    score: ArrayLike,
    expected: ArrayLike,
    *,
    cap_usd: float = math.inf,
    bins: int = 10,
    title: str = "Deciles of the score",
) -> bytes:
    """Left: mean expected and mean recorded revenue per tenth of the rows. Right: each tenth's share of revenue, and the sum so far.

    ``cap_usd``: up to which a row's recorded revenue counts on the left, as it does in ``expected``.
    """
    truth, values, money = finite(revenue, score, expected)
    if not truth.size:
        return no_data(title, "no scored rows")
    table = metrics.decile_table(truth, values, money, bins)
    capped = metrics.decile_table(np.minimum(truth, cap_usd), values, money, bins)["mean_revenue_usd"]
    recorded = "recorded" if math.isinf(cap_usd) else f"recorded, up to {canvas.usd(cap_usd)} a row"

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        x = table["decile"].to_numpy()
        for offset, heights, label, series in (
            (-0.2, table["mean_expected_usd"], "expected", SERIES[0]),
            (0.2, capped, recorded, SERIES[1]),
        ):
            left.bar(x + offset, heights, 0.4, color=series.color, hatch=series.hatch, edgecolor="white", linewidth=0, label=label)
        left.set_title(title)
        left.set_ylabel("mean revenue per impression (USD)")
        left.legend()
        share = table["revenue_share"].to_numpy()
        right.set_title("Share of revenue")
        right.bar(x, np.nan_to_num(share), 0.7, color=SKY, label="of this decile")
        if np.isfinite(share).all():
            right.plot(x, table["cumulative_revenue_share"], color=BLACK, marker="o", label="so far")
        else:
            right.text(0.5, 0.5, "no revenue", ha="center", color=GREY, transform=right.transAxes)
        right.set_ylim(0, 1.05)
        right.set_ylabel("share of revenue (%)")
        canvas.percent_axis(right.yaxis)
        if np.isfinite(share).all():
            right.legend(loc="center right")
        for axes in (left, right):
            axes.set_xlabel("decile, 1 = highest scores")
            axes.set_xticks(x)
            axes.grid(visible=False, axis="x")

    return render(draw, width=8.4, height=3.6)


def zero_rate_by(
    group: ArrayLike, revenue: ArrayLike, predicted_zero: ArrayLike, *, by: str = "hour", title: str | None = None, max_groups: int = 200
) -> bytes:
    """Observed (95 % Wilson interval) and predicted share of zero rows per value of ``group``, e.g. hour or day, in sorted order."""
    title = title or f"Zero rate by {by}"
    truth, zero = np.asarray(revenue, dtype=np.float64), np.asarray(predicted_zero, dtype=np.float64)
    keys = np.asarray(group)
    known = np.isfinite(truth) & np.isfinite(zero) & np.array([k is not None and k == k for k in keys.tolist()], dtype=bool)
    if not known.any():
        return no_data(title, f"no rows with a known {by}")
    labels, codes = np.unique(keys[known], return_inverse=True)
    if labels.size > max_groups:
        return no_data(title, f"{labels.size} values of {by} are too many for one picture")
    n = np.bincount(codes).astype(np.float64)
    observed = np.bincount(codes, truth[known] == 0) / n
    predicted = np.bincount(codes, zero[known] > 0) / n

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        x = np.arange(labels.size)
        low, high = metrics.wilson_interval(observed, n)
        low, high = np.minimum(low, observed), np.maximum(high, observed)
        observed_series, predicted_series = SERIES[0], SERIES[1]
        axes.errorbar(
            x,
            observed,
            yerr=[observed - low, high - observed],
            color=observed_series.color,
            marker="o",
            capsize=2.5,
            label="observed, 95 % interval",
        )
        axes.plot(x, predicted, color=predicted_series.color, linestyle="--", marker="s", label="predicted")
        overall = float((truth[known] == 0).mean()), float((zero[known] > 0).mean())
        axes.set_title(f"{title}: {100 * overall[0]:.2f} % observed, {100 * overall[1]:.2f} % predicted")
        step = math.ceil(labels.size / (24 if max(len(str(v)) for v in labels) <= 3 else 8))
        axes.set_xticks(x[::step], [canvas.shorten(v, 16) for v in labels[::step]])
        axes.set_xlim(-0.5, labels.size - 0.5)
        axes.set_xlabel(by)
        axes.set_ylabel("share of rows with zero revenue (%)")
        _room(axes, np.concatenate([low, high, predicted]))
        canvas.percent_axis(axes.yaxis)
        axes.legend(loc="best")

    return render(draw, width=7.2, height=3.6)


def residuals_by_revenue(revenue: ArrayLike, prediction: ArrayLike, *, bins: int = 12, title: str = "Residuals by revenue") -> bytes:
    """log1p(prediction) - log1p(revenue) against revenue: median and middle 80 % in equal-count bins of payers, with rows behind.

    Non-payers are the first box. A good RMSLE model is far below zero for payers, because most similar rows do not pay.
    """
    truth, values = finite(revenue, prediction)
    if not truth.size:
        return no_data(title, "no scored rows")
    log_truth = np.log1p(truth)
    residual = np.log1p(values) - log_truth
    paying = truth > 0

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axhline(0, color=BLACK, linewidth=0.9)
        if (~paying).any():
            low, middle, high = np.quantile(residual[~paying], [0.1, 0.5, 0.9])
            axes.errorbar([0], [middle], yerr=[[middle - low], [high - middle]], color=ORANGE, marker="s", capsize=4, elinewidth=2)
            axes.plot([], [], color=ORANGE, marker="s", linestyle="none", label=f"{canvas.count((~paying).sum())} rows without revenue")
        if paying.any():
            x, y = log_truth[paying], residual[paying]
            stride = max(1, x.size // 1500)
            axes.plot(x[::stride], y[::stride], linestyle="none", marker=".", markersize=2.5, color=SKY, alpha=0.6, label="payers")
            order = np.argsort(x, kind="stable")
            parts = [part for part in np.array_split(order, min(bins, max(1, x.size // 5))) if part.size]
            centre = [float(np.median(x[p])) for p in parts]
            low, middle, high = (np.array([np.quantile(y[p], q) for p in parts]) for q in (0.1, 0.5, 0.9))
            axes.fill_between(centre, low, high, color=BLUE, alpha=0.2, linewidth=0, label="middle 80 % of payers")
            axes.plot(centre, middle, color=BLUE, marker="o", label="median of payers")
        axes.set_title(title)
        axes.set_xlabel("recorded revenue (USD, axis in log1p)")
        axes.set_ylabel("log1p(prediction) - log1p(revenue)")
        axes.margins(x=0.04)
        axes.autoscale_view()
        canvas.usd_log_axis(axes.xaxis)
        axes.legend(loc="best")

    return render(draw)


def rmsle_bars(figures: Mapping[str, float | Sequence[float]], *, title: str = "RMSLE") -> bytes:
    """One line per named figure, best on top: a point with its interval. Values are numbers or (value, low, high); NaN is left out.

    Points, not bars from zero, because the figures differ by a few per cent only.
    """
    found = []
    for name, figure in figures.items():
        value, low, high = figure if isinstance(figure, Sequence) else (figure, math.nan, math.nan)
        if math.isfinite(value):
            found.append((value, canvas.shorten(name, 28), low, high))
    if not found:
        return no_data(title, "no figure is known")
    found.sort(key=lambda item: -item[0])

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        ends = []
        for y, (value, _, low, high) in enumerate(found):
            known = math.isfinite(low) and math.isfinite(high)
            if known:
                axes.plot([low, high], [y, y], color=SKY, linewidth=4, solid_capstyle="butt", zorder=2)
            axes.plot([value], [y], marker="o", color=BLUE, zorder=3)
            ends.append(high if known else value)
        axes.set_yticks(range(len(found)), [name for _, name, _, _ in found])
        axes.set_ylim(-0.6, len(found) - 0.4)
        axes.set_title(title)
        axes.set_xlabel("RMSLE in log USD; lower is better; bands: 95 % intervals")
        lowest = min(value if not math.isfinite(low) else low for value, _, low, _ in found)
        pad = 0.08 * (max(ends) - lowest) or 0.05 * max(abs(lowest), 0.1)
        axes.set_xlim(lowest - pad, max(ends) + pad)
        canvas.bar_labels(axes, [f[0] for f in found], [f"{f[0]:.4f}" for f in found], ends)

    return render(draw, height=1.3 + 0.32 * len(found))


def score_distribution(
    prediction: ArrayLike, revenue: ArrayLike | None = None, *, cutoff_usd: float | None = None, title: str = "Distribution of LTV"
) -> bytes:
    """Share of rows per class of prediction (USD, log1p axis), payers and others apart when ``revenue`` is known; the gate as a line."""
    columns = finite(prediction) if revenue is None else finite(prediction, revenue)
    values = columns[0]
    if not values.size:
        return no_data(title, "no scored rows")
    log = np.log1p(np.clip(values, 0, None))
    groups: list[tuple[str, Floats]] = [("all rows", log)]
    if revenue is not None:
        paying = columns[1] > 0
        groups = [(name, part) for name, part in (("non-payers", log[~paying]), ("payers", log[paying])) if part.size]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        top = float(np.quantile(log, 0.9995))
        edges = np.linspace(0, max(top, 1e-3), 41)
        for (name, part), series in zip(groups, SERIES, strict=False):
            share = np.histogram(np.clip(part, 0, edges[-1]), edges)[0] / part.size
            axes.stairs(share, edges, color=series.color, linestyle=series.line, linewidth=1.7, label=f"{name} ({canvas.count(part.size)})")
        if cutoff_usd is not None and math.isfinite(cutoff_usd):
            axes.axvline(math.log1p(max(cutoff_usd, 0)), color=RED, linestyle=":", label=f"gate at {canvas.usd(cutoff_usd)}")
        axes.set(yscale="log", xlim=(0, edges[-1]))
        axes.set_title(title)
        axes.set_xlabel("predicted revenue (USD, axis in log1p; the last class holds all above)")
        axes.set_ylabel("share of rows (%)")
        _usd_ticks(axes, edges[-1])
        axes.set_ylim(top=1.5)
        canvas.log_axis(axes.yaxis, canvas.percent)
        axes.legend(loc="upper right")

    return render(draw)


def _usd_ticks(axes: Axes, top: float) -> None:
    if top > math.log1p(0.3):
        canvas.usd_log_axis(axes.xaxis)
    else:  # a narrow range of small amounts: let matplotlib choose round amounts
        marks = np.linspace(0, math.expm1(top), 6)
        axes.set_xticks(np.log1p(marks), [f"${v:.2g}" for v in marks])


def _curve(axes: Axes, x: Floats, y: Floats, label: str, color: str, line: object, width: float) -> None:
    axes.plot(x, y, color=color, linestyle=line, linewidth=width, label=label)  # type: ignore[arg-type]


def _room(axes: Axes, values: Floats) -> None:
    low, high = float(values.min()), float(values.max())
    pad = 0.12 * (high - low) or 0.01
    axes.set_ylim(max(low - pad, 0.0), min(high + 2 * pad, 1.02))
