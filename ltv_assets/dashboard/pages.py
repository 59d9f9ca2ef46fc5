"""The pages: which figures they show, in which order, and what they say where there is none.

What belongs here: choosing and naming. What does not: reading (``snapshot.py``), drawing (``charts.py``), HTML (``templates/``), HTTP
(``app.py``). Every function takes a snapshot and the choices of the reader, and returns what its template shows. A choice that does not
exist is replaced by the usual one: choices are looked up among what there is and never become a path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any, TypeVar
from urllib.parse import quote

from markupsafe import Markup

from ltv_assets.core.asset_specs import ASSET_NAMES, SPECS
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.dashboard import charts
from ltv_assets.dashboard import words as w
from ltv_assets.dashboard.charts import Curve, Line
from ltv_assets.dashboard.snapshot import WHOLE, Curves, Snapshot
from ltv_assets.ingestion.calendar import today
from ltv_assets.modeling.evaluation.metrics import outcome_figures
from ltv_assets.modeling.evaluation.segments import ALL, MISSING, OTHER, headline_of, metrics_of

Choices = Mapping[str, str]
RECENT_DAYS = 35
MAX_NOT_FRESH = 12
MAX_WARNINGS = 12
COMPARED = ("expected_payers", "payers", "payers_inside", "expected_revenue_usd", "revenue_capped_usd", "revenue_inside")
"""Columns of ``cohort_outcome`` that say how good forecasts were."""
SHARE_TOPS = (1.0, 1.02)
"""Ends of two axes of shares: a curve at 1 is not cut by the frame."""
BASELINES = ("_reference", "_constant", "_zero", "_oracle")
"""Ends of figures that say something of the day, not of the model."""


@dataclass(frozen=True)
class Links:
    """Where Dagster's and MLflow's pages are."""

    dagster: str
    mlflow: str

    def asset(self, asset: str, key: str = "") -> str:
        """Dagster's page of an asset, at one of its partitions."""
        return f"{self.dagster}/assets/{quote(asset)}" + (f"?view=partitions&partition={quote(key)}" if key else "")

    def checks(self, asset: str, check: str) -> str:
        """Dagster's page of a check."""
        return f"{self.dagster}/assets/{quote(asset)}?view=checks&checkDetail={quote(check)}"

    def run(self, run_id: str) -> str:
        """MLflow's page of a run."""
        return f"{self.mlflow}/#/runs/{quote(run_id)}"


@dataclass(frozen=True)
class Chart:
    """A drawn chart, its legend, what it says, and its figures as a table for those who do not look."""

    title: str
    svg: Markup
    legend: tuple[tuple[str, int, str], ...]
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


T = TypeVar("T")


def _chosen(choices: Choices, name: str, among: Sequence[T], usual: T) -> T:
    return next((known for known in among if known == choices.get(name)), usual)


def _over_days(
    title: str, days: Sequence[str], lines: Sequence[Line], *, y_label: str, show: charts.Format, note: str = "", from_zero: bool = True
) -> Chart:
    svg = charts.over_days(days, lines, title=title, y_label=y_label, show=show, from_zero=from_zero)
    header = ["day"]
    for line in lines:
        header += [line.name, "low", "high"] if line.low else [line.name]
    rows = []
    for i in range(len(days) - 1, -1, -1):
        cells = [days[i]]
        for line in lines:
            cells += [_or_dash(v[i], show) for v in ((line.values, line.low, line.high) if line.low else (line.values,))]
        rows.append(tuple(cells))
    return Chart(title, svg, tuple((x.name, x.color, x.style) for x in lines), tuple(header), tuple(rows), note)


def _of_curves(
    title: str,
    curves: Sequence[Curve],
    header: tuple[str, ...],
    rows: tuple[tuple[str, ...], ...],
    note: str,
    *,
    labels: tuple[str, str],
    show: charts.Format,
    tops: tuple[float, float],
) -> Chart:
    """A chart of curves over shares; ``labels``, ``tops``: of the x axis and of the y axis."""
    (x_label, y_label), (x_max, y_max) = labels, tops
    svg = charts.curves(curves, title=title, x_label=x_label, y_label=y_label, show_x=show, show_y=show, x_max=x_max, y_max=y_max)
    return Chart(title, svg, tuple((c.name, c.color, c.style) for c in curves), header, rows, note)


