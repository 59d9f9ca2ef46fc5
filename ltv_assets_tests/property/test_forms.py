"""Any physical form of the same logical table gives the same features, to the bit."""

from __future__ import annotations

import decimal
import json
import random
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltv_assets.core.columns import RAW_COLUMNS
from ltv_assets.core.contract import Column
from ltv_assets.features.flatten import RawFile, flatten_files
from ltv_assets.features.registry import Registry, load_registry
from ltv_assets.features.statistics import kind_of

pytestmark = pytest.mark.contest

HOUR, START, ROWS = "2025-10-01-05-00", 1759294800, 64
WORDS = ["a", "b.c", "17.4.1", "2025_july", "бандл", "🎮", 'quo"te', "back\\slash", "", "us"]
COLUMNS = [column for column in RAW_COLUMNS if column.name != "datetime"]

Row = dict[str, Any]
Write = Callable[[list[Row], Path], None]


def plain_rows(seed: int) -> list[Row]:
    """Rows whose values every form can hold exactly: quarters below 64, seconds, and text."""
    rng = random.Random(seed)

    def text() -> str:
        return rng.choice(WORDS)

    def number(column: Column) -> Any:
        if column.meaning == "timestamp":
            return START - rng.randrange(10**8)
        return rng.randrange(64) if "int" in column.type else rng.randrange(256) / 4

    def value(column: Column) -> Any:
        if column.name == "row_id":
            return str(uuid.UUID(int=rng.getrandbits(128)))
        if column.is_label:
            return {"iap_revenue_d7": 1.5, "iap_revenue_d14": 2.5, "iap_revenue_d28": 4.0}.get(column.name, 1)
        if rng.random() < 0.2:
            return None
        kind = kind_of(column)
        if column.name == "hour":
            return f"{rng.randrange(24):02d}"
        if kind == "list":
            return [text() for _ in range(rng.randrange(4))]
        if kind.startswith("nested"):
            return [(k, [(w, number(column)) for w in ("x", "y")[: rng.randrange(3)]]) for k in rng.sample(WORDS, rng.randrange(3))]
        if column.is_nested:
            keys = [f"{hour:02d}" for hour in range(24)] if column.keyed_by == "hour" else WORDS
            return [(k, rng.choice([number(column), number(column), None])) for k in rng.sample(keys, rng.randrange(6))]
        return text() if kind == "text" else number(column)

    return [{column.name: value(column) for column in COLUMNS} for _ in range(ROWS)]


# ---------------------------------------------------------------------------------------------------- ways to hold a value

Cell = Callable[[Column, Any], Any]
Typed = Callable[[Column], pa.DataType | None]
"""A form is a value and a type for the columns it applies to; the type None leaves a column in its usual form."""


def usual(column: Column) -> pa.DataType:
    inner = pa.float64() if "double" in column.type else pa.int64()
    if column.type.startswith("map<string,map"):
        return pa.map_(pa.string(), pa.map_(pa.string(), inner))
    if column.type.startswith("map"):
        return pa.map_(pa.string(), inner)
    return {"list<string>": pa.list_(pa.string()), "string": pa.string(), "int32": pa.int32(), "int64": pa.int64(), "double": pa.float64()}[
        column.type
    ]


def scalar_number(column: Column) -> bool:
    return not column.is_label and column.name != "row_id" and kind_of(column) == "number" and column.type != "string"


def moment(column: Column) -> bool:
    return not column.is_label and column.name != "row_id" and kind_of(column) == "timestamp"


def words(column: Column) -> bool:
    return column.type == "string" and column.name != "row_id"


def maps(column: Column) -> bool:
    return column.type.startswith("map")


def flat_map(column: Column) -> bool:
    return column.type.startswith("map") and not column.type.startswith("map<string,map")


def typed(applies: Callable[[Column], bool], kind: pa.DataType, cell: Callable[[Any], Any] = lambda v: v) -> tuple[Typed, Cell]:
    return (lambda column: kind if applies(column) else None), (lambda column, v: cell(v))


def text_number(v: Any) -> str:
    return repr(v)


def iso(zone: timezone | None, separator: str = "T", suffix: str = "") -> Callable[[Any], Any]:
    def write(v: Any) -> str:
        when = datetime.fromtimestamp(v, tz=zone or UTC)
        return (when if zone else when.replace(tzinfo=None)).isoformat(sep=separator) + suffix

    return write


def map_of(value: Callable[[Column], pa.DataType], key: pa.DataType | None = None) -> Typed:
    key = key or pa.string()

    def build(column: Column) -> pa.DataType | None:
        if not maps(column):
            return None
        inner = value(column)
        return pa.map_(key, pa.map_(key, inner)) if column.type.startswith("map<string,map") else pa.map_(key, inner)

    return build


