"""The rows of a training window, and its sampling plans, from the warehouse.

What belongs here: verified files of a window's days, maturity of their labels, the context of its stages, sampling plans in
the window's row order. What does not: reading parquet (``stored_rows.py``), the files of models
(``modeling/model_store.py``). Nothing is computed here that a figure depends on. Next to read: ``stored_rows.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ltv_assets.core.config import Config, ModelsConfig
from ltv_assets.core.contract import contract_of
from ltv_assets.core.errors import StaleError
from ltv_assets.core.memory import columns_in_memory, rows_in_memory, rows_of_all_columns
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.features.schema import feature_names
from ltv_assets.ingestion.calendar import mature_horizons, today
from ltv_assets.modeling.dataset import BLOCK_ROWS, WindowData, prepare_window
from ltv_assets.modeling.stages import WindowContext
from ltv_assets.sampling.draws import row_hashes
from ltv_assets.sampling.hhistus import HhistusPlan
from ltv_assets.sampling.histos import HistosPlan
from ltv_assets.state.project import Project
from ltv_assets.storage.warehouse import Warehouse
from ltv_assets.training.dask_cluster import remote_fit
from ltv_assets.training.stored_rows import Rows, count_rows, read_rows


def flattened_files(project: Project, days: Sequence[date]) -> dict[PartitionKey, tuple[Path, ...]]:
    """{day: verified flattened files}."""
    return {day: project.warehouse.files("flattened_features", day) for day in map(PartitionKey, days)}


def require_mature(config: Config, days: Sequence[date]) -> None:
    """Refuse days whose labels of the shortest horizon are not final yet. Raises StaleError naming the first and when it will be."""
    shortest = contract_of(config).horizons[0]
    for day in days:
        if shortest not in mature_horizons(config, day):
            final = day + timedelta(days=config.windows.maturity_days(shortest) + 1)
            raise StaleError(
                f"day {day}: its D{shortest} labels are final only from {final} on (today is {today()}); "
                f"train an older window, raise windows.embargo_days, or lower windows.label_maturity_days of {shortest}"
            )


class WindowRows:
    """The rows of one window, read once per process: the training context, and the holdout day."""

    def __init__(self, project: Project, key: PartitionKey) -> None:
        self.project = project
        self.key = key
        self.window = key.day
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

    def _files(self, days: Sequence[date]) -> dict[PartitionKey, tuple[Path, ...]]:
        return flattened_files(self.project, days)

    def context(self) -> WindowContext:
        """The training rows, ready for the stages."""
        config = self.project.config
        models = affordable(config, len(self.features), count_rows(self._files([*self.training_days, self.window])))
        data, threads = as_window(self.training_rows()), config.compute.threads
        return WindowContext(data, models, config.sampling, config.seed, threads, remote_fit(config))


def affordable(config: Config, features: int, rows: int) -> ModelsConfig:
    """The models' settings with as many auxiliary rows, zeros and encoded columns as ``compute.max_memory_gb`` has room for.

    ``rows``: those of the window and its holdout, which the served model is fitted on. Zeros are given up for columns: most of them
    look alike.
    """
    models, compute = config.models, config.compute
    auxiliary, budget = rows_in_memory(compute, features), models.zero_budget_rows
    if budget is not None:
        budget = min(budget, rows_of_all_columns(compute, features))
        rows = min(rows, budget)
    columns = columns_in_memory(compute, rows)
    return models.model_copy(
        update={
            "zero_budget_rows": budget,
            "max_auxiliary_rows": min(models.max_auxiliary_rows or auxiliary, auxiliary),
            "max_features": min(models.max_features or columns, columns),
        }
    )


def as_window(rows: Rows) -> WindowData:
    """Rows in the form the modelling core takes; days are the periods."""
    hashes = [row_hashes(rows.row_id.slice(low, BLOCK_ROWS).to_numpy()) for low in range(0, len(rows.row_id), BLOCK_ROWS)]
    return prepare_window(rows.X, rows.revenue, rows.day, hashes=np.concatenate(hashes) if hashes else None, contract=rows.contract)


def window_context(project: Project, key: PartitionKey) -> WindowContext:
    """Context of a window's training rows; the project keeps the last one, so the stages of one run encode it once."""
    identity = project.lineage().window_identity(key)
    if identity not in project.kept:
        project.kept.clear()
        project.kept[identity] = WindowRows(project, key).context()
    found: WindowContext = project.kept[identity]
    return found


def rows_of_refit(project: Project, key: PartitionKey) -> tuple[WindowContext, WindowData]:
    """Context of a window's training rows, and its holdout day, for the last fit of the window; the context is kept no longer."""
    found = window_context(project, key), as_window(WindowRows(project, key).holdout_rows())
    project.kept.clear()
    return found


def plan_table(key: PartitionKey, context: WindowContext, columns: Mapping[str, NDArray[Any]], rows: NDArray[np.int64]) -> pa.Table:
    """A sampling plan as a table: where each row is (day, file, row_number), and the columns of the plan."""
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


def read_histos_plan(project: Project, key: PartitionKey, context: WindowContext) -> HistosPlan | None:
    """The stored HistOS plan in the window's row order; None if HistOS is switched off."""
    table = _read_relation(project.warehouse, "histos_train", key)
    if context.sampling.classifier == "none":
        return None
    rows = _plan_rows(table, context)
    bins, multiplicity = np.zeros(len(context.data), np.uint8), np.ones(len(context.data), np.uint16)
    bins[rows], multiplicity[rows] = table["bin"].to_numpy(), table["multiplicity"].to_numpy()
    return HistosPlan(bins, multiplicity)


def read_hhistus_plan(project: Project, key: PartitionKey, context: WindowContext) -> HhistusPlan | None:
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


PLAN_READERS: Mapping[str, Callable[[Project, PartitionKey, WindowContext], Any]] = {
    "histos_train": read_histos_plan,
    "hhistus_buyers": read_hhistus_plan,
}


def _read_relation(warehouse: Warehouse, asset: str, key: PartitionKey) -> pa.Table:
    return pa.concat_tables([pq.read_table(f) for f in warehouse.files(asset, key)])
