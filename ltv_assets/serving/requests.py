"""Requests taken apart, answers put together: JSON in, JSON out.

What belongs here: the forms of a request body and of an answer. What does not: the values of an impression, which the model reads
itself (``features/impressions.py``), and HTTP (``app.py``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import orjson


class BadRequest(ValueError):
    """A body that is no request at all; the message says what was expected, and nothing of what was found."""


@dataclass(frozen=True, slots=True)
class Request:
    """The rows of a request; ``single`` if it was one object, which is answered by one object."""

    rows: list[Any]
    single: bool


EXPECTED = "one impression (an object), a list of them, or an object with dataframe_records or dataframe_split"


def parse(body: bytes) -> Request:
    """The rows of a body. Raises BadRequest if it is not JSON or has none of the forms."""
    found = _decoded(body)
    if isinstance(found, list):
        return Request(found, single=False)
    if not isinstance(found, dict):
        raise BadRequest(f"the body is neither an object nor a list; expected {EXPECTED}")
    if "dataframe_records" in found:
        records = found["dataframe_records"]
        if not isinstance(records, list):
            raise BadRequest(f"dataframe_records is not a list; expected {EXPECTED}")
        return Request(records, single=False)
    if "dataframe_split" in found:
        return Request(_split(found["dataframe_split"]), single=False)
    return Request([found], single=True)


def _decoded(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    try:
        # Slower and more lenient: NaN, numbers without end and half surrogate pairs are answered in place.
        return json.loads(body)
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    except ValueError as error:
        place = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise BadRequest(f"the body is not JSON{place}; expected {EXPECTED}") from None


def _split(found: Any) -> list[dict[str, Any]]:
    columns, data = (found.get("columns"), found.get("data")) if isinstance(found, dict) else (None, None)
    if not (isinstance(columns, list) and isinstance(data, list) and all(isinstance(name, str) for name in columns)):
        raise BadRequest("dataframe_split: expected a list of column names in columns and a list of rows in data")
    if len(set(columns)) < len(columns):
        raise BadRequest("dataframe_split: a column stands twice; expected each column once")
    if not all(isinstance(row, list) and len(row) == len(columns) for row in data):
        raise BadRequest(f"dataframe_split: expected {len(columns)} values in every row of data")
    return [dict(zip(columns, row, strict=True)) for row in data]


def encode(value: Any) -> bytes:
    """JSON of an answer; NaN, which JSON has not, is null."""
    try:
        return orjson.dumps(value)
    except (TypeError, orjson.JSONEncodeError):  # an identifier is given back as it came: beyond 64 bits, or not in UTF-8
        return json.dumps(value).encode()
