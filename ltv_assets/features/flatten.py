"""From the hourly files of one day to one parquet file of flattened rows, streaming, in bounded memory.

What belongs here: grouping files by their physical types, running the generated query over them in order, setting rows
aside that have no key or no usable label, writing deterministic row groups, and counting everything that was missing or
unusable. What does not: the SQL (``sql.py``), deciding which files to read, publishing the result (``storage/``).
Next to read: ``sql.py``.

Files that share their physical types are read by one query; a file with other types gets a query of its own, because an
engine that is given both takes the types of the first. Rows keep the order of the files and, inside a file, their own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ltv_assets.contract import BY_NAME, LABEL_NAMES, REQUIRED_TEST_COLUMNS, REQUIRED_TRAIN_COLUMNS
from ltv_assets.errors import DataError
from ltv_assets.features.normalise import is_readable
from ltv_assets.features.registry import Registry
from ltv_assets.features.schema import categorical_names, flattened_schema
from ltv_assets.features.sql import STORED_LABELS, flatten_sql

ROW_GROUP = 65_536
BATCH = 16_384

QUARANTINE_SCHEMA = pa.schema(
    [("row_id", pa.string()), ("file", pa.string()), ("row_number", pa.int64()), ("reason", pa.string()), ("value", pa.string())]
)


@dataclass(frozen=True, slots=True)
class RawFile:
    """One file of impressions and the hour it belongs to (``YYYY-MM-DD-HH-00``, from its folder's name)."""

    path: Path
    datetime_key: str


@dataclass(slots=True)
class FlattenResult:
    """What became of a day: where the rows went, and everything that was missing or unusable.

    ``quarantine`` has the columns row_id, file, row_number (from 0), reason and value (the offending value as text);
    ``missing`` is the share of NULL cells by feature group; the counts by raw column are of single values, not rows.
    """

    rows_in: int = 0
    rows_out: int = 0
    rows_quarantined: dict[str, int] = field(default_factory=dict)
    quarantine: pa.Table = field(default_factory=QUARANTINE_SCHEMA.empty_table)
    missing: dict[str, float] = field(default_factory=dict)
    future_timestamps: dict[str, int] = field(default_factory=dict)
    ancient_timestamps: dict[str, int] = field(default_factory=dict)
    nonfinite_values: dict[str, int] = field(default_factory=dict)
    malformed_json: dict[str, int] = field(default_factory=dict)
    unexpected_columns: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def flatten_files(
    files: Sequence[RawFile],
    *,
    registry: Registry,
    labelled: bool,
    out: Path,
    threads: int = 2,
    memory_limit: str = "1GB",
    progress: Callable[[int, int], None] | None = None,
) -> FlattenResult:
    """Flatten the files of one day into one parquet file with exactly ``flattened_schema(registry)``.

    The output depends on the files' contents and order only: same input, same bytes. Set aside, never silently dropped,
    are rows without row_id, later occurrences of a row_id in the day, and, on labelled days, rows whose D7 revenue or
    payer flag is missing or impossible or whose longer horizons contradict the shorter.

    Args:
        files: the day's files in the order their rows shall have.
        labelled: whether label columns are expected; if not, they are written as NULL whatever the files hold.
        out: the file to write; its folder must exist. A failure leaves no file behind.
        threads: DuckDB threads. memory_limit: DuckDB's limit, e.g. ``"1GB"``.
        progress: called with (rows done, rows in all) as rows come out of the engine.

    Raises:
        DataError: a file cannot be read, lacks a key or label column, or its hour cannot be told from its key.
    """
    result = FlattenResult()
    sources = [_inspect(file, labelled) for file in files]
    _note_schema_findings(sources, registry, labelled, result)
    result.rows_in = sum(source.rows for source in sources)
    try:
        with closing(_connect(threads, memory_limit)) as connection, _RowGroupWriter(out, registry) as writer:
            repeated = _repeated_rows(connection, sources)
            sink = _Sink(registry, sources, repeated, result, writer)
            for batch in _flattened_batches(connection, sources, registry, labelled):
                sink.take(batch)
                if progress is not None:
                    progress(sink.position, result.rows_in)
            sink.finish()
    except BaseException:
        Path(out).unlink(missing_ok=True)
        raise
    return result


@dataclass(frozen=True, slots=True)
class _Source:
    """A file after its footer was read."""

    file: RawFile
    rows: int
    types: Mapping[str, pa.DataType]
    hour_start: int

    @property
    def layout(self) -> str:
        return ";".join(f"{name}:{self.types[name]}" for name in sorted(self.types) if name in BY_NAME)


def _inspect(file: RawFile, labelled: bool) -> _Source:
    try:
        with pq.ParquetFile(file.path) as parquet:
            types = {name: kind for name, kind in zip(parquet.schema_arrow.names, parquet.schema_arrow.types, strict=True)}
            rows = parquet.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file.path}: cannot be read as parquet: {error}") from error
    required = REQUIRED_TRAIN_COLUMNS if labelled else REQUIRED_TEST_COLUMNS
    for name in required:
        if name not in types or not is_readable(BY_NAME[name], types[name]):
            found = f"found {types[name]}" if name in types else "found none"
            raise DataError(f"{file.path}: column {name}: expected {BY_NAME[name].type}, {found}; without it no row of the file can be used")
    try:
        hour = datetime.strptime(file.datetime_key, "%Y-%m-%d-%H-00").replace(tzinfo=UTC)
    except ValueError as error:
        raise DataError(f"{file.path}: hour {file.datetime_key!r}: expected YYYY-MM-DD-HH-00, as in the folder's name") from error
    return _Source(file, rows, types, int(hour.timestamp()))