def entries_of(
    first: str, second: str, outer: Callable[[pa.DataType], pa.DataType] = pa.list_, *, swapped: bool = False
) -> tuple[Typed, Cell]:
    def fields(inner: pa.DataType) -> pa.DataType:
        pair = [(first, pa.string()), (second, inner)]
        return outer(pa.struct(pair[::-1] if swapped else pair))

    def build(column: Column) -> pa.DataType | None:
        if not maps(column):
            return None
        number = pa.float64() if "double" in column.type else pa.int64()
        return fields(fields(number)) if column.type.startswith("map<string,map") else fields(number)

    def cell(column: Column, v: Any) -> Any:
        return [{first: k, second: cell(column, x) if isinstance(x, list) else x} for k, x in v]

    return build, cell


def json_object(v: Any) -> Any:
    return {k: json_object(x) if isinstance(x, list) else x for k, x in v}


def json_pairs(v: Any) -> Any:
    return [[k, json_pairs(x) if isinstance(x, list) else x] for k, x in v]


def json_entries(v: Any) -> Any:
    return [{"key": k, "value": json_entries(x) if isinstance(x, list) else x} for k, x in v]


def json_form(kind: pa.DataType, shape: Callable[[Any], Any], encode: Callable[[Any], Any] = json.dumps) -> tuple[Typed, Cell]:
    def cell(column: Column, v: Any) -> Any:
        return encode(v if column.type == "list<string>" else shape(v))

    return (lambda column: kind if column.is_nested else None), cell


def decimal_number(v: Any) -> decimal.Decimal:
    return decimal.Decimal(repr(v))


def nested_numbers(convert: Callable[[Any], Any]) -> Cell:
    def cell(column: Column, v: Any) -> Any:
        return [(k, cell(column, x) if isinstance(x, list) else None if x is None else convert(x)) for k, x in v]

    return cell


def same(column: Column, v: Any) -> Any:
    return v


def to_text_seconds(column: Column) -> pa.DataType:
    return pa.string()


LISTS = (lambda column: column.type == "list<string>", same)
INDIA = timezone(timedelta(hours=5, minutes=30))
WEST = timezone(timedelta(hours=-7))
TEXT_BYTES = str.encode

