"""Signals: standardised statistics of raw columns, which every law is made of.

What belongs here: the list of signals with their weights in the additive law, and their values in an hour. What does not: laws
(``laws.py``). Next to read: ``laws.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ltv_assets.simulator.columns import Impressions
from ltv_assets.simulator.population import DAY_SECONDS, Floats

Transform = Literal["identity", "log1p"]


@dataclass(frozen=True)
class Signal:
    """One statistic of one raw column, standardised: ``clip((transform(x) - centre) / scale, -2.5, 2.5)``, 0 where NULL.

    ``buy`` and ``spend`` are its weights in f and g of the additive law.
    """

    column: str
    statistic: str
    transform: Transform
    centre: float
    scale: float
    buy: float
    spend: float = 0.0

    @property
    def name(self) -> str:
        return self.column if self.statistic == "value" else f"{self.column}__{self.statistic}"


CLIP = 2.5

SIGNALS: tuple[Signal, ...] = (
    Signal("release_msrp", "value", "log1p", 5.7, 0.7, 0.90, 0.15),
    Signal("weeks_since_first_seen", "value", "log1p", 2.7, 0.9, 0.09, 0.01),
    Signal("avg_act_days", "value", "log1p", 1.4, 0.5, 0.38),
    Signal("avg_days_ins", "value", "log1p", 2.1, 0.8, -0.06),
    Signal("weekend_ratio", "value", "identity", 0.3, 0.25, 0.06, 0.01),
    Signal("wifi_ratio", "value", "identity", 0.3, 0.25, 0.38, 0.03),
    Signal("avg_daily_sessions", "sum", "log1p", 1.9, 0.8, 0.65, 0.06),
    Signal("avg_daily_sessions", "own", "log1p", 1.2, 0.5, 0.52, 0.03),
    Signal("avg_duration", "mean", "log1p", 4.8, 0.7, 0.38, 0.03),
    Signal("bcat", "own", "identity", 0.35, 0.25, 0.45),
    Signal("bcat", "entropy", "identity", 1.1, 0.5, -0.06),
    Signal("bundles_cat", "own", "log1p", 1.0, 0.4, 0.06),
    Signal("hour_ratio", "entropy", "identity", 1.1, 0.5, 0.12),
    Signal("user_bundles", "length", "log1p", 2.1, 0.8, 0.50, 0.03),
    Signal("user_bundles", "has_own", "identity", 0.3, 0.5, 0.52, 0.02),
    Signal("user_bundles_l28d", "has_own", "identity", 0.25, 0.5, 0.06),
    Signal("new_bundles", "length", "log1p", 0.6, 0.5, 0.06),
    Signal("first_request_ts_bundle", "own_days_ago", "log1p", 3.8, 1.2, -0.06),
    Signal("last_ins", "days_ago", "log1p", 3.0, 1.3, -0.45, -0.01),
    Signal("last_install_ts_bundle", "own_days_ago", "log1p", 3.4, 1.3, -0.12),
    Signal("bundles_ins", "length", "log1p", 1.1, 0.6, 0.06),
    Signal("country_hist", "length", "log1p", 0.8, 0.2, 0.06, 0.02),
    Signal("city_hist", "length", "log1p", 1.1, 0.4, -0.03),
    Signal("cpm", "mean", "log1p", 0.9, 0.4, 0.60, 0.08),
    Signal("cpm_pct_rk", "own", "identity", 0.5, 0.3, 0.06),
    Signal("ctr", "mean", "log1p", 0.03, 0.02, 0.12),
    Signal("rwd_prank", "mean", "identity", 0.5, 0.25, -0.55, -0.08),
    Signal("rwd_prank", "own", "identity", 0.5, 0.3, -0.06),
    Signal("iap_revenue_usd_bundle", "sum", "log1p", 2.7, 1.0, 0.50, 0.15),
    Signal("iap_revenue_usd_bundle", "own", "log1p", 2.2, 1.0, 0.30, 0.06),
    Signal("iap_revenue_usd_category", "own", "log1p", 2.4, 1.0, 0.06, 0.03),
    Signal("num_buys_bundle", "sum", "log1p", 1.4, 0.5, 0.08),
    Signal("last_buy", "days_ago", "log1p", 2.0, 1.3, -0.50, -0.04),
    Signal("last_buy_ts_bundle", "own_days_ago", "log1p", 2.0, 1.3, -0.10),
    Signal("rev_by_adv", "sum", "log1p", 2.5, 1.0, 0.08, 0.02),
    Signal("whale_users_bundle_revenue_prank", "max", "identity", 0.6, 0.25, 0.30, 0.10),
    Signal("whale_users_bundle_total_num_buys", "own", "log1p", 1.2, 0.5, 0.06),
    Signal("user_actions_bundles_action_count", "total", "log1p", 2.3, 0.8, 0.45, 0.02),
    Signal("user_actions_bundles_action_count", "own_total", "log1p", 1.8, 0.7, 0.45),
    Signal("advertiser_actions_action_count", "sum", "log1p", 1.8, 0.6, 0.52, 0.04),
)


def raw_signal(hour: Impressions, signal: Signal) -> Floats:
    """The statistic of one signal before standardisation; NaN where the column (or the own entry) is missing."""
    if signal.statistic == "value":
        return hour.scalars[signal.column]
    now = hour.people.hour_start
    if signal.statistic == "days_ago":
        return (now - hour.scalars[signal.column]) / DAY_SECONDS
    if signal.column in hour.actions:
        actions = hour.actions[signal.column]
        by_app = np.bincount(actions.inner.rows, weights=actions.inner.numbers, minlength=len(actions.outer.rows))
        totals = actions.outer.where(values=by_app)
        return totals.sum() if signal.statistic == "total" else totals.own(hour.own["bundle"])
    column = hour.nested[signal.column]
    if signal.statistic == "own_days_ago":
        return (now - column.own(hour.own[column.domain])) / DAY_SECONDS
    if signal.statistic in ("own", "has_own"):
        statistic: Floats = getattr(column, signal.statistic)(hour.own[column.domain])
        return statistic
    plain: Floats = getattr(column, signal.statistic)()
    return plain


def standardised(hour: Impressions) -> dict[str, Floats]:
    """All signals by name; 0 where missing."""
    out = {}
    for signal in SIGNALS:
        raw = raw_signal(hour, signal)
        value = np.log1p(raw) if signal.transform == "log1p" else raw
        out[signal.name] = np.nan_to_num(np.clip((value - signal.centre) / signal.scale, -CLIP, CLIP), copy=False)
    return out