def _note_schema_findings(sources: Sequence[_Source], registry: Registry, labelled: bool, result: FlattenResult) -> None:
    def note(columns: Mapping[str, list[_Source]], text: str) -> None:
        for name, where in columns.items():
            result.warnings.append(f"{name}: {text} in {len(where)} of {len(sources)} files, first {where[0].file.path}")

    absent: dict[str, list[_Source]] = {}
    unusable: dict[str, list[_Source]] = {}
    ignored: dict[str, list[_Source]] = {}
    unexpected: set[str] = set()
    for source in sources:
        for name in (*registry.source_columns, *(STORED_LABELS if labelled else ())):
            kind = source.types.get(name)
            if kind is None:
                absent.setdefault(name, []).append(source)
            elif not is_readable(BY_NAME[name], kind):
                unusable.setdefault(f"{name} ({kind})", []).append(source)
        unexpected.update(name for name in source.types if name not in BY_NAME)
        if not labelled:
            for name in LABEL_NAMES:
                if name in source.types and not pa.types.is_null(source.types[name]):
                    ignored.setdefault(name, []).append(source)
    note(absent, "column is absent, read as missing,")
    note(unusable, "type cannot be read, taken as missing,")
    note(ignored, "label column on a day without labels, ignored,")
    result.unexpected_columns = sorted(unexpected)


def _connect(threads: int, memory_limit: str) -> duckdb.DuckDBPyConnection:
    # A single core parquet reader per thread keeps memory in proportion to the threads, not to the day.
    return duckdb.connect(":memory:", config={"threads": threads, "memory_limit": memory_limit, "preserve_insertion_order": True})


def _literal(path: Path) -> str:
    # Files are listed one by one; a bracket or an asterisk in a name must not be taken for a pattern.
    escaped = re.sub(r"([*?\[])", r"[\1]", str(path)).replace("'", "''")
    return f"'{escaped}'"


def _read(sources: Sequence[_Source]) -> str:
    paths = ", ".join(_literal(source.file.path) for source in sources)
    return f"read_parquet([{paths}], hive_partitioning = false)"


def _runs(sources: Sequence[_Source]) -> Iterator[list[_Source]]:
    """Yield the longest stretches of files, in order, that share their physical types."""
    for _, run in groupby((source for source in sources if source.rows), key=lambda source: source.layout):
        yield list(run)


def _flattened_batches(
    connection: duckdb.DuckDBPyConnection, sources: Sequence[_Source], registry: Registry, labelled: bool
) -> Iterator[pa.RecordBatch]:
    for run in _runs(sources):
        hours = ", ".join(str(source.hour_start) for source in run)
        source_sql = f"SELECT *, ([{hours}]::BIGINT[])[file_index::BIGINT + 1] AS hour_start FROM {_read(run)}"
        query = flatten_sql(registry, run[0].types, source=source_sql, labelled=labelled)
        try:
            yield from connection.sql(query).to_arrow_reader(BATCH)
        except (duckdb.Error, pa.ArrowException) as error:
            names = ", ".join(str(source.file.path) for source in run[:3]) + (" ..." if len(run) > 3 else "")
            raise DataError(f"{names}: cannot be flattened: {error}") from error


