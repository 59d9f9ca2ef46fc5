"""Convert impressions from JSON, one value at a time, into the contract's Arrow columns.

What belongs here: every form of a nested column (object, list of pairs, list of ``{"key", "value"}``, or the JSON text of
any of these), and the error message for any other value. What does not: files, whose physical types are converted by
``canonical.py``, and features. Next to read: ``rows.py``.

In a file, an unreadable value counts as missing and is counted. A request is about single impressions, so here the row is
rejected with a message, and only that row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from ltv_assets.core.contract import HOUR, Column, Contract, load_contract
from ltv_assets.core.errors import DataError
from ltv_assets.core.time_layout import HOUR_KEY
from ltv_assets.features.canonical import parse_number, parse_timestamp
from ltv_assets.features.statistics import Kind, kind_of

HOUR_COLUMN = HOUR
_NUMBERS = pa.map_(pa.string(), pa.float64())
_TYPES: dict[Kind, pa.DataType] = {
    "number": pa.float64(),
    "timestamp": pa.float64(),
    "text": pa.string(),
    "list": pa.list_(pa.string()),
    "number_map": _NUMBERS,
    "histogram": _NUMBERS,
    "timestamp_map": _NUMBERS,
    "nested_counts": pa.map_(pa.string(), _NUMBERS),
    "nested_timestamps": pa.map_(pa.string(), _NUMBERS),
}
_NUMBER_TYPES, _TEXT_TYPES = frozenset((float, int, type(None))), frozenset((str, type(None)))
_MOMENT = "a timestamp (unix seconds or ISO 8601 text)"
LATEST_MOMENT = 253_402_300_800.0
"""The year 10000 in unix seconds."""
_PAIRS = "an object, a list of pairs, or the JSON text of either"


class MalformedValue(ValueError):
    """A value in none of the accepted forms; ``where`` is the key inside a nested column, or empty."""

    def __init__(self, expected: str, found: object, where: str = "") -> None:
        super().__init__(f"{where}: expected {expected}, found {_describe(found)}")
        self.expected, self.found, self.where = expected, found, where


class MalformedRow(DataError):
    """An impression that cannot be scored: one sentence for each of its malformed values."""


@dataclass(frozen=True, slots=True)
class Impressions:
    """Impressions in the contract's types, and the problems of those that cannot be scored.

    ``table`` has one row for each impression, ``row_id`` (its position), ``hour_start`` (unix seconds) and every column of
    ``inputs`` of the contract; ``problems`` maps the position of a malformed row to one sentence that names row, column, expected
    and found.
    """

    table: pa.Table
    problems: Mapping[int, str]


def read_impressions(columns: Mapping[str, Sequence[Any]], rows: int, contract: Contract | None = None, first: int = 0) -> Impressions:
    """Turn columns of JSON values into Arrow; an absent column is missing in every row, unknown ones are ignored.

    The time of a row is ``datetime``, an hour or a day as text; where files say it in a column, that column is read as well.
    Without a contract the columns are those of the shipped one.
    None and NaN are missing values. No value raises: an unreadable one is NULL in the table and named in ``problems``, by the
    number of its row, of which the first is ``first``.
    """
    problems: dict[int, list[str]] = {}
    contract = contract or load_contract()
    told = [columns.get(name, [None] * rows) for name in time_columns(contract)]
    hours = _converted(zip(*told, strict=True), partial(_read_hour, contract), problems, first)
    arrays = [pa.array(map(str, range(rows)), pa.string()), pa.array(hours, pa.int64())]
    for column in contract.inputs:
        kind = _TYPES[kind_of(column)]
        if column.name not in columns:
            arrays.append(pa.nulls(rows, kind))
            continue
        values = columns[column.name]
        array = _plain_array(values, kind)
        if array is None:
            read = partial(read_cell, column.name, reader_of(column))
            array = pa.array(_converted(values, read, problems, first), kind)
        arrays.append(array)
    names = ["row_id", "hour_start", *(column.name for column in contract.inputs)]
    return Impressions(pa.table(arrays, names=names), {row: "; ".join(texts) for row, texts in sorted(problems.items())})


def reader_of(column: Column) -> Callable[[Any], Any]:
    """The reader of a column's values: a float, a text, a list, or pairs of key and value; raises MalformedValue for any other."""
    kind = kind_of(column)
    return _flag if column.meaning == "flag" and kind == "number" else _READERS[kind]


def read_cell(name: str, read: Callable[[Any], Any], value: Any, row: int, problems: list[str]) -> Any:
    """The value of column ``name`` as its reader gives it, None where missing.

    A value that the reader refuses is None, and a sentence about it joins ``problems``.
    """
    try:
        return None if _is_missing(value) else read(value)
    except MalformedValue as error:
        problems.append(f"row {row}, column {name}{error}")
    except Exception as error:  # an object that cannot be inspected must not affect other rows
        problems.append(f"row {row}, column {name}: cannot be read ({type(error).__name__})")
    return None


