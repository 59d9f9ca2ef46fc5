"""Queries over small tables, as the reader of columns asks them: one DuckDB connection for all tests of a process."""

from __future__ import annotations

from functools import cache

import duckdb
import pyarrow as pa

from ltv_assets.core.database import open_duckdb


@cache
def _database() -> duckdb.DuckDBPyConnection:
    return open_duckdb(threads=1, memory_limit="200MB")


def query(sql: str, cells: pa.Table) -> pa.Table:
    """Run SQL over a table that the SQL calls ``cells``."""
    with _database().cursor() as cursor:
        cursor.register("cells", cells)
        return cursor.sql(sql).to_arrow_table()
