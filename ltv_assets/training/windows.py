"""From flattened days in the warehouse to the rows of a training window, and from a stage's files back to the stage.

The bridge between ``storage`` and ``modeling``: it reads parquet and model files, verified, and hands plain frames and
arrays to the core. Nothing is computed here that a figure depends on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ltv_assets.core.columns import REVENUE_LABELS
from ltv_assets.core.config import Config, ModelsConfig
from ltv_assets.core.errors import StaleError
from ltv_assets.core.memory import columns_in_memory, rows_in_memory
from ltv_assets.features.schema import feature_names
from ltv_assets.ingestion.calendar import mature_horizons, parse_day, today
from ltv_assets.modeling.dataset import BLOCK_ROWS, RowStore, WindowData, prepare_window
from ltv_assets.modeling.stages import WindowContext
from ltv_assets.sampling.draws import row_hashes
from ltv_assets.sampling.hhistus import HhistusPlan
from ltv_assets.sampling.histos import HistosPlan
from ltv_assets.state.project import Project
from ltv_assets.storage.warehouse import Warehouse
from ltv_assets.training.dask_cluster import remote_fit


@dataclass(frozen=True)
class Rows:
    """Flattened rows of some days: features, revenue (three horizons in USD, NaN where absent or immature), row_id, day, hour.

    ``row_id`` stays with Arrow: as Python strings the identifiers would take five times their bytes.
    """

    X: pd.DataFrame | RowStore
    revenue: pd.DataFrame
    row_id: pa.ChunkedArray
    day: NDArray[Any]
    hour: NDArray[Any]


def read_rows(config: Config, files: Mapping[str, Sequence[Path]], features: Sequence[str], *, beside: int = 0) -> Rows:
    """Read the flattened files of some days, in order of day, file and row.

    Labels of a horizon that is not yet mature for a day are NaN, whatever the file says. Features of more rows than
    ``compute.max_memory_gb`` has room for stay in the files and are read block by block; ``beside``: other rows that are
    in memory with them.
    """
    paths_in_order = [path for _, paths in sorted(files.items()) for path in paths]
    large = count_rows(files) + beside > rows_in_memory(config.compute, len(features)) // 2  # the other half is for the folds
    stored = StoredRows(paths_in_order, features) if large else None
    tables, days = [], []
    columns = ["row_id", "datetime", *REVENUE_LABELS, *(() if stored else features)]
    for day, paths in sorted(files.items()):
        for path in paths:
            table = pq.read_table(path, columns=columns)
            tables.append(table)
            days.append(np.full(table.num_rows, day, dtype=object))
    together = pa.concat_tables(tables).unify_dictionaries()
    del tables
    frame = stored if stored is not None else together.select(list(features)).to_pandas(split_blocks=True)
    day_of_row = np.concatenate(days)
    revenue = together.select(list(REVENUE_LABELS)).to_pandas().astype(np.float64)
    for day in sorted(files):
        known = mature_horizons(config, parse_day(day))
        for horizon, name in zip((7, 14, 28), REVENUE_LABELS, strict=True):
            if horizon not in known:
                revenue.loc[day_of_row == day, name] = np.nan
    hours = pa.concat_arrays(together["datetime"].chunks)
    hour_names = np.array([key[11:13] for key in hours.dictionary.to_pylist()], dtype=object)
    return Rows(
        frame,
        revenue,
        together["row_id"],
        day_of_row,
        hour_names[hours.indices.to_numpy()],
    )


def count_rows(files: Mapping[str, Sequence[Path]]) -> int:
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

    def read(self, low: int, high: int) -> pd.DataFrame:
        first = int(np.searchsorted(self._starts, low, side="right")) - 1
        last = int(np.searchsorted(self._starts, high, side="left"))
        wanted = range(first, max(last, first + 1))
        # A block that does not begin with a row group shares one with its neighbour.
        self._decoded = {i: self._decoded[i] if i in self._decoded else self._decode(i) for i in wanted}
        table = pa.concat_tables(self._decoded.values()).slice(low - int(self._starts[first]), high - low)
        return table.unify_dictionaries().to_pandas()

    def forget(self) -> None:
        self._decoded = {}

    def _decode(self, number: int) -> pa.Table:
        file, group = self._groups[number]
        return file.read_row_group(group, columns=self._features)

    def select(self, columns: Sequence[str]) -> pd.DataFrame:
        tables = [file.read(columns=list(columns)) for file in self._files]
        return pa.concat_tables(tables).unify_dictionaries().to_pandas()


def flattened_files(project: Project, days: Sequence[date]) -> dict[str, tuple[Path, ...]]:
    """{day: verified flattened files}."""
    return {str(day): project.warehouse.files("flattened_features", str(day)) for day in days}


def require_mature(config: Config, days: Sequence[date]) -> None:
    """Refuse days whose D7 labels are not final yet. Raises StaleError naming the first and when it will be."""
    for day in days:
        if 7 not in mature_horizons(config, day):
            final = day + timedelta(days=config.windows.label_maturity_days_d7 + 1)
            raise StaleError(
                f"day {day}: its D7 labels are final only from {final} on (today is {today()}); "
                "train an older window, raise windows.embargo_days, or lower windows.label_maturity_days_d7"
            )


class WindowRows:
    """The rows of one window, read once per process: the training context, and the holdout day."""

    def __init__(self, project: Project, key: str) -> None:
        self.project = project
        self.key = key
        self.window = parse_day(key)
        self.training_days = project.horizon.training_days(self.window)
        self.features = feature_names(project.registry)

    def training_rows(self) -> Rows:
        """Rows of the training days. Raises StaleError if a day's labels are not mature."""
        require_mature(self.project.config, self.training_days)
        own, other = self._files(self.training_days), self._files([self.window])
        return read_rows(self.project.config, own, self.features, beside=count_rows(other))

    def holdout_rows(self) -> Rows:
        """Rows of the holdout day. Raises StaleError if its labels are not mature."""
        require_mature(self.project.config, [self.window])
        own, other = self._files([self.window]), self._files(self.training_days)
        return read_rows(self.project.config, own, self.features, beside=count_rows(other))

    def _files(self, days: Sequence[date]) -> dict[str, tuple[Path, ...]]:
        return flattened_files(self.project, days)

    def context(self) -> WindowContext:
        """The training rows, ready for the stages."""
        config = self.project.config
        models = affordable(config, len(self.features), count_rows(self._files([*self.training_days, self.window])))
        data, threads = as_window(self.training_rows()), config.compute.threads
        return WindowContext(data, models, config.sampling, config.seed, threads, remote_fit(config))


