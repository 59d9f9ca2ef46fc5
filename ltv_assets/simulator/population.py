"""The simulated world: its catalogue of apps, devices and places, and the users of one hour of impressions.

What belongs here: users, places, devices, advertisers, and which blocks of columns are present. What does not: the nested
columns (``columns.py``) and purchases (``laws.py``).

Everything that lasts longer than an hour is a table of `World`, drawn once from the seed. An hour is drawn from
``(seed, rows_per_hour, hour)`` alone, so a longer simulation repeats the hours of a shorter one byte for byte. Next to
read: ``columns.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from ltv_assets.core.columns import BY_NAME
from ltv_assets.simulator import facts

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

N_APPS = 6007
N_TAXONOMIES = facts.DISTINCT["advertiser_bottom_taxonomy_level"]
N_ACTIONS = facts.DISTINCT["last_advertiser_action"]
N_CITIES_PER_REGION = 3
LANGUAGES = ("en", "es", "pt", "ar", "fr", "hi", "ru", "id", "de", "tr", "ja", "ko", "it", "vi", "th", "pl", "bn", "ur", "nl", "zh")
ACTION_VERBS = ("open", "click", "view", "install", "login", "registration", "level_up", "add_to_cart", "tutorial", "deposit", "purchase")
LAUNCH_WINDOW = (datetime(2025, 9, 20, tzinfo=UTC), 26)
"""First day and length in days of the period in which one advertised app in ten starts its campaign (cold starts)."""

DAY_SECONDS = 86_400
TABLE_SIZE = 1 << 16


def generator(*key: int) -> np.random.Generator:
    """A generator that depends only on the given integers."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(list(key))))


def spread(rng: np.random.Generator, n: int) -> Floats:
    """n uniform numbers, one in each n-th of the unit interval, in random order: each is uniform, their mean hardly varies.

    Used for draws that determine the totals of an hour, so that two simulations of one law differ little in payers and losses.
    """
    return (rng.permutation(n) + rng.random(n)) / max(n, 1)


def spread_normal(rng: np.random.Generator, n: int) -> Floats:
    """Standard normal numbers made of `spread` ones."""
    return np.asarray(ndtri(spread(rng, n)))


def zipf(n: int, exponent: float, offset: float = 2.0) -> Floats:
    """Zipf-Mandelbrot shares of ``n`` values, largest first."""
    weights = (np.arange(n) + offset) ** -exponent
    return weights / weights.sum()


def alias(weights: Floats, size: int = TABLE_SIZE) -> Ints:
    """A table whose uniformly drawn cells follow ``weights`` (rounded to 1/size): a draw costs one lookup."""
    edges = np.cumsum(weights) / np.sum(weights)
    return np.minimum(np.searchsorted(edges, (np.arange(size) + 0.5) / size), len(weights) - 1)


def apportion(total: int, weights: Floats, at_least: int = 1) -> Ints:
    """Split ``total`` units by ``weights`` (largest remainders), with at least ``at_least`` each."""
    share = (total - at_least * len(weights)) * weights / weights.sum()
    units = np.floor(share).astype(np.int64)
    units[np.argsort(units - share, kind="stable")[: total - at_least * len(weights) - units.sum()]] += 1
    return units + at_least


@dataclass(frozen=True)
class Devices:
    """Device models: ``make``, ``ios``, ``released`` (months since 2000) and ``msrp`` (USD) by model."""

    names: NDArray[np.object_]
    makes: NDArray[np.object_]
    make: Ints
    ios: Bools
    released: Ints
    msrp: Floats
    tables: tuple[tuple[Ints, ...], tuple[Ints, ...]]
    """Draw tables by operating system (android, ios) and wealth tier of the country (poor, middle, rich)."""


@dataclass(frozen=True)
class World:
    """The tables that every hour of one seed shares."""

    seed: int
    apps: NDArray[np.object_]
    app_category: Ints
    app_taxonomy: Ints
    app_table: Ints
    categories: NDArray[np.object_]
    subcategories: NDArray[np.object_]
    taxonomies: NDArray[np.object_]
    advertisers: Ints
    advertiser_weight: Floats
    advertiser_subcategory: Ints
    advertiser_launch: Ints
    countries: NDArray[np.object_]
    country_weight: Floats
    country_wealth: Floats
    regions: NDArray[np.object_]
    region_start: Ints
    region_count: Ints
    carriers: NDArray[np.object_]
    carrier_start: Ints
    carrier_count: Ints
    cities: NDArray[np.object_]
    devices: Devices
    os_versions: NDArray[np.object_]
    os_major: Floats
    os_span: tuple[tuple[int, int], tuple[int, int]]
    actions: NDArray[np.object_]
    languages: NDArray[np.object_]
    country_language: Ints


