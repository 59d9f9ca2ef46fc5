"""Rows that break careless readers, and the layouts the same rows may arrive in.

``awkward_rows`` makes rows as dicts (see ``row_by_row``); ``write_hour`` writes them as MAP, as LIST of STRUCT(key,
value), as JSON text, or with other number types.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ltv_assets.core.columns import RAW_COLUMNS
from ltv_assets.core.contract import Column

Layout = Literal["map", "entries", "json_object", "json_pairs", "json_entries"]
Row = dict[str, Any]

WORDS: dict[str, list[str]] = {
    "bundle": ["b1", "b2", "b3", "бандл", "アプリ", "🎮", "with space", 'quo"te', "back\\slash", "it's", "", "b1 "],
    "category": ["games", "game", "sport betting", "食品", "casino 🎰", ""],
    "taxonomy": ["t1", "t2", "t3", "tax → onomy"],
    "action": ["open", "level-up", "achat ✓"],
    "hour": [f"{h:02d}" for h in range(24)],
    "city": ["Zürich", "東京", "x"],
    "country": ["us", "in", "br"],
    "region": ["r1", "r2", "são paulo"],
    "language": ["en", "pt"],
    "os_version": ["17.4.1", "13", "9.0"],
}
OWN_COLUMN = {
    "advertiser_bundle": "bundle",
    "advertiser_category": "category",
    "advertiser_bottom_taxonomy_level": "taxonomy",
    "country": "country",
    "region": "region",
    "dev_osv": "os_version",
    "hour": "hour",
}


def awkward_rows(n: int, seed: int, hour_start: int) -> list[Row]:
    """Return n rows in which every nested column is, at random, null, empty, single, repeated, or full of odd values."""
    rng = random.Random(seed)
    return [
        {column.name: _value(column, rng, hour_start, f"{seed}-{i}") for column in RAW_COLUMNS if column.name != "datetime"}
        for i in range(n)
    ]


def _value(column: Column, rng: random.Random, hour_start: int, row_id: str) -> Any:
    if column.name == "row_id":
        return row_id
    if column.is_label:
        return 0 if column.type.startswith("int") else 0.0
    if column.type.startswith("map<string,map"):
        pairs = _pairs(column, rng, hour_start)
        if pairs is None:
            return None
        return [(key, None if rng.random() < 0.05 else _entries(column, "action", rng, hour_start, rng.randrange(4))) for key, _ in pairs]
    if column.type.startswith("map"):
        return _pairs(column, rng, hour_start)
    if column.type == "list<string>":
        length = _length(rng)
        return None if length is None else [rng.choice(WORDS["bundle"]) for _ in range(length)]
    if rng.random() < 0.15:
        return None
    if column.name in OWN_COLUMN:
        return rng.choice(WORDS[OWN_COLUMN[column.name]])
    if column.meaning == "timestamp":
        return int(_moment(rng, hour_start))
    if column.name == "weekday":
        return rng.randrange(7)
    if column.type.startswith("int"):
        return rng.choice([0, 1, 7])
    if column.name == "release_date":
        return rng.choice(["2025_july", "2019_March", "2025_december", "soon", "2020", "", "x_may"])
    if column.type == "double":
        return rng.choice([0.0, 1.0, -1.0, 99.99, 100.0, 1e12, math.nan, math.inf, rng.lognormvariate(0, 1)])
    return rng.choice(["a", "b", "ünïcode 🙂", ""])


def _length(rng: random.Random) -> int | None:
    return rng.choice([None, 0, 1, 1, 2, 3, 5, 40])


def _pairs(column: Column, rng: random.Random, hour_start: int) -> list[tuple[str, Any]] | None:
    length = _length(rng)
    return None if length is None else _entries(column, column.keyed_by or "bundle", rng, hour_start, length)


def _entries(column: Column, keys: str, rng: random.Random, hour_start: int, length: int) -> list[tuple[str, Any]]:
    return [(rng.choice(WORDS[keys]), _number(column, rng, hour_start)) for _ in range(length)]


def _number(column: Column, rng: random.Random, hour_start: int) -> Any:
    if rng.random() < 0.1:
        return None
    if column.meaning == "timestamp":
        return int(_moment(rng, hour_start))
    if "int64" in column.type:
        return int(rng.choice([0, 1, 1, 2, 7, 1000, 2**40, -3]))
    if rng.random() < 0.7:
        return rng.lognormvariate(0, 2)
    return rng.choice([0.0, -0.0, 1.0, -2.5, 1e-12, 1e12, 1e30, 1e300, math.nan, math.inf, -math.inf])


def _moment(rng: random.Random, hour_start: int) -> float:
    past = hour_start - rng.randrange(3 * 365 * 86400)
    return rng.choice([past, past, past, hour_start, hour_start + 1, hour_start + 10**9, 0, -1, 946684799, 946684800])


def write_hour(rows: list[Row], path: Path, *, layout: Layout = "map", wide_numbers: bool = False, labels: bool = True) -> None:
    """Write rows as one hour's file; ``wide_numbers`` stores whole numbers as DOUBLE."""
    columns = {}
    for column in RAW_COLUMNS:
        if column.name == "datetime" or (column.is_label and not labels):
            continue
        columns[column.name] = _array(column, [row[column.name] for row in rows], layout, wide_numbers)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, compression="snappy")


def _array(column: Column, values: list[Any], layout: Layout, wide: bool) -> pa.Array:
    if layout.startswith("json") and column.is_nested:
        as_text = json.dumps if column.type == "list<string>" else lambda value: _json_text(value, layout)
        return pa.array([None if value is None else as_text(value) for value in values], pa.string())
    return pa.array(values if layout != "entries" else [_structs(column, value) for value in values], _type(column, layout, wide))


def _type(column: Column, layout: Layout, wide: bool) -> pa.DataType:
    number = pa.float64() if wide or "double" in column.type else pa.int64()

    def pairs(value: pa.DataType) -> pa.DataType:
        return pa.map_(pa.string(), value) if layout == "map" else pa.list_(pa.struct([("key", pa.string()), ("value", value)]))

    if column.type.startswith("map<string,map"):
        return pairs(pairs(number))
    if column.type.startswith("map"):
        return pairs(number)
    if column.type == "list<string>":
        return pa.list_(pa.string())
    return {"string": pa.string(), "int32": pa.float64() if wide else pa.int32(), "int64": number, "double": pa.float64()}[column.type]


def _structs(column: Column, value: Any) -> Any:
    if value is None or not column.type.startswith("map"):
        return value
    return [{"key": k, "value": _structs(column, v) if isinstance(v, list) else v} for k, v in value]


def _json_text(value: Any, layout: Layout) -> str:
    """Written by hand, because json.dumps of a dict cannot repeat a key."""
    if not isinstance(value, list):
        return json.dumps(value)
    entries = [(json.dumps(k, ensure_ascii=False), _json_text(v, layout)) for k, v in value]
    if layout == "json_object":
        return "{" + ", ".join(f"{k}: {v}" for k, v in entries) + "}"
    if layout == "json_pairs":
        return "[" + ", ".join(f"[{k}, {v}]" for k, v in entries) + "]"
    return "[" + ", ".join(f'{{"key": {k}, "value": {v}}}' for k, v in entries) + "]"