def affordable(config: Config, features: int, rows: int) -> ModelsConfig:
    """The models' settings with as many auxiliary rows and encoded columns as ``compute.max_memory_gb`` has room for.

    ``rows``: those of the window and its holdout, which the served model is fitted on.
    """
    models, compute = config.models, config.compute
    auxiliary, columns = rows_in_memory(compute, features), columns_in_memory(compute, rows)
    return models.model_copy(
        update={
            "max_auxiliary_rows": min(models.max_auxiliary_rows or auxiliary, auxiliary),
            "max_features": min(models.max_features or columns, columns),
        }
    )


def as_window(rows: Rows) -> WindowData:
    """Rows in the form the modelling core takes; days are the periods."""
    hashes = [row_hashes(rows.row_id.slice(low, BLOCK_ROWS).to_numpy()) for low in range(0, len(rows.row_id), BLOCK_ROWS)]
    return prepare_window(rows.X, rows.revenue, rows.day, hashes=np.concatenate(hashes) if hashes else None)


_LAST_CONTEXT: dict[tuple[Path, str], WindowContext] = {}


def window_context(project: Project, key: str) -> WindowContext:
    """Context of a window's training rows; the last one is kept, so the stages of one process encode it once."""
    identity = (project.warehouse.root, project.lineage().window_identity(key))
    if identity not in _LAST_CONTEXT:
        _LAST_CONTEXT.clear()
        _LAST_CONTEXT[identity] = WindowRows(project, key).context()
    return _LAST_CONTEXT[identity]


def served_context(project: Project, key: str) -> WindowContext:
    """Context of a window's training rows and its holdout day, for the last fit of the window: it takes the place of the one kept."""
    together = window_context(project, key).with_rows(as_window(WindowRows(project, key).holdout_rows()))
    _LAST_CONTEXT.clear()
    return together


# -------------------------------------------------------------------------------------------------------------- plans


def plan_table(
    project: Project, key: str, context: WindowContext, columns: Mapping[str, NDArray[Any]], rows: NDArray[np.int64]
) -> pa.Table:
    """A sampling plan as a table: where each row is (day, file, row_number), and what the plan says of it."""
    data = context.data
    starts = np.searchsorted(data.period, np.arange(len(data.period_names)))
    names = pa.DictionaryArray.from_arrays(pa.array(data.period[rows], pa.int32()), pa.array(data.period_names, pa.string()))
    position = {
        "window_key": pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(rows)), pa.int32()), pa.array([key], pa.string())),
        "day": names,
        "file": pa.array(np.zeros(len(rows)), pa.int32()),
        "row_number": pa.array(rows - starts[data.period[rows]], pa.int64()),
    }
    return pa.table({**position, **{name: pa.array(values[rows]) for name, values in columns.items()}})


def _plan_rows(table: pa.Table, context: WindowContext) -> NDArray[np.int64]:
    data = context.data
    starts = dict(zip(data.period_names, np.searchsorted(data.period, np.arange(len(data.period_names))), strict=True))
    days = table["day"].cast(pa.string()).to_pandas().map(starts).to_numpy(dtype=np.int64)
    return days + table["row_number"].to_numpy()


def read_histos_plan(project: Project, key: str, context: WindowContext) -> HistosPlan | None:
    """The stored HistOS plan in the window's row order; None if HistOS is switched off."""
    table = _read_relation(project.warehouse, "histos_train", key)
    if context.sampling.classifier == "none":
        return None
    rows = _plan_rows(table, context)
    bins, multiplicity = np.zeros(len(context.data), np.uint8), np.ones(len(context.data), np.uint16)
    bins[rows], multiplicity[rows] = table["bin"].to_numpy(), table["multiplicity"].to_numpy()
    return HistosPlan(bins, multiplicity)


def read_hhistus_plan(project: Project, key: str, context: WindowContext) -> HhistusPlan | None:
    """The stored HHISTUS plan in the window's row order; None if HHISTUS is switched off."""
    table = _read_relation(project.warehouse, "hhistus_buyers", key)
    if context.sampling.regressor == "none":
        return None
    rows = _plan_rows(table, context)
    size = len(context.data)
    bins = context.histogram.bin_of(context.data.d7).astype(np.uint8)
    keep, weight = np.zeros(size, bool), np.zeros(size, np.float32)
    keep[rows], weight[rows] = True, table["weight"].to_numpy()
    return HhistusPlan(bins, keep, weight)


def _read_relation(warehouse: Warehouse, asset: str, key: str) -> pa.Table:
    return pa.concat_tables([pq.read_table(f) for f in warehouse.files(asset, key)])