def _strings(values: Sequence[str]) -> NDArray[np.object_]:
    return np.array(list(values), dtype=object)


def _devices(rng: np.random.Generator) -> Devices:
    n_models, n_makes = facts.DISTINCT["dev_model"], facts.DISTINCT["dev_make"]
    n_ios = 48
    per_make = apportion(n_models - n_ios, zipf(n_makes - 1, 1.1))
    make = np.concatenate([np.zeros(n_ios, np.int64), np.repeat(np.arange(1, n_makes), per_make)])
    ios = make == 0
    oldest, newest = (2010 - 2000) * 12 + 5, (2025 - 2000) * 12 + 8
    months = rng.choice(np.arange(oldest, newest + 1), facts.DISTINCT["release_date"], replace=False)
    recent = np.sort(months)[np.minimum((len(months) * rng.beta(3.0, 1.3, n_models)).astype(int), len(months) - 1)]
    tier = rng.normal(0.0, 0.55, n_makes)[make] + rng.normal(0.0, 0.45, n_models)
    msrp = np.where(ios, 750 * np.exp(0.35 * tier), 230 * np.exp(tier)) * np.exp(0.02 * (recent - newest) / 12)
    msrp = np.clip(np.round(msrp / 10) * 10 - 1, 39, 2199)
    popularity = rng.permutation(zipf(n_models, 0.95, 6.0)) * np.exp(0.25 * (recent - newest) / 12)
    wealthy = np.log(msrp / 300)
    tables = tuple(
        tuple(alias(np.where(ios == is_ios, popularity * np.exp(taste * wealthy), 0.0), 1 << 17) for taste in (-0.9, 0.0, 0.8))
        for is_ios in (False, True)
    )
    names = [f"iphone{i // 4 + 6},{i % 4 + 1}" if ios[i] else f"{_maker(make[i])[:2]}-{i:04d}" for i in range(n_models)]
    makes = [_maker(i) for i in range(n_makes)]
    return Devices(_strings(names), _strings(makes), make, ios, recent, msrp, (tables[0], tables[1]))


def _maker(index: int) -> str:
    known = ("apple", "samsung", "xiaomi", "oppo", "vivo", "motorola", "huawei", "realme", "tecno", "infinix", "google", "oneplus")
    return known[index] if index < len(known) else f"maker {index:03d}"


