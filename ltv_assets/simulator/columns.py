"""The columns of one hour of impressions, as flat arrays and as Arrow columns.

What belongs here: maps, lists and scalars, their statistics by row, and their Arrow form. What does not: the users
(``population.py``) and their purchases (``laws.py``).

A nested column is a `Nested`: the entries of all rows in sequence, with the row of each. No code here loops over rows.
Most columns derive from one *app history* (the apps in which a user was seen, since when, how often), so that they are
consistent as real ones are: ``user_bundles_l28d`` is part of ``user_bundles``, categories are counts of
its apps, ``last_ins`` is the newest entry of its map. Next to read: ``laws.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ltv_assets.core.columns import BY_NAME
from ltv_assets.simulator.population import DAY_SECONDS, FAMILIES, N_TAXONOMIES, Bools, Floats, Ints, People, World

MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december")


@dataclass
class Nested:
    """A map or list column: entry i belongs to row ``rows[i]`` (ascending) and has key ``keys[i]`` of ``domain``.

    ``values`` is None for lists. Rows that are not ``present`` are NULL and have no entries; a present row without
    entries is an empty map.
    """

    domain: str
    present: Bools
    rows: Ints
    keys: Ints
    values: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        self.n = len(self.present)

    @property
    def numbers(self) -> NDArray[Any]:
        """The values of a map."""
        if self.values is None:
            raise TypeError(f"a list of {self.domain} keys has no values")
        return self.values

    def where(self, chosen: Bools | None = None, values: NDArray[Any] | None = None, present: Bools | None = None) -> Nested:
        """The chosen entries (default: all) of the present rows, with other values if given (one for each entry here)."""
        values = self.values if values is None else values
        present = self.present if present is None else present
        chosen = present[self.rows] if chosen is None else chosen & present[self.rows]
        return Nested(self.domain, present, self.rows[chosen], self.keys[chosen], None if values is None else values[chosen])

    def counts(self) -> Ints:
        return np.bincount(self.rows, minlength=self.n)

    def _null(self, values: Floats) -> Floats:
        return np.where(self.present, values, np.nan)

    def length(self) -> Floats:
        """Entries by row; NaN where the column is NULL, as in every statistic below."""
        return self._null(self.counts().astype(float))

    def sum(self) -> Floats:
        return self._null(np.bincount(self.rows, weights=self.numbers, minlength=self.n).astype(float))

    def mean(self) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.sum() / self.counts()

    def max(self) -> Floats:
        out = np.full(self.n, np.nan)
        if len(self.rows):
            starts = np.flatnonzero(np.diff(self.rows, prepend=-1))
            out[self.rows[starts]] = np.maximum.reduceat(self.numbers, starts)
        return out

    def entropy(self) -> Floats:
        """Shannon entropy in nats of the values' shares."""
        total = np.bincount(self.rows, weights=self.numbers, minlength=self.n)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = self.numbers / total[self.rows]
            return self._null(-np.bincount(self.rows, weights=share * np.log(share), minlength=self.n).astype(float))

    def own(self, own_key: Ints) -> Floats:
        """The value at the impression's own key; NaN where the key is absent."""
        hit = self.keys == own_key[self.rows]
        out = np.full(self.n, np.nan)
        out[self.rows[hit]] = self.numbers[hit]
        return out

    def has_own(self, own_key: Ints) -> Floats:
        """1 if the impression's own key is among the entries, else 0."""
        return self._null(np.bincount(self.rows[self.keys == own_key[self.rows]], minlength=self.n).astype(float))


@dataclass
class NestedActions:
    """A map of maps: entry i of ``outer`` holds ``inner`` entries whose ``rows`` are i."""

    outer: Nested
    inner: Nested


@dataclass
class Impressions:
    """One hour: ``nested`` columns, ``scalars`` (floats, NaN is NULL) and ``codes`` (categoricals, -1 is NULL)."""

    people: People
    nested: dict[str, Nested] = field(default_factory=dict)
    actions: dict[str, NestedActions] = field(default_factory=dict)
    scalars: dict[str, Floats] = field(default_factory=dict)
    codes: dict[str, Ints] = field(default_factory=dict)
    own: dict[str, Ints] = field(default_factory=dict)
    """The impression's own key by domain (-1 where the context column is NULL)."""