FORMS: dict[str, tuple[Typed, Cell]] = {
    "float32 scalars": typed(scalar_number, pa.float32()),
    "float16 scalars": typed(scalar_number, pa.float16()),
    "decimal32 scalars": typed(scalar_number, pa.decimal32(8, 2), decimal_number),
    "decimal64 scalars": typed(scalar_number, pa.decimal64(12, 4), decimal_number),
    "decimal128 scalars": typed(scalar_number, pa.decimal128(30, 10), decimal_number),
    "decimal256 scalars": typed(scalar_number, pa.decimal256(60, 20), decimal_number),
    "numbers as text": typed(scalar_number, pa.string(), text_number),
    "numbers as dictionary text": typed(scalar_number, pa.dictionary(pa.int8(), pa.string()), text_number),
    "numbers as bytes": typed(scalar_number, pa.binary(), lambda v: text_number(v).encode()),
    "uint8 weekday": typed(lambda c: c.name == "weekday", pa.uint8()),
    "int16 hour": typed(lambda c: c.name == "hour", pa.int16(), int),
    "hour as bytes": typed(lambda c: c.name == "hour", pa.binary(), TEXT_BYTES),
    "seconds": typed(moment, pa.timestamp("s")),
    "milliseconds": typed(moment, pa.timestamp("ms"), lambda v: v * 1000),
    "microseconds in UTC": typed(moment, pa.timestamp("us", tz="UTC"), lambda v: v * 10**6),
    "nanoseconds in India": typed(moment, pa.timestamp("ns", tz="Asia/Kolkata"), lambda v: v * 10**9),
    "seconds as double": typed(moment, pa.float64(), float),
    "seconds as decimal": typed(moment, pa.decimal128(20, 3), decimal_number),
    "seconds as text": typed(moment, pa.string(), str),
    "ISO text without offset": typed(moment, pa.string(), iso(None)),
    "ISO text in UTC": typed(moment, pa.string(), iso(None, suffix="Z")),
    "ISO text with an offset east": typed(moment, pa.string(), iso(INDIA)),
    "ISO text with an offset west": typed(moment, pa.large_string(), iso(WEST, " ")),
    "large text": typed(words, pa.large_string()),
    "text views": typed(words, pa.string_view()),
    "bytes": typed(words, pa.binary(), TEXT_BYTES),
    "large bytes": typed(words, pa.large_binary(), TEXT_BYTES),
    "byte views": typed(words, pa.binary_view(), TEXT_BYTES),
    "dictionary text": typed(words, pa.dictionary(pa.int32(), pa.string())),
    "dictionary of large text": typed(words, pa.dictionary(pa.int8(), pa.large_string())),
    "row_id as UUID": typed(lambda c: c.name == "row_id", pa.uuid(), lambda v: uuid.UUID(v).bytes),
    "row_id as bytes": typed(lambda c: c.name == "row_id", pa.binary(36), TEXT_BYTES),
    "row_id as dictionary": typed(lambda c: c.name == "row_id", pa.dictionary(pa.int32(), pa.string())),
    "large lists": typed(LISTS[0], pa.large_list(pa.string())),
    "lists of large text": typed(LISTS[0], pa.list_(pa.large_string())),
    "lists of bytes": typed(LISTS[0], pa.list_(pa.binary()), lambda v: [x.encode() for x in v]),
    "lists in a struct": typed(
        LISTS[0],
        pa.struct([("list", pa.list_(pa.struct([("element", pa.string())])))]),
        lambda v: {"list": [{"element": x} for x in v]},
    ),
    "entries": entries_of("key", "value"),
    "entries in the other order": entries_of("key", "value", swapped=True),
    "entries named otherwise": entries_of("k", "v"),
    "entries in capitals": entries_of("KEY", "VALUE", swapped=True),
    "large lists of entries": entries_of("key", "value", pa.large_list),
    "JSON objects": json_form(pa.string(), json_object),
    "JSON pairs": json_form(pa.string(), json_pairs),
    "JSON entries": json_form(pa.large_string(), json_entries),
    "JSON type": json_form(pa.json_(), json_object),
    "JSON as bytes": json_form(pa.binary(), json_object, lambda v: json.dumps(v, ensure_ascii=False).encode()),
    "JSON encoded twice": json_form(pa.string(), json_object, lambda v: json.dumps(json.dumps(v))),
    "JSON as dictionary": json_form(pa.dictionary(pa.int32(), pa.string()), json_object),
    "text of the JSON type": typed(words, pa.json_(), json.dumps),
    "numbers of the JSON type": typed(scalar_number, pa.json_(), json.dumps),
    "moments of the JSON type": typed(moment, pa.json_(), lambda v: json.dumps(iso(WEST)(v))),
    "lists of the JSON type": (
        lambda column: pa.list_(pa.json_()) if column.type == "list<string>" else None,
        lambda c, v: [json.dumps(x) for x in v],
    ),
    "row_id of the JSON type": typed(lambda c: c.name == "row_id", pa.json_(), json.dumps),
    "maps with hours as whole numbers": (
        lambda column: pa.map_(pa.int8(), pa.float64()) if column.keyed_by == "hour" else None,
        lambda c, v: [(int(k), x) for k, x in v],
    ),
    "maps with hours as doubles": (
        lambda column: pa.map_(pa.float64(), pa.float64()) if column.keyed_by == "hour" else None,
        lambda c, v: [(float(k), x) for k, x in v],
    ),
    "maps of float32": (map_of(lambda c: pa.float64() if c.meaning == "timestamp" else pa.float32()), same),
    "maps of decimals": (map_of(lambda c: pa.decimal128(20, 2)), nested_numbers(decimal_number)),
    "maps of text": (map_of(to_text_seconds), nested_numbers(text_number)),
    "maps with large keys": (map_of(lambda c: pa.float64(), pa.large_string()), same),
    "maps with keys of bytes": (map_of(lambda c: pa.float64(), pa.binary()), lambda c, v: _keys_as_bytes(v)),
    "maps of moments": (
        lambda c: pa.map_(pa.string(), pa.timestamp("us", tz="UTC")) if flat_map(c) and c.meaning == "timestamp" else None,
        nested_numbers(lambda v: v * 10**6),
    ),
    "maps of ISO text with an offset": (
        lambda c: pa.map_(pa.string(), pa.string()) if flat_map(c) and c.meaning == "timestamp" else None,
        nested_numbers(iso(WEST)),
    ),
    "maps of JSON maps": (
        lambda c: pa.map_(pa.string(), pa.string()) if maps(c) and not flat_map(c) else None,
        lambda c, v: [(k, None if x is None else json.dumps(json_object(x))) for k, x in v],
    ),
}


def _keys_as_bytes(v: Any) -> Any:
    return [(k.encode(), _keys_as_bytes(x) if isinstance(x, list) else x) for k, x in v]