def build_world(seed: int) -> World:
    """Draw the catalogue of one seed.

    Sizes are the distinct counts of ``facts.DISTINCT``; the shares of countries and of the advertisers' categories are
    the published ones.
    """
    rng = generator(seed, 1)
    categories = list(facts.CATEGORIES)
    category_share = np.array([rate.rows for rate in facts.CATEGORIES.values()], dtype=float)
    category_share /= category_share.sum()
    n_advertisers, n_sub = facts.DISTINCT["advertiser_bundle"], facts.DISTINCT["advertiser_subcategory"]

    apps = _strings([hashlib.sha1(f"app {seed} {i}".encode()).hexdigest() for i in range(N_APPS)])
    app_category = rng.choice(len(categories), N_APPS, p=category_share**0.5 / (category_share**0.5).sum())
    advertisers = rng.choice(N_APPS, n_advertisers, replace=False)
    per_category = apportion(n_advertisers, category_share**0.6, at_least=2)
    app_category[advertisers] = np.repeat(np.arange(len(categories)), per_category)
    subs_per_category = apportion(n_sub, category_share**0.4)
    sub_start = np.cumsum(subs_per_category) - subs_per_category
    of = app_category[advertisers]
    advertiser_subcategory = sub_start[of] + (subs_per_category[of] * rng.random(n_advertisers) ** 1.5).astype(np.int64)
    taxonomies_per_category = apportion(N_TAXONOMIES, category_share**0.5)
    taxonomy_start = np.cumsum(taxonomies_per_category) - taxonomies_per_category
    app_taxonomy = taxonomy_start[app_category] + (taxonomies_per_category[app_category] * rng.random(N_APPS) ** 1.3).astype(np.int64)
    within = np.concatenate([zipf(k, 1.05) * share for k, share in zip(per_category, category_share, strict=True)])
    first, length = LAUNCH_WINDOW
    launch = np.where(rng.random(n_advertisers) < 0.1, rng.integers(0, length, n_advertisers), -100_000)
    launch[np.argsort(-within)[:20]] = -100_000
    popularity = zipf(N_APPS, 0.9, 5.0)[rng.permutation(N_APPS)]
    popularity[advertisers] = np.maximum(popularity[advertisers], np.sqrt(within) * 0.004)

    countries = [*facts.COUNTRIES, *facts.OTHER_COUNTRIES]
    named = np.array([rate.rows for rate in facts.COUNTRIES.values()], dtype=float)
    country_weight = np.concatenate(
        [
            facts.NAMED_COUNTRY_SHARE * named / named.sum(),
            (1 - facts.NAMED_COUNTRY_SHARE) * zipf(len(facts.OTHER_COUNTRIES), 1.2, 4.0),
        ]
    )
    rates = np.array([rate.buyer_rate for rate in facts.COUNTRIES.values()])
    odds = np.log(rates / (1 - rates)) - np.log(facts.PAYER_RATE / (1 - facts.PAYER_RATE))
    wealth = np.concatenate([odds, rng.normal(-0.2, 0.6, len(facts.OTHER_COUNTRIES))])
    region_count = apportion(facts.DISTINCT["region"], country_weight**0.6)
    carrier_count = apportion(facts.DISTINCT["carrier"], country_weight**0.5)
    regions = [f"{c}-{k + 1:02d}" for c, size in zip(countries, region_count, strict=True) for k in range(size)]
    carriers = [f"{c} mobile {k + 1}" for c, size in zip(countries, carrier_count, strict=True) for k in range(size)]
    cities = [f"{region} city {k + 1}" for region in regions for k in range(N_CITIES_PER_REGION)]

    n_versions = facts.DISTINCT["dev_osv"]
    android = [f"{major}" for major in range(5, 17)] + [
        f"{major}.{minor}.{patch}" for major in range(5, 10) for minor in range(3) for patch in range(3)
    ]
    android = android[:57]
    ios = [f"{major}.{minor}" + (f".{patch}" if patch else "") for major in range(12, 27) for minor in range(5) for patch in range(2)]
    ios = ios[-(n_versions - len(android)) :]
    os_versions = [*sorted(android, key=lambda v: tuple(map(int, v.split(".")))), *ios]
    actions = [ACTION_VERBS[i] if i < len(ACTION_VERBS) else f"custom_event_{i - len(ACTION_VERBS) + 1:02d}" for i in range(N_ACTIONS)]

    return World(
        seed=seed,
        apps=apps,
        app_category=app_category,
        app_taxonomy=app_taxonomy,
        app_table=alias(popularity, 1 << 18),
        categories=_strings(categories),
        subcategories=_strings([f"{categories[c]} {k + 1}" for c, size in enumerate(subs_per_category) for k in range(size)]),
        taxonomies=_strings([f"{categories[c]} > {k + 1:02d}" for c, size in enumerate(taxonomies_per_category) for k in range(size)]),
        advertisers=advertisers,
        advertiser_weight=within,
        advertiser_subcategory=advertiser_subcategory,
        advertiser_launch=launch + (first.toordinal()),
        countries=_strings(countries),
        country_weight=country_weight,
        country_wealth=wealth,
        regions=_strings(regions),
        region_start=np.cumsum(region_count) - region_count,
        region_count=region_count,
        carriers=_strings(carriers),
        carrier_start=np.cumsum(carrier_count) - carrier_count,
        carrier_count=carrier_count,
        cities=_strings(cities),
        devices=_devices(rng),
        os_versions=_strings(os_versions),
        os_major=np.array([float(v.split(".")[0]) for v in os_versions]),
        os_span=((0, len(android)), (len(android), len(ios))),
        actions=_strings(actions),
        languages=_strings(LANGUAGES),
        country_language=rng.integers(0, len(LANGUAGES), len(countries)),
    )


FAMILIES: dict[str, tuple[str, float]] = {
    "weeks_since_first_seen": ("seen", 1.0),
    "country_hist": ("seen", 1.0),
    "dev_language_hist": ("seen", 1.0),
    "hour_ratio": ("seen", 1.0),
    "region_hist": ("seen", 1.0),
    "city_hist": ("seen", 1.0),
    "avg_act_days": ("seen", 1.0),
    "bcat": ("seen", 1.0),
    "rwd_prank": ("rewards", 0.9),
    "user_bundles": ("seen", 1.0),
    "first_request_ts": ("seen", 1.0),
    "bundles_cat": ("seen", 1.0),
    "user_actions_bundles_action_count": ("events", 0.8),
    "bundles_ins": ("installs", 0.8),
    "cpm": ("ads", 0.8),
    "ctr": ("ads", 0.8),
    "avg_daily_sessions": ("sessions", 0.8),
    "last_ins": ("installs", 0.8),
    "avg_days_ins": ("installs", 0.8),
    "iap_revenue_usd_bundle": ("purchases", 0.6),
    "whale_users_bundle_revenue_prank": ("purchases", 0.6),
    "last_buy": ("purchases", 0.6),
    "rev_by_adv": ("purchases", 0.6),
    "advertiser_actions_action_count": ("actions", 0.5),
}
"""One column of each co-missing group -> (family, correlation with how well the user is known).

Columns of one group (the same missing share) are missing together; groups of one family are nested: who has a last
purchase also has purchases. Families share one latent "how well is this user known".
"""


