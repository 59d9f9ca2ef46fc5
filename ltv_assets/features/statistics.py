"""Catalogue of statistics: for each kind of column, the available statistics and their SQL.

What belongs here: one entry per statistic with its SQL over the intermediate values that ``sql.py`` prepares, its unit
and its one-line meaning. What does not: the choice of statistics by column (``config/features.yaml``), physical types
(``canonical.py``). Next to read: ``sql.py``.

Conventions, the same for every column:

* a NULL column gives NULL statistics; an empty map or list gives ``n_keys`` / ``length`` 0 and NULL for the rest;
* ``n_keys`` counts entries, so repeated keys and keys with a NULL value count too;
* NULL, NaN and infinite values are ignored by every other statistic (and non-finite ones are counted by the flattener);
* ``own`` looks up the impression's own key, which another column holds (``own_keys`` of the contract), sums the finite values
  of its entries and is NULL when the key is absent;
* shares and entropy use the positive values, so a share lies in 0..1; they are NULL when nothing is positive;
* ``std`` divides by n (ddof 0); entropy is in nats; days are counted back from the start of the impression's hour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ltv_assets.core.contract import Column

Kind = Literal["number_map", "timestamp_map", "histogram", "nested_counts", "nested_timestamps", "list", "timestamp", "number", "text"]

MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december")


@dataclass(frozen=True, slots=True)
class Statistic:
    """One statistic of one kind of column.

    ``sql`` is a template: ``{c}`` is the column's name. ``unit`` ``None`` means the column's own unit.
    ``needs_own`` marks statistics that exist only where the column's keys have a counterpart in the impression.
    """

    sql: str
    description: str
    unit: str | None = None
    needs_own: bool = False
    categorical: bool = False


_ENTRIES = Statistic("len(raw_{c}_keys)", "number of entries of", "entries")
_ENTROPY = Statistic("entropy_{c}", "Shannon entropy over the positive values of", "nats")
_TOP1 = Statistic("max_{c} / nullif(mass_{c}, 0)", "share of the largest entry in", "share")
_OWN_SHARE = Statistic("if(own_{c} < 0, 0, own_{c}) / nullif(mass_{c}, 0)", "share of the impression's own key in", "share", needs_own=True)
_AGO_MIN = Statistic("(hour_start - max_{c}) / 86400.0", "days since the most recent entry of", "days")
_AGO_MAX = Statistic("(hour_start - min_{c}) / 86400.0", "days since the oldest entry of", "days")
_OWN_AGO = Statistic(
    "(hour_start - own_{c}) / 86400.0", "days since the most recent entry of the impression's own key in", "days", needs_own=True
)

STATISTICS: dict[Kind, dict[str, Statistic]] = {
    "number_map": {
        "n_keys": _ENTRIES,
        "sum": Statistic("sum_{c}", "sum of"),
        "mean": Statistic("sum_{c} / count_{c}", "mean of"),
        "max": Statistic("max_{c}", "maximum of"),
        "min": Statistic("min_{c}", "minimum of"),
        "std": Statistic("list_stddev_pop(finite_{c})", "standard deviation (ddof 0) of"),
        "entropy": _ENTROPY,
        "top1_share": _TOP1,
        "own": Statistic("own_{c}", "value at the impression's own key in", needs_own=True),
        "own_share": _OWN_SHARE,
    },
    "timestamp_map": {
        "n_keys": _ENTRIES,
        "days_ago_min": _AGO_MIN,
        "days_ago_max": _AGO_MAX,
        "own_days_ago": _OWN_AGO,
    },
    "histogram": {
        "n_keys": _ENTRIES,
        "entropy": _ENTROPY,
        "top1_share": _TOP1,
        "has_own": Statistic(
            "list_contains(raw_{c}_keys, {own})::INTEGER", "whether the impression's own key is in", "0 or 1", needs_own=True
        ),
        "own_share": _OWN_SHARE,
    },
    "nested_counts": {
        "n_bundles": Statistic("len(raw_{c}_keys)", "number of apps in", "apps"),
        "n_actions": Statistic("len(flat_{c})", "number of app and action pairs in", "entries"),
        "total": Statistic("sum_{c}", "total count over apps and actions of"),
        "has_own": Statistic(
            "list_contains(raw_{c}_keys, {own})::INTEGER", "whether the impression's own app is in", "0 or 1", needs_own=True
        ),
        "own_n_actions": Statistic("len(own_flat_{c})", "number of actions of the impression's own app in", "entries", needs_own=True),
        "own_total": Statistic("own_{c}", "total count of the impression's own app in", needs_own=True),
    },
    "nested_timestamps": {
        "n_bundles": Statistic("len(raw_{c}_keys)", "number of apps in", "apps"),
        "days_ago_min": _AGO_MIN,
        "days_ago_max": _AGO_MAX,
        "own_days_ago": _OWN_AGO,
    },
    "list": {
        "length": Statistic("len(raw_{c})", "length of", "elements"),
        "n_unique": Statistic("list_unique(raw_{c})", "number of distinct elements of", "elements"),
        "has_own": Statistic("list_contains(raw_{c}, {own})::INTEGER", "whether the impression's own key is in", "0 or 1", needs_own=True),
    },
    "timestamp": {
        "days_ago": Statistic("(hour_start - valid_{c}) / 86400.0", "days since", "days"),
    },
    "number": {
        "value": Statistic("valid_{c}", ""),
        "sin": Statistic("sin(2 * pi() * valid_{c} / {period})", "sine of the cyclical position of", "-1..1"),
        "cos": Statistic("cos(2 * pi() * valid_{c} / {period})", "cosine of the cyclical position of", "-1..1"),
        "tier": Statistic("{tier}", "tier (0 is the lowest) of", "tier"),
    },
    "text": {
        "value": Statistic("raw_{c}", "", categorical=True),
        "version": Statistic(
            "try_cast(split_part(raw_{c}, '.', 1) AS INTEGER)"
            " + least(coalesce(try_cast(split_part(raw_{c}, '.', 2) AS INTEGER), 0), 99) / 100.0"
            " + least(coalesce(try_cast(split_part(raw_{c}, '.', 3) AS INTEGER), 0), 99) / 10000.0",
            "as major + minor / 100 + patch / 10000 (each capped at 99),",
            "version",
        ),
        "age_months": Statistic(
            "datediff('month', DATE '1970-01-01', make_timestamp(hour_start * 1000000)::DATE)"
            # No year of a calendar is beyond a SMALLINT; twelve times what is would be beyond an INTEGER.
            " - 12 * (try_cast(split_part(raw_{c}, '_', 1) AS SMALLINT)::INTEGER - 1970)"
            " - nullif(list_position({months}, lower(split_part(raw_{c}, '_', 2))), 0) + 1",
            "whole calendar months from it to the impression:",
            "months",
        ),
    },
}


def kind_of(column: Column) -> Kind:
    """Return the kind of a non-label column, which selects its statistics."""
    if column.type == "map<string,map<string,int64>>":
        return "nested_timestamps" if column.meaning == "timestamp" else "nested_counts"
    if column.type.startswith("map"):
        if column.meaning == "timestamp":
            return "timestamp_map"
        return "histogram" if column.meaning == "histogram" else "number_map"
    if column.type == "list<string>":
        return "list"
    if column.meaning == "timestamp" and column.type == "int64":
        return "timestamp"
    return "text" if column.type == "string" and column.meaning != "number" else "number"


def available(column: Column) -> dict[str, Statistic]:
    """Return the available statistics of a column: name -> statistic."""
    cyclical, own = column.cycle is not None, column.own_key
    return {
        name: statistic
        for name, statistic in STATISTICS[kind_of(column)].items()
        if (own is not None or not statistic.needs_own) and (cyclical or name not in ("sin", "cos"))
    }
