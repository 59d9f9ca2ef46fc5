"""Adversarial validation: a classifier of new against old rows, which detects shifts of the joint distribution.

What belongs here: the fit and its AUC. What does not: shifts of single columns (``psi.py``), actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ltv_assets.core.contract import Contract
from ltv_assets.core.errors import DataError
from ltv_assets.modeling.evaluation.metrics import auc
from ltv_assets.modeling.lightgbm_params import repeatable_params
from ltv_assets.monitoring.psi import without_calendar
from ltv_assets.sampling.draws import row_hashes

HASHED_ROWS = 65_536
"""Identifiers hashed at a time."""
THREADED_ROWS = 16_384
"""Row groups above this size are decoded by several threads; smaller ones take longer that way."""


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
    max_rows: int = 4000,
    seed: int = 0,
    contract: Contract | None = None,
) -> Separation:
    """Fit a small LightGBM that classifies new against earlier rows, on two halves of a sample, each scored by the other's model.

    Rows are sampled by the hash of row_id, at most ``max_rows`` a side and equally many on both; halves are cut by the same
    hash, so the result depends neither on order nor on chunking. Features made from calendar columns of the contract, by default
    the shipped one, are left out.
    ``threads`` are LightGBM's.

    Raises DataError if a side has fewer than 20 rows.
    """
    import lightgbm as lgb

    used = without_calendar(features, contract)
    frames = [_sample(files, used, max_rows) for files in (before, new)]
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


def _sample(files: Sequence[Path], features: tuple[str, ...], max_rows: int) -> pd.DataFrame:
    """The rows with the smallest hashes of row_id (column ``h``), in order of hash and identifier."""
    parts = [_sample_of_file(path, path.stat().st_mtime_ns, features, max_rows) for path in files]
    table = pd.concat(parts, ignore_index=True).sort_values(["h", "row_id"], kind="stable", ignore_index=True)
    return table.iloc[:max_rows].drop(columns="row_id")


@lru_cache(maxsize=4)
def _sample_of_file(path: Path, _modified: int, features: tuple[str, ...], max_rows: int) -> pd.DataFrame:
    """The ``max_rows`` rows of one file with the smallest hashes of row_id, and these hashes ``h``.

    All identifiers are read, block by block; features are read for the chosen rows only. Remembered, because a day is compared
    with the days before it and then with those after it.
    """
    chosen = _smallest_hashes(path, max_rows).sort_values("row")
    rows, first, parts = chosen["row"].to_numpy(), 0, []
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            last = first + count
            here = rows[(rows >= first) & (rows < last)]
            if len(here):
                table = file.read_row_group(group, columns=["row_id", *features], use_threads=count > THREADED_ROWS)
                parts.append(table.take(pa.array(here - first)))
            first = last
        table = pa.concat_tables(parts) if parts else file.schema_arrow.empty_table().select(["row_id", *features])
    frame = table.to_pandas()
    frame.insert(0, "h", chosen["h"].to_numpy())
    return frame


def _smallest_hashes(path: Path, count: int) -> pd.DataFrame:
    """Hash ``h`` of row_id and ``row`` in the file of the ``count`` rows with the smallest hashes."""
    best = pd.DataFrame({"h": np.empty(0, np.uint64), "row": np.empty(0, np.int64)})
    start = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(HASHED_ROWS, columns=["row_id"]):
            hashes = row_hashes(batch.column(0).to_pandas())
            block = pd.DataFrame({"h": hashes, "row": np.arange(start, start + len(hashes))})
            start += len(hashes)
            if len(best) == count:
                block = block[block["h"] < best["h"].iloc[-1]]
            best = pd.concat([best, block]).sort_values("h", kind="stable").iloc[:count]
    return best