_GROUP_OF_RATE = {BY_NAME[name].missing_rate: name for name in FAMILIES}


def group_of(column: str) -> str:
    """The column of ``FAMILIES`` that ``column`` is missing together with: the one with the same missing share."""
    return _GROUP_OF_RATE[BY_NAME[column].missing_rate]


def _distinct(rows: Ints, keys: Ints, n_keys: int) -> tuple[Ints, Ints]:
    """The distinct (row, key) pairs in row order."""
    code = np.sort(rows * n_keys + keys)
    code = code[np.diff(code, prepend=-1) > 0]
    return code // n_keys, code % n_keys


def _grouped(rows: Ints, keys: Ints, n_keys: int) -> tuple[Ints, Ints, Ints]:
    """Rows, keys and number of entries of the distinct (row, key) pairs."""
    code = np.sort(rows * n_keys + keys)
    first = np.flatnonzero(np.diff(code, prepend=-1))
    return code[first] // n_keys, code[first] % n_keys, np.diff(first, append=len(code))


def _newest(rows: Ints, keys: Ints, ages: Ints, n_keys: int, *, oldest: bool = False) -> tuple[Ints, Ints, Ints]:
    """The smallest (or largest) age in seconds of each distinct (row, key) pair."""
    code = np.sort(((rows * n_keys + keys) << 32) | ages)
    pair = code >> 32
    edge = np.diff(pair, append=-1) != 0 if oldest else np.diff(pair, prepend=-1) != 0
    return pair[edge] // n_keys, pair[edge] % n_keys, code[edge] & 0xFFFFFFFF


def _lengths(rng: np.random.Generator, log_mean: Floats, spread: float, cap: int) -> Ints:
    """Heavy-tailed list lengths (log-normal), at least 1."""
    return np.clip(np.exp(log_mean + spread * rng.standard_normal(len(log_mean))), 1, cap).astype(np.int64)


def _keep(rng: np.random.Generator, entries: Nested, share: float, own: Ints, own_share: float) -> Bools:
    """A random part of the entries: ``own_share`` of the own ones, ``share`` of the others, at least one by row."""
    is_own = entries.keys == own[entries.rows]
    chosen = rng.random(len(entries.rows)) < np.where(is_own, own_share, share)
    counts = entries.counts()
    starts = np.cumsum(counts) - counts
    some = counts > 0
    chosen[
        (starts + (counts * rng.random(len(counts))).astype(np.int64))[some & (np.bincount(entries.rows[chosen], minlength=entries.n) == 0)]
    ] = True
    return chosen


def draw_impressions(world: World, people: People, rng: np.random.Generator) -> Impressions:
    """Draw every column of one hour except labels and row ids."""
    hour = context(world, people)
    apps = _app_history(world, hour, rng)
    _behaviour(world, hour, rng, apps)
    _installs(world, hour, rng, apps)
    _histograms(world, hour, rng)
    _ads(hour, rng, apps)
    _purchases(world, hour, rng, apps)
    _actions(world, hour, rng, apps)
    return hour


def context(world: World, people: People) -> Impressions:
    """The columns of the impression itself: advertiser, place and device."""
    hour, missing = Impressions(people), people.missing
    app = world.advertisers[people.advertiser]

    def gaps(codes: Ints, column: str) -> Ints:
        return np.where(missing[column], -1, codes)

    hour.codes = {
        "advertiser_bundle": app,
        "advertiser_category": gaps(world.app_category[app], "advertiser_category"),
        "advertiser_subcategory": gaps(world.advertiser_subcategory[people.advertiser], "advertiser_category"),
        "advertiser_bottom_taxonomy_level": gaps(world.app_taxonomy[app], "advertiser_bottom_taxonomy_level"),
        "carrier": gaps(people.carrier, "carrier"),
        "country": gaps(people.country, "country"),
        "region": gaps(people.region, "region"),
        "dev_make": gaps(world.devices.make[people.model], "dev_make"),
        "dev_model": gaps(people.model, "dev_model"),
        "dev_os": world.devices.ios[people.model].astype(np.int64),
        "dev_osv": gaps(people.os_version, "dev_osv"),
        "release_date": gaps(world.devices.released[people.model], "release_date"),
    }
    hour.scalars["release_msrp"] = np.where(missing["release_msrp"], np.nan, world.devices.msrp[people.model])
    hour.own = {
        "bundle": app,
        "category": hour.codes["advertiser_category"],
        "taxonomy": hour.codes["advertiser_bottom_taxonomy_level"],
    }
    return hour


