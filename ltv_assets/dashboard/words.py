"""Numbers and names as the pages write them.

What belongs here: formatting for people, the words of the field and what they mean. What does not: figures, HTML.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ltv_assets.core.asset_specs import RELATIONS
from ltv_assets.core.contract import Scores
from ltv_assets.modeling.evaluation.segments import metrics_of

NOTHING = "–"
THIN = "\u202f"
"""Between groups of three digits, and between a number and its unit."""

_TERMS: Mapping[str, str] = {
    "expected revenue": "In-app-purchase revenue in US dollars that these impressions are expected to bring within {within}.",
    "80 % interval": "The outcome should lie inside for four days (or groups) out of five. It is wide where history is short.",
    "payers": "Impressions that are followed by a purchase within {within}.",
    "share of impressions": "Impressions of the group divided by all impressions of the day.",
    "share of revenue": "Expected revenue of the group divided by that of the whole day.",
    "revenue per mille": "Expected revenue of a thousand impressions (RPM), in US dollars. Buying below it earns money.",
    "revenue index": "Share of revenue divided by share of impressions. Above 1 the group brings more than its share.",
    "coverage": "Share of past outcomes that lay inside their 80 % interval. It should be near 80 %.",
    "bias": "Expected revenue over actual revenue, minus one. +5 % means that 5 % too much was expected.",
    "weighted error": "Sum of the absolute errors of revenue divided by the sum of revenue (WAPE).",
    "champion": "The window whose model scores new days.",
    "window": "Days of training and the holdout day after them, by which it is named.",
    "zero rate": "Share of impressions without revenue within {within}.",
    "PSI": "Population stability index of the feature that moved most against the day before. Below 0.1 is stable, above 0.25 has moved.",
    "drift AUC": "How well a model tells the day from the days before it: 0.5 means not at all, 1 means completely.",
    "calibration": "Of impressions with a predicted probability of 5 %, do 5 % pay?",
    "RMSLE": "{rmsle}, in log USD. Lower is better.",
    "reference": "One plain LightGBM on the same features. A window that is significantly worse is not used.",
    "odds": "Probability of paying divided by that of not paying. Odds times 2 is about twice the probability while it is small.",
    "fresh": "Made from what is in the warehouse now, by the present code and configuration, and passed its checks.",
    "stale": "Its inputs, the configuration or the code changed since; `ltv run` makes it again.",
}


def terms(scores: Scores) -> dict[str, str]:
    """What the words on the pages mean under a contract; shown where a word is pointed at or focused."""
    rmsle = metrics_of(scores)["rmsle"].description.replace("`", "").capitalize()
    return {word: meaning.format(within=scores.within, rmsle=rmsle) for word, meaning in _TERMS.items()}


def known(value: float | None) -> bool:
    """True for a number that is there and finite."""
    return value is not None and math.isfinite(value)


def count(value: float | None) -> str:
    """A whole number in groups of three digits."""
    return f"{value:,.0f}".replace(",", THIN) if value is not None and math.isfinite(value) else NOTHING


def decimal(value: float | None, digits: int = 2) -> str:
    """A number with a fixed count of decimals."""
    return f"{value:,.{digits}f}".replace(",", THIN) if value is not None and math.isfinite(value) else NOTHING


def compact(value: float | None) -> str:
    """About three digits that count, for axes: 0.0123, 1.23, 12.3, 123, 1.23k, 1.23M."""
    if value is None or not math.isfinite(value):
        return NOTHING
    size = abs(value)
    for limit, divisor, unit in ((999_500_000, 1e9, "B"), (999_500, 1e6, "M"), (999.5, 1e3, "k")):
        if size >= limit:
            return f"{value / divisor:.3g}{unit}"
    return count(value) if size >= 99.5 else f"{value:.3g}"


def few(value: float | None) -> str:
    """A count that may be a fraction: 0.4, 12.3, then whole numbers in groups of three digits."""
    return count(value) if value is None or not abs(value) < 99.95 else f"{value:.1f}"


def cents(value: float | None) -> str:
    """An amount of one impression in US dollars: four decimals below one dollar."""
    return f"${value:.4f}" if value and abs(value) < 1 else usd(value)


def usd(value: float | None) -> str:
    """US dollars: cents below 100, whole dollars above."""
    if value is None or not math.isfinite(value):
        return NOTHING
    sign = "-" if value < 0 else ""
    size = abs(value)
    return f"{sign}${size:.2f}" if size < 99.995 else f"{sign}${count(size)}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share in percent."""
    return f"{100 * share:.{digits}f}{THIN}%" if share is not None and math.isfinite(share) else NOTHING


def signed_percent(share: float | None) -> str:
    """A relative difference in percent, with its sign."""
    return f"{100 * share:+.1f}{THIN}%" if share is not None and math.isfinite(share) else NOTHING


def factor(value: float | None) -> str:
    """A factor, as in ×1.8."""
    return f"×{value:.2f}" if value is not None and math.isfinite(value) else NOTHING


def age(days: int) -> str:
    """A count of days in words."""
    return "today" if days == 0 else "1 day ago" if days == 1 else f"{days} days ago"


def plural(number: int, one: str, many: str = "") -> str:
    """A count and its noun."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def column_words(relation: str, column: str) -> str:
    """What a column of a relation means; empty if it is not described."""
    return next((c.description for c in RELATIONS.get(relation, ()) if c.name == column), "")


def segment_words(name: str) -> str:
    """A segment's column as a heading: an underscore becomes a space."""
    return "whole day" if name == "all" else name.replace("_", " ")


def usd_axis(value: float) -> str:
    """US dollars in few digits, for an axis: $0.5, $12, $1.2k."""
    return f"${compact(value)}"
