"""Features of impressions in memory: the flattening engine on an open connection.

What belongs here: one DuckDB connection and one engine for the lifetime of a server, and its input of rows that are not in
a file. What does not: the features themselves; the same engine and the same SQL flatten whole days, so a row's features
do not depend on its source. Next to read: ``flatten/``, ``impressions.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from ltv_assets.core.database import open_duckdb
from ltv_assets.features.flatten import FlattenEngine
from ltv_assets.features.registry import Registry
from ltv_assets.features.schema import feature_names, flattened_schema

MEMORY_LIMIT = "500MB"
"""DuckDB's memory limit; a request has few rows."""

# DuckDB warns of an extra copy, which is of a few rows here.
warnings.filterwarnings("ignore", message="Arrow output on a DB-API result", category=UserWarning)


@dataclass(frozen=True)
class _Rows:
    """A table of impressions as a block of the engine."""

    table: pa.Table

    @property
    def rows(self) -> int:
        return int(self.table.num_rows)

    @property
    def name(self) -> str:
        return f"{self.rows} impressions"

    def hour_start(self) -> np.ndarray:
        return self.table.column("hour_start").to_numpy()

    def read(self, names: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
        yield self.name, self.table.select([name for name in names if name in self.table.column_names])

    def sizes(self) -> Mapping[str, int]:
        return {name: column.nbytes for name, column in zip(self.table.column_names, self.table.columns, strict=True)}


class _WarmEngine(FlattenEngine):
    """The engine for a few rows at a time."""

    def _fetch(self, cursor: duckdb.DuckDBPyConnection, sql: str) -> pa.Table:
        # A relation is bound before it runs and again when it runs; for a single row that is a third of the time.
        result: Any = cursor.execute(sql)
        return result.to_arrow_table() if hasattr(result, "to_arrow_table") else result.fetch_arrow_table()


class RowFlattener:
    """Flattens impressions in memory; safe to call from several threads, each call uses its own cursor."""

    def __init__(self, registry: Registry, threads: int = 1) -> None:
        self.registry = registry
        self._names = feature_names(registry)
        schema = flattened_schema(registry)
        self._types = [schema.field(name).type for name in self._names]
        self._connection = open_duckdb(threads=threads, memory_limit=MEMORY_LIMIT)
        self._engine = _WarmEngine(self._connection, registry, labelled=False)

    def features(self, table: pa.Table) -> pa.Table:
        """Every feature of the rows of ``Impressions.table``, in the registry's order and the flattened columns' types.

        Raises DataError if the engine cannot flatten them.
        """
        flat = self._engine.flatten(_Rows(table.combine_chunks()))
        columns = [_as(flat.columns[name], kind) for name, kind in zip(self._names, self._types, strict=True)]
        return pa.table(columns, names=self._names)


def _as(column: pa.ChunkedArray | pa.Array, kind: pa.DataType) -> pa.ChunkedArray | pa.Array:
    return column if column.type == kind else column.cast(kind)