def table_of(rows: list[Row], form: tuple[Typed, Cell] | None) -> pa.Table:
    arrays = []
    for column in COLUMNS:
        kind = form[0](column) if form else None
        values = [row[column.name] for row in rows]
        if kind is not None and form is not None:
            values = [None if v is None else form[1](column, v) for v in values]
        kind = kind or usual(column)
        storage = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
        if pa.types.is_list(kind) and isinstance(kind.value_type, pa.BaseExtensionType):
            lists = pa.array(values, pa.list_(kind.value_type.storage_type))
            elements = pa.ExtensionArray.from_storage(kind.value_type, lists.values)
            arrays.append(pa.ListArray.from_arrays(lists.offsets, elements, mask=lists.is_null()))
            continue
        array = pa.array(values, storage)
        arrays.append(array if storage is kind else pa.ExtensionArray.from_storage(kind, array))
    return pa.table(arrays, names=[column.name for column in COLUMNS])


WRITERS: dict[str, Write] = {
    "plain pages": lambda rows, path: pq.write_table(table_of(rows, None), path, use_dictionary=False),
    "version 1.0 without statistics": lambda rows, path: pq.write_table(table_of(rows, None), path, version="1.0", write_statistics=False),
    "pages of version 2": lambda rows, path: pq.write_table(table_of(rows, None), path, data_page_version="2.0", compression="gzip"),
    "many row groups": lambda rows, path: pq.write_table(table_of(rows, None), path, row_group_size=7, compression="zstd"),
    "delta-length text": lambda rows, path: _encoded(rows, path, "DELTA_LENGTH_BYTE_ARRAY", "BYTE_ARRAY"),
    "delta text": lambda rows, path: _encoded(rows, path, "DELTA_BYTE_ARRAY", "BYTE_ARRAY"),
    "delta integers": lambda rows, path: _encoded(rows, path, "DELTA_BINARY_PACKED", "INT64"),
    "split bytes": lambda rows, path: _encoded(rows, path, "BYTE_STREAM_SPLIT", "DOUBLE"),
    "legacy lists": lambda rows, path: pq.write_table(table_of(rows, None), path, use_compliant_nested_type=False),
    "without the Arrow schema": lambda rows, path: pq.write_table(table_of(rows, None), path, store_schema=False),
    "timestamps of 96 bits": lambda rows, path: pq.write_table(
        table_of(rows, FORMS["microseconds in UTC"]), path, use_deprecated_int96_timestamps=True
    ),
    "names in capitals": lambda rows, path: pq.write_table(table_of(rows, None).rename_columns([c.name.upper() for c in COLUMNS]), path),
    "written by DuckDB": lambda rows, path: _by_duckdb(rows, path, "*", ""),
    "written by DuckDB, version 2": lambda rows, path: _by_duckdb(rows, path, "*", ", PARQUET_VERSION V2"),
    "ENUM and JSON by DuckDB": lambda rows, path: _by_duckdb(
        rows,
        path,
        "* REPLACE (dev_make::makes AS dev_make, row_id::UUID AS row_id,"
        " to_json(user_bundles) AS user_bundles, wifi_ratio::DECIMAL(18, 3) AS wifi_ratio, make_timestamp(last_buy * 1000000) AS last_buy)",
        "",
    ),
}


def _encoded(rows: list[Row], path: Path, encoding: str, physical: str) -> None:
    table = table_of(rows, None)
    pq.write_table(table, path, use_dictionary=False)
    with pq.ParquetFile(path) as parquet:
        schema = parquet.schema
        leaves = [schema.column(i).path for i in range(len(schema)) if schema.column(i).physical_type == physical]
    pq.write_table(table, path, use_dictionary=False, column_encoding=dict.fromkeys(leaves, encoding))


def _by_duckdb(rows: list[Row], path: Path, select: str, options: str) -> None:
    with duckdb.connect() as connection:
        connection.register("given", table_of(rows, None))
        connection.execute("CREATE TABLE t AS SELECT * FROM given")
        connection.execute("CREATE TYPE makes AS ENUM (SELECT DISTINCT dev_make FROM t WHERE dev_make IS NOT NULL)")
        connection.execute(f"COPY (SELECT {select} FROM t) TO '{path}' (FORMAT parquet{options})")


# ------------------------------------------------------------------------------------------------------------------ tests


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry(Path(__file__).parents[2] / "config" / "features.yaml")


