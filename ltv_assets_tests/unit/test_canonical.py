"""One value and a column of values are read alike, whatever stands in the text."""

from __future__ import annotations

import math
from functools import cache

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltv_assets.core.columns import RAW_COLUMNS, Column
from ltv_assets.core.database import open_duckdb
from ltv_assets.features.canonical import canonical_type, parse_number, parse_timestamp, read_column, reads

COLUMNS = {column.name: column for column in RAW_COLUMNS}
NUMBERS = ["1", "-3.5", "+2", " 7 ", ".5", "5.", "1e6", "1E-3", "nan", "-Infinity", "inf", "1e400"]
NUMBERS += ["0,5", "$1", "1_000", "0x10", "", " ", "१", "1 2"]
MOMENTS = [
    "2025-10-01",
    "2025-10-01T17:30",
    "2025-10-01 17:30:00",
    "2025-10-01T17:30:00.125",
    "2025-10-01T17:30:00.123456789Z",
    "2025-10-01T17:30:00Z",
    "2025-10-01 17:30:00 UTC",
    "2025-10-01T17:30:00+05:30",
    "2025-10-01T17:30:00-07",
    "2025-10-01 17:30:00 +0530",
    " 2025-10-01T17:30:00+00:00 ",
    "2025-02-30",
    "2025-10-01T24:00:00",
    "2025-10-01T17:60:00",
    "2025-10-01T17:30:00+25:00",
    "2025-10-01T17:30:00 Europe/Berlin",
    "2025-1-1",
    "20251001",
    "2025-W40-3",
    "01/09/2025",
    "0001-01-01",
    "9999-12-31T23:59:59Z",
    "epoch",
    "infinity",
    "1759276800.5",
]


@cache
def database() -> duckdb.DuckDBPyConnection:
    return open_duckdb(threads=1, memory_limit="200MB")


def of_column(name: str, texts: list[str]) -> list[float | None]:
    connection = database()

    def query(sql: str, cells: pa.Table) -> pa.Table:
        with connection.cursor() as cursor:
            cursor.register("cells", cells)
            return cursor.sql(sql).to_arrow_table()

    values, findings = read_column(COLUMNS[name], pa.array(texts, pa.string()), query)
    missing = sum(value is None for value in values.to_pylist())
    assert findings.lost + findings.nonfinite == missing, "what is missing is counted"
    return values.to_pylist()


def finite(value: float | None, largest: float) -> float | None:
    return value if value is not None and math.isfinite(value) and abs(value) <= largest else None


@pytest.mark.parametrize(
    ("name", "parse", "texts"), [("wifi_ratio", parse_number, NUMBERS), ("last_buy", parse_timestamp, NUMBERS + MOMENTS)]
)
def test_a_text_is_read_alike_by_itself_and_in_a_column(name: str, parse: object, texts: list[str]) -> None:
    alone = [finite(parse(text), 3.4e38) for text in texts]  # type: ignore[operator]
    assert dict(zip(texts, of_column(name, texts), strict=True)) == dict(zip(texts, alone, strict=True))
    assert any(value is None for value in alone) and any(value is not None for value in alone)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("0123456789-+:. TZUCe,", max_size=26), min_size=30, max_size=60))
def test_no_text_of_digits_and_signs_is_read_in_two_ways(texts: list[str]) -> None:
    assert of_column("last_buy", texts) == [finite(parse_timestamp(text), 1e300) for text in texts]


@pytest.mark.parametrize("column", RAW_COLUMNS, ids=lambda column: column.name)
def test_every_column_reads_nulls_and_its_canonical_type(column: Column) -> None:
    assert reads(column, pa.null())
    assert reads(column, canonical_type(column))
    assert not reads(column, pa.duration("s"))
