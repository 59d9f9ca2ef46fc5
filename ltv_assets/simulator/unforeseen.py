"""Terms of three laws that no learner of this package was designed for: saturation, rare levels, gaps that mean something.

What belongs here: the constants of the three laws and what they add to f (purchase) and g (amount). What does not: the smooth
effects, calibration and labels (``laws.py``). Next to read: ``laws.py``.

Every term is a function of columns in the files, so the oracle stays exact. The columns themselves are those of every law.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ltv_assets.simulator.columns import Impressions
from ltv_assets.simulator.population import Bools, Floats, Ints, World, generator
from ltv_assets.simulator.signals import SIGNALS, raw_signal

BY_SIGNAL = {signal.name: signal for signal in SIGNALS}


class Dose(NamedTuple):
    """A signal's part in a saturating effect, ``potency * x / (x + half)`` of its raw value x; 0 where NULL.

    A negative potency gives ``|potency| * half / (x + half)``: the effect falls with x. ``half`` is the signal's centre in raw units.
    """

    signal: str
    potency: float


class Saturation(NamedTuple):
    """An effect with a ceiling: ``buy`` (on f) and ``spend`` (on g) times ``1 - exp(-sum of doses)``.

    Each dose saturates by itself, and together they saturate again: the second reason to buy adds less than the first.
    """

    buy: float
    spend: float
    doses: tuple[Dose, ...]


SATURATIONS: tuple[Saturation, ...] = (
    Saturation(
        3.2,
        0.30,
        (
            *(Dose("iap_revenue_usd_bundle__sum", 2.0), Dose("iap_revenue_usd_bundle__own", 1.5), Dose("last_buy__days_ago", -1.5)),
            *(Dose("whale_users_bundle_revenue_prank__max", 1.5), Dose("num_buys_bundle__sum", 1.0), Dose("rev_by_adv__sum", 1.0)),
        ),
    ),
    Saturation(
        2.6,
        0.20,
        (
            *(Dose("avg_daily_sessions__sum", 1.5), Dose("avg_daily_sessions__own", 2.0), Dose("avg_duration__mean", 1.0)),
            *(Dose("user_actions_bundles_action_count__total", 0.8), Dose("user_actions_bundles_action_count__own_total", 1.5)),
            *(Dose("advertiser_actions_action_count__sum", 2.5), Dose("avg_act_days", 0.6)),
        ),
    ),
    Saturation(2.4, 0.30, (Dose("release_msrp", 2.0), Dose("cpm__mean", 1.0), Dose("rwd_prank__mean", -0.8))),
    Saturation(
        2.0,
        0.05,
        (
            *(Dose("user_bundles__length", 0.8), Dose("user_bundles__has_own", 1.0), Dose("bundles_ins__length", 0.6)),
            *(Dose("last_ins__days_ago", -1.5), Dose("bcat__own", 1.0)),
        ),
    ),
    Saturation(-1.5, 0.0, (Dose("weeks_since_first_seen", 1.5), Dose("first_request_ts_bundle__own_days_ago", 1.5))),
)


def half_dose(name: str) -> float:
    """The raw value at which a signal has half of its effect."""
    signal = BY_SIGNAL[name]
    return float(np.expm1(signal.centre)) if signal.transform == "log1p" else signal.centre


def total_dose(hour: Impressions, effect: Saturation) -> Floats:
    """Sum of the doses of one saturating effect, by row."""
    total = np.zeros(hour.people.n)
    for name, potency in effect.doses:
        half, x = half_dose(name), raw_signal(hour, BY_SIGNAL[name])
        total += np.nan_to_num(np.abs(potency) * (x if potency > 0 else half) / (x + half), copy=False)
    return total


def saturating_terms(hour: Impressions) -> tuple[Floats, Floats]:
    """What the saturating law adds to f and g."""
    responses = [(effect, 1 - np.exp(-total_dose(hour, effect))) for effect in SATURATIONS]
    nothing = np.zeros(hour.people.n)
    return sum((e.buy * r for e, r in responses), nothing), sum((e.spend * r for e, r in responses), nothing)


RARE_COLUMNS: dict[str, Callable[[World], int]] = {
    "advertiser_bundle": lambda world: len(world.apps),
    "advertiser_subcategory": lambda world: len(world.subcategories),
    "advertiser_bottom_taxonomy_level": lambda world: len(world.taxonomies),
    "carrier": lambda world: len(world.carriers),
    "region": lambda world: len(world.regions),
    "dev_model": lambda world: len(world.devices.names),
    "dev_osv": lambda world: len(world.os_versions),
    "country": lambda world: len(world.countries),
}
"""Columns with rare levels, and how many levels a world has of them."""
RARE_BETWEEN = 0.001, 0.02
"""Share of the impressions of the levels that can have an effect; more frequent and rarer ones have none."""
RARE_WITH_EFFECT = 0.4
RARE_BUY, RARE_SPEND = 1.3, 0.20
"""Standard deviations of the effects on f and g."""


def rare_effects(world: World, pilot: Sequence[Mapping[str, Ints]]) -> dict[str, tuple[Floats, Floats]]:
    """Effects of rare levels on f and g, by column and code; most levels have none.

    ``pilot``: codes by column (-1 is NULL) of the hours in which the levels' shares are counted.
    """
    rng, (least, most) = generator(world.seed, 8), RARE_BETWEEN
    effects = {}
    for column, size in RARE_COLUMNS.items():
        codes = np.concatenate([hour[column] for hour in pilot])
        share = np.bincount(codes[codes >= 0], minlength=size(world)) / len(codes)
        chosen = (share >= least) & (share <= most) & (rng.random(len(share)) < RARE_WITH_EFFECT)
        effects[column] = chosen * rng.normal(0.0, RARE_BUY, len(share)), chosen * rng.normal(0.0, RARE_SPEND, len(share))
    return effects


class Pattern(NamedTuple):
    """Adds ``buy`` to f and ``spend`` to g where every column (or signal) of ``missing`` is NULL and none of ``present`` is."""

    buy: float
    spend: float
    missing: tuple[str, ...] = ()
    present: tuple[str, ...] = ()


PATTERNS: tuple[Pattern, ...] = (
    Pattern(-0.6, -0.05, missing=("carrier", "region")),
    Pattern(0.9, 0.15, missing=("release_msrp",)),
    Pattern(0.5, 0.0, missing=("advertiser_bottom_taxonomy_level",), present=("advertiser_category",)),
    Pattern(-0.8, 0.0, missing=("avg_daily_sessions",), present=("user_bundles",)),
    Pattern(1.0, 0.05, missing=("user_bundles",), present=("hour_ratio",)),
    Pattern(-0.7, -0.05, missing=("cpm",), present=("rwd_prank",)),
    Pattern(0.7, 0.0, present=("ctr",)),
    Pattern(0.8, 0.10, missing=("avg_act_days", "last_ins"), present=("carrier",)),
    Pattern(-1.0, -0.10, missing=("last_buy",), present=("iap_revenue_usd_bundle",)),
    Pattern(-0.7, 0.10, missing=("avg_daily_sessions__own",), present=("avg_daily_sessions",)),
    Pattern(0.6, -0.05, missing=("iap_revenue_usd_bundle__own",), present=("iap_revenue_usd_bundle",)),
    Pattern(-0.5, 0.0, missing=("user_actions_bundles_action_count__own_total",), present=("user_actions_bundles_action_count",)),
)

SLOPES: tuple[tuple[str, str, float, float], ...] = (
    ("release_msrp", "region", 0.50, 0.08),
    ("avg_act_days", "cpm", -0.60, 0.0),
    ("user_bundles__length", "rwd_prank", 0.50, 0.0),
    ("wifi_ratio", "carrier", 0.40, 0.03),
    ("avg_duration__mean", "bundles_ins", -0.40, 0.0),
)
"""A signal, a column, and what the signal's weights in f and g gain where the column is NULL."""