def time_columns(contract: Contract) -> tuple[str, ...]:
    """The columns of a request that may say when an impression was: the hour, and the moment where files have a column of it."""
    return (HOUR_COLUMN,) if contract.time.layout is not None or contract.time.column is None else (HOUR_COLUMN, contract.time.column)


def read_hour(contract: Contract, row: Mapping[str, Any], number: int, problems: list[str]) -> int:
    """Unix seconds of an impression's hour; 0, and a sentence in ``problems``, if it is missing or unreadable."""
    return _read_hour(contract, [row.get(name) for name in time_columns(contract)], number, problems)


def example_impression(contract: Contract | None = None) -> dict[str, Any]:
    """An invented impression with every column in its simplest form: a runnable example. Without a contract, of the shipped one."""
    contract = contract or load_contract()
    plain: dict[Kind, Any] = {
        "number": 1.0,
        "timestamp": 1759000000,
        "list": ["some.app"],
        "number_map": {"some.app": 1.5},
        "histogram": {"us": 3},
        "timestamp_map": {"some.app": 1759000000},
        "nested_counts": {"some.app": {"purchase": 2}},
        "nested_timestamps": {"some.app": {"purchase": 1759000000}},
    }
    values = {c.name: c.example or plain.get(kind_of(c), f"some {c.name}") for c in contract.inputs}
    return {contract.identifier: "example", HOUR_COLUMN: "2025-10-07-13-00", **values}


# ------------------------------------------------------------------------------------------------------------- values


def _read_hour(contract: Contract, told: Sequence[Any], row: int, problems: list[str]) -> int:
    """The hour from the values of ``time_columns``: what ``datetime`` says goes before the moment."""
    said = len(problems)
    hour = told[0]
    if not contract.has_hours and isinstance(hour, str) and len(hour) == len("2025-10-07"):
        hour = f"{hour}-00-00"
    found = read_cell(HOUR_COLUMN, _hour, hour, row, problems)
    if len(told) > 1:
        began = read_cell(time_columns(contract)[1], _hour_of_moment, told[1], row, problems)
        found = began if found is None else found
    if found is None and len(problems) == said:
        problems.append(f"row {row}, column {time_columns(contract)[-1]}: expected {_HOUR}, found nothing")
    return found or 0