def flattened(folder: Path, rows: list[Row], registry: Registry, write: Write) -> pa.Table:
    path = folder / f"datetime={HOUR}" / "part-0.parquet"
    path.parent.mkdir(parents=True)
    write(rows, path)
    result = flatten_files([RawFile(path, HOUR)], registry=registry, labelled=True, out=folder / "day.parquet")
    warnings = [text for text in result.warnings if "texts have another form" not in text]  # the rows' texts are any words
    assert (result.lost_values, result.files_aside, result.rows_out, warnings) == ({}, [], ROWS, [])
    return pq.read_table(folder / "day.parquet")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return plain_rows(7)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, rows: list[Row], registry: Registry) -> pa.Table:
    table = flattened(tmp_path_factory.mktemp("usual"), rows, registry, lambda r, path: pq.write_table(table_of(r, None), path))
    empty = [name for name in table.column_names if table.column(name).null_count == ROWS]
    assert len(empty) < 20, empty
    return table


@pytest.mark.parametrize("form", FORMS)
def test_a_physical_type_gives_the_usual_types_features(
    tmp_path: Path, registry: Registry, rows: list[Row], expected: pa.Table, form: str
) -> None:
    assert any(FORMS[form][0](column) is not None for column in COLUMNS)
    found = flattened(tmp_path, rows, registry, lambda r, path: pq.write_table(table_of(r, FORMS[form]), path))
    assert_equal(found, expected)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_writers_pages_give_the_usual_features(
    tmp_path: Path, registry: Registry, rows: list[Row], expected: pa.Table, writer: str
) -> None:
    assert_equal(flattened(tmp_path, rows, registry, WRITERS[writer]), expected)


def test_more_than_thirty_forms_are_tried() -> None:
    assert len(FORMS) + len(WRITERS) >= 60


@pytest.mark.parametrize("length", [1, 2, 5])
def test_lists_of_fixed_size_give_the_features_of_lists(tmp_path: Path, registry: Registry, rows: list[Row], length: int) -> None:
    sized = [row | {"bundles_ins": None if row["bundles_ins"] is None else (WORDS * 2)[:length]} for row in rows]
    form = typed(lambda column: column.name == "bundles_ins", pa.list_(pa.string(), length))
    usual_table = flattened(tmp_path / "usual", sized, registry, lambda r, path: pq.write_table(table_of(r, None), path))
    found = flattened(tmp_path / "fixed", sized, registry, lambda r, path: pq.write_table(table_of(r, form), path))
    assert_equal(found, usual_table)


def test_a_year_after_2262_of_an_older_writer_stays_that_year(tmp_path: Path, registry: Registry, rows: list[Row]) -> None:
    """Timestamps of 96 bits: 2^64 nanoseconds more would be ten days before the impression."""
    path = tmp_path / f"datetime={HOUR}" / "part-0.parquet"
    path.parent.mkdir()
    late = START - 10 * 86400 + 2**64 // 10**9
    table = table_of([row | {"last_buy": late * 10**6} for row in rows], typed(lambda c: c.name == "last_buy", pa.timestamp("us")))
    pq.write_table(table, path, use_deprecated_int96_timestamps=True)
    result = flatten_files([RawFile(path, HOUR)], registry=registry, labelled=True, out=tmp_path / "day.parquet")
    assert result.future_timestamps == {"last_buy": ROWS}


def test_files_of_one_day_may_each_have_a_form_of_their_own(
    tmp_path: Path, registry: Registry, rows: list[Row], expected: pa.Table
) -> None:
    """One file of each form, all rows in all files: each file's features are those of the usual form, whatever stands beside it."""
    files = []
    names = [name for name in FORMS if not name.startswith("row_id")]
    for number, form in enumerate(names):
        path = tmp_path / f"datetime={HOUR}" / f"part-{number:02d}.parquet"
        path.parent.mkdir(exist_ok=True)
        table = table_of(rows, FORMS[form])
        ids = pa.array([f"{number}-{row['row_id']}" for row in rows])
        pq.write_table(table.set_column(table.column_names.index("row_id"), "row_id", ids), path)
        files.append(RawFile(path, HOUR))
    result = flatten_files(files, registry=registry, labelled=True, out=tmp_path / "day.parquet")
    assert result.lost_values == {} and result.rows_out == ROWS * len(names)
    table = pq.read_table(tmp_path / "day.parquet").drop_columns(["row_id"])
    for number, form in enumerate(names):
        assert_equal(table.slice(number * ROWS, ROWS), expected.drop_columns(["row_id"]), form)


def assert_equal(found: pa.Table, expected: pa.Table, what: str = "") -> None:
    if found.equals(expected):
        return
    different = [name for name in expected.column_names if found.column(name).to_pylist() != expected.column(name).to_pylist()]
    assert not different, f"{what} {different[:5]}"