@dataclass
class AppHistory:
    """Apps in which users were seen: since when, how recently (seconds before the hour) and how often."""

    apps: Nested
    age: Ints
    recency: Ints
    requests: Floats


def _app_history(world: World, hour: Impressions, rng: np.random.Generator) -> AppHistory:
    people, n = hour.people, hour.people.n
    anyone = np.logical_or.reduce(list(people.present.values()))
    seen = people.present["weeks_since_first_seen"]
    lengths = np.where(anyone, _lengths(rng, np.where(seen, 1.75, 0.5) + 0.4 * people.activity, 0.9, 600), 0)
    rows = np.repeat(np.arange(n), lengths)
    keys = world.app_table[rng.integers(0, len(world.app_table), len(rows))]
    with_own = anyone & (rng.random(n) < 1 / (1 + np.exp(1.1 - 0.9 * people.activity)))
    rows, keys = _distinct(
        np.concatenate([rows, np.flatnonzero(with_own)]), np.concatenate([keys, hour.own["bundle"][with_own]]), len(world.apps)
    )
    apps = Nested("bundle", anyone, rows, keys)
    weeks = np.clip(np.exp(2.6 + 0.9 * rng.standard_normal(n)), 0.2, 200)
    age_share = rng.random(len(rows)) ** 0.7
    age = np.maximum((age_share * weeks[rows] * 7 * DAY_SECONDS).astype(np.int64), 60)
    recency = np.maximum((age * rng.random(len(rows)) ** (2.5 + 1.5 * np.clip(people.activity, -1.5, 2)[rows])).astype(np.int64), 1)
    requests = np.exp(rng.standard_normal(len(rows)))
    hour.scalars["weeks_since_first_seen"] = np.where(seen, np.ceil(weeks), np.nan)
    return AppHistory(apps, age, recency, requests)


def _behaviour(world: World, hour: Impressions, rng: np.random.Generator, history: AppHistory) -> None:
    people, n, apps = hour.people, hour.people.n, history.apps
    present = people.present
    noise = rng.standard_normal((5, n))
    hour.scalars["avg_act_days"] = np.where(present["avg_act_days"], np.exp(1.0 + 0.5 * people.activity + 0.5 * noise[0]), np.nan)
    hour.scalars["avg_days_ins"] = np.where(present["avg_days_ins"], np.exp(2.0 - 0.4 * people.activity + 0.8 * noise[1]), np.nan)
    for column, slope, row in (("weekend_ratio", 0.0, 2), ("wifi_ratio", 0.3, 3)):
        ratio = 1 / (1 + np.exp(0.9 - 1.2 * noise[row] - slope * people.spending))
        hour.scalars[column] = np.where(present["hour_ratio"], np.where(noise[4] > 1.0, np.round(ratio), ratio), np.nan)

    active = present["avg_daily_sessions"]
    chosen = _keep(rng, apps, 0.25, hour.own["bundle"], 0.6)
    used = apps.where(chosen, present=active)
    level = people.activity[used.rows]
    noise = rng.standard_normal((2, len(used.rows)))
    used.values = np.exp(0.6 + 0.5 * level + 0.6 * noise[0])
    hour.nested["avg_daily_sessions"] = used
    hour.nested["avg_duration"] = Nested("bundle", active, used.rows, used.keys, np.exp(4.5 + 0.3 * level + 0.9 * noise[1]))

    for column, keys, n_keys in (
        ("bcat", world.app_category, len(world.categories)),
        ("bcat_bottom_taxonomy", world.app_taxonomy, N_TAXONOMIES),
    ):
        domain = "category" if column == "bcat" else "taxonomy"
        rows, groups, count = _grouped(apps.rows, keys[apps.keys], n_keys)
        both = Nested(domain, apps.present, rows, groups, count.astype(float))
        hour.nested[column.replace("bcat", "bundles_cat")] = both.where(present=present["bundles_cat"])
        shares = both.where(values=count * np.exp(0.7 * rng.standard_normal(len(rows))), present=present["bcat"])
        shares.values = shares.numbers / shares.sum()[shares.rows]
        hour.nested[column] = shares

    hours = _lengths(rng, 1.3 + 0.5 * people.activity, 0.8, 24)
    rows = np.repeat(np.arange(n), np.where(present["hour_ratio"], hours, 0))
    centre = rng.integers(0, 24, n)
    rows, keys = _distinct(rows, (centre[rows] + np.rint(3.5 * rng.standard_normal(len(rows))).astype(np.int64)) % 24, 24)
    weights = np.exp(0.8 * rng.standard_normal(len(rows)))
    hour.nested["hour_ratio"] = Nested(
        "hour", present["hour_ratio"], rows, keys, weights / np.bincount(rows, weights=weights, minlength=n)[rows]
    )


