"""A second derivation of every feature: plain Python, one row at a time, from the written definitions alone.

It shares nothing with the package but the contract's names and types: no SQL, no arrays, no registry. A row is a dict; a
map is a list of (key, value) pairs, because keys may repeat; a nested map is a list of (key, pairs).
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from ltv_assets.core.columns import BY_NAME, RAW_COLUMNS

Pairs = list[tuple[str, Any]]

OWN = {
    "bundle": "advertiser_bundle",
    "category": "advertiser_category",
    "taxonomy": "advertiser_bottom_taxonomy_level",
    "country": "country",
    "region": "region",
    "os_version": "dev_osv",
    "hour": "hour",
}
MONTHS = ["january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december"]
YEAR_2000 = datetime(2000, 1, 1, tzinfo=UTC).timestamp()


def features_of(row: dict[str, Any], hour: str) -> dict[str, Any]:
    """Return every feature of one row; None is missing. ``hour`` is the folder's YYYY-MM-DD-HH-00."""
    start = datetime.strptime(hour, "%Y-%m-%d-%H-00").replace(tzinfo=UTC)
    out: dict[str, Any] = {}
    for column in RAW_COLUMNS:
        if column.is_label or column.is_key:
            continue
        value, name = row[column.name], column.name
        own = row[OWN[column.keyed_by]] if column.keyed_by in OWN else None
        found: dict[str, Any]
        if column.type.startswith("map<string,map"):
            found = nested_times(value, own, start) if column.meaning == "timestamp" else nested_counts(value, own)
        elif column.type.startswith("map") and column.meaning == "timestamp":
            found = times(value, own, start)
        elif column.type.startswith("map"):
            found = numbers(value, own)
            if column.meaning == "histogram":
                found["has_own"] = None if value is None or own is None else float(any(k == own for k, _ in value))
        elif column.type == "list<string>":
            found = {
                "length": None if value is None else len(value),
                "n_unique": None if value is None else len(set(value) - {None}),
                "has_own": None if value is None or own is None else float(own in value),
            }
        else:
            found = {}
            out[name] = value
        out |= {f"{name}__{statistic}": number for statistic, number in found.items()}
    out |= scalars(row, start)
    out |= overlaps(row)
    out |= indicators(row)
    out |= interactions(out)
    return {name: tidy(value) for name, value in out.items()}


def tidy(value: Any) -> Any:
    """Missing is None: NaN, infinities and what no float32 can hold."""
    if value is None or isinstance(value, str):
        return value
    value = float(value)
    return value if math.isfinite(value) and abs(value) <= 3.4028234663852886e38 else None


def usable(pairs: Pairs) -> Pairs:
    return [(k, float(v)) for k, v in pairs if v is not None and abs(v) <= 3.4028234663852886e38]


def numbers(pairs: Pairs | None, own: str | None) -> dict[str, Any]:
    names = ("n_keys", "sum", "mean", "max", "min", "std", "entropy", "top1_share", "own", "own_share")
    out: dict[str, Any] = dict.fromkeys(names)
    if pairs is None:
        return out
    out["n_keys"] = len(pairs)
    good = usable(pairs)
    values = [v for _, v in good]
    if not values:
        return out
    total = sum(values)
    out |= {"sum": total, "mean": total / len(values), "max": max(values), "min": min(values)}
    # Scaled by the largest value, so that squares of huge values do not overflow.
    scale = max(abs(v) for v in values) or 1.0
    centre = math.fsum(v / scale for v in values) / len(values)
    same = max(values) == min(values)
    out["std"] = 0.0 if same else scale * math.sqrt(math.fsum((v / scale - centre) ** 2 for v in values) / len(values))
    positive = sum(v for v in values if v > 0)
    mine = [v for k, v in good if own is not None and k == own]
    if mine:
        out["own"] = sum(mine)
    if positive > 0 and math.isfinite(positive):
        out["entropy"] = -sum(v / positive * math.log(v / positive) for v in values if v / positive > 0)
        out["top1_share"] = max(values) / positive
        if mine:
            out["own_share"] = max(sum(mine), 0.0) / positive
    return out


