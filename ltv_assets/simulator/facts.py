"""Published marginals of the real impressions, as far as the simulator imitates them.

What belongs here: observed figures and nothing else. What does not: anything drawn or invented (``population.py``).
Missing shares and types are part of the data contract (``config/contract.yaml``) and not repeated here.

Source: public notebooks on the Smadex predict-the-revenue data (one hour of 121,887 rows for the distinct counts, the
first training day of 3,347,176 rows for the category and country rates). Next to read: ``population.py``.
"""

from __future__ import annotations

from typing import NamedTuple

SOURCE = "public notebooks on the Smadex predict-the-revenue data"


class Rate(NamedTuple):
    """Impressions of one day, the share of them whose user bought within 7 days, and their mean D7 revenue in USD."""

    rows: int
    buyer_rate: float
    mean_revenue: float


CATEGORIES: dict[str, Rate] = {
    "game": Rate(909645, 0.0131, 0.254),
    "sport betting": Rate(708818, 0.0203, 0.184),
    "games": Rate(608456, 0.0347, 0.819),
    "application": Rate(379740, 0.0682, 10.89),
    "finance": Rate(154155, 0.0093, 1.662),
    "social networking": Rate(119523, 0.0129, 0.202),
    "shopping": Rate(39117, 0.1041, 4.031),
    "food & drink": Rate(24570, 0.2011, 1.429),
    "real money casino": Rate(18368, 0.1512, 11.61),
    "lifestyle": Rate(18081, 0.2742, 3.849),
    "travel": Rate(15356, 0.1277, 11.86),
    "health & fitness": Rate(11060, 0.0213, 0.704),
    "photo & video": Rate(5784, 0.0757, 2.964),
    "utilities": Rate(2979, 0.0027, 0.033),
    "productivity": Rate(2469, 0.2244, 5.552),
    "education": Rate(1593, 0.2172, 18.71),
    "entertainment": Rate(1552, 0.0664, 0.47),
    "lottery": Rate(408, 0.2083, 3.651),
    "books": Rate(196, 0.3214, 10.09),
    "sports": Rate(178, 0.1629, 11.58),
    "navigation": Rate(43, 0.4651, 93.0),
}

COUNTRIES: dict[str, Rate] = {
    "us": Rate(538553, 0.0688, 1.937),
    "in": Rate(471297, 0.0081, 0.343),
    "eg": Rate(152754, 0.018, 0.102),
    "br": Rate(145405, 0.036, 0.422),
    "id": Rate(116515, 0.0286, 1.466),
    "mx": Rate(95147, 0.0308, 0.372),
    "bd": Rate(91058, 0.008, 0.227),
    "ru": Rate(86910, 0.0289, 1.737),
    "ph": Rate(80053, 0.0145, 0.136),
    "fr": Rate(75708, 0.0476, 3.246),
    "pk": Rate(75092, 0.0146, 0.18),
    "th": Rate(66055, 0.0178, 1.364),
    "tr": Rate(54529, 0.0332, 0.682),
    "ca": Rate(52526, 0.0271, 0.581),
    "my": Rate(51686, 0.0197, 0.167),
    "vn": Rate(50736, 0.0085, 0.59),
    "ng": Rate(50733, 0.0116, 0.576),
    "uz": Rate(45177, 0.0186, 0.531),
    "ci": Rate(43665, 0.0362, 0.015),
    "ar": Rate(39493, 0.0185, 0.237),
    "co": Rate(38690, 0.0397, 44.5),
    "sg": Rate(38322, 0.0052, 0.196),
    "de": Rate(38172, 0.0888, 3.324),
    "gb": Rate(33431, 0.1082, 3.214),
    "iq": Rate(33402, 0.0171, 0.482),
    "it": Rate(32783, 0.0417, 8.519),
    "ma": Rate(31112, 0.0074, 0.1),
    "es": Rate(29733, 0.04, 24.6),
    "ae": Rate(29481, 0.0259, 0.643),
    "za": Rate(28130, 0.0222, 0.229),
    "jp": Rate(23275, 0.1121, 4.74),
    "cl": Rate(20601, 0.0397, 11.25),
    "kr": Rate(15638, 0.0537, 12.58),
    "pl": Rate(15259, 0.0774, 2.272),
    "au": Rate(9979, 0.0835, 3.047),
    "nl": Rate(9558, 0.0762, 2.765),
    "be": Rate(4909, 0.0819, 3.784),
    "se": Rate(3506, 0.109, 3.585),
    "ch": Rate(2819, 0.1132, 14.96),
}
"""The 39 countries with published rates; about four fifths of all rows."""

