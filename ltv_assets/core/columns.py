"""The data contract: the 85 columns of an impression.

What belongs here: names, logical types, roles, units and one-line meanings. Checks, the column tables in the Dagster
UI and the data dictionary in ``docs/`` are all derived from these tuples. What does not: SQL, thresholds, anything that
reads a file. Next to read: ``features/registry.py`` (which statistics each logical type yields);
the columns of published relations stand in ``asset_specs.py``.

``config/contract.yaml`` says the same as configuration; rooms move to it (``contract.py``) one by one.

The physical type of a column may differ between files (a MAP may arrive as LIST of STRUCT(key, value) or as JSON text,
an INT where DOUBLE was); the *logical* type below is what every reader turns it into.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["key", "label", "context", "behaviour", "installs", "histograms", "ads", "purchases", "actions", "whales"]

LogicalType = Literal[
    "int32",
    "int64",
    "double",
    "string",
    "list<string>",
    "map<string,double>",
    "map<string,int64>",
    "map<string,map<string,int64>>",
]

KeyDomain = Literal["bundle", "category", "taxonomy", "action", "hour", "city", "country", "region", "language", "os_version", "format"]

Meaning = Literal["identifier", "flag", "count", "amount", "category", "number", "timestamp", "histogram"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the raw impressions.

    ``missing_rate`` is the share of NULL rows observed in one real hour; ``keyed_by`` says what the keys of a map (the
    outer keys of a nested map) or the elements of a list are; ``meaning`` says how its values are to be read.
    """

    name: str
    role: Role
    type: LogicalType
    meaning: Meaning
    description: str
    missing_rate: float = 0.0
    unit: str | None = None
    keyed_by: KeyDomain | None = None

    @property
    def is_nested(self) -> bool:
        """True for maps and lists, the 42 columns that carry more than one value a row."""
        return self.type.startswith(("map", "list"))

    @property
    def is_label(self) -> bool:
        """True for columns known only after the impression; none of them may ever become a feature."""
        return self.role == "label"


SECONDS = "unix seconds"


def _label(name: str, type: LogicalType, meaning: Meaning, description: str, *, unit: str | None = None, missing: float = 0.0) -> Column:
    return Column(name, "label", type, meaning, description, missing, unit)


LABELS: tuple[Column, ...] = (
    _label("buyer_d1", "int32", "flag", "1 if the user bought within 1 day of the impression"),
    _label("buyer_d7", "int32", "flag", "1 if the user bought within 7 days; one in ten has a recorded revenue of 0"),
    _label("buyer_d14", "int32", "flag", "1 if the user bought within 14 days"),
    _label("buyer_d28", "int32", "flag", "1 if the user bought within 28 days"),
    _label("buy_d7", "int64", "count", "number of purchases within 7 days"),
    _label("buy_d14", "int64", "count", "number of purchases within 14 days"),
    _label("buy_d28", "int64", "count", "number of purchases within 28 days"),
    _label("iap_revenue_d7", "double", "amount", "in-app purchase revenue within 7 days: the target", unit="USD"),
    _label("iap_revenue_d14", "double", "amount", "in-app purchase revenue within 14 days", unit="USD"),
    _label("iap_revenue_d28", "double", "amount", "in-app purchase revenue within 28 days", unit="USD"),
    _label("registration", "double", "flag", "whether the user registered after the impression", missing=0.4739),
    _label("retention_d1_to_d7", "double", "flag", "active on any of days 1 to 7 after the impression", missing=0.0785),
    _label("retention_d3_to_d7", "double", "flag", "active on any of days 3 to 7 after the impression", missing=0.0785),
    _label("retention_d7_to_d14", "double", "flag", "active on any of days 7 to 14 after the impression", missing=0.0785),
    _label("retention_d1", "double", "flag", "active on day 1 after the impression", missing=0.0785),
    _label("retention_d3", "double", "flag", "active on day 3 after the impression", missing=0.0785),
    _label("retentiond7", "double", "flag", "active on day 7 after the impression (spelled so at the source)", missing=0.0785),
)

CONTEXT: tuple[Column, ...] = (
    Column("advertiser_bundle", "context", "string", "category", "app that is advertised (hashed store identifier)"),
    Column("advertiser_category", "context", "string", "category", "store category of the advertised app", 0.0923),
    Column("advertiser_subcategory", "context", "string", "category", "store subcategory of the advertised app", 0.0923),
    Column("advertiser_bottom_taxonomy_level", "context", "string", "category", "finest level of the advertised app's taxonomy", 0.3956),
    Column("carrier", "context", "string", "category", "mobile carrier", 0.7549),
    Column("country", "context", "string", "category", "country of the impression, two letters", 0.0003),
    Column("region", "context", "string", "category", "region of the impression", 0.764),
    Column("dev_make", "context", "string", "category", "device maker", 0.0186),
    Column("dev_model", "context", "string", "category", "device model", 0.0015),
    Column("dev_os", "context", "string", "category", "operating system"),
    Column("dev_osv", "context", "string", "category", "operating system version, as text such as 17.4.1", 0.0066),
    Column("hour", "context", "string", "number", "hour of the impression as zero-padded text", unit="hour of day"),
    Column("release_date", "context", "string", "category", "release of the device model, as year_month such as 2025_july", 0.0037),
    Column("release_msrp", "context", "double", "amount", "list price of the device model at release", 0.0983, "USD"),
    Column("weekday", "context", "int32", "number", "day of the week of the impression", unit="day of week"),
)


