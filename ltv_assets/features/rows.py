"""Features of impressions that are in memory: the flattening engine on a connection that stays warm.

What belongs here: keeping one DuckDB connection and one engine for the life of a server, and handing it rows that never
were a file. What does not: the features themselves; the same engine and the same SQL flatten whole days, so a row's
features do not depend on which way it came. Next to read: ``flatten.py``, ``impressions.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from ltv_assets.contract import BY_NAME
from ltv_assets.features.flatten import Block, FlattenEngine
from ltv_assets.features.impressions import read_impressions
from ltv_assets.features.registry import Registry
from ltv_assets.features.schema import feature_names, flattened_schema

_VIEW = "impressions"

# The extra copy that DuckDB warns of is of a few rows.
warnings.filterwarnings("ignore", message="Arrow output on a DB-API result", category=UserWarning)


@dataclass(frozen=True)
class _Rows:
    """A table of impressions as a block of the engine."""

    table: pa.Table

    @property
    def rows(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def types(self) -> Mapping[str, pa.DataType]:
        return {field.name: field.type for field in self.table.schema if field.name in BY_NAME}

    @property
    def name(self) -> str:
        return f"{self.rows} impressions"

    def hour_start(self) -> np.ndarray:
        return self.table.column("hour_start").to_numpy()

    def relation(self, cursor: duckdb.DuckDBPyConnection) -> str:
        # The queries over memory look at scalars only; nested columns are reduced without SQL.
        scalars = [field.name for field in self.table.schema if not pa.types.is_nested(field.type)]
        cursor.register(_VIEW, self.table.select(scalars))
        return f"SELECT * FROM {_VIEW}"

    def read(self, names: list[str]) -> list[pa.Table]:
        chosen = self.table.select(names)
        texts = [pa.types.is_string(field.type) for field in chosen.schema]
        return [
            pa.table(
                [c.dictionary_encode() if text else c for c, text in zip(chosen.columns, texts, strict=True)],
                names=names,
            )
        ]

    def sizes(self) -> Mapping[str, int]:
        return {name: column.nbytes for name, column in zip(self.table.column_names, self.table.columns, strict=True)}


class _WarmEngine(FlattenEngine):
    """The engine for rows that always have the same types: what follows from the types alone is worked out once."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, registry: Registry) -> None:
        super().__init__(connection, registry, labelled=False)
        self._texts_of_queries: dict[str, str] = {}
        rows = _Rows(read_impressions({}, 0).table)
        self._native, self._texts = super()._native_columns(rows), super()._native_texts(rows)

    def _native_columns(self, block: Block) -> frozenset[str]:
        return self._native

    def _native_texts(self, block: Block) -> frozenset[str]:
        return self._texts

    def _sql(self, query: Callable[..., str], source: str) -> str:
        if source not in self._texts_of_queries:
            self._texts_of_queries[source] = super()._sql(query, source)
        return self._texts_of_queries[source]

    def _table(self, cursor: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
        # A relation is bound before it runs and again when it runs; for a single row that is a third of the time.
        result: Any = cursor.execute(query)
        return result.to_arrow_table() if hasattr(result, "to_arrow_table") else result.fetch_arrow_table()


class RowFlattener:
    """Flattens impressions in memory; safe to call from several threads, each call has a cursor of its own."""

    def __init__(self, registry: Registry, threads: int = 1) -> None:
        self._names = feature_names(registry)
        schema = flattened_schema(registry)
        self._types = [schema.field(name).type for name in self._names]
        self._connection = duckdb.connect(":memory:", config={"threads": threads})
        self._engine = _WarmEngine(self._connection, registry)

    def features(self, table: pa.Table) -> pa.Table:
        """Every feature of the rows of ``Impressions.table``, in the registry's order and the flattened columns' types.

        Raises DataError when the engine cannot flatten them.
        """
        flat = self._engine.flatten(_Rows(table.combine_chunks()))
        columns = [_as(flat.columns[name], kind) for name, kind in zip(self._names, self._types, strict=True)]
        return pa.table(columns, names=self._names)


def _as(column: pa.ChunkedArray | pa.Array, kind: pa.DataType) -> pa.ChunkedArray | pa.Array:
    return column if column.type == kind else column.cast(kind)
