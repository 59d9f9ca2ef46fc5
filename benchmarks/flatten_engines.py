"""Compare ways of flattening the same files: the source of the table in benchmarks/RESULTS.md.

    python benchmarks/flatten_engines.py DATA [--threads 2]

DATA is a data root with train/ or one split's folder. Every engine computes from all columns and writes nothing, except
the last line, which is the package's flattener with its parquet file. Polars is not a dependency of the project: install
it to have its line. Plain Python is the oracle of the tests; it flattens the first rows only. Processor seconds are given
beside wall seconds, because other programs disturb only the latter.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ltv_assets.cli.flatten_benchmark import find_days, scan
from ltv_assets.core.columns import BY_NAME
from ltv_assets.core.database import open_duckdb
from ltv_assets.features.flatten import RawFile, flatten_files
from ltv_assets.features.registry import load_registry
from ltv_assets.features.sql import flatten_sql
from ltv_assets.features.statistics import kind_of

PROJECT = Path(__file__).resolve().parents[1]
CONFIG = PROJECT / "config" / "features.yaml"
PLAIN_ROWS = 3000
MEMORY = "4GB"
"""DuckDB's limit, the same for every engine that has one."""


def by_sql(files: list[RawFile], threads: int) -> None:
    """Every feature by the generated query alone."""
    paths = ", ".join(f"'{file.path}'" for file in files)
    source = f"SELECT *, 1759276800::BIGINT AS hour_start FROM read_parquet([{paths}], hive_partitioning = false)"
    query = flatten_sql(load_registry(CONFIG), source=source)
    with open_duckdb(threads=threads, memory_limit=MEMORY) as connection:
        for _ in connection.sql(query).to_arrow_reader(65_536):
            pass


def by_polars(files: list[RawFile], threads: int) -> None:
    """The simple statistics of number maps (n_keys sum mean max min std entropy top1_share own) by Polars' list expressions."""
    import polars as pl

    expressions = []
    for column in BY_NAME.values():
        if column.is_label or not column.type.startswith("map") or kind_of(column) not in ("number_map", "histogram"):
            continue
        entries, value = pl.col(column.name), pl.element().struct.field("value").cast(pl.Float64)
        values = entries.list.eval(value)
        share = value / value.sum()
        expressions += [
            entries.list.len().alias(f"{column.name}__n_keys"),
            values.list.sum().alias(f"{column.name}__sum"),
            values.list.mean().alias(f"{column.name}__mean"),
            values.list.max().alias(f"{column.name}__max"),
            values.list.min().alias(f"{column.name}__min"),
            values.list.std(ddof=0).alias(f"{column.name}__std"),
            entries.list.eval(-(share * share.log()).sum()).list.first().alias(f"{column.name}__entropy"),
            (values.list.max() / values.list.sum()).alias(f"{column.name}__top1_share"),
        ]
    for file in files:
        # Polars reads a MAP only through Arrow's list of structs.
        table = pq.read_table(file.path, partitioning=None)
        columns = {name: _as_list(table.column(name)) for name in table.column_names}
        pl.from_arrow(pa.table(columns)).lazy().select(expressions).collect()


def _as_list(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_map(column.type):
        return column
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    entries = pa.StructArray.from_arrays(
        [array.keys, array.items if not pa.types.is_map(array.items.type) else pa.nulls(len(array.items))], ["key", "value"]
    )
    return pa.chunked_array([pa.ListArray.from_arrays(array.offsets, entries)])


def by_row(files: list[RawFile], threads: int) -> int:
    """Every feature row by row in plain Python, the oracle of the tests, on the first rows; returns how many."""
    sys.path.insert(0, str(PROJECT))
    from ltv_assets_tests.oracle.row_by_row import features_of

    rows = next(pq.ParquetFile(files[0].path).iter_batches(PLAIN_ROWS)).to_pylist()
    for row in rows:
        features_of(row, files[0].datetime_key)
    return len(rows)


def by_package(files: list[RawFile], threads: int) -> None:
    """The package: array reductions for maps and lists, SQL for the rest, one parquet file written."""
    with tempfile.TemporaryDirectory() as folder:
        flatten_files(
            files, registry=load_registry(CONFIG), labelled=True, out=Path(folder) / "day.parquet", threads=threads, memory_limit=MEMORY
        )


ENGINES: dict[str, Callable[[list[RawFile], int], int | None]] = {
    "DuckDB, every column decoded, nothing computed": partial(scan, memory_limit=MEMORY),
    "DuckDB SQL, all features, nothing written": by_sql,
    "Polars, 8 statistics of the number maps only, nothing written": by_polars,
    "plain Python row by row, all features, nothing written": by_row,
    "package: array reductions and SQL, all features, parquet written": by_package,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    files = [file for (split, _), members in find_days(options.data).items() if split == "train" for file in members]
    rows = sum(pq.read_metadata(file.path).num_rows for file in files)
    for name, engine in ENGINES.items():
        best = (float("inf"), float("inf"))
        for _ in range(3):
            wall, processor = time.perf_counter(), time.process_time()
            try:
                done = engine(files, options.threads) or rows
            except ImportError as error:
                print(json.dumps({"engine": name, "skipped": str(error)}))
                break
            best = min(best, (time.process_time() - processor, time.perf_counter() - wall))
        else:
            processor, wall = best
            speed = {"processor_seconds": round(processor, 3), "wall_seconds": round(wall, 3), "rows_per_second": round(done / wall)}
            print(json.dumps({"engine": name, "rows": done, **speed}), flush=True)


if __name__ == "__main__":
    main()