NAMED_COUNTRY_SHARE = 0.82

_OTHERS = (
    "ua sa ke dz gh pe ec kz ro pt gr cz hu at tw hk dk no fi ie il nz kw qa om jo lb tn ly sn cm tz ug et "
    "ao mm kh lk np ve gt do cr pa bo py uy sv hn az ge by rs bg hr sk lt lv ee si ad af ag ai al am as aw "
    "ax ba bb bf bh bi bj bm bn bq bs bt bw bz cd cf cg ck cn cu cv cw cy dj dm er fj fk fm fo ga gd gf gg "
    "gi gl gm gn gp gq gu gw gy ht im io ir is je jm kg ki km kn kp ky la lc li lr ls lu mc md me mf mg mh "
    "mk ml mn mo mp mq mr ms mt mu mv mw mz na nc ne ni nr nu pf pg pm pr ps pw re rw sb sc sd "
)
OTHER_COUNTRIES: tuple[str, ...] = tuple(_OTHERS.split())
"""Countries without published rates, the larger first."""

DISTINCT: dict[str, int] = {
    "advertiser_bundle": 423,
    "advertiser_category": 21,
    "advertiser_subcategory": 56,
    "advertiser_bottom_taxonomy_level": 82,
    "carrier": 3920,
    "country": 205,
    "region": 1128,
    "dev_make": 234,
    "dev_model": 5058,
    "dev_os": 2,
    "dev_osv": 162,
    "release_date": 173,
    "last_advertiser_action": 58,
}
"""Distinct values in one real hour."""

PAYER_RATE = 0.029
ZERO_REVENUE_BUYERS = 0.115
"""Share of the flagged D7 buyers whose recorded D7 revenue is 0."""
PAYER_MEAN_LOG = 2.33
"""Mean of log1p(revenue) over payers."""

COLUMN_ORDER: tuple[str, ...] = (
    "buyer_d1",
    "buyer_d7",
    "buyer_d14",
    "buyer_d28",
    "buy_d7",
    "buy_d14",
    "buy_d28",
    "iap_revenue_d7",
    "iap_revenue_d14",
    "iap_revenue_d28",
    "registration",
    "retention_d1_to_d7",
    "retention_d3_to_d7",
    "retention_d7_to_d14",
    "retention_d1",
    "retention_d3",
    "retentiond7",
    "advertiser_bundle",
    "advertiser_category",
    "advertiser_subcategory",
    "advertiser_bottom_taxonomy_level",
    "carrier",
    "country",
    "region",
    "dev_make",
    "dev_model",
    "dev_os",
    "dev_osv",
    "hour",
    "release_date",
    "release_msrp",
    "weekday",
    "avg_act_days",
    "avg_daily_sessions",
    "avg_days_ins",
    "avg_duration",
    "bcat",
    "bcat_bottom_taxonomy",
    "bundles_cat",
    "bundles_cat_bottom_taxonomy",
    "bundles_ins",
    "city_hist",
    "country_hist",
    "cpm",
    "cpm_pct_rk",
    "ctr",
    "ctr_pct_rk",
    "dev_language_hist",
    "dev_osv_hist",
    "first_request_ts",
    "first_request_ts_bundle",
    "first_request_ts_category_bottom_taxonomy",
    "hour_ratio",
    "iap_revenue_usd_bundle",
    "iap_revenue_usd_category",
    "iap_revenue_usd_category_bottom_taxonomy",
    "last_buy",
    "last_buy_ts_bundle",
    "last_buy_ts_category",
    "last_ins",
    "last_install_ts_bundle",
    "last_install_ts_category",
    "advertiser_actions_action_count",
    "advertiser_actions_action_last_timestamp",
    "user_actions_bundles_action_count",
    "user_actions_bundles_action_last_timestamp",
    "last_advertiser_action",
    "new_bundles",
    "num_buys_bundle",
    "num_buys_category",
    "num_buys_category_bottom_taxonomy",
    "region_hist",
    "rev_by_adv",
    "rwd_prank",
    "user_bundles",
    "user_bundles_l28d",
    "weekend_ratio",
    "weeks_since_first_seen",
    "wifi_ratio",
    "whale_users_bundle_num_buys_prank",
    "whale_users_bundle_revenue_prank",
    "whale_users_bundle_total_num_buys",
    "whale_users_bundle_total_revenue",
    "row_id",
)
"""Columns of a file in their published order; ``datetime`` is the folder's name."""
