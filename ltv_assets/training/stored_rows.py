"""Rows of flattened files, in memory or read block by block.

What belongs here: reading parquet into the frames and arrays that modelling takes. What does not: which days a window has
(``windows.py``). Next to read: ``windows.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ltv_assets.core.config import Config
from ltv_assets.core.contract import HOUR, ROW_ID, Contract, Scores, contract_of, load_contract
from ltv_assets.core.memory import rows_in_memory
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.ingestion.calendar import mature_horizons
from ltv_assets.modeling.dataset import Ints, RowStore


@dataclass(frozen=True)
class Rows:
    """Flattened rows of some days: features, revenue (one column for each horizon, NaN where absent or immature), row_id, day, hour.

    ``row_id`` stays with Arrow: as Python strings the identifiers would take five times their bytes.
    """

    X: pd.DataFrame | RowStore
    revenue: pd.DataFrame
    row_id: pa.ChunkedArray
    day: NDArray[Any]
    hour: NDArray[Any]
    contract: Contract = field(default_factory=load_contract)

    @property
    def names(self) -> Scores:
        """What the scores of these rows are called."""
        return self.contract.scores


def read_rows(config: Config, files: Mapping[PartitionKey, Sequence[Path]], features: Sequence[str], *, beside: int = 0) -> Rows:
    """Read the flattened files of some days, in order of day, file and row.

    Labels of a horizon that is not yet mature for a day are NaN, whatever the file says. Features of more rows than
    ``compute.max_memory_gb`` has room for stay in the files and are read block by block; ``beside``: other rows that are
    in memory with them.
    """
    paths_in_order = [path for _, paths in sorted(files.items()) for path in paths]
    large = count_rows(files) + beside > rows_in_memory(config.compute, len(features)) // 2  # the other half is for the folds
    stored = StoredRows(paths_in_order, features) if large else None
    tables, days = [], []
    contract = contract_of(config)
    columns = [ROW_ID, HOUR, *contract.revenue, *(() if stored else features)]
    for day, paths in sorted(files.items()):
        for path in paths:
            table = pq.read_table(path, columns=columns)
            tables.append(table)
            days.append(np.full(table.num_rows, day, dtype=object))
    together = pa.concat_tables(tables).unify_dictionaries()
    del tables
    frame = stored if stored is not None else together.select(list(features)).to_pandas(split_blocks=True)
    day_of_row = np.concatenate(days)
    revenue = together.select(list(contract.revenue)).to_pandas().astype(np.float64)
    for day in sorted(files):
        known = mature_horizons(config, day.day)
        for horizon, name in contract.labels.revenue.items():
            if horizon not in known:
                revenue.loc[day_of_row == day, name] = np.nan
    hours = pa.concat_arrays(together[HOUR].chunks)
    hour_names = np.array([key[11:13] for key in hours.dictionary.to_pylist()], dtype=object)
    return Rows(
        frame,
        revenue,
        together[ROW_ID],
        day_of_row,
        hour_names[hours.indices.to_numpy()],
        contract,
    )


def count_rows(files: Mapping[PartitionKey, Sequence[Path]]) -> int:
    """Rows of the flattened files of some days."""
    return sum(pq.read_metadata(path).num_rows for paths in files.values() for path in paths)


class StoredRows(RowStore):
    """Features of flattened files, one file after the other; only the row groups that were asked for last are decoded."""

    def __init__(self, files: Sequence[Path], features: Sequence[str]) -> None:
        self._paths = list(files)
        self.scratch = self._paths[0].parent
        self._features = list(features)
        self._files = [pq.ParquetFile(path) for path in files]
        self._groups = [(file, group) for file in self._files for group in range(file.num_row_groups)]
        rows = [file.metadata.row_group(group).num_rows for file, group in self._groups]
        self._starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self._decoded: dict[int, pa.Table] = {}

    @property
    def columns(self) -> pd.Index:
        return pd.Index(self._features)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, low: int, high: int, rows: Ints | None = None) -> pd.DataFrame:
        first = int(np.searchsorted(self._starts, low, side="right")) - 1
        last = int(np.searchsorted(self._starts, high, side="left"))
        wanted = range(first, max(last, first + 1))
        # A block that does not begin with a row group shares one with its neighbour.
        self._decoded = {i: self._decoded[i] if i in self._decoded else self._decode(i) for i in wanted}
        start, table = int(self._starts[first]), pa.concat_tables(self._decoded.values())
        chosen = table.slice(low - start, high - low) if rows is None else table.take(pa.array(rows - start))
        return chosen.unify_dictionaries().to_pandas()

    def forget(self) -> None:
        self._decoded = {}

    def _decode(self, number: int) -> pa.Table:
        file, group = self._groups[number]
        return file.read_row_group(group, columns=self._features)

    def select(self, columns: Sequence[str]) -> pd.DataFrame:
        tables = [file.read(columns=list(columns)) for file in self._files]
        return pa.concat_tables(tables).unify_dictionaries().to_pandas()
