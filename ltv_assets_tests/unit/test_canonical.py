"""One value and a column of values are read alike, whatever stands in the text."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltv_assets.core.columns import RAW_COLUMNS
from ltv_assets.core.contract import Column
from ltv_assets.features.canonical import canonical_type, parse_number, parse_timestamp, read_column, reads
from ltv_assets_tests.cells import query

pytestmark = pytest.mark.contest

COLUMNS = {column.name: column for column in RAW_COLUMNS}
NUMBERS = ["1", "-3.5", "+2", " 7 ", ".5", "5.", "1e6", "1E-3", "nan", "-Infinity", "inf", "1e400"]
NUMBERS += ["0,5", "$1", "1_000", "0x10", "", " ", "१", "1 2"]
NUMBERS += ["1.5\n", "\t1.5", "\v1.5", "1.5\v", "\u00a01", "−1", "１２", "50%", "1.5\0", "\ufeff1"]
MOMENTS = [
    "2025-10-01",
    "2025-10-01T17:30",
    "2025-10-01 17:30:00",
    "2025-10-01T17:30:00.125",
    "2025-10-01T17:30:00.123456789Z",
    "2025-10-01T17:30:00Z",
    "2025-10-01 17:30:00 UTC",
    "2025-10-01T17:30:00UTC",
    "2025-10-01T17:30:00\v",
    "2025-10-01T17:30:00Z\n",
    "2025-10-01T17:30:00,5",
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


def of_column(name: str, texts: list[str]) -> list[float | None]:
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


def values_of(name: str, array: pa.Array) -> tuple[list[object], int]:
    """(values, those counted as not finite)"""
    values, findings = read_column(COLUMNS[name], array, query)
    return values.to_pylist(), findings.nonfinite


@pytest.mark.parametrize(
    ("kind", "count", "seconds"),
    [
        (pa.timestamp("s"), 10**13, 1e13),
        (pa.timestamp("ms"), 1759276800 * 10**9, 1759276800e6),
        (pa.timestamp("ms"), 2**63 - 1, (2**63 - 1) / 1e3),
        (pa.timestamp("us"), -1, -1e-6),
        (pa.date32(), 2**31 - 1, (2**31 - 1) * 86400.0),
        (pa.date64(), 86400000 * 10**11, 8.64e15),
    ],
    ids=str,
)
def test_no_moment_overflows_into_another_one(kind: pa.DataType, count: int, seconds: float) -> None:
    """As where seconds or milliseconds were given out for another unit."""
    assert values_of("last_buy", pa.array([count], kind)) == ([seconds], 0)


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64(), pa.dictionary(pa.int8(), pa.float64())], ids=str)
def test_a_text_that_comes_as_a_number_is_missing_where_it_is_not_a_number(kind: pa.DataType) -> None:
    array = pa.array([14.5, math.nan, None, math.inf], pa.float32() if pa.types.is_dictionary(kind) else kind)
    array = array.dictionary_encode() if pa.types.is_dictionary(kind) else array
    assert values_of("dev_osv", array) == (["14.5", None, None, None], 2)
    assert values_of("row_id", array) == (["14.5", None, None, None], 2)


def test_equal_texts_share_a_code_where_a_dictionary_repeats_a_value() -> None:
    """As where somebody has changed the words of a dictionary to lower case."""
    repeated = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, None], pa.int32()), pa.array(["a", "a", "b"]))
    values, _ = read_column(COLUMNS["carrier"], repeated, lambda sql, cells: cells)
    assert values.to_pylist() == ["a", "a", "b", None]
    assert len(values.dictionary) == 2