def since(start: datetime, moments: list[Any]) -> list[float]:
    """Days from each usable moment (unix seconds, not before 2000, not after the hour began) to the start of the hour."""
    now = start.timestamp()
    return [(now - m) / 86400 for m in moments if m is not None and not math.isnan(m) and YEAR_2000 <= m <= now]


def times(pairs: Pairs | None, own: str | None, start: datetime) -> dict[str, Any]:
    out: dict[str, Any] = {
        "n_keys": None if pairs is None else len(pairs),
        "days_ago_min": None,
        "days_ago_max": None,
        "own_days_ago": None,
    }
    ago = since(start, [v for _, v in pairs or []])
    mine = since(start, [v for k, v in pairs or [] if own is not None and k == own])
    if ago:
        out |= {"days_ago_min": min(ago), "days_ago_max": max(ago)}
    if mine:
        out["own_days_ago"] = min(mine)
    return out


def nested_counts(pairs: Pairs | None, own: str | None) -> dict[str, Any]:
    out: dict[str, Any] = dict.fromkeys(("n_bundles", "n_actions", "total", "has_own", "own_n_actions", "own_total"))
    if pairs is None:
        return out
    inner = [entry for _, entries in pairs for entry in entries or []]
    out |= {"n_bundles": len(pairs), "n_actions": len(inner)}
    if usable(inner):
        out["total"] = sum(v for _, v in usable(inner))
    if own is not None:
        out["has_own"] = float(any(k == own for k, _ in pairs))
        if out["has_own"]:
            mine = [entry for k, entries in pairs if k == own for entry in entries or []]
            out["own_n_actions"] = len(mine)
            if usable(mine):
                out["own_total"] = sum(v for _, v in usable(mine))
    return out


def nested_times(pairs: Pairs | None, own: str | None, start: datetime) -> dict[str, Any]:
    flat = None if pairs is None else [(k, v) for k, entries in pairs for _, v in entries or []]
    out = times(flat, own, start)
    del out["n_keys"]
    return {"n_bundles": None if pairs is None else len(pairs), **out}


def scalars(row: dict[str, Any], start: datetime) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, cycle, value in (("hour", 24, row["hour"]), ("weekday", 7, row["weekday"])):
        number = None if value is None else float(value)
        out[name] = number
        out[f"{name}__sin"] = None if number is None else math.sin(2 * math.pi * number / cycle)
        out[f"{name}__cos"] = None if number is None else math.cos(2 * math.pi * number / cycle)
    out["dev_osv__version"] = version(row["dev_osv"])
    out["release_date__age_months"] = age(row["release_date"], start)
    price = row["release_msrp"]
    known = price is not None and math.isfinite(price)
    out["release_msrp__tier"] = sum(price >= edge for edge in (100, 200, 400, 700, 1000)) if known else None
    for name in ("first_request_ts", "last_ins", "last_buy"):
        ago = since(start, [row[name]])
        out[f"{name}__days_ago"] = ago[0] if ago else None
    return out


def version(text: str | None) -> float | None:
    parts = [*(text or "").split("."), "0", "0"]
    try:
        return int(parts[0]) + min(int(parts[1]), 99) / 100 + min(int(parts[2]), 99) / 10000
    except ValueError:
        return None


def age(text: str | None, start: datetime) -> int | None:
    year, _, month = (text or "").partition("_")
    if not year.isdigit() or month.lower() not in MONTHS:
        return None
    return 12 * (start.year - int(year)) + start.month - 1 - MONTHS.index(month.lower())


def overlaps(row: dict[str, Any]) -> dict[str, Any]:
    new, known = row["new_bundles"], row["user_bundles"]
    name = "new_bundles__in_user_bundles"
    if new is None or known is None:
        return {name: None, f"{name}_share": None}
    distinct = set(new) - {None}
    shared = len(distinct & set(known))
    return {name: shared, f"{name}_share": shared / len(distinct) if distinct else None}


