"""Which figures are reported, for which rows, under which names.

``METRICS`` is the one list: the documentation, the columns in the user interface and the headline are made from it.
``evaluate`` computes all of them for a holdout, overall and by segment. What does not belong here: formulas
(``metrics.py``), bounds and verdicts (``defs/asset_checks/``), pictures (``plots/``).

``low`` and ``high`` are the ends of a 95 % bootstrap interval where one is computed. What cannot be computed from the
given rows - no payer in a segment, no oracle outside the simulator - is NaN, which parquet and DuckDB hold as NULL: a
missing figure is never a zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import chain, pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ltv_assets.core.contract import Scores, load_contract
from ltv_assets.core.errors import DataError
from ltv_assets.core.parallel import on_threads
from ltv_assets.modeling.evaluation import metrics as m
from ltv_assets.modeling.evaluation.metrics import decile_table

# Imported by what computes: the names of figures are shown without.
if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ALL",
    "HEADLINE",
    "METRICS",
    "MISSING",
    "OTHER",
    "Metric",
    "cold_start",
    "decile_table",
    "evaluate",
    "metrics_markdown",
    "segment_labels",
]

ALL = "all"
OTHER = "(other)"
MISSING = "(missing)"

Floats = NDArray[np.float64]


def metrics_markdown() -> str:
    """``METRICS`` as a Markdown table, for the documentation and the asset page."""
    lines = ["| metric | unit | better | meaning |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| `{name}` | {x.unit} | {x.better} | {x.description} |" for name, x in METRICS.items()])


@dataclass(frozen=True)
class _Rows:
    """The arrays of some rows. Predictions in USD; ``reference``, ``oracle`` and ``constant`` are scores in log1p(USD)."""

    revenue: Floats
    probability: Floats
    ltv: Floats
    expected: Floats
    gated: Floats
    zero: NDArray[np.bool_]
    log_revenue: Floats
    log_ltv: Floats
    longer: dict[str, tuple[Floats, Floats]]
    falls: NDArray[np.bool_] | None
    reference: Floats | None
    constant: Floats
    oracle: Floats | None

    def take(self, index: NDArray[np.int64]) -> _Rows:
        def pick(value: object) -> object:
            if isinstance(value, np.ndarray):
                return value[index]
            if isinstance(value, dict):
                return {k: (label[index], prediction[index]) for k, (label, prediction) in value.items()}
            return value

        return _Rows(**{name: pick(getattr(self, name)) for name in self.__dataclass_fields__})  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Judged:
    """Some rows and what several figures of them share; computed when the first of these asks."""

    rows: _Rows
    cap_usd: float
    ece_bins: int
    replicates: int
    seed: int

    @property
    def n(self) -> int:
        return self.rows.revenue.size

    @property
    def paying(self) -> NDArray[np.bool_]:
        return self.rows.revenue > 0

    def losses(self, score: Floats) -> Floats:
        return (score - self.rows.log_revenue) ** 2

    def root(self, score: Floats) -> float:
        return math.sqrt(float(self.losses(score).mean())) if self.n else math.nan

    @cached_property
    def boot(self) -> m.PairedBootstrap:
        own = self.losses(self.rows.log_ltv)
        reference = own if self.rows.reference is None else self.losses(self.rows.reference)
        return m.paired_bootstrap(own, reference, replicates=self.replicates, seed=self.seed)

    @cached_property
    def captures(self) -> tuple[float, ...]:
        """Shares of revenue in the best 1, 5 and 10 % of rows."""
        return m.revenue_captures(self.rows.revenue, self.rows.ltv, (0.01, 0.05, 0.10))

    @cached_property
    def rmsle_gated(self) -> float:
        return self.root(np.log1p(self.rows.gated))

    @cached_property
    def constant(self) -> float:
        return self.root(self.rows.constant)

    @cached_property
    def oracle(self) -> float | None:
        return None if self.rows.oracle is None else self.root(self.rows.oracle)

    def attained(self, rmsle: float) -> float | None:
        return None if self.oracle is None else m.attained_share(rmsle**2, self.constant**2, self.oracle**2)

    def longer(self, horizon: str) -> float | None:
        """RMSLE of a longer horizon where its label is known; None where there is no such label."""
        if horizon not in self.rows.longer:
            return None
        label, prediction = self.rows.longer[horizon]
        known = ~np.isnan(label)
        return m.rmsle(label[known], prediction[known])


class Metric(NamedTuple):
    """A figure: its unit, meaning, direction, and the function that measures it.

    ``better``: which direction is an improvement; ``near 1`` and ``near 0`` have a target, ``none`` is a description.
    ``of``: from the judged rows to a figure, with its interval or without; None where its input is not there.
    ``headline``: its place and words among the figures that are shown first, on the command line and in the report.
    """

    unit: str
    description: str
    better: Literal["lower", "higher", "near 1", "near 0", "none"]
    of: Callable[[_Judged], float | m.Interval | None]
    headline: tuple[int, str] | None = None


_METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "rows": Metric("rows", "impressions evaluated", "none", lambda f: float(f.n)),
        "payers": Metric("rows", "impressions with revenue within {within}", "none", lambda f: float(f.paying.sum())),
        "revenue_usd": Metric("USD", "revenue within {within}", "none", lambda f: float(f.rows.revenue.sum())),
        "rmsle": Metric(
            "log USD",
            "root mean squared error of log1p, `{ltv}` (ungated)",
            "lower",
            lambda f: f.boot.model,
            headline=(1, "RMSLE of {ltv} (ungated)"),
        ),
        "rmsle_gated": Metric(
            "log USD",
            "the same of `{target}`, with gated rows at zero",
            "lower",
            lambda f: f.rmsle_gated,
            headline=(2, "RMSLE of {target} (gated)"),
        ),
        "rmsle_reference": Metric(
            "log USD",
            "the same of the pinned LightGBM on log1p(revenue)",
            "lower",
            lambda f: None if f.rows.reference is None else f.boot.reference,
            headline=(3, "RMSLE of the LightGBM reference"),
        ),
        "rmsle_constant": Metric(
            "log USD",
            "the same of the best constant of the training part",
            "lower",
            lambda f: f.constant,
            headline=(4, "RMSLE of the best constant"),
        ),
        "rmsle_zero": Metric(
            "log USD",
            "the same of predicting zero everywhere",
            "lower",
            lambda f: f.root(np.zeros(f.n)),
            headline=(5, "RMSLE of predicting zero"),
        ),
        "rmsle_oracle": Metric(
            "log USD",
            "the same of the true conditional mean, where it is known",
            "lower",
            lambda f: f.oracle,
            headline=(6, "RMSLE of the oracle"),
        ),
        "rmsle_minus_reference": Metric(
            "log USD",
            "`rmsle` - `rmsle_reference`, interval of the paired bootstrap",
            "lower",
            lambda f: None if f.rows.reference is None else f.boot.difference,
        ),
        "rmsle_longer": Metric("log USD", "RMSLE of `{longer}` where that label is there", "lower", lambda f: None),
        "attained_share": Metric(
            "share",
            "(MSLE_constant - MSLE) / (MSLE_constant - MSLE_oracle) of `{ltv}`",
            "higher",
            lambda f: f.attained(f.boot.model.value),
            headline=(7, "attained share of what is attainable"),
        ),
        "attained_share_reference": Metric(
            "share",
            "the same of the pinned reference",
            "higher",
            lambda f: None if f.rows.reference is None else f.attained(f.boot.reference.value),
        ),
        "r2_log1p": Metric(
            "share", "explained variance of log1p(revenue) by `{ltv}`", "higher", lambda f: m.r2_log1p(f.rows.revenue, f.rows.ltv)
        ),
        "rmse": Metric(
            "USD", "root mean squared error of `{ltv}`; a single whale decides it", "lower", lambda f: m.rmse(f.rows.revenue, f.rows.ltv)
        ),
        "rmse_capped": Metric(
            "USD", "the same with both sides cut at `cap_usd`", "lower", lambda f: m.rmse(f.rows.revenue, f.rows.ltv, f.cap_usd)
        ),
        "rmse_expected_capped": Metric(
            "USD", "the same of `{expected}`", "lower", lambda f: m.rmse(f.rows.revenue, f.rows.expected, f.cap_usd)
        ),
        "mae": Metric("USD", "mean absolute error of `{ltv}`", "lower", lambda f: m.mae(f.rows.revenue, f.rows.ltv)),
        "mae_capped": Metric(
            "USD", "the same with both sides cut at `cap_usd`", "lower", lambda f: m.mae(f.rows.revenue, f.rows.ltv, f.cap_usd)
        ),
        "bias_ratio_capped": Metric(
            "ratio",
            "sum of `{expected}` / sum of min(revenue, `cap_usd`)",
            "near 1",
            lambda f: m.bias_ratio(f.rows.revenue, f.rows.expected, f.cap_usd),
            headline=(14, "expected / observed capped revenue"),
        ),
        "bias_ratio_{ltv}": Metric(
            "ratio",
            "sum of `{ltv}` / revenue: why the RMSLE-optimal number is not money",
            "none",
            lambda f: m.bias_ratio(f.rows.revenue, f.rows.ltv),
        ),
        "tail_factor": Metric(
            "ratio", "revenue / sum of min(revenue, `cap_usd`)", "none", lambda f: m.tail_factor(f.rows.revenue, f.cap_usd)
        ),
        "gini_normalized": Metric(
            "share",
            "Gini of revenue ordered by `{ltv}` over that of the perfect order",
            "higher",
            lambda f: m.gini_normalized(f.rows.revenue, f.rows.ltv),
        ),
        "gini_normalized_reference": Metric(
            "share",
            "the same of the pinned reference",
            "higher",
            lambda f: None if f.rows.reference is None else m.gini_normalized(f.rows.revenue, f.rows.reference),
        ),
        "gini_normalized_gated": Metric(
            "share",
            "the same of `{target}`: what ranking on gated scores loses",
            "higher",
            lambda f: m.gini_normalized(f.rows.revenue, f.rows.gated),
        ),
        "spearman_payers": Metric(
            "correlation",
            "rank correlation of `{ltv}` and revenue among payers",
            "higher",
            lambda f: m.spearman_payers(f.rows.revenue, f.rows.ltv),
        ),
        "capture_top_1pct": Metric(
            "share",
            "revenue in the 1 % of rows with the highest `{ltv}`",
            "higher",
            lambda f: f.captures[0],
        ),
        "capture_top_5pct": Metric(
            "share",
            "revenue in the 5 % of rows with the highest `{ltv}`",
            "higher",
            lambda f: f.captures[1],
        ),
        "capture_top_10pct": Metric(
            "share",
            "revenue in the 10 % of rows with the highest `{ltv}`",
            "higher",
            lambda f: f.captures[2],
            headline=(13, "revenue captured in the top 10 %"),
        ),
        "capture_top_10pct_gated": Metric(
            "share", "the same by `{target}`", "higher", lambda f: m.revenue_capture(f.rows.revenue, f.rows.gated, 0.10)
        ),
        "capture_top_10pct_reference": Metric(
            "share",
            "the same by the pinned reference",
            "higher",
            lambda f: None if f.rows.reference is None else m.revenue_capture(f.rows.revenue, f.rows.reference, 0.10),
        ),
        "capture_top_10pct_oracle": Metric(
            "share",
            "the same by the true conditional mean, where it is known",
            "higher",
            lambda f: None if f.rows.oracle is None else m.revenue_capture(f.rows.revenue, f.rows.oracle, 0.10),
        ),
        "auc": Metric(
            "share",
            "area under the ROC curve of `buyer_probability`",
            "higher",
            lambda f: m.auc(f.paying, f.rows.probability),
            headline=(11, "AUC of buyer_probability"),
        ),
        "pr_auc": Metric("share", "average precision of `buyer_probability`", "higher", lambda f: m.pr_auc(f.paying, f.rows.probability)),
        "log_loss": Metric("nats", "cross-entropy of `buyer_probability`", "lower", lambda f: m.log_loss(f.paying, f.rows.probability)),
        "ece": Metric(
            "probability",
            "calibration error in ten bins of equally many rows",
            "lower",
            lambda f: m.ece(f.paying, f.rows.probability, f.ece_bins),
            headline=(12, "calibration error (ECE)"),
        ),
        "mean_p_over_rate": Metric(
            "ratio", "mean `buyer_probability` / share of payers", "near 1", lambda f: m.mean_p_over_rate(f.paying, f.rows.probability)
        ),
        "zero_rate_observed": Metric(
            "share", "rows without revenue", "none", lambda f: m.zero_rate(f.rows.revenue), headline=(8, "zero rate observed")
        ),
        "zero_rate_predicted": Metric(
            "share",
            "rows the gate sets to zero",
            "none",
            lambda f: float(f.rows.zero.mean()) if f.n else math.nan,
            headline=(9, "zero rate predicted"),
        ),
        "zero_rate_error": Metric(
            "share",
            "`zero_rate_predicted` - `zero_rate_observed`",
            "near 0",
            lambda f: float(f.rows.zero.mean()) - m.zero_rate(f.rows.revenue) if f.n else math.nan,
        ),
        "gate_cost_msle": Metric(
            "log USD squared",
            "mean(score^2 1{{gated}}): what the gate is expected to add to MSLE",
            "lower",
            lambda f: m.gate_cost_msle(f.rows.log_ltv, f.rows.zero),
        ),
        "gate_cost_rmsle": Metric(
            "log USD",
            "`rmsle_gated` - `rmsle` as observed",
            "lower",
            lambda f: f.rmsle_gated - f.boot.model.value,
            headline=(10, "cost of the gate in RMSLE"),
        ),
        "horizon_violations": Metric(
            "rows",
            "rows with {violations}",
            "lower",
            lambda f: None if f.rows.falls is None else float(f.rows.falls.sum()),
        ),
    }
)
"""Every figure; words in braces are filled in by `metrics_of`, and ``rmsle_longer`` stands for one row a longer horizon."""


@cache
def metrics_of(names: Scores) -> Mapping[str, Metric]:
    """Every figure under some horizons and names of score columns, by name."""
    words = {
        "ltv": names.ltv[0],
        "expected": names.expected,
        "target": names.target,
        "within": names.within,
        "violations": " or ".join(f"`{a}` > `{b}`" for a, b in pairwise(names.ltv)) or "a longer horizon below a shorter one",
    }
    found: dict[str, Metric] = {}
    for name, metric in _METRICS.items():
        if name == "rmsle_longer":
            for horizon, ltv in zip(names.names[1:], names.ltv[1:], strict=True):
                found[f"rmsle_{horizon}"] = metric._replace(
                    description=metric.description.format(longer=ltv), of=partial(_Judged.longer, horizon=horizon)
                )
            continue
        headline = metric.headline and (metric.headline[0], metric.headline[1].format(**words))
        found[name.format(**words)] = metric._replace(description=metric.description.format(**words), headline=headline)
    return MappingProxyType(found)


def headline_of(names: Scores) -> tuple[tuple[str, str], ...]:
    """Metrics that answer "how good is this window", with the words they are shown under."""
    shown = [(*metric.headline, name) for name, metric in metrics_of(names).items() if metric.headline]
    return tuple((name, words) for _, words, name in sorted(shown))


METRICS: Mapping[str, Metric] = metrics_of(load_contract().scores)
"""Every figure under the shipped contract."""

HEADLINE: tuple[tuple[str, str], ...] = headline_of(load_contract().scores)
"""Metrics that answer "how good is this window", with the words they are shown under."""


def evaluate(
    scores: pd.DataFrame,
    revenue_usd: pd.Series | pd.DataFrame | ArrayLike,
    *,
    cap_usd: float,
    segments: pd.DataFrame | None = None,
    oracle_log: ArrayLike | None = None,
    constant_log: float | None = None,
    min_segment_rows: int = 200,
    max_segments: int = 20,
    ece_bins: int = 10,
    replicates: int = 1000,
    seed: int = 0,
    names: Scores | None = None,
    threads: int = 1,
) -> pd.DataFrame:
    """Every figure of ``METRICS`` for scored rows whose revenue is known.

    Parameters
    ----------
    scores : the published score columns; optionally ``reference_log`` (the pinned reference's score in log1p USD).
    revenue_usd : revenue within the shortest horizon, aligned with ``scores`` by position; or a frame whose first column is that
        and whose further columns are the longer horizons in their order, all of them or some by name, ``d14`` or what ends in
        ``_d14`` (NaN there = not known for that row).
    cap_usd : the cap stored with the model, for the capped twins and the bias ratio.
    segments : columns by whose values the rows are split; see ``segment_labels``.
    oracle_log : E[log1p(revenue) | row] where the law is known.
    constant_log : score of the best constant of the *training* part; without it, the mean of log1p of these rows.
    min_segment_rows, max_segments : values with fewer rows, or beyond the most frequent ones of a column, are pooled.
    names : the horizons and what the score columns are called; without it, those of the shipped contract.
    replicates, seed : of the bootstrap behind the intervals of ``rmsle`` and its difference to the reference.
    threads : segments that are measured side by side.

    Returns a frame (metric, segment, value, low, high): first segment ``all``, then ``column=value``; metrics in the order
    of ``METRICS``. Metrics whose input is not given (no reference, no oracle, no longer label) have no row at all; those
    undefined for a segment are NaN. Raises ``DataError`` for missing columns, lengths that differ, values that are NaN,
    infinite or negative.
    """
    import pandas as pd

    names = names or load_contract().scores
    rows = _rows(scores, revenue_usd, oracle_log, constant_log, names)
    if not cap_usd > 0:
        raise DataError(f"cap_usd must be positive, found {cap_usd!r}")
    if segments is not None and len(segments) != len(scores):
        raise DataError(f"segments has {len(segments)} rows, scores has {len(scores)}: they must be aligned by position")
    values = () if segments is None else _segments(segments, min_segment_rows, max_segments)

    def measured(segment: tuple[str, NDArray[np.int64] | None]) -> pd.DataFrame:
        name, index = segment
        of = rows if index is None else rows.take(index)
        return _figures(of, cap_usd, ece_bins, replicates, seed, names).assign(segment=name)

    parts = on_threads(measured, chain([(ALL, None)], values), threads=threads, ahead=2 * threads)
    return pd.concat(parts, ignore_index=True)[["metric", "segment", "value", "low", "high"]]


def segment_labels(column: pd.Series, min_rows: int, max_segments: int) -> pd.Categorical:
    """Values as text, missing as ``(missing)``; those rarer than ``min_rows`` or beyond ``max_segments`` as ``(other)``."""
    import pandas as pd

    codes, values = pd.factorize(column, use_na_sentinel=True)
    texts = [_segment_text(v) for v in values] + [MISSING]
    counts = np.bincount(codes % len(texts), minlength=len(texts))  # code -1, missing, is the last text
    ranked = sorted((i for i in range(len(texts)) if counts[i]), key=lambda i: (-counts[i], texts[i]))
    kept = [i for i in ranked[:max_segments] if counts[i] >= min_rows]
    names = [*sorted({texts[i] for i in kept}), OTHER]
    position = np.full(len(texts), len(names) - 1)
    position[kept] = [names.index(texts[i]) for i in kept]
    return pd.Categorical.from_codes(position[codes], names)


def _segment_text(value: object) -> str:
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def cold_start(values: ArrayLike, seen: ArrayLike) -> NDArray[np.bool_]:
    """True where a value (bundle, user) did not occur in training: a segment column for cold starts."""
    import pandas as pd

    known = np.asarray(pd.Series(seen).unique(), dtype=object)
    return ~pd.Series(values).isin(known).to_numpy()


def _segments(segments: pd.DataFrame, min_rows: int, max_segments: int) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Name and row positions of every segment; one stable sort per column puts each segment's rows side by side."""
    for column in segments.columns:
        labels = segment_labels(segments[column], min_rows, max_segments)
        order = np.argsort(labels.codes, kind="stable")
        bounds = np.concatenate([[0], np.cumsum(np.bincount(labels.codes, minlength=len(labels.categories)))])
        for i, value in enumerate(labels.categories):
            if bounds[i + 1] > bounds[i]:
                yield f"{column}={value}", order[bounds[i] : bounds[i + 1]]


def _rows(
    scores: pd.DataFrame,
    revenue_usd: pd.Series | pd.DataFrame | ArrayLike,
    oracle_log: ArrayLike | None,
    constant_log: float | None,
    names: Scores,
) -> _Rows:
    import pandas as pd

    first = names.ltv[0]
    required = ("buyer_probability", first, names.expected, "predicted_zero", names.target)
    missing = [c for c in required if c not in scores.columns]
    if missing:
        raise DataError(f"scores lack the columns {missing}: evaluate the output of the scoring function")
    n = len(scores)

    def column(name: str) -> Floats:
        return _checked(scores[name], n, name, signed=False)

    frame = (
        revenue_usd if isinstance(revenue_usd, pd.DataFrame) else pd.DataFrame({names.target: np.asarray(revenue_usd, dtype=np.float64)})
    )
    revenue = _checked(frame.iloc[:, 0], n, "revenue", signed=False)
    longer: dict[str, tuple[Floats, Floats]] = {}
    whole = len(frame.columns) == len(names.horizons)
    for place, (horizon, ltv) in enumerate(zip(names.names[1:], names.ltv[1:], strict=True), start=1):
        named = (c for c in frame.columns[1:] if c == horizon or str(c).endswith(f"_{horizon}"))
        label = frame.columns[place] if whole else next(named, None)
        if label is not None and ltv in scores.columns:
            longer[horizon] = frame[label].to_numpy(dtype=np.float64, na_value=np.nan), column(ltv)
    falls = None
    if len(names.ltv) > 1 and set(names.ltv) <= set(scores.columns):
        values = [scores[ltv].to_numpy(dtype=np.float64) for ltv in names.ltv]
        falls = np.logical_or.reduce([shorter > longer for shorter, longer in pairwise(values)])
    log_revenue = np.log1p(revenue)
    if constant_log is None:
        constant_log = float(log_revenue.mean()) if n else math.nan
    return _Rows(
        revenue=revenue,
        probability=column("buyer_probability"),
        ltv=column(first),
        expected=column(names.expected),
        gated=column(names.target),
        zero=scores["predicted_zero"].to_numpy(dtype=bool),
        log_revenue=log_revenue,
        log_ltv=np.log1p(column(first)),
        longer=longer,
        falls=falls,
        reference=_checked(scores["reference_log"], n, "reference_log", signed=True) if "reference_log" in scores.columns else None,
        constant=np.full(n, constant_log),
        oracle=None if oracle_log is None else _checked(oracle_log, n, "oracle_log", signed=True),
    )


def _checked(values: ArrayLike, n: int, name: str, *, signed: bool) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (n,):
        raise DataError(f"{name} must have one value per scored row: expected shape ({n},), found {array.shape}")
    bad = ~np.isfinite(array) if signed else ~(np.isfinite(array) & (array >= 0))
    if bad.any():
        kind = "NaN or infinite" if signed else "NaN, infinite or negative"
        raise DataError(f"{name} is {kind} in {int(bad.sum())} of {n} rows, first at position {int(bad.argmax())}")
    return array


def _figures(rows: _Rows, cap_usd: float, ece_bins: int, replicates: int, seed: int, names: Scores) -> pd.DataFrame:
    """All figures of one set of rows, in the order of ``METRICS``."""
    import pandas as pd

    judged = _Judged(rows, cap_usd, ece_bins, replicates, seed)
    records = []
    for name, metric in metrics_of(names).items():
        figure = metric.of(judged)
        if isinstance(figure, m.Interval):
            records.append((name, figure.value, figure.low, figure.high))
        elif figure is not None:
            records.append((name, figure, math.nan, math.nan))
    return pd.DataFrame(records, columns=["metric", "value", "low", "high"])