def _hour_of_moment(value: Any) -> int:
    moment = _timestamp(value)
    if moment is None or not abs(moment) < LATEST_MOMENT:
        raise MalformedValue(_MOMENT, value)
    return int(moment // 3600 * 3600)


def _converted(values: Iterable[Any], read: Callable[[Any, int, list[str]], Any], problems: dict[int, list[str]], first: int) -> list[Any]:
    out: list[Any] = []
    found: list[str] = []
    for row, value in enumerate(values, first):
        out.append(read(value, row, found))
        if found:
            problems.setdefault(row, []).extend(found)
            found.clear()
    return out


def _plain_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array | None:
    """A column in its simplest form, whose values need no reading one by one; None if a value has any other form."""
    try:
        if pa.types.is_map(kind):
            return _plain_maps(values) if kind == _NUMBERS else None
        cells = values if not pa.types.is_list(kind) else [x for value in values if value is not None for x in _plain_list(value)]
        plain = _NUMBER_TYPES if kind == pa.float64() else _TEXT_TYPES
        return pa.array(values, kind, from_pandas=True) if plain.issuperset(map(type, cells)) else None
    except (_NotPlain, pa.ArrowException, ValueError, OverflowError):  # of which Arrow's own are some, and text that UTF-8 cannot hold
        return None


def _plain_maps(values: Sequence[Any]) -> pa.Array:
    keys: list[str] = []
    items: list[Any] = []
    offsets: list[int | None] = []
    for value in values:
        offsets.append(None if value is None else len(keys))
        if value is not None:
            if type(value) is not dict:
                raise _NotPlain
            keys += value
            items += value.values()
    if not _NUMBER_TYPES.issuperset(map(type, items)):
        raise _NotPlain
    return pa.MapArray.from_arrays(pa.array([*offsets, len(keys)], pa.int32()), pa.array(keys, pa.string()), pa.array(items, pa.float64()))


def _plain_list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise _NotPlain
    return value


class _NotPlain(Exception):
    """A value that has to be read by itself."""


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


_HOUR = "the hour as text such as 2025-10-07-13-00"


def _hour(value: Any) -> int:
    try:
        return _hour_start(_text(value))
    except ValueError:
        raise MalformedValue(_HOUR, value) from None


@lru_cache(maxsize=1024)
def _hour_start(text: str) -> int:
    return int(datetime.strptime(text, HOUR_KEY).replace(tzinfo=UTC).timestamp())


def _text(value: Any) -> str:
    # As in a column of whole numbers; the spelling of a fraction is not known.
    return str(value) if type(value) is int else _words(value)


def _words(value: Any, where: str = "") -> str:
    if not isinstance(value, str):
        raise MalformedValue("text", value, where)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which is valid in JSON escapes
            raise MalformedValue("text that UTF-8 can hold", value, where) from None
    return value


def _number(value: Any) -> float | None:
    if type(value) is float or value is None:
        return value
    try:
        found = parse_number(value) if isinstance(value, str) else float(value) if _is_number(value) else None
    except (TypeError, ValueError, OverflowError):
        found = None
    if found is None:
        raise MalformedValue("a number", value)
    return found


def _flag(value: Any) -> float | None:
    # As a column of booleans is read.
    return float(value) if isinstance(value, (bool, np.bool_)) else _number(value)


def _is_number(value: Any) -> bool:
    return type(value) is int or isinstance(value, (np.integer, np.floating))


def _timestamp(value: Any) -> float | None:
    if value is None or type(value) is float or _is_number(value):
        return _number(value)
    try:
        found = parse_timestamp(value) if isinstance(value, str) else (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    except (AttributeError, TypeError, ValueError, OverflowError):
        found = None
    if found is None:
        raise MalformedValue(_MOMENT, value)
    return float(found)


def _list(value: Any) -> list[str | None] | None:
    elements = _parsed(value, "a list of texts or its JSON text")
    if elements is None:
        return None
    if not isinstance(elements, (list, tuple)) or isinstance(elements, _Object):
        raise MalformedValue("a list of texts or its JSON text", value)
    return [
        element if element is None else str(element) if type(element) is int else _words(element, f", element {position}")
        for position, element in enumerate(elements)
    ]


def _map(item: Callable[[Any], _Item]) -> Callable[[Any], list[tuple[str, _Item]] | None]:
    def read(value: Any) -> list[tuple[str, _Item]] | None:
        pairs = _pairs(value)
        if pairs is None:
            return None
        out = []
        for key, inner in pairs:
            try:
                out.append((_words(key), item(inner)))
            except MalformedValue as error:
                raise MalformedValue(error.expected, error.found, f", key {key!r:.60}{error.where}") from None
        return out

    return read


class _Object(list[tuple[str, Any]]):
    """The entries of a JSON object in their order; unlike a dict it keeps repeated keys."""


def _pairs(value: Any) -> Iterable[tuple[Any, Any]] | None:
    parsed = _parsed(value, _PAIRS)
    if parsed is None or isinstance(parsed, _Object):
        return parsed
    if isinstance(parsed, dict):
        return parsed.items()
    if isinstance(parsed, (list, tuple)):
        return [_pair(element) for element in parsed]
    raise MalformedValue(_PAIRS, value)


def _pair(element: Any) -> tuple[Any, Any]:
    entry = dict(element) if isinstance(element, _Object) else element
    if isinstance(entry, dict) and entry.keys() >= {"key", "value"}:
        return entry["key"], entry["value"]
    if isinstance(entry, (list, tuple)) and len(entry) == 2:
        return entry[0], entry[1]
    raise MalformedValue('[key, value] or {"key": ..., "value": ...}', entry)


def _parsed(value: Any, expected: str) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value, object_pairs_hook=_Object)
        # Some writers encode twice.
        return json.loads(found, object_pairs_hook=_Object) if isinstance(found, str) else found
    except (ValueError, RecursionError):
        raise MalformedValue(expected, value) from None


_Item: TypeAlias = Any
_READERS: dict[Kind, Callable[[Any], Any]] = {
    "number": _number,
    "timestamp": _timestamp,
    "text": _text,
    "list": _list,
    "number_map": _map(_number),
    "histogram": _map(_number),
    "timestamp_map": _map(_timestamp),
    "nested_counts": _map(_map(_number)),
    "nested_timestamps": _map(_map(_timestamp)),
}


def _describe(value: object) -> str:
    value = dict(value) if isinstance(value, _Object) else value
    kinds = {bool: "true or false", str: "text", dict: "an object", list: "a list", tuple: "a list"}
    kind = next((name for type_, name in kinds.items() if isinstance(value, type_)), "a number")
    try:
        shown = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        kind, shown = type(value).__name__, _shown(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return f"{kind} {shown.encode(errors='backslashreplace').decode()}"


def _shown(value: object) -> str:
    try:
        return str(value)
    except Exception:  # nested too deeply, longer than Python prints, or of a class whose text raises
        return "that cannot be shown"
