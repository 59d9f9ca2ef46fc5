"""Scores of flattened files, streamed: one batch of rows in memory, whatever the size of the day.

The arithmetic is `ltv_assets.modeling.model_set`; here are only files. The result does not depend on the batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ltv_assets.core.contract import HOUR, ROW_ID, Scores
from ltv_assets.core.parallel import Workers, on_threads
from ltv_assets.modeling.model_set import WindowModels

TASK_ROWS = 65_536
"""Rows that are sent to another process at a time, about."""


def predictions_schema(names: Scores) -> pa.Schema:
    """The columns of ``predictions``: identifier, day, scores."""
    kinds = {"predicted_zero": pa.bool_()}
    return pa.schema([(ROW_ID, pa.string()), ("day", pa.string()), *((name, kinds.get(name, pa.float64())) for name in names.columns)])


def scored_batches(
    models: WindowModels, files: Sequence[Path], features: Sequence[str], *, chunk_rows: int, threads: int = 1, day: str | None = None
) -> Iterator[pa.Table]:
    """Tables in the columns of ``predictions`` for the rows of flattened files, in their order.

    ``day`` is written into the column of that name; without it the day is taken from each row's hour. ``threads`` chunks are
    scored side by side, and as many are read ahead.
    """
    chunks = _chunks(files, [ROW_ID, HOUR, *features], chunk_rows)
    return on_threads(lambda chunk: _scored(models, chunk, features, day), chunks, threads=threads, ahead=2 * threads)


def _chunks(files: Sequence[Path], columns: list[str], chunk_rows: int) -> Iterator[pa.Table]:
    for path in files:
        with pq.ParquetFile(path) as source:
            for batch in source.iter_batches(batch_size=chunk_rows, columns=columns):
                yield pa.Table.from_batches([batch])


def _scored(models: WindowModels, table: pa.Table, features: Sequence[str], day: str | None) -> pa.Table:
    scores = models.score(table.select(list(features)).to_pandas(), max(table.num_rows, 1))
    return _as_predictions(table, scores, day, predictions_schema(models.names))


@dataclass(frozen=True, slots=True)
class Part:
    """Rows first..last-1 of one flattened file."""

    path: Path
    first: int
    last: int


def parts_of(files: Sequence[Path], chunk_rows: int) -> Iterator[Part]:
    """Stretches of whole chunks, about ``TASK_ROWS`` long, so that parts and files have the same chunks."""
    step = chunk_rows * max(1, TASK_ROWS // chunk_rows)
    for path in files:
        rows = pq.read_metadata(path).num_rows
        yield from (Part(path, first, min(first + step, rows)) for first in range(0, rows, step))


class SentModels:
    """A window's models on their way to other processes; each verifies and parses them once, however many parts it scores."""

    def __init__(self, models: WindowModels) -> None:
        self._files = models.to_files()

    @cached_property
    def opened(self) -> WindowModels:
        """The models of the files."""
        return WindowModels.from_files(self._files)


def score_part(part: Part, *, models: SentModels, features: Sequence[str], chunk_rows: int, day: str | None) -> list[pa.Table]:
    """One part on its own, for another process."""
    with pq.ParquetFile(part.path) as source:
        ends = [0]
        for group in range(source.num_row_groups):
            ends.append(ends[-1] + source.metadata.row_group(group).num_rows)
        groups = [g for g in range(source.num_row_groups) if ends[g] < part.last and ends[g + 1] > part.first]
        rows = source.read_row_groups(groups, columns=[ROW_ID, HOUR, *features]).slice(part.first - ends[groups[0]], part.last - part.first)
    return [_scored(models.opened, rows.slice(first, chunk_rows), features, day) for first in range(0, rows.num_rows, chunk_rows)]


def _as_predictions(table: pa.Table, scores: pd.DataFrame, day: str | None, schema: pa.Schema) -> pa.Table:
    hours = table[HOUR].cast(pa.string())
    days = pa.repeat(pa.scalar(day), table.num_rows) if day is not None else pc.utf8_slice_codeunits(hours, 0, 10)
    columns = [table[ROW_ID], days, *(pa.array(scores[n].to_numpy()) for n in schema.names[2:])]
    return pa.table(columns, schema=schema)


def score_files(
    models: WindowModels,
    files: Sequence[Path],
    features: Sequence[str],
    out: Path,
    *,
    chunk_rows: int,
    threads: int = 1,
    day: str | None = None,
    progress: Callable[[int], None] | None = None,
    workers: Workers | None = None,
) -> int:
    """Score flattened files into one parquet file with the columns of ``predictions``; returns the rows.

    ``workers``: other processes that score parts of the files, which they must be able to read; the bytes are the same.
    """
    if workers is None:
        tables = scored_batches(models, files, features, chunk_rows=chunk_rows, threads=threads, day=day)
    else:
        parts = parts_of(files, chunk_rows)
        shared = {"models": SentModels(models), "features": tuple(features), "chunk_rows": chunk_rows, "day": day}
        tables = (table for scored in workers.map(score_part, parts, **shared) for table in scored)
    rows = 0
    with pq.ParquetWriter(out, predictions_schema(models.names), compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
            rows += table.num_rows
            if progress is not None:
                progress(rows)
    return rows