def _or_dash(value: float | None, show: charts.Format) -> str:
    return show(value) if value is not None and w.known(value) else w.NOTHING


# ---------------------------------------------------------------------------------------------------------------- today


def today_page(snap: Snapshot, choices: Choices, links: Links) -> dict[str, Any]:
    """How fresh everything is, who is champion, what failed, and what the newest days will bring."""
    days = sorted(snap.forecasts)
    newest = days[-1] if days else None
    return {
        "newest": newest,
        "forecast": snap.total(newest) if newest else None,
        "facts": _facts(snap, "cohort_forecast", newest) if newest else {},
        "chart": forecast_chart(snap),
        "days": _recent_days(snap),
        "champion": _champion(snap),
        "freshness": _freshness(snap, links),
        "failing": [v for v in snap.verdicts if not v.passed and v.blocking],
        "warnings": [v for v in snap.verdicts if v.remark and not (v.blocking and not v.passed)][:MAX_WARNINGS],
        "more_warnings": max(0, sum(bool(v.remark) and not (v.blocking and not v.passed) for v in snap.verdicts) - MAX_WARNINGS),
        "not_fresh": [p for p in snap.partitions if p["state"] != "fresh"][:MAX_NOT_FRESH],
        "more_not_fresh": max(0, sum(p["state"] != "fresh" for p in snap.partitions) - MAX_NOT_FRESH),
        "landed": max((d for d in (*snap.project.horizon.train_days, *snap.project.horizon.test_days)), default=None),
        "coverage": _coverage(_outcome_rows(snap, whole=True)),
    }


def _facts(snap: Snapshot, asset: str, key: PartitionKey) -> Mapping[str, Any]:
    manifest = snap.warehouse.manifest(asset, key)
    return manifest.facts if manifest is not None else {}


def _champion(snap: Snapshot) -> dict[str, Any] | None:
    champion = snap.champion
    if champion is None:
        return None
    newest = max(snap.windows, default=champion.window)
    return {
        "window": champion.window,
        "why": champion.why,
        "pinned": champion.pinned,
        "age": w.age(max(0, (today() - champion.window.day).days)),
        "behind": max(0, (newest.day - champion.window.day).days),
        "reigns": tuple(reversed(snap.reigns))[:6],
        "has_report": snap.warehouse.manifest("report", champion.window) is not None,
    }


def _holdout_money(snap: Snapshot, window: PartitionKey) -> tuple[float | None, float | None]:
    """(expected, recorded) revenue of a holdout day, each row up to the cap, from its published figures."""
    revenue, tail, bias = (snap.figure(window, m)[0] for m in ("revenue_usd", "tail_factor", "bias_ratio_capped"))
    if revenue is None or not tail:
        return None, None
    recorded = revenue / tail
    return (bias * recorded if bias is not None else None), recorded


def _recent_days(snap: Snapshot) -> list[dict[str, Any]]:
    """Newest days first: forecast with its interval, or what the holdout's models expected, and what was recorded."""
    found = []
    for day in sorted({*snap.forecasts, *snap.outcomes, *snap.windows}, reverse=True)[:RECENT_DAYS]:
        total, outcome = snap.total(day), snap.outcome_total(day)
        row: dict[str, Any] = {"day": day, "kind": "forecast", "rows": None, "expected": None, "low": None, "high": None, "actual": None}
        if total is not None:
            row |= {"rows": total["rows"], "expected": total["expected_revenue_usd"]}
            row |= {"low": total["revenue_low_usd"], "high": total["revenue_high_usd"]}
        if outcome is not None:
            row["actual"] = outcome["revenue_capped_usd"]
        elif day in snap.windows:
            expected, actual = _holdout_money(snap, day)
            row["actual"] = actual
            if total is None:
                row |= {"kind": "holdout", "rows": snap.figure(day, "rows")[0], "expected": expected}
        if row["low"] is not None and row["actual"] is not None:
            row["inside"] = row["low"] <= row["actual"] <= row["high"]
        found.append(row)
    return found