def _repeated_rows(connection: duckdb.DuckDBPyConnection, sources: Sequence[_Source]) -> np.ndarray:
    """Return the positions (in the day's order) of rows whose row_id occurred before, ascending."""
    starts = np.concatenate([[0], np.cumsum([source.rows for source in sources])])
    first = {source.file.path: int(start) for source, start in zip(sources, starts, strict=False)}
    parts = []
    for run in _runs(sources):
        offsets = ", ".join(str(first[source.file.path]) for source in run)
        parts.append(f"SELECT row_id::VARCHAR AS row_id, ([{offsets}]::BIGINT[])[file_index::BIGINT + 1] + file_row_number AS position FROM {_read(run)}")
    if not parts:
        return np.empty(0, np.int64)
    ids = f"ids AS ({' UNION ALL '.join(parts)})"
    try:
        # Hashes first: they are a fraction of the ids' memory, and a day without repetitions needs nothing more.
        repeated = connection.sql(f"WITH {ids} SELECT hash(row_id) AS h FROM ids WHERE row_id <> '' GROUP BY h HAVING count(*) > 1").fetchnumpy()["h"]
        if len(repeated) == 0:
            return np.empty(0, np.int64)
        connection.register("repeated", pa.table({"h": pa.array(np.asarray(repeated))}))
        positions = connection.sql(
            f"WITH {ids} SELECT position FROM ids WHERE row_id <> '' AND hash(row_id) IN (SELECT h FROM repeated)"
            " QUALIFY row_number() OVER (PARTITION BY row_id ORDER BY position) > 1 ORDER BY position"
        ).fetchnumpy()["position"]
        connection.unregister("repeated")
    except duckdb.Error as error:
        raise DataError(f"{sources[0].file.path.parent.parent}: row_id cannot be read: {error}") from error
    return np.asarray(positions, dtype=np.int64)


