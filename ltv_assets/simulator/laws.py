"""Purchases and their amounts: laws of observable columns, their exact expectations, and the draws.

What belongs here: the laws over signals (``signals.py``), calibration, and labels. What does not: drawing the columns
(``columns.py``), the terms of the laws that learners were not designed for (``unforeseen.py``).

With signals z(row), a law gives two numbers for every row,

    p  = P(revenue_d7 > 0 | row)             = sigmoid(a + b * f(z))
    mu = E[log1p(revenue_d7) | payer, row]   = m * exp(clip(g(z)))

and a payer's log1p(revenue) is mu times a gamma variable of mean 1, hence ``oracle_log = p * mu`` is *exactly*
E[log1p(revenue_d7) | row], the best possible prediction under RMSLE. Every signal is a statistic of columns in the
files; no latent variable is used. Next to read: ``oracle.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv

from ltv_assets.core.laws import LawName
from ltv_assets.simulator import facts
from ltv_assets.simulator.columns import Impressions
from ltv_assets.simulator.population import Bools, Floats, Ints, People, World, generator
from ltv_assets.simulator.signals import CLIP, SIGNALS, standardised
from ltv_assets.simulator.unforeseen import (
    OWN_SHARES,
    PATTERNS,
    SATURATIONS,
    SLOPES,
    gap_terms,
    half_dose,
    own_total,
    rare_effects,
    saturating_terms,
)

PRESENCE: dict[str, float] = {
    "weeks_since_first_seen": 0.35,
    "avg_daily_sessions": 0.40,
    "last_ins": 0.30,
    "iap_revenue_usd_bundle": 0.6,
    "last_buy": 0.4,
    "advertiser_actions_action_count": 0.7,
}
"""Weights in f of the presence of a group of columns."""

HOUR_EFFECT, DAY_EFFECT, WEEKEND_EFFECT = 0.15, 0.06, 0.08


@dataclass(frozen=True)
class Effects:
    """Effects of categorical columns on f (``buy``) and g (``spend``), by column and code; 0 for NULL."""

    buy: dict[str, Floats]
    spend: dict[str, Floats]


def with_rare_levels(effects: Effects, world: World, pilot: Sequence[Mapping[str, Ints]]) -> Effects:
    """The effects with those of rare levels added; ``pilot`` as in `rare_effects`."""
    buy, spend = dict(effects.buy), dict(effects.spend)
    for column, (on_buy, on_spend) in rare_effects(world, pilot).items():
        buy[column] = buy.get(column, 0.0) + on_buy
        spend[column] = spend.get(column, 0.0) + on_spend
    return Effects(buy, spend)


def draw_effects(world: World) -> Effects:
    """Published category and country rates as log-odds and log-means, and seeded idiosyncratic parts."""
    rng = generator(world.seed, 3)

    def from_rates(rates: dict[str, facts.Rate], buy: float, spend: float, others: int = 0) -> tuple[Floats, Floats]:
        rate = np.array([r.buyer_rate for r in rates.values()])
        odds = np.log(rate / (1 - rate)) - np.log(facts.PAYER_RATE / (1 - facts.PAYER_RATE))
        ticket = np.log1p(np.array([r.mean_revenue / r.buyer_rate for r in rates.values()]))
        return (
            np.concatenate([buy * odds, buy * world.country_wealth[len(rates) : len(rates) + others]]),
            np.concatenate([spend * (ticket - ticket.mean()), np.zeros(others)]),
        )

    category_buy, category_spend = from_rates(facts.CATEGORIES, 0.70, 0.05)
    country_buy, country_spend = from_rates(facts.COUNTRIES, 0.90, 0.05, len(facts.OTHER_COUNTRIES))
    subcategory = rng.normal(0.0, 0.10, len(world.subcategories))
    app = world.advertisers
    bundle_buy, bundle_spend = np.zeros(len(world.apps)), np.zeros(len(world.apps))
    bundle_buy[app] = category_buy[world.app_category[app]] + subcategory[world.advertiser_subcategory] + rng.normal(0.0, 0.12, len(app))
    bundle_spend[app] = category_spend[world.app_category[app]] + rng.normal(0.0, 0.04, len(app))
    months_old = (2025 - 2000) * 12 + 8 - world.devices.released
    model = 0.25 * world.devices.ios - 0.12 * (months_old / 36 - 1) + rng.normal(0.0, 0.05, len(months_old))
    versions = np.concatenate([np.linspace(-0.3, 0.3, size) for _, size in world.os_span])
    actions = rng.normal(0.0, 0.20, len(world.actions))
    return Effects(
        buy={
            "advertiser_bundle": bundle_buy,
            "country": country_buy,
            "dev_model": model,
            "dev_osv": versions,
            "carrier": rng.normal(0.0, 0.08, len(world.carriers)),
            "region": rng.normal(0.0, 0.05, len(world.regions)),
            "last_advertiser_action": actions,
        },
        spend={"advertiser_bundle": bundle_spend, "country": country_spend},
    )


def _context_effects(hour: Impressions, effects: Effects) -> tuple[dict[str, Floats], Floats]:
    """Effects of each categorical column on f, and their sum on g."""

    def of(table: Floats, codes: Ints) -> Floats:
        return np.where(codes >= 0, table[codes], 0.0)

    buy = {column: of(table, hour.codes[column]) for column, table in effects.buy.items()}
    spend = sum((of(table, hour.codes[column]) for column, table in effects.spend.items()), np.zeros(hour.people.n))
    return buy, spend


def _calendar(people: People) -> float:
    """Effect of hour, weekday and day: a daily rhythm, slightly better weekends, and a slow drift."""
    rhythm = HOUR_EFFECT * np.sin(2 * np.pi * (people.hour - 14) / 24)
    weekend = WEEKEND_EFFECT * ((people.day - 1) % 7 >= 5)
    drift = DAY_EFFECT * np.sin(2 * np.pi * people.day / 17)
    return float(rhythm + weekend + drift)


INTERACTIONS: tuple[tuple[str, str, float, float], ...] = (
    ("iap_revenue_usd_bundle__sum", "last_buy__days_ago", -0.25, -0.05),
    ("whale_users_bundle_revenue_prank__max", "avg_daily_sessions__sum", 0.25, 0.05),
    ("country", "advertiser_bundle", 0.45, 0.0),
    ("country", "release_msrp", 0.40, 0.05),
    ("release_msrp", "cpm__mean", 0.35, 0.05),
    ("user_bundles__length", "wifi_ratio", 0.35, 0.0),
    ("avg_daily_sessions__sum", "avg_duration__mean", 0.35, 0.05),
    ("user_actions_bundles_action_count__total", "avg_act_days", 0.30, 0.0),
    ("rwd_prank__mean", "country", -0.25, 0.0),
)
"""Products of two signals (or of a signal with a categorical column's standardised effect) and their weights in f and g."""

ALL = 9.0
RULES: tuple[tuple[tuple[tuple[str, float, float], ...], float, float], ...] = (
    ((("iap_revenue_usd_bundle__sum", 0.3, ALL),), 0.6, 0.25),
    ((("last_buy__days_ago", -ALL, -0.3),), 0.6, 0.0),
    ((("whale_users_bundle_revenue_prank__max", 0.6, ALL),), 0.4, 0.15),
    ((("release_msrp", 0.2, ALL),), 0.8, 0.12),
    ((("release_msrp", 1.1, ALL), ("country", 0.3, ALL)), 0.8, 0.15),
    ((("country", 0.4, ALL), ("advertiser_bundle", 0.4, ALL)), 1.0, 0.0),
    ((("avg_daily_sessions__sum", 0.3, ALL),), 0.9, 0.10),
    ((("avg_duration__mean", -0.5, 0.8),), 0.6, 0.0),
    ((("user_bundles__length", 0.4, ALL), ("wifi_ratio", 0.2, ALL)), 1.0, 0.08),
    ((("user_bundles__has_own", 0.5, ALL),), 0.6, 0.0),
    ((("user_actions_bundles_action_count__total", 0.3, ALL),), 0.9, 0.05),
    ((("last_ins__days_ago", -ALL, -0.4),), 0.8, 0.0),
    ((("cpm__mean", 0.4, ALL), ("rwd_prank__mean", -ALL, 0.2)), 1.0, 0.12),
    ((("weeks_since_first_seen", -0.5, 0.6),), 0.5, 0.0),
    ((("advertiser_actions_action_count__sum", 0.2, ALL),), 1.0, 0.10),
)
"""Rules: every condition (signal or effect, above, up to) must hold; then the weights are added to f and g. A missing signal is 0."""

EFFECT_SCALE = {"country": 0.75, "advertiser_bundle": 0.75}
MAIN_SHARE: dict[LawName, float] = {
    "additive": 1.0,
    "interactions": 0.7,
    "thresholds": 0.0,
    "saturating": 0.0,
    "rare": 0.5,
    "gaps": 0.5,
}
"""Share of the additive law's smooth effects of signals in each law."""


def scores(hour: Impressions, effects: Effects, law: LawName) -> tuple[Floats, Floats]:
    """The two uncalibrated scores f and g of every row under ``law``."""
    z = standardised(hour)
    context, spend = _context_effects(hour, effects)
    main = MAIN_SHARE[law]
    present = hour.people.present
    buy = sum(context.values(), np.full(hour.people.n, _calendar(hour.people)))
    for group, weight in PRESENCE.items():
        buy += weight * present[group]
    for signal in SIGNALS:
        if signal.buy:
            buy += main * signal.buy * z[signal.name]
        if signal.spend:
            spend += main * signal.spend * z[signal.name]
    if law in ("additive", "rare"):
        return buy, spend
    if law in ("saturating", "gaps"):
        more_buy, more_spend = saturating_terms(hour) if law == "saturating" else gap_terms(hour, z)
        return buy + more_buy, spend + more_spend
    z |= {column: context[column] / scale for column, scale in EFFECT_SCALE.items()}
    if law == "interactions":
        for left, right, on_buy, on_spend in INTERACTIONS:
            product = np.clip(z[left] * z[right], -4.0, 4.0)
            buy += on_buy * product
            spend += on_spend * product
        return buy, spend
    for conditions, on_buy, on_spend in RULES:
        holds: Bools = np.logical_and.reduce([(z[name] > above) & (z[name] <= up_to) for name, above, up_to in conditions])
        buy += on_buy * holds
        spend += on_spend * holds
    return buy, spend


def describe_law(law: LawName) -> dict[str, Any]:
    """The constants of `scores`, as JSON."""
    main = MAIN_SHARE[law]
    own: dict[LawName, dict[str, Any]] = {
        "saturating": {
            "saturations": [
                {
                    "buy": buy,
                    "spend": spend,
                    "doses": [{"signal": name, "potency": potency, "half": half_dose(name)} for name, potency in doses],
                }
                for buy, spend, doses in SATURATIONS
            ]
        },
        "gaps": {
            "patterns": [pattern._asdict() for pattern in PATTERNS],
            "slopes": SLOPES,
            "own_shares": [(column, own_total(column), on_buy, on_spend) for column, on_buy, on_spend in OWN_SHARES],
        },
    }
    return {
        "signals": [asdict(s) | {"name": s.name, "buy": main * s.buy, "spend": main * s.spend} for s in SIGNALS],
        "clip": CLIP,
        "presence": PRESENCE,
        "calendar": {"hour": HOUR_EFFECT, "day": DAY_EFFECT, "weekend": WEEKEND_EFFECT},
        "effect_scale": EFFECT_SCALE,
        "interactions": INTERACTIONS if law == "interactions" else (),
        "rules": RULES if law == "thresholds" else (),
        **own.get(law, {}),
    }


@dataclass(frozen=True)
class Calibration:
    """Constants that bring a law to the published payer rate, mean ticket and distances: see `calibrate`."""

    intercept: float
    slope: float
    ticket: float
    shape: float

    def probability(self, buy: Floats) -> Floats:
        return 1 / (1 + np.exp(-(self.intercept + self.slope * buy)))

    def mean_log(self, spend: Floats) -> Floats:
        return self.ticket * np.exp(np.clip(spend, -0.8, 0.8))


MSLE_ZERO, MSLE_ORACLE = 0.4655**2, 0.404**2


def calibrate(buy: Floats, spend: Floats) -> Calibration:
    """Solve for the constants on a pilot sample.

    The mean of p is the published payer rate, the mean of mu over payers the published mean of log1p(revenue), the
    second moment of ``oracle_log`` the distance between predicting zero and the oracle, and the gamma shape the
    remaining variance, so that RMSLE of predict-zero is .4655 and of the oracle .404.
    """
    shifted = np.exp(np.clip(spend, -0.8, 0.8))
    wanted = MSLE_ZERO - MSLE_ORACLE

    def solve(slope: float) -> tuple[float, Floats, float]:
        low, high = -20.0, 10.0
        for _ in range(50):
            middle = (low + high) / 2
            p = 1 / (1 + np.exp(-(middle + slope * buy)))
            low, high = (middle, high) if p.mean() < facts.PAYER_RATE else (low, middle)
        return middle, p, facts.PAYER_MEAN_LOG * p.sum() / (p * shifted).sum()

    low, high = 0.05, 4.0
    for _ in range(40):
        slope = (low + high) / 2
        intercept, p, ticket = solve(slope)
        low, high = (slope, high) if np.mean((p * ticket * shifted) ** 2) < wanted else (low, slope)
    second = np.mean(p * (ticket * shifted) ** 2)
    return Calibration(intercept, slope, ticket, float(second / (MSLE_ZERO - second)))


LATE_PAYERS = {14: 0.20, 28: 0.25}
"""Probability of a first payment between day 7 and 14 (14 and 28), as a multiple of p."""
INCREMENT_SHARE, INCREMENT_MEAN, INCREMENT_SHAPE = {14: 0.40, 28: 0.45}, {14: 0.30, 28: 0.40}, 2.0
"""Share of earlier payers who pay more, and by how much (log increments, gamma)."""


@dataclass
class Truth:
    """Truth of every row under the law: ``p`` and the expectations of log1p(revenue) at three horizons."""

    p: Floats
    mean_log: Floats
    oracle: dict[int, Floats]


def truth_of(buy: Floats, spend: Floats, calibration: Calibration) -> Truth:
    """Exact expectations under the law; see `draw_labels` for the process they belong to."""
    p, mean_log = calibration.probability(buy), calibration.mean_log(spend)
    oracle = {7: p * mean_log}
    paid, total = p, oracle[7]
    for horizon in (14, 28):
        late = (1 - paid) * LATE_PAYERS[horizon] * p
        total = total + paid * INCREMENT_SHARE[horizon] * INCREMENT_MEAN[horizon] + late * mean_log
        paid = paid + late
        oracle[horizon] = total
    return Truth(p, mean_log, oracle)


GOLDEN = (5**0.5 - 1) / 2


def stratified_choice(rng: np.random.Generator, p: Floats) -> Bools:
    """Events of probability p each, by systematic sampling in order of p.

    Marginal probabilities are exact and the number of events is the sum of p, rounded up or down; only the noise between
    two simulations is smaller than with independent draws.
    """
    order = np.argsort(p, kind="stable")
    passed = np.concatenate([[0.0], np.cumsum(p[order])]) + rng.random()
    chosen = np.zeros(len(p), np.bool_)
    chosen[order] = np.diff(np.floor(passed)) > 0
    return chosen


def stratified_uniforms(rng: np.random.Generator, by: Floats, offset: float) -> Floats:
    """Numbers in (0, 1), one in each n-th of the interval, spread evenly over the order of ``by``.

    Each is marginally uniform when ``offset`` is: the order is a rotated golden-ratio sequence, and an ``offset`` that
    moves evenly from hour to hour spreads the largest revenues evenly over the hours.
    """
    n = len(by)
    golden = np.argsort(np.argsort((np.arange(n) * GOLDEN) % 1.0))
    place = np.empty(n)
    place[np.argsort(by, kind="stable")] = (golden + rng.integers(0, max(n, 1))) % max(n, 1)
    return (place + offset) / max(n, 1)


def draw_labels(rng: np.random.Generator, hour: Impressions, truth: Truth, shape: float, offset: float | None) -> dict[str, NDArray[Any]]:
    """Draw the 17 label columns; ``offset`` is the hour's place in (0, 1) for `stratified_uniforms`, None draws each row for itself.

    Day 7: payers with probability p, log1p(revenue) = mu * Gamma(shape, mean 1). Days 14 and 28: some payers add a
    gamma log increment, and ``LATE_PAYERS[h] * p`` of earlier non-payers pay for the first time.
    """
    n, p = len(truth.p), truth.p
    payer = rng.random(n) < p if offset is None else stratified_choice(rng, p)
    mean_log, log = truth.mean_log[payer], np.zeros(n)
    place = rng.random(len(mean_log)) if offset is None else stratified_uniforms(rng, mean_log, offset)
    log[payer] = mean_log * gammaincinv(shape, place) / shape
    free = facts.ZERO_REVENUE_BUYERS / (1 - facts.ZERO_REVENUE_BUYERS)
    buyer = payer | (rng.random(n) < np.minimum(free * p / (1 - p), 0.5))
    buys = np.where(buyer, 1 + rng.poisson(0.5 * np.maximum(log, 0.2)), 0)
    out: dict[str, NDArray[Any]] = {"buyer_d1": buyer & (rng.random(n) < 0.55), "buyer_d7": buyer}
    out |= {"buy_d7": buys, "iap_revenue_d7": np.expm1(log)}
    for horizon in (14, 28):
        more = payer & (rng.random(n) < INCREMENT_SHARE[horizon])
        late = ~payer & (rng.random(n) < LATE_PAYERS[horizon] * p)
        log = log + np.where(more, rng.gamma(INCREMENT_SHAPE, INCREMENT_MEAN[horizon] / INCREMENT_SHAPE, n), 0.0)
        log[late] = truth.mean_log[late] * rng.gamma(shape, 1 / shape, int(late.sum()))
        payer, buyer = payer | late, buyer | late
        buys = buys + np.where(more | late, 1 + rng.poisson(0.5, n), 0)
        out |= {f"buyer_d{horizon}": buyer, f"buy_d{horizon}": buys, f"iap_revenue_d{horizon}": np.expm1(log)}

    active = 1 / (1 + np.exp(2.2 - 0.8 * hour.people.activity - 2.0 * out["buyer_d7"]))
    day1, day3, day7 = (rng.random(n) < active * share for share in (1.0, 0.7, 0.5))
    between3 = day3 | day7 | (rng.random(n) < 0.5 * active)
    retention = {
        "retention_d1": day1,
        "retention_d3": day3,
        "retentiond7": day7,
        "retention_d3_to_d7": between3,
        "retention_d1_to_d7": between3 | day1 | (rng.random(n) < 0.2 * active),
        "retention_d7_to_d14": day7 | (rng.random(n) < 0.6 * active),
    }
    unknown = rng.random(n) < 0.0785
    out |= {name: np.where(unknown, np.nan, flag) for name, flag in retention.items()}
    registered = out["buyer_d7"] | (rng.random(n) < 0.5 * active)
    out["registration"] = np.where(rng.random(n) < 0.4739, np.nan, registered)
    return out