def _map(
    name: str,
    role: Role,
    value: Literal["double", "int64"],
    keyed_by: KeyDomain,
    meaning: Meaning,
    missing: float,
    description: str,
    unit: str | None = None,
) -> Column:
    kind: LogicalType = "map<string,double>" if value == "double" else "map<string,int64>"
    return Column(name, role, kind, meaning, description, missing, unit, keyed_by)


BEHAVIOUR: tuple[Column, ...] = (
    Column("avg_act_days", "behaviour", "double", "number", "average number of active days", 0.4987, "days"),
    _map("avg_daily_sessions", "behaviour", "double", "bundle", "number", 0.7609, "average sessions a day by app", "sessions a day"),
    Column("avg_days_ins", "behaviour", "double", "number", "average days between installs", 0.9411, "days"),
    _map("avg_duration", "behaviour", "double", "bundle", "number", 0.7609, "average session length by app", "seconds"),
    _map("bcat", "behaviour", "double", "category", "number", 0.5118, "share of bid requests by app category", "share"),
    _map("bcat_bottom_taxonomy", "behaviour", "double", "taxonomy", "number", 0.5118, "share of bid requests by taxonomy level", "share"),
    _map("bundles_cat", "behaviour", "double", "category", "number", 0.5939, "apps of the user by category", "apps"),
    _map("bundles_cat_bottom_taxonomy", "behaviour", "double", "taxonomy", "number", 0.5939, "apps of the user by taxonomy level", "apps"),
    _map("hour_ratio", "behaviour", "double", "hour", "number", 0.4806, "share of the user's activity by hour of day", "share"),
    Column("weekend_ratio", "behaviour", "double", "number", "share of the user's activity on weekends", 0.4806, "share"),
    Column("weeks_since_first_seen", "behaviour", "double", "number", "weeks since the user was first seen", 0.4463, "weeks"),
    Column("wifi_ratio", "behaviour", "double", "number", "share of the user's activity over wifi", 0.4806, "share"),
)

INSTALLS: tuple[Column, ...] = (
    Column("bundles_ins", "installs", "list<string>", "identifier", "apps the user installed through an ad", 0.6541, None, "bundle"),
    Column("first_request_ts", "installs", "int64", "timestamp", "first bid request of the user", 0.5577, SECONDS),
    _map("first_request_ts_bundle", "installs", "int64", "bundle", "timestamp", 0.5577, "first bid request by app", SECONDS),
    _map(
        "first_request_ts_category_bottom_taxonomy",
        "installs",
        "int64",
        "taxonomy",
        "timestamp",
        0.5577,
        "first bid request by taxonomy level",
        SECONDS,
    ),
    Column("last_ins", "installs", "int64", "timestamp", "last install of the user", 0.8316, SECONDS),
    _map("last_install_ts_bundle", "installs", "int64", "bundle", "timestamp", 0.8316, "last install by app", SECONDS),
    _map("last_install_ts_category", "installs", "int64", "category", "timestamp", 0.8316, "last install by category", SECONDS),
    Column("new_bundles", "installs", "list<string>", "identifier", "apps newly seen on the device", 0.5577, None, "bundle"),
    Column("user_bundles", "installs", "list<string>", "identifier", "all apps seen on the device", 0.5395, None, "bundle"),
    Column("user_bundles_l28d", "installs", "list<string>", "identifier", "apps seen in the last 28 days", 0.4787, None, "bundle"),
)

HISTOGRAMS: tuple[Column, ...] = (
    _map("city_hist", "histograms", "int64", "city", "histogram", 0.4926, "requests of the user by city", "requests"),
    _map("country_hist", "histograms", "int64", "country", "histogram", 0.4787, "requests of the user by country", "requests"),
    _map(
        "dev_language_hist", "histograms", "int64", "language", "histogram", 0.4789, "requests of the user by device language", "requests"
    ),
    _map("dev_osv_hist", "histograms", "int64", "os_version", "histogram", 0.4787, "requests of the user by OS version", "requests"),
    _map("region_hist", "histograms", "int64", "region", "histogram", 0.4838, "requests of the user by region", "requests"),
)

ADS: tuple[Column, ...] = (
    _map("cpm", "ads", "double", "bundle", "amount", 0.7221, "price paid for a thousand impressions by app", "USD per 1000"),
    _map("cpm_pct_rk", "ads", "double", "bundle", "number", 0.7221, "percentile rank of that price", "rank 0..1"),
    _map("ctr", "ads", "double", "bundle", "number", 0.9641, "click-through rate by app", "rate"),
    _map("ctr_pct_rk", "ads", "double", "bundle", "number", 0.9641, "percentile rank of that rate", "rank 0..1"),
)