def _installs(world: World, hour: Impressions, rng: np.random.Generator, history: AppHistory) -> None:
    people, apps = hour.people, history.apps
    present, now = people.present, people.hour_start
    hour.nested["user_bundles"] = apps.where(present=present["user_bundles"])
    hour.nested["user_bundles_l28d"] = apps.where(history.recency < 28 * DAY_SECONDS, present=present["country_hist"])
    hour.nested["new_bundles"] = apps.where(history.age < 10 * DAY_SECONDS, present=present["first_request_ts"])

    first = apps.where(values=history.age, present=present["first_request_ts"])
    rows, keys, ages = _newest(first.rows, world.app_taxonomy[first.keys], first.numbers, N_TAXONOMIES, oldest=True)
    hour.nested["first_request_ts_bundle"] = Nested("bundle", first.present, first.rows, first.keys, now - first.numbers)
    hour.nested["first_request_ts_category_bottom_taxonomy"] = Nested("taxonomy", first.present, rows, keys, now - ages)
    hour.scalars["first_request_ts"] = now - first.max()

    hour.nested["bundles_ins"] = apps.where(_keep(rng, apps, 0.3, hour.own["bundle"], 0.3), present=present["bundles_ins"])
    lag = np.maximum((history.age * rng.random(len(apps.rows)) ** 0.5).astype(np.int64), 30)
    installed = apps.where(_keep(rng, apps, 0.2, hour.own["bundle"], 0.5), lag, present["last_ins"])
    _timestamps(world, hour, installed, "last_install_ts_bundle", "last_install_ts_category", "last_ins")


def _timestamps(world: World, hour: Impressions, ages: Nested, by_app: str, by_category: str, newest: str) -> None:
    """Write a map of ages (seconds) as unix seconds by app, by category, and as its newest value."""
    now = hour.people.hour_start
    rows, keys, least = _newest(ages.rows, world.app_category[ages.keys], ages.numbers, len(world.categories))
    hour.nested[by_app] = Nested("bundle", ages.present, ages.rows, ages.keys, now - ages.numbers)
    hour.nested[by_category] = Nested("category", ages.present, rows, keys, now - least)
    hour.scalars[newest] = hour.nested[by_app].max()


