"""Adversarial validation: a classifier of new against old rows, which detects shifts of the joint distribution.

What belongs here: the fit and its AUC. What does not: shifts of single columns (``psi.py``), actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ltv_assets.core.contract import Contract
from ltv_assets.core.database import open_duckdb
from ltv_assets.core.errors import DataError
from ltv_assets.modeling.evaluation.metrics import auc
from ltv_assets.modeling.lightgbm_params import repeatable_params
from ltv_assets.monitoring.psi import without_calendar
from ltv_assets.sampling.draws import row_hashes

HASHED_ROWS = 65_536
"""Identifiers hashed at a time."""


@dataclass(frozen=True, slots=True)
class Separation:
    """Separability of two sets of rows: out-of-fold AUC (0.5 = none), and the most used features."""

    auc: float
    rows_before: int
    rows_new: int
    features: tuple[tuple[str, float], ...]


def adversarial_separation(
    before: Sequence[Path],
    new: Sequence[Path],
    features: Sequence[str],
    *,
    threads: int,
    memory_limit: str,
    max_rows: int = 4000,
    seed: int = 0,
    contract: Contract | None = None,
) -> Separation:
    """Fit a small LightGBM that classifies new against earlier rows, on two halves of a sample, each scored by the other's model.

    Rows are sampled by the hash of row_id, at most ``max_rows`` a side and equally many on both; halves are cut by the same
    hash, so the result depends neither on order nor on chunking. Features made from calendar columns of the contract, by default
    the shipped one, are left out.
    ``threads`` are used by DuckDB and LightGBM, ``memory_limit`` is DuckDB's.

    Raises DataError if a side has fewer than 20 rows.
    """
    import lightgbm as lgb

    used = without_calendar(features, contract)
    frames = [_sample(files, used, max_rows, threads, memory_limit) for files in (before, new)]
    size = min(len(f) for f in frames)
    if size < 20:
        raise DataError(f"drift against earlier days needs at least 20 rows on each side, found {len(frames[0])} and {len(frames[1])}")
    table = pd.concat([f.iloc[:size] for f in frames], ignore_index=True)
    is_new = np.repeat([0, 1], size)
    half = (table.pop("h") % 2).to_numpy() == 0
    for name in table.columns:
        if not pd.api.types.is_numeric_dtype(table[name]):
            # Alphabetical: in order of appearance a high code would reveal the second side.
            table[name] = pd.factorize(table[name].astype("string"), sort=True)[0].astype(np.float32)
    X = table.to_numpy(dtype=np.float32)
    parameters = {
        "objective": "binary",
        "num_leaves": 7,
        "learning_rate": 0.1,
        "min_data_in_leaf": max(10, size // 100),
        "feature_fraction": 0.5,
        "max_bin": 31,
        **repeatable_params(seed, threads, by_row=True),
    }
    scores, gains = np.zeros(len(X)), np.zeros(X.shape[1])
    for part in (half, ~half):
        if part.all() or not part.any() or len(np.unique(is_new[part])) < 2:
            raise DataError("drift against earlier days: a half of the sample has rows of one side only")
        booster = lgb.train(parameters, lgb.Dataset(X[part], is_new[part]), num_boost_round=40)
        scores[~part] = booster.predict(X[~part], num_threads=threads)
        gains += booster.feature_importance("gain")
    order = np.argsort(-gains, kind="stable")[:10]
    share = gains / max(gains.sum(), 1e-12)
    names = list(table.columns)
    return Separation(float(auc(is_new, scores)), size, size, tuple((names[i], float(share[i])) for i in order if gains[i] > 0))


def _sample(files: Sequence[Path], features: Sequence[str], max_rows: int, threads: int, memory_limit: str) -> pd.DataFrame:
    """The rows with the smallest hashes of row_id (column ``h``), in order of hash and identifier.

    All identifiers are read, block by block; features are read for the chosen rows only.
    """
    chosen = _smallest_hashes(files, max_rows)
    columns = ", ".join('side."' + f.replace('"', '""') + '"' for f in features)
    source = "read_parquet(?, file_row_number = true, hive_partitioning = false) AS side"
    query = f"SELECT chosen.h, side.row_id, {columns} FROM {source} JOIN chosen ON side.file_row_number = chosen.row"
    with open_duckdb(threads=threads, memory_limit=memory_limit) as connection:
        parts = []
        for number, path in enumerate(files):
            here = chosen[chosen["file"] == number]
            connection.register("chosen", pa.Table.from_pandas(here[["h", "row"]], preserve_index=False))
            parts.append(connection.execute(query, [str(path)]).fetch_df())
    table = pd.concat(parts, ignore_index=True)
    return table.sort_values(["h", "row_id"], kind="stable", ignore_index=True).drop(columns="row_id")


def _smallest_hashes(files: Sequence[Path], count: int) -> pd.DataFrame:
    """Hash ``h`` of row_id, number of the ``file`` and ``row`` in it, of the ``count`` rows with the smallest hashes."""
    best = pd.DataFrame({"h": np.empty(0, np.uint64), "file": np.empty(0, np.int64), "row": np.empty(0, np.int64)})
    for number, path in enumerate(files):
        start = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(HASHED_ROWS, columns=["row_id"]):
                hashes = row_hashes(batch.column(0).to_pandas())
                block = pd.DataFrame({"h": hashes, "file": number, "row": np.arange(start, start + len(hashes))})
                start += len(hashes)
                if len(best) == count:
                    block = block[block["h"] < best["h"].iloc[-1]]
                best = pd.concat([best, block]).sort_values("h", kind="stable").iloc[:count]
    return best