def forecast_chart(snap: Snapshot) -> Chart:
    """Expected revenue of whole days with its interval, and what was recorded."""
    rows = list(reversed(_recent_days(snap)))
    lines = [
        Line("expected", [r["expected"] for r in rows], 1, "band", [r["low"] for r in rows], [r["high"] for r in rows]),
        Line("recorded", [r["actual"] for r in rows], 2, "dots"),
    ]
    note = "Each payer counts up to the model's cap. Days without a band are holdout days, expected by the model trained before them."
    return _over_days(
        "Expected and recorded revenue by day",
        [r["day"] for r in rows],
        lines,
        y_label=f"revenue within {snap.project.contract.scores.within} (USD)",
        show=w.usd_axis,
        note=note,
    )


def _freshness(snap: Snapshot, links: Links) -> list[dict[str, Any]]:
    found = []
    for asset in ASSET_NAMES:
        rows = [p for p in snap.partitions if p["asset"] == asset]
        states = Counter(p["state"] for p in rows)
        made = [p["partition"] for p in rows if p["state"] != "missing"]
        found.append(
            {
                "asset": asset,
                "what": SPECS[asset].description,
                "newest": max(made, default=""),
                "rows": next((p["rows"] for p in reversed(rows) if p["partition"] == max(made, default="")), None),
                "states": [(state, states[state]) for state in ("fresh", "stale", "failed", "missing") if states[state]],
                "link": links.asset(asset),
            }
        )
    return found


# ---------------------------------------------------------------------------------------------------------------- money


def money_page(snap: Snapshot, choices: Choices, links: Links) -> dict[str, Any]:
    """Groups of a day: what they will bring, how sure that is, and how it compares with their share of impressions."""
    days = sorted(snap.forecasts, reverse=True)
    if not days:
        return {"days": (), "capture": _capture_chart(snap)}
    day = _chosen(choices, "day", days, days[0])
    total = snap.total(day)
    segments = list(dict.fromkeys(r["segment"] for r in snap.forecasts[day] if r["segment"] != WHOLE))
    segment = _chosen(choices, "segment", segments, segments[0] if segments else "")
    groups = sorted((r for r in snap.forecasts[day] if r["segment"] == segment), key=lambda r: (-r["expected_revenue_usd"], r["value"]))
    known = {r["value"]: r for r in snap.outcomes.get(day, ()) if r["segment"] == segment}
    top = max((r["revenue_high_usd"] for r in groups), default=0.0)
    rows = []
    for r in groups:
        shares = [_ratio(r[c], total[c]) if total else None for c in ("rows", "expected_revenue_usd")]
        ends = f"{w.usd(r['revenue_low_usd'])} to {w.usd(r['revenue_high_usd'])}"
        told = f"{r['value']}: {w.usd(r['expected_revenue_usd'])}, 80 % interval {ends}"
        rows.append(
            {
                **r,
                "share_rows": shares[0],
                "share_revenue": shares[1],
                "index": _ratio(shares[1], shares[0]),
                "mille": _ratio(1000 * r["expected_revenue_usd"], r["rows"]),
                "mille_low": _ratio(1000 * r["revenue_low_usd"], r["rows"]),
                "mille_high": _ratio(1000 * r["revenue_high_usd"], r["rows"]),
                "bar": charts.interval_bar(r["expected_revenue_usd"], r["revenue_low_usd"], r["revenue_high_usd"], top, told=told),
                "actual": known.get(r["value"], {}).get("revenue_capped_usd"),
                "outside": not known.get(r["value"], {}).get("revenue_inside", True),
            }
        )
    outcome = snap.outcome_total(day)
    return {
        "days": days,
        "day": day,
        "segments": segments,
        "segment": segment,
        "total": total,
        "facts": _facts(snap, "cohort_forecast", day),
        "rows": rows,
        "has_outcome": bool(known),
        "total_actual": outcome["revenue_capped_usd"] if outcome is not None else None,
        "concentration": _concentration_chart(rows, segment, day),
        "capture": _capture_chart(snap),
        "trend": _trend_chart(snap, segment, [r["value"] for r in groups[:4]]),
        "link": links.asset("cohort_forecast", day),
        "sentence": _where_sentence(rows, segment),
    }


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _where_sentence(rows: Sequence[Mapping[str, Any]], segment: str) -> str:
    """The group whose thousand impressions bring most, counted by the lower end of the interval: large and sure before small and lucky."""
    ranked = [r for r in rows if r["mille_low"] is not None and r["index"] is not None and r["value"] not in (OTHER, MISSING)]
    if len(ranked) < 2:
        return ""
    best = max(ranked, key=lambda r: (r["mille_low"], r["value"]))
    name = w.segment_words(segment)
    return (
        f"Of the groups by {name}, {best['value']} is the surest place for the next dollar: a thousand of its impressions are expected "
        f"to bring {w.usd(best['mille'])}, and {w.usd(best['mille_low'])} at the lower end of the interval. "
        f"It is {w.percent(best['share_rows'])} of impressions and {w.percent(best['share_revenue'])} of expected revenue."
    )


