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
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from ltv_assets.core.contract import HOUR, Contract, load_contract
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
_PAIRS = "an object, a list of pairs, or the JSON text of either"


class MalformedValue(ValueError):
    """A value in none of the accepted forms; ``where`` is the key inside a nested column, or empty."""

    def __init__(self, expected: str, found: object, where: str = "") -> None:
        super().__init__(f"{where}: expected {expected}, found {_describe(found)}")
        self.expected, self.found, self.where = expected, found, where


@dataclass(frozen=True, slots=True)
class Impressions:
    """Impressions in the contract's types, and the problems of those that cannot be scored.

    ``table`` has one row for each impression, ``row_id`` (its position), ``hour_start`` (unix seconds) and every column of
    ``inputs`` of the contract; ``problems`` maps the position of a malformed row to one sentence that names row, column, expected
    and found.
    """

    table: pa.Table
    problems: Mapping[int, str]


def read_impressions(columns: Mapping[str, Sequence[Any]], rows: int, contract: Contract | None = None) -> Impressions:
    """Turn columns of JSON values into Arrow; an absent column is missing in every row, unknown ones are ignored.

    The time of a row is ``datetime``, an hour or a day as text; where files say it in a column, that column is read as well.
    Without a contract the columns are those of the shipped one.
    None and NaN are missing values. No value raises: an unreadable one is NULL in the table and named in ``problems``.
    """
    problems: dict[int, list[str]] = {}
    contract = contract or load_contract()
    hours = _hours(columns, rows, contract, problems)
    arrays = [pa.array(map(str, range(rows)), pa.string()), pa.array((h or 0 for h in hours), pa.int64())]
    for column in contract.inputs:
        kind = _TYPES[kind_of(column)]
        if column.name not in columns:
            arrays.append(pa.nulls(rows, kind))
            continue
        cells = _converted(column.name, columns[column.name], _READERS[kind_of(column)], problems)
        arrays.append(pa.array(cells, kind))
    names = ["row_id", "hour_start", *(column.name for column in contract.inputs)]
    return Impressions(pa.table(arrays, names=names), {row: "; ".join(texts) for row, texts in sorted(problems.items())})


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


def _hours(columns: Mapping[str, Sequence[Any]], rows: int, contract: Contract, problems: dict[int, list[str]]) -> list[Any]:
    """Unix seconds of the hours of the rows; a row without one is a problem."""
    said = columns.get(HOUR_COLUMN, [None] * rows)
    if not contract.has_hours:
        said = [f"{value}-00-00" if isinstance(value, str) and len(value) == len("2025-10-07") else value for value in said]
    moment = contract.time.column if contract.time.layout is None else None
    if moment is None or moment not in columns:
        return _converted(HOUR_COLUMN, said, _hour, problems, missing="is missing")
    moments = _converted(moment, columns[moment], _timestamp, problems, missing="is missing" if HOUR_COLUMN not in columns else None)
    hours = _converted(HOUR_COLUMN, said, _hour, problems)
    return [hour if hour is not None else None if at is None else int(at // 3600 * 3600) for hour, at in zip(hours, moments, strict=True)]


def _converted(
    name: str, values: Iterable[Any], convert: Callable[[Any], Any], problems: dict[int, list[str]], missing: str | None = None
) -> list[Any]:
    out: list[Any] = []
    for row, value in enumerate(values):
        cell = None
        try:
            if not _is_missing(value):
                cell = convert(value)
            elif missing is not None:
                problems.setdefault(row, []).append(f"row {row}, column {name}: expected {_HOUR}, found nothing")
        except MalformedValue as error:
            problems.setdefault(row, []).append(f"row {row}, column {name}{error}")
        except Exception as error:  # an object that cannot be inspected must not affect other rows
            problems.setdefault(row, []).append(f"row {row}, column {name}: cannot be read ({type(error).__name__})")
        out.append(cell)
    return out


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
        raise MalformedValue("a timestamp (unix seconds or ISO 8601 text)", value)
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