OWN_SHARES: tuple[tuple[str, float, float], ...] = (
    ("avg_daily_sessions", 0.80, 0.05),
    ("iap_revenue_usd_bundle", 0.60, 0.15),
    ("cpm", 0.60, 0.05),
    ("rwd_prank", -0.50, 0.0),
)
"""Maps whose own entry's share of their sum multiplies the standardised sum (or mean): the own app counts for those who use much."""


def is_null(hour: Impressions, name: str) -> Bools:
    """Rows in which a column is NULL, or a signal has no value because the map lacks the impression's own key."""
    if name in BY_SIGNAL and name not in hour.scalars:
        return np.isnan(raw_signal(hour, BY_SIGNAL[name]))
    if name in hour.codes:
        return hour.codes[name] < 0
    if name in hour.scalars:
        return np.isnan(hour.scalars[name])
    return ~(hour.actions[name].outer if name in hour.actions else hour.nested[name]).present


def shows(hour: Impressions, pattern: Pattern) -> Bools:
    """Rows that have a pattern of gaps."""
    return np.logical_and.reduce([is_null(hour, name) for name in pattern.missing] + [~is_null(hour, name) for name in pattern.present])


def own_total(column: str) -> str:
    """The signal that stands for all entries of a map: their sum, or their mean where there is no signal of the sum."""
    return f"{column}__sum" if f"{column}__sum" in BY_SIGNAL else f"{column}__mean"


def gap_terms(hour: Impressions, z: Mapping[str, Floats]) -> tuple[Floats, Floats]:
    """What the law of gaps adds to f and g; ``z`` are the standardised signals."""
    buy, spend = np.zeros(hour.people.n), np.zeros(hour.people.n)

    def add(amount: Floats | Bools, on_buy: float, on_spend: float) -> None:
        nonlocal buy, spend
        buy, spend = buy + on_buy * amount, spend + on_spend * amount

    for pattern in PATTERNS:
        add(shows(hour, pattern), pattern.buy, pattern.spend)
    for signal, column, on_buy, on_spend in SLOPES:
        add(z[signal] * is_null(hour, column), on_buy, on_spend)
    for column, on_buy, on_spend in OWN_SHARES:
        entries = hour.nested[column]
        share = np.nan_to_num(entries.own(hour.own[entries.domain]) / entries.sum())
        add(share * z[own_total(column)], on_buy, on_spend)
    return buy, spend