def _concentration_chart(rows: Sequence[Mapping[str, Any]], segment: str, day: str) -> Chart:
    """Groups bought one after the other, the richest first."""
    ordered = sorted(rows, key=lambda r: (-(r["mille"] or 0.0), r["value"]))
    x, y, names = [0.0], [0.0], [""]
    for r in ordered:
        x.append(x[-1] + (r["share_rows"] or 0.0))
        y.append(y[-1] + (r["share_revenue"] or 0.0))
        names.append(r["value"])
    found = [Curve("groups, richest first", x, y, 1), Curve("bought at random", [0.0, 1.0], [0.0, 1.0], 5, "bound")]
    title = f"Revenue against impressions, by {w.segment_words(segment)}"
    return _of_curves(
        title,
        found,
        ("group", "impressions so far", "revenue so far"),
        tuple((names[i], w.percent(x[i]), w.percent(y[i])) for i in range(1, len(x))),
        f"Expected for {day}: whole groups, those with the highest revenue per mille first.",
        labels=("share of impressions bought", "share of expected revenue"),
        show=_whole_percent,
        tops=SHARE_TOPS,
    )


def _whole_percent(share: float) -> str:
    return w.percent(share, 0)


def _capture_chart(snap: Snapshot) -> Chart | None:
    """What buying by score would have caught on the champion's holdout day."""
    window = snap.champion.window if snap.champion is not None else max(snap.windows, default=None)
    curves = snap.curves(window)
    if curves is None:
        return None
    found = [
        Curve("by score", curves.share, curves.caught, 1, "plain"),
        Curve("perfect order", curves.share, curves.best, 3, "plain"),
        Curve("bought at random", [0.0, 1.0], [0.0, 1.0], 5, "bound"),
    ]
    return _of_curves(
        "Revenue caught by buying the best-scored impressions",
        found,
        ("bought", "caught", "at best"),
        tuple((w.percent(curves.share[i], 0), w.percent(curves.caught[i]), w.percent(curves.best[i])) for i in (1, 2, 5, 10, 20, 30, 50)),
        f"Recorded revenue of holdout day {window}, {_of_rows(curves)}, ordered by {snap.project.contract.scores.ltv[0]}.",
        labels=("share of impressions bought, best scores first", "share of revenue caught"),
        show=_whole_percent,
        tops=SHARE_TOPS,
    )


def _of_rows(curves: Curves) -> str:
    some = "" if curves.taken == curves.rows else f", drawn from {w.count(curves.taken)} of them"
    return f"{w.count(curves.rows)} impressions{some}"