PURCHASES: tuple[Column, ...] = (
    _map("iap_revenue_usd_bundle", "purchases", "double", "bundle", "amount", 0.954, "past spend by app", "USD"),
    _map("iap_revenue_usd_category", "purchases", "double", "category", "amount", 0.954, "past spend by category", "USD"),
    _map(
        "iap_revenue_usd_category_bottom_taxonomy",
        "purchases",
        "double",
        "taxonomy",
        "amount",
        0.954,
        "past spend by taxonomy level",
        "USD",
    ),
    Column("last_buy", "purchases", "int64", "timestamp", "last purchase of the user", 0.9805, SECONDS),
    _map("last_buy_ts_bundle", "purchases", "int64", "bundle", "timestamp", 0.9805, "last purchase by app", SECONDS),
    _map("last_buy_ts_category", "purchases", "int64", "category", "timestamp", 0.9805, "last purchase by category", SECONDS),
    _map("num_buys_bundle", "purchases", "int64", "bundle", "count", 0.954, "past purchases by app", "purchases"),
    _map("num_buys_category", "purchases", "int64", "category", "count", 0.954, "past purchases by category", "purchases"),
    _map(
        "num_buys_category_bottom_taxonomy",
        "purchases",
        "int64",
        "taxonomy",
        "count",
        0.954,
        "past purchases by taxonomy level",
        "purchases",
    ),
    _map("rev_by_adv", "purchases", "double", "bundle", "amount", 0.9827, "past revenue of the user by advertiser", "USD"),
)

ACTIONS: tuple[Column, ...] = (
    _map("advertiser_actions_action_count", "actions", "int64", "action", "count", 0.989, "actions at this advertiser by kind", "actions"),
    _map(
        "advertiser_actions_action_last_timestamp",
        "actions",
        "int64",
        "action",
        "timestamp",
        0.989,
        "last action at this advertiser by kind",
        SECONDS,
    ),
    Column(
        "user_actions_bundles_action_count",
        "actions",
        "map<string,map<string,int64>>",
        "count",
        "actions of the user by app and kind",
        0.6371,
        "actions",
        "bundle",
    ),
    Column(
        "user_actions_bundles_action_last_timestamp",
        "actions",
        "map<string,map<string,int64>>",
        "timestamp",
        "last action of the user by app and kind",
        0.6371,
        SECONDS,
        "bundle",
    ),
    Column("last_advertiser_action", "actions", "string", "category", "kind of the last action at this advertiser", 0.989),
)

WHALES: tuple[Column, ...] = (
    _map("rwd_prank", "whales", "double", "bundle", "number", 0.5325, "percentile rank of rewarded-ad use by app", "rank 0..1"),
    _map(
        "whale_users_bundle_num_buys_prank",
        "whales",
        "double",
        "bundle",
        "number",
        0.9632,
        "percentile rank of purchases by app",
        "rank 0..1",
    ),
    _map(
        "whale_users_bundle_revenue_prank", "whales", "double", "bundle", "number", 0.9632, "percentile rank of spend by app", "rank 0..1"
    ),
    _map("whale_users_bundle_total_num_buys", "whales", "double", "bundle", "count", 0.9632, "total purchases by app", "purchases"),
    _map("whale_users_bundle_total_revenue", "whales", "double", "bundle", "amount", 0.9632, "total spend by app", "USD"),
)

KEYS: tuple[Column, ...] = (
    Column("row_id", "key", "string", "identifier", "unique identifier of the impression; draws and joins only, never a feature"),
    Column("datetime", "key", "string", "timestamp", "hour of the impression, YYYY-MM-DD-HH-00, from the folder's name"),
)

RAW_COLUMNS: tuple[Column, ...] = (
    *LABELS,
    *CONTEXT,
    *BEHAVIOUR,
    *INSTALLS,
    *HISTOGRAMS,
    *ADS,
    *PURCHASES,
    *ACTIONS,
    *WHALES,
    *KEYS,
)

BY_NAME: dict[str, Column] = {c.name: c for c in RAW_COLUMNS}
LABEL_NAMES: tuple[str, ...] = tuple(c.name for c in LABELS)
REVENUE_LABELS: tuple[str, str, str] = ("iap_revenue_d7", "iap_revenue_d14", "iap_revenue_d28")
REQUIRED_TRAIN_COLUMNS: tuple[str, ...] = ("row_id", "iap_revenue_d7", "buyer_d7")
REQUIRED_TEST_COLUMNS: tuple[str, ...] = ("row_id",)

NOT_FEATURES: dict[str, str] = {
    "row_id": "an identifier says nothing about the user; it seeds draws and joins results",
}
"""Non-label columns from which no feature is made, with the reason."""
