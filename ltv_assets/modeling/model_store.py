"""Stages and models of a window in the warehouse: written as files, read back verified.

What belongs here: the files of a stage, and those of its out-of-fold arrays and figures. What does
not: fitting, the rows of a window (``training/windows.py``). Read next: ``model_set.py``.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.modeling.model_set import WindowModels
from ltv_assets.modeling.stages import STAGE_NAMES, STAGE_SPECS
from ltv_assets.storage.warehouse import Warehouse

OOF_FILE = "out_of_fold.parquet"
METRICS_FILE = "figures.parquet"


def write_stage(folder: Path, key: PartitionKey, stage: Any) -> dict[str, int | None]:
    """Write a stage's files, its out-of-fold arrays and its figures; returns {file name: rows or None}."""
    listed: dict[str, int | None] = {}
    for name, data in stage.to_files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        listed[name] = None
    if stage.oof:
        pq.write_table(pa.table({name: pa.array(values) for name, values in sorted(stage.oof.items())}), folder / OOF_FILE)
        listed[OOF_FILE] = None
    return listed | write_figures(folder, key, stage.diagnostics)


def write_figures(folder: Path, key: PartitionKey, figures: Mapping[str, float]) -> dict[str, int | None]:
    """Write a stage's figures as its relation (window_key, metric, value)."""
    names = sorted(figures)
    table = pa.table(
        {
            "window_key": pa.array([key] * len(names), pa.string()),
            "metric": pa.array(names, pa.string()),
            "value": pa.array([float(figures[n]) for n in names], pa.float64()),
        }
    )
    pq.write_table(table, folder / METRICS_FILE)
    return {METRICS_FILE: table.num_rows}


def read_stage(warehouse: Warehouse, asset: str, key: PartitionKey) -> Any:
    """A stage of a window with its out-of-fold arrays; every file is verified before it is opened."""
    files = warehouse.artifacts(asset, key)
    oof = _arrays(files.pop(OOF_FILE)) if OOF_FILE in files else {}
    return STAGE_SPECS[asset].load(files, oof)


def _arrays(stored: bytes) -> dict[str, NDArray[Any]]:
    table = pq.read_table(io.BytesIO(stored))
    return {name: table[name].to_numpy() for name in table.column_names}


def read_evaluated(warehouse: Warehouse, key: PartitionKey, *, out_of_fold: bool = False) -> WindowModels:
    """The stages of a window as trained before its holdout day, verified to belong together.

    ``out_of_fold``: with their out-of-fold arrays, as a refit asks for them.
    """
    stored = {asset: warehouse.artifacts(asset, key) for asset in STAGE_NAMES}
    files = {f"{asset}/{name}": data for asset in stored for name, data in stored[asset].items() if name != OOF_FILE}
    models = WindowModels.from_files(files)
    for asset, stage in models.stages.items():
        if out_of_fold and OOF_FILE in stored[asset]:
            stage.oof = _arrays(stored[asset][OOF_FILE])
    return models


def read_served(warehouse: Warehouse, key: PartitionKey) -> WindowModels:
    """The model of a window that scores new days, verified."""
    return WindowModels.from_files(warehouse.artifacts("served_model", key))
