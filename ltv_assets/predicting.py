"""``ltv predict``: raw impressions in, scored columns out, with a window's served model and without the graph."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from ltv_assets.errors import DataError, StaleError
from ltv_assets.features.flatten import RawFile, flatten_files
from ltv_assets.features.schema import feature_names
from ltv_assets.horizon import hour_of_folder
from ltv_assets.project import Project
from ltv_assets.scoring import PREDICTIONS_SCHEMA, scored_batches
from ltv_assets.submission import refuse_formulas
from ltv_assets.windows import read_served


def raw_files_below(source: Path) -> dict[str, list[RawFile]]:
    """{day: files} of every parquet file below a folder whose parent is an hourly folder, in order of hour and name.

    Raises DataError if there is none, naming what was expected.
    """
    paths = [source] if source.is_file() else sorted(source.rglob("*.parquet"))
    found: dict[str, list[RawFile]] = {}
    for path in sorted(paths, key=lambda p: (p.parent.name, p.name)):
        hour = hour_of_folder(path.absolute().parent.name)
        if hour is not None and not path.name.startswith((".", "_")):
            found.setdefault(str(hour[0]), []).append(RawFile(path, path.absolute().parent.name.removeprefix("datetime=")))
    if not found:
        raise DataError(f"{source}: no impressions found; expected datetime=YYYY-MM-DD-HH-00/*.parquet below it")
    return found


def predict_folder(
    project: Project, source: Path, target: Path, *, window: str | None, progress: Callable[[int, int], None]
) -> tuple[int, int]:
    """Score every impression below ``source`` into ``target`` (.csv or .parquet); returns (rows scored, rows set aside).

    The target appears only when it is complete. Raises StaleError if there is no champion, DataError for unusable input
    an unknown file type, or an id that a spreadsheet would execute.
    """
    if target.suffix not in (".csv", ".parquet"):
        raise DataError(f"{target}: expected a file ending in .csv or .parquet")
    champion = project.lineage().champion()
    if window is None and champion is None:
        raise StaleError(f"no champion in {project.warehouse.root} yet; run `ltv run` first, or name a window with --window")
    models = read_served(project.warehouse, window or (champion.window if champion else ""))
    features = feature_names(project.registry)
    days = raw_files_below(source)
    config = project.config.compute
    rows = quarantined = 0
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with tempfile.TemporaryDirectory(prefix="ltv-predict-") as folder, _writer(temporary, target.suffix) as writer:
            for number, (_, files) in enumerate(sorted(days.items())):
                progress(number, len(days))
                flat = Path(folder) / "day.parquet"
                result = flatten_files(
                    files,
                    registry=project.registry,
                    labelled=False,
                    out=flat,
                    threads=config.flatten_threads,
                    memory_limit=config.duckdb_limit,
                )
                if result.files_aside:
                    raise DataError(f"{result.files_aside[0].path}: {result.files_aside[0].reason}")
                quarantined += sum(result.rows_quarantined.values())
                for table in scored_batches(models, [flat], features, chunk_rows=config.chunk_rows, threads=config.threads):
                    if target.suffix == ".csv":
                        refuse_formulas(table["row_id"], str(target))
                    writer.write_table(table)
                    rows += table.num_rows
        progress(len(days), len(days))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return rows, quarantined


def _writer(path: Path, suffix: str) -> pq.ParquetWriter | pacsv.CSVWriter:
    if suffix == ".parquet":
        return pq.ParquetWriter(path, PREDICTIONS_SCHEMA, compression="zstd")
    schema: pa.Schema = PREDICTIONS_SCHEMA
    return pacsv.CSVWriter(path, schema, write_options=pacsv.WriteOptions(quoting_style="needed"))
