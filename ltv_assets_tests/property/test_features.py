"""What must not matter does not: the order of rows, the order of map entries, how an hour is cut into files."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltv_assets.core.columns import RAW_COLUMNS
from ltv_assets.features.flatten import RawFile, flatten_files
from ltv_assets.features.registry import load_registry
from ltv_assets_tests.oracle.awkward_rows import Row, awkward_rows, write_hour

pytestmark = pytest.mark.contest

HOUR, START = "2025-10-01-05-00", 1759294800
REGISTRY = load_registry(Path(__file__).parents[2] / "config" / "features.yaml")

seeds = st.integers(0, 10_000)
few = settings(max_examples=8, deadline=None)


def flattened(parts: list[list[Row]]) -> pa.Table:
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for i, rows in enumerate(parts):
            path = Path(folder) / f"datetime={HOUR}" / f"part-{i}.parquet"
            write_hour(rows, path)
            files.append(RawFile(path, HOUR))
        out = Path(folder) / "day.parquet"
        flatten_files(files, registry=REGISTRY, labelled=True, out=out)
        return pq.read_table(out)


def assert_equal(a: pa.Table, b: pa.Table) -> None:
    assert a.schema.equals(b.schema)
    for name in a.column_names:
        if pa.types.is_floating(a.column(name).type):
            # Sums in another order differ in their last bits.
            np.testing.assert_allclose(a.column(name).to_numpy(), b.column(name).to_numpy(), rtol=1e-6, atol=1e-9, err_msg=name)
        else:
            assert a.column(name).to_pylist() == b.column(name).to_pylist(), name


@few
@given(seed=seeds, n=st.integers(1, 60))
def test_permuting_rows_permutes_the_result_and_nothing_else(seed: int, n: int) -> None:
    rows = awkward_rows(n, seed, START)
    order = random.Random(seed).sample(range(n), n)
    assert_equal(flattened([[rows[i] for i in order]]), flattened([rows]).take(pa.array(order)))


@few
@given(seed=seeds)
def test_permuting_map_entries_changes_nothing(seed: int) -> None:
    rows = awkward_rows(30, seed, START)
    shuffle = random.Random(seed)
    nested = [column.name for column in RAW_COLUMNS if column.is_nested]
    mixed = [{k: shuffle.sample(v, len(v)) if k in nested and v is not None else v for k, v in row.items()} for row in rows]
    assert_equal(flattened([mixed]), flattened([rows]))


@few
@given(seed=seeds, n=st.integers(2, 60), data=st.data())
def test_cutting_an_hour_into_files_changes_nothing_and_loses_no_row(seed: int, n: int, data: st.DataObject) -> None:
    rows = awkward_rows(n, seed, START)
    cut = data.draw(st.integers(0, n))
    whole, pieces = flattened([rows]), flattened([rows[:cut], rows[cut:]])
    assert whole.num_rows == n
    assert whole.equals(pieces)