def _histograms(world: World, hour: Impressions, rng: np.random.Generator) -> None:
    people, n = hour.people, hour.people.n
    present = people.present
    requests = np.exp(2.5 + 0.7 * people.activity)
    home_version = people.os_version
    n_regions = world.region_count[people.country]
    n_countries, n_languages = len(world.countries), len(world.languages)

    def other_region(rows: Ints) -> Ints:
        return world.region_start[people.country[rows]] + (n_regions[rows] * rng.random(len(rows)) ** 2).astype(np.int64)

    def city(rows: Ints) -> Ints:
        region = np.where(rng.random(len(rows)) < 0.7, people.region[rows], other_region(rows))
        return region * (len(world.cities) // len(world.regions)) + rng.integers(0, len(world.cities) // len(world.regions), len(rows))

    kinds = {
        "country_hist": ("country", n_countries, people.country, 0.25, lambda rows: rng.integers(0, n_countries, len(rows))),
        "region_hist": ("region", len(world.regions), people.region, 0.8, other_region),
        "city_hist": ("city", len(world.cities), None, 1.6, city),
        "dev_language_hist": (
            "language",
            n_languages,
            world.country_language[people.country],
            0.25,
            lambda rows: np.where(rng.random(len(rows)) < 0.6, 0, rng.integers(0, n_languages, len(rows))),
        ),
        "dev_osv_hist": (
            "os_version",
            len(world.os_versions),
            home_version,
            0.3,
            lambda rows: np.maximum(home_version[rows] - rng.integers(1, 4, len(rows)), 0),
        ),
    }
    for column, (domain, n_keys, home, extra, draw) in kinds.items():
        here = present[group_of(column)]
        more = np.where(here, rng.poisson(extra * np.exp(0.5 * people.activity)), 0)
        rows = np.repeat(np.arange(n), more)
        others = draw(rows)
        at_home = np.flatnonzero(here)
        home_keys = city(at_home) if home is None else home[at_home]
        rows, keys = _distinct(np.concatenate([at_home, rows]), np.concatenate([home_keys, others]), n_keys)
        is_home = keys == home[rows] if home is not None else np.zeros(len(rows), np.bool_)
        counts = 1 + (requests[rows] * np.where(is_home, 1.0, 0.25) * rng.exponential(1.0, len(rows))).astype(np.int64)
        hour.nested[column] = Nested(domain, here, rows, keys, counts)


def _ads(hour: Impressions, rng: np.random.Generator, history: AppHistory) -> None:
    people, apps = hour.people, history.apps
    for column, median, share in (("cpm", 1.2, 0.3), ("ctr", 0.02, 0.2)):
        chosen = apps.where(_keep(rng, apps, share, hour.own["bundle"], 0.5), present=people.present[column])
        level = 0.8 * rng.standard_normal(len(chosen.rows)) + 0.25 * people.spending[chosen.rows]
        chosen.values = median * np.exp(level)
        hour.nested[column] = chosen
        hour.nested[f"{column}_pct_rk"] = Nested("bundle", chosen.present, chosen.rows, chosen.keys, 1 / (1 + np.exp(-2.0 * level)))
    chosen = apps.where(_keep(rng, apps, 0.35, hour.own["bundle"], 0.5), present=people.present["rwd_prank"])
    level = rng.standard_normal(len(chosen.rows)) - 0.5 * people.spending[chosen.rows]
    chosen.values = 1 / (1 + np.exp(-1.5 * level))
    hour.nested["rwd_prank"] = chosen


def _purchases(world: World, hour: Impressions, rng: np.random.Generator, history: AppHistory) -> None:
    people, apps = hour.people, history.apps
    present = people.present
    n_categories = len(world.categories)
    bought = apps.where(_keep(rng, apps, 0.15, hour.own["bundle"], 0.6), history.recency, present["iap_revenue_usd_bundle"])
    rows, keys, recency = bought.rows, bought.keys, bought.values
    spending = people.spending[rows]
    buys = 1 + rng.poisson(np.exp(0.3 + 0.6 * spending + 0.5 * rng.standard_normal(len(rows))))
    spend = np.round(buys * np.exp(1.4 + 0.5 * spending + 0.8 * rng.standard_normal(len(rows))), 2) + 0.01
    hour.nested["iap_revenue_usd_bundle"] = Nested("bundle", bought.present, rows, keys, spend)
    hour.nested["num_buys_bundle"] = Nested("bundle", bought.present, rows, keys, buys)
    for domain, of, n_keys, suffix in (
        ("category", world.app_category, n_categories, "category"),
        ("taxonomy", world.app_taxonomy, N_TAXONOMIES, "category_bottom_taxonomy"),
    ):
        code, place = np.unique(rows * n_keys + of[keys], return_inverse=True)
        for column, values in (("iap_revenue_usd", spend), ("num_buys", buys)):
            total = np.bincount(place, weights=values, minlength=len(code))
            hour.nested[f"{column}_{suffix}"] = Nested(
                domain, bought.present, code // n_keys, code % n_keys, total if column == "iap_revenue_usd" else total.astype(np.int64)
            )
    ages = Nested("bundle", bought.present, rows, keys, recency).where(present=present["last_buy"])
    _timestamps(world, hour, ages, "last_buy_ts_bundle", "last_buy_ts_category", "last_buy")
    by_advertiser = hour.nested["iap_revenue_usd_bundle"].where(
        values=np.round(spend * rng.uniform(0.5, 1.0, len(rows)), 2), present=present["rev_by_adv"]
    )
    hour.nested["rev_by_adv"] = by_advertiser

    total_buys, total_spend = buys + rng.poisson(0.3, len(rows)), spend * rng.uniform(1.0, 1.3, len(rows))
    whales = {
        "whale_users_bundle_num_buys_prank": 1 / (1 + np.exp(-(1.5 * np.log(total_buys) - 1.2 + 0.5 * rng.standard_normal(len(rows))))),
        "whale_users_bundle_revenue_prank": 1 / (1 + np.exp(-(1.2 * np.log(total_spend) - 2.8 + 0.5 * rng.standard_normal(len(rows))))),
        "whale_users_bundle_total_num_buys": total_buys.astype(float),
        "whale_users_bundle_total_revenue": total_spend,
    }
    for column, values in whales.items():
        every_buyer = Nested("bundle", bought.present, rows, keys, values)
        hour.nested[column] = every_buyer.where(present=present["whale_users_bundle_revenue_prank"])


def _actions(world: World, hour: Impressions, rng: np.random.Generator, history: AppHistory) -> None:
    people, apps, n = hour.people, history.apps, hour.people.n
    present, now, n_kinds = people.present, people.hour_start, len(world.actions)
    kinds = np.minimum((n_kinds * rng.random(1 << 16) ** 3.5).astype(np.int64), n_kinds - 1)

    def events(holders: Ints, activity: Floats, longest: Floats) -> tuple[Ints, Ints, Ints, Ints]:
        """Distinct kinds of action by holder, how often, and how many seconds ago at last."""
        rows = np.repeat(holders, 1 + rng.poisson(0.6 * np.exp(0.4 * activity)))
        rows, keys = _distinct(rows, kinds[rng.integers(0, len(kinds), len(rows))], n_kinds)
        counts = 1 + np.exp(0.8 + 1.0 * rng.standard_normal(len(rows))).astype(np.int64)
        return rows, keys, counts, np.maximum((longest[rows] * rng.random(len(rows)) ** 2).astype(np.int64), 5)

    outer = apps.where(_keep(rng, apps, 0.25, hour.own["bundle"], 0.5), history.age, present["user_actions_bundles_action_count"])
    level, longest = people.activity[outer.rows], outer.numbers
    rows, keys, counts, ages = events(np.arange(len(outer.rows)), level, longest)
    holders = np.ones(len(outer.rows), np.bool_)
    shell = Nested("bundle", outer.present, outer.rows, outer.keys)
    hour.actions = {
        "user_actions_bundles_action_count": NestedActions(shell, Nested("action", holders, rows, keys, counts)),
        "user_actions_bundles_action_last_timestamp": NestedActions(shell, Nested("action", holders, rows, keys, now - ages)),
    }

    here = present["advertiser_actions_action_count"]
    rows, keys, counts, ages = events(np.flatnonzero(here), people.activity[here], np.full(n, 30.0 * DAY_SECONDS))
    hour.nested["advertiser_actions_action_count"] = Nested("action", here, rows, keys, counts)
    hour.nested["advertiser_actions_action_last_timestamp"] = Nested("action", here, rows, keys, now - ages)
    last = np.full(n, -1)
    order = np.lexsort((-ages, rows))
    last[rows[order]] = keys[order]
    hour.codes["last_advertiser_action"] = last


class ArrowBuilder:
    """Turns `Impressions` into Arrow columns of the contract's physical types (strings dictionary-encoded in memory)."""

    def __init__(self, world: World) -> None:
        months = [f"{2000 + month // 12}_{MONTHS[month % 12]}" for month in range(12 * 30)]
        self.keys: dict[str, NDArray[np.object_]] = {
            "bundle": world.apps,
            "category": world.categories,
            "taxonomy": world.taxonomies,
            "hour": np.array([f"{h:02d}" for h in range(24)], dtype=object),
            "city": world.cities,
            "country": world.countries,
            "region": world.regions,
            "language": world.languages,
            "os_version": world.os_versions,
            "action": world.actions,
        }
        self.values: dict[str, NDArray[np.object_]] = {
            "advertiser_bundle": world.apps,
            "advertiser_category": world.categories,
            "advertiser_subcategory": world.subcategories,
            "advertiser_bottom_taxonomy_level": world.taxonomies,
            "carrier": world.carriers,
            "country": world.countries,
            "region": world.regions,
            "dev_make": world.devices.makes,
            "dev_model": world.devices.names,
            "dev_os": np.array(["android", "ios"], dtype=object),
            "dev_osv": world.os_versions,
            "release_date": np.array(months, dtype=object),
            "last_advertiser_action": world.actions,
        }

    def columns(self, hour: Impressions) -> dict[str, pa.Array]:
        """Every column but labels and ``row_id``."""
        people = hour.people
        out: dict[str, pa.Array] = {}
        for name, codes in hour.codes.items():
            out[name] = _dictionary(codes, self.values[name])
        for name, values in hour.scalars.items():
            arrow = pa.array(values, from_pandas=True)
            out[name] = arrow.cast(pa.int64()) if BY_NAME[name].type == "int64" else arrow
        for name, column in hour.nested.items():
            out[name] = self._nested(column, np.float64 if BY_NAME[name].type.endswith("double>") else np.int64)
        for name, actions in hour.actions.items():
            inner = self._nested(actions.inner, np.int64)
            out[name] = pa.MapArray.from_arrays(
                _offsets(actions.outer), _dictionary(actions.outer.keys, self.keys["bundle"]), inner, mask=pa.array(~actions.outer.present)
            )
        out["hour"] = pa.DictionaryArray.from_arrays(np.zeros(people.n, np.int32), pa.array([f"{people.hour:02d}"]))
        out["weekday"] = pa.array(np.full(people.n, (people.day - 1) % 7, np.int32))
        return out

    def _nested(self, column: Nested, number: type[np.float64 | np.int64]) -> pa.Array:
        """A list or a map of ``number``; cast because an hour without entries has no type."""
        keys = _dictionary(column.keys, self.keys[column.domain])
        mask = pa.array(~column.present)
        if column.values is None:
            return pa.ListArray.from_arrays(_offsets(column), keys, mask=mask)
        return pa.MapArray.from_arrays(_offsets(column), keys, pa.array(column.values.astype(number, copy=False)), mask=mask)


def _offsets(column: Nested) -> pa.Array:
    offsets = np.zeros(column.n + 1, np.int32)
    np.cumsum(column.counts(), out=offsets[1:])
    return pa.array(offsets)


def _dictionary(codes: Ints, values: NDArray[np.object_]) -> pa.DictionaryArray:
    """Codes (-1 is NULL) as a dictionary array that holds only the values in use, so small files stay small."""
    used = np.zeros(len(values), np.bool_)
    used[codes[codes >= 0]] = True
    place = (np.cumsum(used) - 1).astype(np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(place[codes], mask=codes < 0), pa.array(values[used], pa.string()))