def _trend_chart(snap: Snapshot, segment: str, values: Sequence[str]) -> Chart:
    """Revenue per mille of the largest groups over the forecast days."""
    days = sorted(snap.forecasts)[-RECENT_DAYS:]
    by = {(d, r["value"]): r for d in days for r in snap.forecasts[d] if r["segment"] == segment}
    lines = []
    for i, value in enumerate(values):
        found = [by.get((d, value)) for d in days]
        lines.append(Line(value, [_ratio(1000 * r["expected_revenue_usd"], r["rows"]) if r else None for r in found], i + 1))
    title = f"Revenue per mille of the largest groups by {w.segment_words(segment)}"
    return _over_days(title, days, lines, y_label="USD per 1000 impressions", show=w.usd_axis)


# ---------------------------------------------------------------------------------------------------------------- trust


def _usual_window(snap: Snapshot, windows: Sequence[PartitionKey]) -> PartitionKey | None:
    """The champion's, else the newest; None without any."""
    return snap.champion.window if snap.champion is not None and snap.champion.window in windows else next(iter(windows), None)


def trust_page(snap: Snapshot, choices: Choices, links: Links) -> dict[str, Any]:
    """Whether forecasts held what they promised: coverage, calibration, zero rate, drift, windows over time."""
    windows = sorted(snap.windows, reverse=True)
    usual = (
        snap.champion.window if snap.champion is not None and snap.champion.window in snap.windows else (windows[0] if windows else None)
    )
    window = _chosen(choices, "window", windows, usual)
    return {
        "windows": windows,
        "window": window or "",
        "coverage": _coverage(_outcome_rows(snap, whole=True)),
        "coverage_segments": _coverage_by_segment(snap),
        "coverage_sizes": _coverage_by_size(snap),
        "calibration": _calibration_chart(snap, window),
        "calibration_figures": {m: snap.figure(window, m)[0] for m in ("ece", "mean_p_over_rate", "bias_ratio_capped")},
        "zero_rate": _zero_rate_chart(snap),
        "drift": _drift_chart(snap),
        "bounds": snap.project.config.checks,
        "over_time": _over_time_charts(snap),
        "reasons": snap.reasons_to_retrain,
        "champion": snap.champion,
    }


def _outcome_rows(snap: Snapshot, *, whole: bool) -> list[dict[str, Any]]:
    """Rows of forecast and outcome side by side."""
    return [r for rows in snap.outcomes.values() for r in rows if (r["segment"] == WHOLE) == whole]