@dataclass
class People:
    """One hour of impressions before the nested columns: indexes into the tables of `World`, and latent traits."""

    n: int
    hour_start: int
    day: int
    hour: int
    country: Ints
    region: Ints
    carrier: Ints
    advertiser: Ints
    model: Ints
    os_version: Ints
    present: dict[str, Bools]
    """Rows that have the columns of a group, by the group's column in `FAMILIES`."""
    activity: Floats
    spending: Floats
    missing: dict[str, Bools]
    """Missing values of the context columns, by column."""


def draw_people(world: World, rng: np.random.Generator, n: int, moment: datetime) -> People:
    """Draw the users of the ``n`` impressions of the hour that starts at ``moment`` (UTC)."""
    day = moment.toordinal()
    mix = generator(world.seed, 2, day)
    live = np.where(world.advertiser_launch <= day, world.advertiser_weight, 0.0)
    advertiser_weight = live * np.exp(mix.normal(0.0, 0.04, len(live)))
    country_weight = world.country_weight * np.exp(mix.normal(0.0, 0.03, len(world.country_weight)))

    country = alias(country_weight)[(TABLE_SIZE * spread(rng, n)).astype(np.int64)]
    advertiser = alias(advertiser_weight, 1 << 18)[((1 << 18) * spread(rng, n)).astype(np.int64)]
    wealth = world.country_wealth[country]
    ios = rng.random(n) < 1 / (1 + np.exp(1.1 - 0.9 * wealth))
    tier = np.digitize(wealth, (-0.5, 0.5))
    cell = rng.integers(0, 1 << 17, n)
    model = np.empty(n, np.int64)
    for is_ios in (0, 1):
        for level in range(3):
            chosen = (ios == bool(is_ios)) & (tier == level)
            model[chosen] = world.devices.tables[is_ios][level][cell[chosen]]
    start, size = np.array(world.os_span)[ios.astype(int)].T
    age = np.clip((2025 - 2000) * 12 + 8 - world.devices.released[model], 0, 150) / 150
    os_version = start + np.minimum((size * rng.beta(5.0, 1.0 + 3.0 * age)).astype(np.int64), size - 1)
    region = world.region_start[country] + (world.region_count[country] * rng.random(n) ** 2.2).astype(np.int64)
    carrier = world.carrier_start[country] + (world.carrier_count[country] * rng.random(n) ** 3.0).astype(np.int64)

    known = spread_normal(rng, n)
    latent: dict[str, Floats] = {}
    present = {}
    for column, (family, rho) in FAMILIES.items():
        if family not in latent:
            latent[family] = known if rho == 1.0 else rho * known + np.sqrt(1 - rho**2) * spread_normal(rng, n)
        present[column] = latent[family] > NormalDist().inv_cdf(BY_NAME[column].missing_rate)

    missing = {name: rng.random(n) < BY_NAME[name].missing_rate for name in CONTEXT_GAPS}
    taxonomy = BY_NAME["advertiser_bottom_taxonomy_level"].missing_rate
    category = BY_NAME["advertiser_category"].missing_rate
    missing["advertiser_bottom_taxonomy_level"] = missing["advertiser_category"] | (rng.random(n) < (taxonomy - category) / (1 - category))
    return People(
        n=n,
        hour_start=int(moment.timestamp()),
        day=day,
        hour=moment.hour,
        country=country,
        region=region,
        carrier=carrier,
        advertiser=advertiser,
        model=model,
        os_version=os_version,
        present=present,
        activity=0.5 * known + np.sqrt(0.75) * rng.standard_normal(n),
        spending=rng.standard_normal(n),
        missing=missing,
    )


CONTEXT_GAPS = (
    "advertiser_category",
    "carrier",
    "country",
    "region",
    "dev_make",
    "dev_model",
    "dev_osv",
    "release_date",
    "release_msrp",
)
"""Context columns that miss at random; the subcategory goes with the category, the taxonomy level contains them."""
