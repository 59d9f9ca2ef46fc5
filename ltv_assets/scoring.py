"""Scores of flattened files, streamed: one batch of rows in memory, whatever the size of the day.

The arithmetic is `ltv_assets.modeling.scoring`; here are only files. The result does not depend on the batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ltv_assets.contract import RELATIONS
from ltv_assets.modeling.scoring import WindowModels

_ARROW = {"VARCHAR": pa.string(), "DOUBLE": pa.float64(), "BOOLEAN": pa.bool_()}
PREDICTIONS_SCHEMA = pa.schema([(c.name, _ARROW[c.type]) for c in RELATIONS["predictions"]])


def scored_batches(
    models: WindowModels, files: Sequence[Path], features: Sequence[str], *, chunk_rows: int, day: str | None = None
) -> Iterator[pa.Table]:
    """Tables in the columns of ``predictions`` for the rows of flattened files, in their order.

    ``day`` is written into the column of that name; without it the day is taken from each row's hour.
    """
    for path in files:
        with pq.ParquetFile(path) as source:
            for batch in source.iter_batches(batch_size=chunk_rows, columns=["row_id", "datetime", *features]):
                table = pa.Table.from_batches([batch])
                frame = table.select(list(features)).to_pandas()
                scores = models.score(frame, chunk_rows)
                yield _as_predictions(table, scores, day)


def _as_predictions(table: pa.Table, scores: pd.DataFrame, day: str | None) -> pa.Table:
    hours = table["datetime"].cast(pa.string())
    days = pa.array([day] * table.num_rows, pa.string()) if day is not None else pa.array([h[:10] for h in hours.to_pylist()], pa.string())
    columns = [table["row_id"], days, *(pa.array(scores[n].to_numpy()) for n in PREDICTIONS_SCHEMA.names[2:])]
    return pa.table(columns, schema=PREDICTIONS_SCHEMA)


def score_files(
    models: WindowModels,
    files: Sequence[Path],
    features: Sequence[str],
    out: Path,
    *,
    chunk_rows: int,
    day: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Score flattened files into one parquet file with the columns of ``predictions``; returns the rows."""
    rows = 0
    with pq.ParquetWriter(out, PREDICTIONS_SCHEMA, compression="zstd") as writer:
        for table in scored_batches(models, files, features, chunk_rows=chunk_rows, day=day):
            writer.write_table(table)
            rows += table.num_rows
            if progress is not None:
                progress(rows)
    return rows
