"""What one column looks like: its logical type and meaning, from its name, its physical type and a sample of its values.

What belongs here: guesses about a single column. What does not: roles, which follow from all columns together (``roles.py``). Values are
converted by the reader that converts them later (``features/canonical.py``), so a type that is guessed here can be read there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ltv_assets.core.contract import Column, LogicalType, Meaning
from ltv_assets.features.canonical import UnreadableTypeError, parse_number, parse_timestamp, read_column
from ltv_assets.ingestion.profile.sample import Sample, joined, shares

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

TEXTS = 2_000
"""Texts that are parsed to find out what they are."""
MOST_KEYS = 2_000
NEARLY_CONSTANT = 0.999
OWN_VALUE_SHARE = 0.5
"""A text of which more rows than this have a value of their own is an identifier or prose, not a category."""
COMMON_VALUE_SHARE = 0.01
"""Unless its most frequent value has at least this share."""

_SECONDS, _MILLISECONDS = (946_684_800, 4_102_444_800), (946_684_800_000, 4_102_444_800_000)
"""From 2000 to 2100, in seconds and in milliseconds."""

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_MOMENT = frozenset(
    [
        "at",
        "ts",
        "time",
        "timestamp",
        "date",
        "datetime",
        "epoch",
        "on",
        "day",
        "last",
        "first",
        "created",
        "updated",
        "installed",
        "signed",
    ]
)
_MONEY = frozenset(["usd", "eur", "gbp", "price", "spend", "spent", "revenue", "amount", "cost", "msrp", "payment", "ltv", "rev", "gmv"])
_CODES = frozenset(["id", "code", "type", "category", "status", "segment", "class", "group", "zip", "postcode", "plan", "tier", "version"])
_CYCLES = {"hour": 24, "weekday": 7, "dow": 7, "month": 12}
_UNITS: Mapping[str, str] = {
    "usd": "USD",
    "eur": "EUR",
    "gbp": "GBP",
    "days": "days",
    "hours": "hours",
    "minutes": "minutes",
    "seconds": "seconds",
    "months": "months",
    "weeks": "weeks",
    "years": "years",
    "share": "share",
    "ratio": "ratio",
    "rate": "rate",
    "pct": "per cent",
}
_VERSION = re.compile(r"\d+(\.\d+){1,3}")


@dataclass(frozen=True)
class Facts:
    """A column of the files and what it seems to be.

    ``numbers``, ``codes``: the sample's values as numbers (NaN for gaps) or as numbers of categories (-1 for gaps); ``parts`` are
    numbers made of a map or a list. ``usable`` is False for what no feature is made of, and ``why`` says why.
    """

    source: str
    physical: str
    type: LogicalType = "double"
    meaning: Meaning = "number"
    why: str = ""
    sure: float = 0.9
    usable: bool = True
    unit: str | None = None
    cycle: int | None = None
    calendar: bool = False
    present: Mask = field(default_factory=lambda: np.zeros(0, bool), repr=False)
    distinct: int = 0
    top_share: float = 0.0
    numbers: Floats | None = field(default=None, repr=False)
    codes: Ints | None = field(default=None, repr=False)
    parts: tuple[tuple[str, Floats], ...] = field(default=(), repr=False)
    keys: frozenset[str] = field(default=frozenset(), repr=False)
    whole: bool = False
    edit: str = ""
    """What the user has to change before the column can be used; empty if nothing."""

    @property
    def missing(self) -> float:
        """Share of rows without a value."""
        return 1.0 - shares(self.present)

    @property
    def is_binary(self) -> bool:
        """Whether its values are 0 and 1."""
        if self.numbers is None:
            return False
        values = self.numbers[~np.isnan(self.numbers)]
        return len(values) > 0 and bool(np.isin(values, (0.0, 1.0)).all())

    @property
    def words(self) -> tuple[str, ...]:
        """The words of its name, in lower case."""
        return words_of(self.source)


def words_of(name: str) -> tuple[str, ...]:
    """The words and numbers a name is made of: ``iapRevenue_d7`` is iap, revenue, d, 7."""
    return tuple(word.lower() for word in _WORDS.findall(name))


def look_at(sample: Sample, source: str) -> Facts:
    """What a column of the files seems to be."""
    kinds = [k for k in sample.types(source) if not pa.types.is_null(k)]
    facts = Facts(source, " or ".join(dict.fromkeys(_said(k) for k in kinds)) or "null")
    parts = sample.parts(source)
    present = np.concatenate([pc.is_valid(part).to_numpy(zero_copy_only=False) for part in parts]) if parts else np.zeros(0, bool)
    facts = replace(facts, present=present)
    if not present.any():
        return replace(facts, usable=False, sure=0.9, why="empty in every row looked at")
    kind = kinds[0]
    while isinstance(kind, pa.BaseExtensionType) and not isinstance(kind, pa.UuidType | pa.JsonType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_boolean(kind):
        return _as_number(sample, parts, replace(facts, type="int32", meaning="flag", why="true or false", sure=0.95))
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _as_moment(sample, parts, replace(facts, why=f"its type is {kind}", sure=0.95))
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _number(sample, parts, facts, whole=pa.types.is_integer(kind))
    if _is_text(kind):
        return _text(sample, parts, facts)
    return _nested(sample, parts, facts, kind)


# --------------------------------------------------------------------------------------------------------------- values


def _column(facts: Facts) -> Column:
    keyed_by = "key" if facts.type.startswith(("map", "list")) else None
    return Column(name="x", type=facts.type, meaning=facts.meaning, keyed_by=keyed_by)


def _read(sample: Sample, parts: Sequence[pa.Array], facts: Facts) -> tuple[pa.Array, int] | None:
    """(values as the reader converts them, values it loses); None if it cannot read the type."""
    converted, lost = [], 0
    for part in parts:
        try:
            values, findings = read_column(_column(facts), part, sample.query)
        except UnreadableTypeError:
            return None
        converted.append(values)
        lost += findings.lost
    return joined(converted), lost


def _unreadable(facts: Facts) -> Facts:
    return replace(facts, usable=False, sure=0.8, why=f"{facts.physical} is no type that features are made of")


def _as_number(sample: Sample, parts: Sequence[pa.Array], facts: Facts) -> Facts:
    read = _read(sample, parts, facts)
    if read is None:
        return _unreadable(facts)
    numbers = read[0].to_numpy(zero_copy_only=False)
    # Some writers use NaN for NULL, and what cannot be read is missing as well.
    return _counted(replace(facts, numbers=numbers, present=~np.isnan(numbers)))


def _counted(facts: Facts) -> Facts:
    """With the number of distinct values and the share of the most frequent one, gaps included."""
    values = facts.numbers if facts.numbers is not None else facts.codes
    assert values is not None
    gap = np.isnan(values) if facts.numbers is not None else values < 0
    distinct, counts = np.unique(values[~gap], return_counts=True)
    top = max(int(counts.max(initial=0)), int(gap.sum()))
    facts = replace(facts, distinct=len(distinct), top_share=top / max(len(values), 1))
    if facts.top_share >= NEARLY_CONSTANT:
        usual = "missing" if int(gap.sum()) == top else "the same"
        return replace(facts, usable=False, why=f"{usual} in {facts.top_share:.2%} of the rows", sure=0.9)
    return facts


def _as_moment(sample: Sample, parts: Sequence[pa.Array], facts: Facts) -> Facts:
    return _as_number(sample, parts, replace(facts, type="int64", meaning="timestamp", unit="unix seconds"))


def _as_category(sample: Sample, parts: Sequence[pa.Array], facts: Facts) -> Facts:
    facts = replace(facts, type="string", meaning="category")
    read = _read(sample, parts, facts)
    if read is None:
        return _unreadable(facts)
    words = read[0] if pa.types.is_dictionary(read[0].type) else read[0].dictionary_encode()
    codes = words.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    facts = _counted(replace(facts, codes=codes, keys=frozenset(words.dictionary.to_pylist()[:MOST_KEYS])))
    rows = int((codes >= 0).sum())
    most = int(np.unique(codes[codes >= 0], return_counts=True)[1].max(initial=0))
    if facts.usable and rows >= 100 and facts.distinct > OWN_VALUE_SHARE * rows and most < COMMON_VALUE_SHARE * rows:
        why = f"{facts.distinct} values in {rows} rows: an identifier or prose, not a category"
        return replace(facts, meaning="identifier", usable=False, why=why, sure=0.8)
    said = f"{facts.distinct} values"
    return replace(facts, why=f"{facts.why}, {said}" if facts.why else f"text with {said}") if facts.usable else facts


# -------------------------------------------------------------------------------------------------------------- numbers


def _number(sample: Sample, parts: Sequence[pa.Array], facts: Facts, *, whole: bool, written: str = "") -> Facts:
    words = set(facts.words)
    found = _as_number(sample, parts, replace(facts, type="int64" if whole else "double", meaning="number", whole=whole))
    if found.numbers is None:
        return found
    values = found.numbers[~np.isnan(found.numbers)]
    low, high = float(values.min(initial=np.inf)), float(values.max(initial=-np.inf))
    integers = bool((values == np.floor(values)).all())
    said = f"{written}numbers from {low:.6g} to {high:.6g}"
    if integers and len(values) and _SECONDS[0] <= low and high <= _SECONDS[1] and (words & _MOMENT or low > 1e9):
        sure = 0.95 if words & _MOMENT else 0.7
        return replace(found, type="int64", meaning="timestamp", unit="unix seconds", why=f"{said}: seconds since 1970", sure=sure)
    if integers and len(values) and _MILLISECONDS[0] <= low and high <= _MILLISECONDS[1]:
        edit = f"divide {found.source} by 1000 in the files and declare it as int64 with meaning: timestamp"
        why = f"{said}: milliseconds since 1970, and moments are read in seconds"
        return replace(found, usable=False, unit="unix milliseconds", why=why, sure=0.9, edit=edit)
    if found.is_binary and found.usable:
        return replace(found, type="int32", meaning="flag", why="0 and 1", sure=0.9)
    cycle = next((c for word, c in _CYCLES.items() if found.words[-1:] == (word,)), None)
    if cycle is not None and integers and low >= 0 and high <= cycle and found.usable:
        return replace(found, type="int32", cycle=cycle, calendar=True, why=f"{said} in a cycle of {cycle}", sure=0.7)
    if integers and words & _CODES and found.distinct <= 1000 and found.usable and found.distinct < OWN_VALUE_SHARE * len(values):
        return _as_category(sample, parts, replace(facts, why="whole numbers whose name says a code", sure=0.6))
    unit = next((u for word, u in _UNITS.items() if word in words), None)
    if not found.usable:
        return replace(found, unit=unit)
    meaning: Meaning = "amount" if words & _MONEY else "count" if integers and low >= 0 else "number"
    sure = 0.9 if meaning != "count" else 0.75
    return replace(found, meaning=meaning, unit=unit, why=said, sure=sure)


# ---------------------------------------------------------------------------------------------------------------- texts


def _text(sample: Sample, parts: Sequence[pa.Array], facts: Facts) -> Facts:
    texts = _some_texts(parts)
    as_json = [_json(text) for text in texts]
    if shares(np.array([isinstance(value, dict | list) for value in as_json])) >= 0.95:
        return _json_text(sample, parts, facts, [value for value in as_json if isinstance(value, dict | list)])
    if shares(np.array([_VERSION.fullmatch(text) is not None for text in texts])) >= 0.95 and set(facts.words) & {"osv", "version", "sdk"}:
        return _as_category(sample, parts, replace(facts, why="text such as 17.4.1: a version", sure=0.7))
    if shares(np.array([parse_number(text) is not None for text in texts])) >= 0.99:
        if facts.words[-1:] and facts.words[-1] not in _CYCLES and any(re.fullmatch(r"\s*0\d+\s*", text) for text in texts):
            return _as_category(sample, parts, replace(facts, why="digits with leading zeros: a code", sure=0.7))
        whole = all(re.fullmatch(r"\s*[+-]?\d+\s*", text) for text in texts)
        return _number(sample, parts, replace(facts), whole=whole, written="text of ")
    if shares(np.array([parse_timestamp(text) is not None for text in texts])) >= 0.99:
        return _as_moment(sample, parts, replace(facts, why=f"text of moments, such as {texts[0]}", sure=0.95))
    return _as_category(sample, parts, facts)


def _some_texts(parts: Sequence[pa.Array]) -> list[str]:
    """Texts of the column from every file, at most `TEXTS`."""
    found: list[str] = []
    each = max(1, -(-TEXTS // max(len(parts), 1)))
    for part in parts:
        values = part.drop_null()[:each]
        for value in values.to_pylist():
            found.append(value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value))
    return found[:TEXTS] if len(found) > TEXTS else found


def _json(text: str) -> Any:
    """The value of a JSON text that begins a list or a map, decoded twice where it was encoded twice; None for anything else."""
    if not text.lstrip().startswith(("{", "[", '"{', '"[')):
        return None
    try:
        value = json.loads(text)
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return None


def _json_text(sample: Sample, parts: Sequence[pa.Array], facts: Facts, values: list[dict[str, Any] | list[Any]]) -> Facts:
    entries, nested, lists = [], 0, 0
    for value in values:
        if isinstance(value, dict):
            entries += list(value.values())
            nested += any(isinstance(v, dict) for v in value.values())
        elif all(isinstance(v, list) and len(v) == 2 for v in value) and value:
            entries += [v[1] for v in value]
        elif all(isinstance(v, dict) and {"key", "value"} <= v.keys() for v in value) and value:
            entries += [v["value"] for v in value]
        else:
            lists += 1
            entries += value
    if lists > len(values) / 2:
        if any(isinstance(entry, dict | list) for entry in entries):
            return replace(facts, usable=False, sure=0.7, why="JSON lists of maps or lists, of which no feature is made")
        return _nested_facts(sample, parts, replace(facts, type="list<string>", meaning="identifier", why="JSON text: a list", sure=0.9))
    if nested:
        entries = [v for entry in entries if isinstance(entry, dict) for v in entry.values()]
        facts = replace(facts, type="map<string,map<string,int64>>", why="JSON text: a map of maps", sure=0.85)
    else:
        facts = replace(facts, type="map<string,double>", why="JSON text: a map", sure=0.9)
    return _map(sample, parts, facts, entries)


def _map(sample: Sample, parts: Sequence[pa.Array], facts: Facts, entries: Sequence[Any]) -> Facts:
    """A map by its values, which are numbers, counts or moments."""
    numbers = [
        v if isinstance(v, int | float) and not isinstance(v, bool) else parse_number(v) if isinstance(v, str) else None for v in entries
    ]
    known = np.array([v for v in numbers if v is not None], dtype=np.float64)
    filled = sum(entry is not None for entry in entries)
    if filled and len(known) < 0.9 * filled:
        return replace(facts, usable=False, sure=0.7, why=f"{facts.why} whose values are no numbers, of which no feature is made")
    whole = bool(len(known)) and bool((known == np.floor(known)).all())
    if whole and _SECONDS[0] <= known.min() and known.max() <= _SECONDS[1]:
        facts = replace(facts, meaning="timestamp", unit="unix seconds", why=f"{facts.why} of seconds since 1970")
        flat: LogicalType = "map<string,int64>"
    elif whole:
        is_histogram = bool(set(facts.words) & {"hist", "histogram"}) and not facts.type.startswith("map<string,map")
        facts = replace(facts, meaning="histogram" if is_histogram else "count", why=f"{facts.why} of whole numbers")
        flat = "map<string,int64>"
    else:
        meaning: Meaning = "amount" if set(facts.words) & _MONEY else "number"
        facts = replace(facts, meaning=meaning, why=f"{facts.why} of numbers")
        flat = "map<string,double>"
    facts = facts if facts.type == "map<string,map<string,int64>>" else replace(facts, type=flat)
    unit = facts.unit or next((u for word, u in _UNITS.items() if word in facts.words), None)
    return _nested_facts(sample, parts, replace(facts, unit=unit))


# --------------------------------------------------------------------------------------------------- maps and lists


def _nested(sample: Sample, parts: Sequence[pa.Array], facts: Facts, kind: pa.DataType) -> Facts:
    as_map = replace(facts, type="map<string,double>", why=f"its type is {_said(kind)}", sure=0.95)
    read = _read(sample, parts, as_map)
    if read is not None:
        items = read[0].items.to_numpy(zero_copy_only=False)
        return _map(sample, parts, as_map, items[~np.isnan(items)].tolist())
    nested = replace(as_map, type="map<string,map<string,int64>>", meaning="count")
    read = _read(sample, parts, nested)
    if read is not None:
        values = read[0].items.items.to_numpy(zero_copy_only=False)
        return _map(sample, parts, nested, values[~np.isnan(values)].tolist())
    as_list = replace(as_map, type="list<string>", meaning="identifier")
    return _nested_facts(sample, parts, as_list) if _read(sample, parts, as_list) is not None else _unreadable(facts)


def _nested_facts(sample: Sample, parts: Sequence[pa.Array], facts: Facts) -> Facts:
    """With the keys of a map or the elements of a list, and numbers by which payers may be told apart."""
    read = _read(sample, parts, facts)
    if read is None:
        return _unreadable(facts)
    values = read[0]
    valid = pc.is_valid(values).to_numpy(zero_copy_only=False)
    offsets = values.offsets.to_numpy(zero_copy_only=False)
    lengths = np.where(valid, np.diff(offsets).astype(np.float64), np.nan)
    is_list = facts.type.startswith("list")
    keys = values.values if is_list else values.keys
    found = frozenset(k for k in keys.dictionary.to_pylist()[:MOST_KEYS] if k is not None)
    made = [("length" if is_list else "n_keys", lengths)]
    if not is_list and not facts.type.startswith("map<string,map"):
        items = np.nan_to_num(values.items.to_numpy(zero_copy_only=False).astype(np.float64))
        totals = np.add.reduceat(np.append(items, 0.0), np.minimum(offsets[:-1], len(items))) if len(items) else np.zeros(len(values))
        made.append(("sum", np.where(valid & (np.diff(offsets) > 0), totals, np.nan)))
    top = max(shares(~valid), *(_most_frequent(v[valid]) * shares(valid) for _, v in made)) if valid.any() else 1.0
    facts = replace(facts, parts=tuple(made), keys=found, distinct=len(found), top_share=float(top), present=valid)
    if shares(~valid) >= NEARLY_CONSTANT:
        return replace(facts, usable=False, why=f"missing in {shares(~valid):.2%} of the rows", sure=0.9)
    return facts


def _most_frequent(values: Floats) -> float:
    """Share of the most frequent value, gaps being one."""
    if not len(values):
        return 0.0
    return float(np.unique(values, return_counts=True, equal_nan=True)[1].max()) / len(values)


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests) or isinstance(kind, pa.UuidType | pa.JsonType)


def _said(kind: pa.DataType) -> str:
    """A physical type in few characters."""
    text = str(kind)
    return text if len(text) <= 40 else f"{text[:37]}..."