def _coverage(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Share of outcomes inside their interval, bias and weighted error; None where nothing has come out yet."""
    if not rows:
        return None
    found = outcome_figures({name: [r[name] for r in rows] for name in COMPARED})
    bias, error = (None if isnan(found[name]) else found[name] for name in ("bias_revenue", "error_revenue"))
    return {
        "n": len(rows),
        "share": found["coverage_revenue"],
        "payers": found["coverage_payers"],
        "bias": bias - 1 if bias is not None else None,
        "error": error,
    }


def _coverage_by_segment(snap: Snapshot) -> list[tuple[str, dict[str, Any]]]:
    rows = _outcome_rows(snap, whole=False)
    names = list(dict.fromkeys(r["segment"] for r in rows))
    found = [(w.segment_words(n), _coverage([r for r in rows if r["segment"] == n])) for n in names]
    return [(name, c) for name, c in found if c is not None]


def _coverage_by_size(snap: Snapshot) -> list[tuple[str, dict[str, Any]]]:
    """By expected payers of the group: small groups are the noisy ones."""
    rows = _outcome_rows(snap, whole=False)
    classes = (("under 3 expected payers", 0.0, 3.0), ("3 to 10", 3.0, 10.0), ("10 to 30", 10.0, 30.0), ("30 and more", 30.0, float("inf")))
    found = [(name, _coverage([r for r in rows if low <= r["expected_payers"] < high])) for name, low, high in classes]
    return [(name, c) for name, c in found if c is not None]


def _calibration_chart(snap: Snapshot, window: PartitionKey | None) -> Chart | None:
    curves = snap.curves(window)
    if curves is None:
        return None
    top = max([*curves.mean_probability, *curves.rate, *curves.rate_high, 1e-6]) * 1.05
    found = [
        Curve("perfect", [0.0, top], [0.0, top], 5, "bound"),
        Curve("observed, with 95 % interval", curves.mean_probability, curves.rate, 1, "dots", curves.rate_low, curves.rate_high),
    ]
    return _of_curves(
        f"Calibration of the buyer probability, holdout day {window}",
        found,
        ("predicted", "paid", "95 % interval"),
        tuple(
            (w.percent(p, 2), w.percent(r, 2), f"{w.percent(lo, 2)} to {w.percent(hi, 2)}")
            for p, r, lo, hi in zip(curves.mean_probability, curves.rate, curves.rate_low, curves.rate_high, strict=True)
        ),
        f"Ten bins of equally many of {_of_rows(curves)}.",
        labels=("predicted probability of paying", "share that paid"),
        show=lambda v: w.percent(v, 1),
        tops=(top, top),
    )


def _zero_rate_chart(snap: Snapshot) -> Chart:
    days = list(snap.zero_rates)[-60:]
    rows = [snap.zero_rates[d] for d in days]
    lines = [
        Line("recorded on holdout days", [r.get("observed") for r in rows], 2, "dots"),
        Line("predicted on holdout days", [r.get("holdout") for r in rows], 3),
        Line("predicted on scored days", [r.get("predicted") for r in rows], 1),
    ]
    within = snap.project.contract.scores.within
    note = f"Share of impressions without revenue within {within}: recorded, and set to zero by the gate."
    return _over_days(
        "Zero rate by day", days, lines, y_label="share of impressions", show=lambda v: w.percent(v, 1), note=note, from_zero=False
    )


def _drift_chart(snap: Snapshot) -> Chart:
    days = list(snap.drift)[-60:]
    limit = snap.project.config.checks.psi_warn
    lines = [
        Line("largest PSI", [snap.drift[d].get("largest_psi") for d in days], 1),
        Line("warns above", [limit] * len(days), 4, "bound"),
    ]
    note = "How far the most shifted feature moved against the day before (population stability index)."
    return _over_days("Drift of the features by day", days, lines, y_label="PSI", show=lambda v: w.decimal(v, 2), note=note)


def _over_time_charts(snap: Snapshot) -> list[Chart]:
    keys = sorted(snap.windows)[-60:]

    def line(name: str, metric: str, color: int, style: str = "line", *, interval: bool = False) -> Line:
        figures = [snap.figure(k, metric) for k in keys]
        ends = ([f[1] for f in figures], [f[2] for f in figures]) if interval else ((), ())
        return Line(name, [f[0] for f in figures], color, style, *ends)

    error = [
        line("model", "rmsle", 1, "band", interval=True),
        line("reference", "rmsle_reference", 2),
        line("best constant", "rmsle_constant", 5),
    ]
    money = [line("expected / recorded", "bias_ratio_capped", 1), Line("right", [1.0] * len(keys), 5, "bound")]
    caught = [line("model", "capture_top_10pct", 1), line("reference", "capture_top_10pct_reference", 2)]
    return [
        _over_days("Error of windows over time", keys, error, y_label="RMSLE (log USD)", show=lambda v: w.decimal(v, 3), from_zero=False),
        _over_days(
            "Expected over recorded revenue of windows", keys, money, y_label="ratio", show=lambda v: w.decimal(v, 2), from_zero=False
        ),
        _over_days("Revenue caught in the best tenth", keys, caught, y_label="share of revenue", show=_whole_percent, from_zero=False),
    ]


# -------------------------------------------------------------------------------------------------------------- compare


def compare_page(snap: Snapshot, choices: Choices, links: Links) -> dict[str, Any]:
    """Two windows side by side: figures, settings, and every window in a table."""
    windows = sorted(snap.windows, reverse=True)
    if not windows:
        return {"windows": ()}
    first = _chosen(choices, "a", windows, _usual_window(snap, windows) or windows[0])
    others = [k for k in windows if k != first]
    second = _chosen(choices, "b", windows, next((k for k in others if k < first), others[0] if others else first))
    settings = [snap.settings(k) for k in (first, second)]
    changed = [
        (name, settings[0].get(name, w.NOTHING), settings[1].get(name, w.NOTHING))
        for name in sorted({*settings[0], *settings[1]})
        if settings[0].get(name) != settings[1].get(name)
    ]
    return {
        "windows": windows,
        "a": first,
        "b": second,
        "figures": [_side_by_side(snap, name, label, first, second) for name, label in _compared(snap, first, second)],
        "changed": changed,
        "settings_known": [bool(s) for s in settings],
        "same_settings": len(set(settings[0]) & set(settings[1])) - len(changed) if all(settings) else 0,
        "challenges": snap.comparisons[:20],
        "ablations": [(k, snap.ablation(k)) for k in dict.fromkeys((first, second))],
        "table": [_window_row(snap, k, links) for k in windows],
        "champion": snap.champion.window if snap.champion is not None else "",
    }


def _compared(snap: Snapshot, first: PartitionKey, second: PartitionKey) -> list[tuple[str, str]]:
    headline, metrics = _headline(snap), metrics_of(snap.project.contract.scores)
    present = {m for k in (first, second) for m, segment in snap.windows[k] if segment == ALL}
    return [
        (m, headline.get(m, metrics[m].description.replace("`", "")))
        for m in (*headline, *(n for n in metrics if n not in headline))
        if m in present
    ]


def _headline(snap: Snapshot) -> dict[str, str]:
    """The figures that are shown first, by the words they are shown under."""
    return dict(headline_of(snap.project.contract.scores))


def _side_by_side(snap: Snapshot, name: str, label: str, first: PartitionKey, second: PartitionKey) -> dict[str, Any]:
    a, b = snap.figure(first, name), snap.figure(second, name)
    metric = metrics_of(snap.project.contract.scores)[name]
    better = metric.better
    difference = a[0] - b[0] if a[0] is not None and b[0] is not None else None
    judged = ""
    if difference and not name.endswith(BASELINES):
        target = {"near 1": 1.0, "near 0": 0.0}.get(better)
        gain = {"lower": -difference, "higher": difference}.get(better, 0.0)
        if target is not None and a[0] is not None and b[0] is not None:
            gain = abs(b[0] - target) - abs(a[0] - target)
        judged = "better" if gain > 0 else "worse" if gain < 0 else ""
    apart = None not in (a[1], a[2], b[1], b[2]) and (a[1] > b[2] or a[2] < b[1])  # type: ignore[operator]
    digits = 0 if metric.unit == "rows" else 2 if metric.unit == "USD" else 4
    return {
        "name": name,
        "label": label,
        "unit": metric.unit,
        "better": better,
        "meaning": metric.description.replace("`", ""),
        "a": a,
        "b": b,
        "difference": difference,
        "judged": judged,
        "apart": apart,
        "digits": digits,
        "headline": name in _headline(snap),
    }


def _window_row(snap: Snapshot, key: PartitionKey, links: Links) -> dict[str, Any]:
    difference = snap.figure(key, "rmsle_minus_reference")
    verdict = "not compared"
    if difference[0] is not None:
        verdict = "better" if (difference[2] or 0) < 0 else "worse" if (difference[1] or 0) > 0 else "tie"
    run = snap.tracked_run(key)
    return {
        "window": key,
        "rows": snap.figure(key, "rows")[0],
        "payers": snap.figure(key, "payers")[0],
        "rmsle": snap.figure(key, "rmsle"),
        "verdict": verdict,
        "bias": snap.figure(key, "bias_ratio_capped")[0],
        "capture": snap.figure(key, "capture_top_10pct")[0],
        "auc": snap.figure(key, "auc")[0],
        "dagster": links.asset("holdout_metrics", key),
        "mlflow": links.run(run) if run else "",
        "report": snap.warehouse.manifest("report", key) is not None,
    }


Page = Callable[[Snapshot, Choices, Links], dict[str, Any]]
PAGES: Mapping[str, tuple[str, str, Page]] = {
    "today": ("Today", "/", today_page),
    "money": ("Where the money is", "/money", money_page),
    "trust": ("Can I trust it", "/trust", trust_page),
    "compare": ("Compare", "/compare", compare_page),
}
"""Pages that follow from a snapshot alone: title, address, function. *One impression* needs the models and is in ``app.py``."""