INDICATORS = {
    "category": "advertiser_category advertiser_subcategory",
    "taxonomy": "advertiser_bottom_taxonomy_level",
    "carrier": "carrier",
    "region": "region",
    "device_price": "release_msrp",
    "active_days": "avg_act_days",
    "sessions": "avg_daily_sessions avg_duration",
    "install_rhythm": "avg_days_ins",
    "request_categories": "bcat bcat_bottom_taxonomy",
    "app_categories": "bundles_cat bundles_cat_bottom_taxonomy",
    "activity": "hour_ratio weekend_ratio wifi_ratio",
    "first_seen": "weeks_since_first_seen",
    "ad_installs": "bundles_ins",
    "first_requests": "first_request_ts first_request_ts_bundle first_request_ts_category_bottom_taxonomy new_bundles",
    "installs": "last_ins last_install_ts_bundle last_install_ts_category",
    "apps": "user_bundles",
    "histograms": "country_hist dev_language_hist dev_osv_hist user_bundles_l28d",
    "places": "city_hist region_hist",
    "prices": "cpm cpm_pct_rk",
    "clicks": "ctr ctr_pct_rk",
    "purchases": "iap_revenue_usd_bundle iap_revenue_usd_category iap_revenue_usd_category_bottom_taxonomy"
    " num_buys_bundle num_buys_category num_buys_category_bottom_taxonomy",
    "last_purchase": "last_buy last_buy_ts_bundle last_buy_ts_category",
    "advertiser_revenue": "rev_by_adv",
    "advertiser_actions": "advertiser_actions_action_count advertiser_actions_action_last_timestamp last_advertiser_action",
    "app_actions": "user_actions_bundles_action_count user_actions_bundles_action_last_timestamp",
    "rewarded_ads": "rwd_prank",
    "whales": "whale_users_bundle_num_buys_prank whale_users_bundle_revenue_prank"
    " whale_users_bundle_total_num_buys whale_users_bundle_total_revenue",
}


def indicators(row: dict[str, Any]) -> dict[str, float]:
    assert all(name in BY_NAME for names in INDICATORS.values() for name in names.split())
    # NaN and infinity are missing, like NULL, before anybody asks what is there.
    there = {name for name, value in row.items() if (tidy(value) if isinstance(value, float) else value) is not None}
    return {f"missing__{key}": float(there.isdisjoint(names.split())) for key, names in INDICATORS.items()}


def interactions(f: dict[str, Any]) -> dict[str, Any]:
    def get(name: str) -> float:
        value = f[name]
        return math.nan if value is None or not math.isfinite(value) else float(value)

    def ratio(a: float, b: float) -> float:
        return math.nan if b == 0 or math.isnan(b) else a / b

    weeks = get("weeks_since_first_seen") + 1
    spend, buys = get("iap_revenue_usd_bundle__sum"), get("num_buys_bundle__sum")
    fading = math.exp(-get("last_buy__days_ago") / 30)
    whale = get("whale_users_bundle_revenue_prank__max")
    sessions, duration = get("avg_daily_sessions__mean"), get("avg_duration__mean")
    return {
        "whale_rank_x_session_depth": whale * sessions * duration / 60,
        "whale_rank_x_recency": whale * fading,
        "purchase_frequency": ratio(buys, weeks),
        "purchase_frequency_x_recency": ratio(buys, weeks) * fading,
        "spend_velocity": ratio(spend, weeks),
        "spend_per_purchase": ratio(spend, buys),
        "own_category_spend_per_purchase": ratio(get("iap_revenue_usd_category__own"), get("num_buys_category__own")),
        "spend_to_device_price": ratio(spend, get("release_msrp")),
        "whale_spend_share_of_top_app": ratio(get("whale_users_bundle_total_revenue__max"), spend),
        "install_velocity": ratio(get("new_bundles__length"), weeks),
        "recent_app_share": ratio(get("user_bundles_l28d__length"), get("user_bundles__length")),
        "ad_install_share": ratio(get("bundles_ins__length"), get("user_bundles__length")),
        "engagement": get("avg_daily_sessions__sum") * duration / 60,
        "own_engagement": get("avg_daily_sessions__own") * get("avg_duration__own") / 60,
        "actions_per_app": ratio(get("user_actions_bundles_action_count__total"), get("user_actions_bundles_action_count__n_bundles")),
        "tenure_since_last_install": get("first_request_ts__days_ago") - get("last_ins__days_ago"),
        "category_affinity": get("bcat__own_share") * get("bundles_cat__own_share"),
        "paid_attention": get("cpm__mean") * get("ctr__mean"),
    }