class _Sink:
    """Splits what the engine yields into rows to write and rows to set aside, and counts."""

    def __init__(self, registry: Registry, sources: Sequence[_Source], repeated: np.ndarray, result: FlattenResult, writer: _RowGroupWriter) -> None:
        self.position = 0
        self._sources = [source for source in sources if source.rows]
        self._ends = np.cumsum([source.rows for source in self._sources])
        self._repeated = repeated
        self._result = result
        self._writer = writer
        self._registry = registry
        self._keys = pa.array([source.file.datetime_key for source in self._sources], pa.string())
        self._counts: Counter[str] = Counter()
        self._nulls: Counter[str] = Counter()
        self._aside: list[pa.Table] = []

    def take(self, batch: pa.RecordBatch) -> None:
        first, self.position = self.position, self.position + batch.num_rows
        files = np.searchsorted(self._ends, np.arange(first, self.position), side="right")
        for name in batch.schema.names:
            if name.startswith("_") and name not in ("_reason", "_value"):
                column = batch.column(name)
                if column.null_count < len(column):
                    self._counts[name] += pc.sum(column).as_py() or 0
        reason, value = batch.column("_reason"), batch.column("_value")
        low, high = np.searchsorted(self._repeated, [first, self.position])
        if high > low:
            again = np.zeros(batch.num_rows, bool)
            again[self._repeated[low:high] - first] = True
            newly = pc.and_(pa.array(again), pc.is_null(reason))
            reason = pc.if_else(newly, "row_id repeated", reason)
            value = pc.if_else(newly, batch.column("row_id"), value)
        keep = batch.append_column("datetime", pa.DictionaryArray.from_arrays(files.astype(np.int32), self._keys).cast(pa.string()))
        if reason.null_count < len(reason):
            self._set_aside(batch.column("row_id"), files, first, reason, value)
            keep = keep.filter(pc.is_null(reason))
        self._writer.add(keep)
        for feature in self._registry.features:
            self._nulls[feature.group] += keep.column(feature.name).null_count

    def finish(self) -> None:
        result, registry = self._result, self._registry
        if self.position != result.rows_in:
            raise DataError(f"{self._sources[0].file.path.parent.parent}: {self.position} rows were read, the files' footers say {result.rows_in}")
        result.rows_out = self._writer.rows
        for name, counts in (
            ("_future_", result.future_timestamps),
            ("_ancient_", result.ancient_timestamps),
            ("_nonfinite_", result.nonfinite_values),
            ("_malformed_", result.malformed_json),
        ):
            counts.update({key.removeprefix(name): int(n) for key, n in sorted(self._counts.items()) if key.startswith(name) and n})
        sizes = Counter(feature.group for feature in registry.features)
        result.missing = {group: self._nulls[group] / max(1, size * result.rows_out) for group, size in sizes.items()}
        if self._aside:
            result.quarantine = pa.concat_tables(self._aside)
            reasons = result.quarantine.column("reason").value_counts().to_pylist()
            result.rows_quarantined = {item["values"]: item["counts"] for item in sorted(reasons, key=lambda item: item["values"])}
        self._add_warnings()

    def _add_warnings(self) -> None:
        result = self._result
        for counts, text in (
            (result.future_timestamps, "timestamps after the impression's hour began, taken as missing"),
            (result.ancient_timestamps, "timestamps before 2000, taken as missing"),
            (result.nonfinite_values, "NaN or infinite values, taken as missing"),
            (result.malformed_json, "values that are not valid JSON, taken as missing"),
        ):
            result.warnings += [f"{name}: {count} {text}" for name, count in counts.items()]
        if disagree := int(self._counts["_disagree"]):
            result.warnings.append(f"buyer_d7: {disagree} rows say 0 although iap_revenue_d7 is positive")

    def _set_aside(self, row_id: pa.Array, files: np.ndarray, first: int, reason: pa.Array, value: pa.Array) -> None:
        rows = np.flatnonzero(pc.is_valid(reason).to_numpy(zero_copy_only=False))
        files = files[rows]
        begins = np.concatenate([[0], self._ends[:-1]])
        paths = pa.array([str(source.file.path) for source in self._sources], pa.string())
        columns = [row_id.take(rows), paths.take(files), pa.array(first + rows - begins[files], pa.int64()), reason.take(rows), value.take(rows)]
        self._aside.append(pa.Table.from_arrays(columns, schema=QUARANTINE_SCHEMA))


class _RowGroupWriter:
    """Writes row groups of exactly ``ROW_GROUP`` rows (the last may be shorter), however the rows arrive.

    Compression runs in a thread of its own, one row group at a time, while the engine works on the next.
    """

    def __init__(self, out: Path, registry: Registry) -> None:
        self.rows = 0
        self._schema = flattened_schema(registry)
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        # Dictionaries only where values repeat: on float32 they cost time and save nothing.
        dictionaries = ["datetime", *categorical_names(registry)]
        self._writer = pq.ParquetWriter(out, self._schema, compression="zstd", compression_level=1, use_dictionary=dictionaries, write_statistics=True)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="row-group")
        self._writing: Future[None] | None = None

    def __enter__(self) -> _RowGroupWriter:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None:
                self._flush(everything=True)
                self._wait()
        finally:
            self._executor.shutdown(wait=True)
            self._writer.close()

    def add(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows
        self._pending.append(batch.select(self._schema.names))
        self._pending_rows += batch.num_rows
        if self._pending_rows >= ROW_GROUP:
            self._flush(everything=False)

    def _flush(self, *, everything: bool) -> None:
        if not self._pending_rows:
            return
        table = pa.Table.from_batches(self._pending)
        whole = table.num_rows if everything else table.num_rows - table.num_rows % ROW_GROUP
        rest = table.slice(whole)
        self._pending, self._pending_rows = rest.to_batches(), rest.num_rows
        self._wait()
        self._writing = self._executor.submit(self._write, table.slice(0, whole))

    def _write(self, table: pa.Table) -> None:
        for start in range(0, table.num_rows, ROW_GROUP):
            # Encoding each row group from its own rows alone makes the bytes independent of how batches arrived.
            part = table.slice(start, ROW_GROUP).combine_chunks()
            columns = [_encode(part.column(field.name), field.type) for field in self._schema]
            self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema), row_group_size=ROW_GROUP)

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()


def _encode(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    return pc.dictionary_encode(column).cast(kind) if pa.types.is_dictionary(kind) else column.cast(kind)
