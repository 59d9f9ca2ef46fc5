"""From the hourly files of one day to one parquet file of flattened rows, streaming, in bounded memory.

What belongs here: grouping files by their physical types, running the generated query over them in order, setting rows
aside that have no key or no usable label, writing deterministic row groups, and counting everything that was missing or
unusable. What does not: the SQL (``sql.py``), deciding which files to read, publishing the result (``storage/``).
Next to read: ``sql.py``.

Files that share their physical types are read by one query; a file with other types gets a query of its own, because an
engine that is given both takes the types of the first. Rows keep the order of the files and, inside a file, their own.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Protocol

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ltv_assets.contract import BY_NAME, LABEL_NAMES, REQUIRED_TEST_COLUMNS, REQUIRED_TRAIN_COLUMNS
from ltv_assets.errors import DataError, TransientError
from ltv_assets.features.arrays import (
    Entries,
    OwnKey,
    Sparse,
    column_statistics,
    is_native,
    readable_text,
    shared_elements,
    unreadable_texts,
)
from ltv_assets.features.normalise import form_of, is_readable
from ltv_assets.features.registry import Registry, feature_name
from ltv_assets.features.schema import categorical_names, flattened_schema
from ltv_assets.features.sql import STORED_LABELS, interaction_inputs, interaction_sql, nested_sql, own_keys, row_sql
from ltv_assets.features.statistics import own_key_of
from ltv_assets.parallel import Workers, in_order
from ltv_assets.sampling.draws import hash_uniform, row_hashes
from ltv_assets.storage.memory import release_memory

ROW_GROUP = 65_536
BLOCK_ROWS = 131_072
"""Files are flattened together up to this many rows, which spares small hours a query each; a larger file stands alone, and
is divided between its row groups where it has several."""

DECODED_AT_ONCE = 32 << 20
"""Bytes of nested columns, as the files' footers state them, that a block decodes at once."""

ODD_AT_ONCE = 4
"""Nested columns in an unusual layout that one query handles."""

COUNTED = ("_future_", "_ancient_", "_nonfinite_", "_malformed_", "_unreadable_", "_disagree")
NOT_UTF8 = "row_id is not UTF-8"
SAMPLE_DRAW = 1_000_003
"""Number of the draw that samples rows, far from the copy numbers of the sampling plans."""

QUARANTINE_SCHEMA = pa.schema(
    [("row_id", pa.string()), ("file", pa.string()), ("row_number", pa.int64()), ("reason", pa.string()), ("value", pa.string())]
)


@dataclass(frozen=True, slots=True)
class RawFile:
    """One file of impressions and the hour it belongs to (``YYYY-MM-DD-HH-00``, from its folder's name)."""

    path: Path
    datetime_key: str


@dataclass(frozen=True, slots=True)
class FileAside:
    """A file whose footer promised ``rows`` rows that cannot be decoded."""

    path: Path
    rows: int
    reason: str


@dataclass(slots=True)
class FlattenResult:
    """What became of a day: where the rows went, and everything that was missing or unusable.

    ``rows_in`` = ``rows_out`` + ``rows_sampled_out`` + the rows of ``rows_quarantined`` + those of ``files_aside``.
    ``quarantine`` has the columns row_id, file, row_number (from 0), reason and value (the offending value as text);
    ``missing`` is the share of NULL cells by feature group; the counts by raw column are of single values, not rows.
    """

    rows_in: int = 0
    rows_out: int = 0
    rows_sampled_out: int = 0
    rows_quarantined: dict[str, int] = field(default_factory=dict)
    quarantine: pa.Table = field(default_factory=QUARANTINE_SCHEMA.empty_table)
    files_aside: list[FileAside] = field(default_factory=list)
    missing: dict[str, float] = field(default_factory=dict)
    future_timestamps: dict[str, int] = field(default_factory=dict)
    ancient_timestamps: dict[str, int] = field(default_factory=dict)
    nonfinite_values: dict[str, int] = field(default_factory=dict)
    malformed_json: dict[str, int] = field(default_factory=dict)
    unreadable_text: dict[str, int] = field(default_factory=dict)
    unexpected_columns: list[str] = field(default_factory=list)
    absent_columns: dict[str, int] = field(default_factory=dict)
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
    sampling_fraction: float = 1.0,
    seed: int = 0,
    workers: Workers | None = None,
) -> FlattenResult:
    """Flatten the files of one day into one parquet file with exactly ``flattened_schema(registry)``.

    The output depends on the files' contents and order only: same input, same bytes. Set aside, never silently dropped,
    are rows without a readable row_id, later occurrences of a row_id in the day, and, on labelled days, rows whose D7
    revenue or payer flag is missing or impossible or whose longer horizons contradict the shorter; and whole files whose
    rows cannot be decoded although their footer can.

    Args:
        files: the day's files in the order their rows shall have.
        labelled: whether label columns are expected; if not, they are written as NULL whatever the files hold.
        out: the file to write; its folder must exist. A failure leaves no file behind.
        threads: DuckDB threads. memory_limit: DuckDB's limit, e.g. ``"1GB"``.
        progress: called with (rows done, rows in all) as rows come out of the engine.
        sampling_fraction: share of the good rows that is written, chosen by a hash of (seed, row_id); the rest is counted.
        workers: other processes that flatten the blocks of files, which they must be able to read; this one writes them.

    Raises:
        DataError: a file has no readable footer, lacks a key or label column, or its hour cannot be told from its key.
        TransientError: the memory limit or the disk does not suffice.
    """
    sources = [_inspect(file, labelled) for file in files]
    aside: list[FileAside] = []
    sample = Sample(sampling_fraction, seed)
    copies = Path(out).with_name(f".{Path(out).name}.copies")
    try:
        while True:
            try:
                result = _flatten_sources(sources, registry, labelled, Path(out), threads, memory_limit, progress, sample, workers)
                break
            except UndecodableError:
                # Only now is each file tried alone: whole days cost too much to decode twice.
                broken = _undecodable(sources, registry, labelled, memory_limit)
                if not broken:
                    raise
                readable = {source: _with_readable_ids(source, labelled, copies) for source in broken}
                aside += [FileAside(source.file.path, source.rows, broken[source]) for source in broken if readable[source] is None]
                sources = [usable for source in sources if (usable := readable.get(source, source)) is not None]
    finally:
        if copies.exists():
            shutil.rmtree(copies)
    result.files_aside = aside
    result.rows_in += sum(file.rows for file in aside)
    return result


class UndecodableError(DataError):
    """The bytes of a page, or a value in it, are beyond every reader."""


@contextmanager
def _decoding(what: str) -> Iterator[None]:
    """Tell bytes that cannot be decoded from a machine that is too small."""
    try:
        yield
    except (duckdb.OutOfMemoryException, MemoryError) as error:
        raise TransientError(f"{what}: not enough memory ({_one_line(error)}); raise compute.duckdb_memory_gb or free memory") from error
    except (duckdb.Error, pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise TransientError(f"{what}: the disk is full ({_one_line(error)}); make room and run again") from error
        raise UndecodableError(f"{what}: cannot be flattened: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return f"{' '.join(str(error).split()):.200}"


def _undecodable(sources: Sequence[_Source], registry: Registry, labelled: bool, memory_limit: str) -> dict[_Source, str]:
    """The reason of every file that cannot be flattened even when it is alone."""
    found: dict[_Source, str] = {}
    with closing(_connect(1, memory_limit)) as connection:
        engine = FlattenEngine(connection, registry, labelled)
        for source in sources:
            try:
                if source.rows:
                    _repeated_rows(connection, [source])
                    engine.flatten(_Block((source,)))
            except UndecodableError as error:
                found[source] = f"its rows cannot be decoded ({_one_line(error.__cause__ or error)}); deliver the file again"
    return found


def _flatten_sources(
    sources: Sequence[_Source],
    registry: Registry,
    labelled: bool,
    out: Path,
    threads: int,
    memory_limit: str,
    progress: Callable[[int, int], None] | None,
    sample: Sample,
    workers: Workers | None,
) -> FlattenResult:
    result = FlattenResult()
    _note_schema_findings(sources, registry, labelled, result)
    result.rows_in = sum(source.rows for source in sources)
    try:
        with (
            closing(_connect(threads, memory_limit, spill=out.with_name(f".{out.name}.spill"))) as connection,
            ThreadPoolExecutor(threads) as pool,
            _RowGroupWriter(out, registry) as writer,
        ):
            repeated = _repeated_rows(connection, sources)
            release_memory()
            sink = _Sink(registry, sources, repeated, result, writer, sample)
            # Whole blocks side by side keep every core busy.
            lanes = threads if workers is None else workers.lanes
            blocks = _blocks(_divided(sources, BLOCK_ROWS), largest=min(BLOCK_ROWS, -(-result.rows_in // lanes)))
            if workers is None:
                engine = FlattenEngine(connection, registry, labelled)
                flattened = in_order(lambda block: pool.submit(engine.flatten, block), blocks, ahead=threads)
            else:
                flattened = workers.map(flatten_block, blocks, registry=registry, labelled=labelled, memory_limit=memory_limit)
            for flat in flattened:
                sink.take(flat)
                release_memory()
                if progress is not None:
                    progress(sink.position, result.rows_in)
            sink.finish()
    except BaseException:
        out.unlink(missing_ok=True)
        raise
    return result


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """A file after its footer was read; or ``part``, some of its row groups, beginning at its row ``first_row``.

    ``copy`` is read instead of the file if some of its keys are no text: those rows, {row: bytes of the key, escaped}, are
    ``illegible`` and have no key in the copy.
    """

    file: RawFile
    rows: int
    types: Mapping[str, pa.DataType]
    hour_start: int
    metadata: pq.FileMetaData
    text_leaves: tuple[str, ...]
    sizes: Mapping[str, int]
    part: range | None = None
    first_row: int = 0
    copy: Path | None = None
    illegible: Mapping[int, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.copy or self.file.path

    @property
    def layout(self) -> str:
        return ";".join(f"{name}:{self.types[name]}" for name in sorted(self.types) if name in BY_NAME)


def _inspect(file: RawFile, labelled: bool) -> _Source:
    try:
        with pq.ParquetFile(file.path) as parquet:
            types = dict(zip(parquet.schema_arrow.names, parquet.schema_arrow.types, strict=True))
            metadata = parquet.metadata
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file.path}: cannot be read as parquet: {error}") from error
    required = REQUIRED_TRAIN_COLUMNS if labelled else REQUIRED_TEST_COLUMNS
    for name in required:
        if name not in types or not is_readable(BY_NAME[name], types[name]):
            found = f"found {types[name]}" if name in types else "found none"
            raise DataError(
                f"{file.path}: column {name}: expected {BY_NAME[name].type}, {found}; without it no row of the file can be used"
            )
    try:
        hour = datetime.strptime(file.datetime_key, "%Y-%m-%d-%H-00").replace(tzinfo=UTC)
    except ValueError as error:
        raise DataError(f"{file.path}: hour {file.datetime_key!r}: expected YYYY-MM-DD-HH-00, as in the folder's name") from error
    leaves = [metadata.schema.column(i) for i in range(metadata.num_columns)]
    text = tuple(leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY")
    return _Source(file, metadata.num_rows, types, int(hour.timestamp()), metadata, text, _sizes(metadata, range(metadata.num_row_groups)))


def _with_readable_ids(source: _Source, labelled: bool, folder: Path) -> _Source | None:
    """The file without its keys that are not UTF-8, in a copy in ``folder``; None if there are no such keys, or if it was one already.

    Engines refuse a column of text with one such value as a whole, so it is read as bytes here.
    """
    if source.copy is not None:
        return None
    folder.mkdir(exist_ok=True)
    copy = folder / f"{sha256(bytes(source.file.path)).hexdigest()}.parquet"
    illegible: dict[int, str] = {}
    row = 0
    with (
        suppress(UndecodableError),
        _decoding(str(source.file.path)),
        pq.ParquetFile(source.file.path, metadata=source.metadata) as parquet,
    ):
        index = parquet.schema_arrow.get_field_index("row_id")
        schema = parquet.schema_arrow.set(index, pa.field("row_id", pa.string()))
        with pq.ParquetWriter(copy, schema) as writer:
            for batch in parquet.iter_batches(batch_size=ROW_GROUP, use_threads=False):
                keys = _decoded(batch.column(index)).cast(pa.large_binary()).to_pylist()
                texts = [None if key is None else _text_or_none(key) for key in keys]
                bad = [i for i, text in enumerate(texts) if text is None and keys[i] is not None]
                illegible |= {row + i: keys[i].decode("utf-8", errors="backslashreplace") for i in bad}
                writer.write_batch(batch.set_column(index, schema.field(index), pa.array(texts, pa.string())))
                row += batch.num_rows
        if illegible:
            return replace(_inspect(RawFile(copy, source.file.datetime_key), labelled), file=source.file, copy=copy, illegible=illegible)
    return None


def _decoded(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _text_or_none(key: bytes) -> str | None:
    try:
        return key.decode()
    except UnicodeDecodeError:
        return None


def _sizes(metadata: pq.FileMetaData, groups: range) -> Mapping[str, int]:
    """Decoded bytes of each column in some row groups, as the footer states them."""
    names = [metadata.schema.column(i).path.split(".", 1)[0] for i in range(metadata.num_columns)]
    sizes: Counter[str] = Counter()
    for group in groups:
        for index, name in enumerate(names):
            sizes[name] += metadata.row_group(group).column(index).total_uncompressed_size
    return sizes


def _divided(sources: Sequence[_Source], largest: int) -> list[_Source]:
    """The sources, files with more than ``largest`` rows divided into runs of row groups with at most so many where they can be."""
    divided: list[_Source] = []
    for source in sources:
        rows = [source.metadata.row_group(i).num_rows for i in range(source.metadata.num_row_groups)]
        if source.rows <= largest or len(rows) == 1:
            divided.append(source)
            continue
        start = 0
        while start < len(rows):
            stop = start + 1
            while stop < len(rows) and sum(rows[start : stop + 1]) <= largest:
                stop += 1
            groups = range(start, stop)
            part = replace(
                source, rows=sum(rows[start:stop]), sizes=_sizes(source.metadata, groups), part=groups, first_row=sum(rows[:start])
            )
            divided.append(part)
            start = stop
    return divided


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
    result.absent_columns = {name: len(where) for name, where in sorted(absent.items())}
    note(unusable, "type cannot be read, taken as missing,")
    note(ignored, "label column on a day without labels, ignored,")
    result.unexpected_columns = sorted(unexpected)


def _connect(threads: int, memory_limit: str, spill: Path | None = None) -> duckdb.DuckDBPyConnection:
    """An in-memory database; ``spill`` is where it puts what exceeds its memory, and removes it when it is closed."""
    config: dict[str, str | bool | int | float | list[str]] = {
        "threads": threads,
        "memory_limit": memory_limit,
        "preserve_insertion_order": True,
    }
    if spill is not None:
        config["temp_directory"] = str(spill)
    return duckdb.connect(":memory:", config=config)


def _literal(path: Path) -> str:
    # Files are listed one by one; a bracket or an asterisk in a name must not be taken for a pattern.
    escaped = re.sub(r"([*?\[])", r"[\1]", str(path)).replace("'", "''")
    return f"'{escaped}'"


def _read(sources: Sequence[_Source]) -> str:
    paths = ", ".join(_literal(source.path) for source in sources)
    return f"read_parquet([{paths}], hive_partitioning = false)"


def _blocks(sources: Sequence[_Source], *, largest: int = BLOCK_ROWS) -> Iterator[_Block]:
    """Yield stretches of files, in order, that share their physical types and together have at most ``largest`` rows.

    A part of a file stands alone.
    """
    for _, run in groupby((source for source in sources if source.rows), key=lambda source: source.layout):
        members: list[_Source] = []
        for source in run:
            apart = bool(members) and (source.part is not None or members[-1].part is not None)
            if members and (apart or sum(member.rows for member in members) + source.rows > largest):
                yield _Block(tuple(members))
                members = []
            members.append(source)
        yield _Block(tuple(members))


def _repeated_rows(connection: duckdb.DuckDBPyConnection, sources: Sequence[_Source]) -> np.ndarray:
    """Return the positions (in the day's order) of rows whose row_id occurred before, ascending."""
    starts = np.concatenate([[0], np.cumsum([source.rows for source in sources])])
    first = {source.file.path: int(start) for source, start in zip(sources, starts, strict=False)}
    parts = []
    for run in (list(block.sources) for block in _blocks(sources)):
        offsets = ", ".join(str(first[source.file.path]) for source in run)
        position = f"([{offsets}]::BIGINT[])[file_index::BIGINT + 1] + file_row_number"
        parts.append(f"SELECT row_id::VARCHAR AS row_id, {position} AS position FROM {_read(run)}")
    if not parts:
        return np.empty(0, np.int64)
    ids = f"ids AS ({' UNION ALL '.join(parts)})"
    with _decoding(f"{sources[0].file.path.parent.parent}: row_id"):
        # Hashes first: they are a fraction of the ids' memory, and a day without repetitions needs nothing more.
        repeated = connection.sql(
            f"WITH {ids} SELECT hash(row_id) AS h FROM ids WHERE row_id <> '' GROUP BY h HAVING count(*) > 1"
        ).fetchnumpy()["h"]
        if len(repeated) == 0:
            return np.empty(0, np.int64)
        connection.register("repeated", pa.table({"h": pa.array(np.asarray(repeated))}))
        positions = connection.sql(
            f"WITH {ids} SELECT position FROM ids WHERE row_id <> '' AND hash(row_id) IN (SELECT h FROM repeated)"
            " QUALIFY row_number() OVER (PARTITION BY row_id ORDER BY position) > 1 ORDER BY position"
        ).fetchnumpy()["position"]
        connection.unregister("repeated")
    return np.asarray(positions, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Sample:
    """Which rows of a split are used at all: those whose hash of (seed, row_id) falls below ``fraction``."""

    fraction: float
    seed: int

    def chosen(self, row_id: pa.Array) -> np.ndarray:
        """Boolean array (n,), the same for a row in whatever file or batch it comes."""
        return hash_uniform(row_hashes(row_id.to_numpy(zero_copy_only=False)), self.seed, SAMPLE_DRAW) < self.fraction


class Block(Protocol):
    """Rows with one set of physical types that are flattened together, wherever they are: in files, or in memory."""

    @property
    def rows(self) -> int: ...

    @property
    def types(self) -> Mapping[str, pa.DataType]: ...

    @property
    def name(self) -> str:
        """What an error message calls the rows."""
        ...

    def hour_start(self) -> np.ndarray:
        """Unix seconds of each row's hour, (rows,)."""
        ...

    def relation(self, cursor: duckdb.DuckDBPyConnection) -> str:
        """SQL that yields the raw columns and ``hour_start`` on this cursor."""
        ...

    def read(self, names: list[str]) -> list[pa.Table]:
        """The named raw columns, in order of rows."""
        ...

    def sizes(self) -> Mapping[str, int]:
        """About how many bytes each column decodes to."""
        ...


@dataclass(frozen=True, slots=True)
class _Block:
    """Consecutive files with equal physical types that are flattened together."""

    sources: tuple[_Source, ...]

    @property
    def rows(self) -> int:
        return sum(source.rows for source in self.sources)

    @property
    def types(self) -> Mapping[str, pa.DataType]:
        return self.sources[0].types

    @property
    def name(self) -> str:
        return ", ".join(str(source.file.path) for source in self.sources[:3]) + (" ..." if len(self.sources) > 3 else "")

    def hour_start(self) -> np.ndarray:
        return np.repeat([source.hour_start for source in self.sources], [source.rows for source in self.sources])

    def relation(self, cursor: duckdb.DuckDBPyConnection) -> str:
        hours = ", ".join(str(source.hour_start) for source in self.sources)
        # By name, so that no column of the file can pass for one of ours.
        columns = ", ".join(f'"{name}"' for name in self.types if name in BY_NAME)
        query = f"SELECT {columns}, ([{hours}]::BIGINT[])[file_index::BIGINT + 1] AS hour_start FROM {_read(self.sources)}"
        first = self.sources[0]
        if first.part is None:
            return query
        return f"{query} WHERE file_row_number >= {first.first_row} AND file_row_number < {first.first_row + first.rows}"

    def read(self, names: list[str]) -> list[pa.Table]:
        return [_read_columns(source, names) for source in self.sources]

    def sizes(self) -> Mapping[str, int]:
        together: Counter[str] = Counter()
        for source in self.sources:
            together.update(source.sizes)
        return together


class FlattenEngine:
    """Computes the flattened columns of a block: SQL for scalars and unusual layouts, array reductions for maps and lists."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, registry: Registry, labelled: bool) -> None:
        self._connection = connection
        self._registry = registry
        self._labelled = labelled
        self._inputs = frozenset(interaction_inputs(registry))
        self._overlaps = [overlap for group in registry.groups.values() if group.enabled for overlap in group.overlaps]
        self._wanted = frozenset(feature.name for feature in registry.features)

    def flatten(self, block: Block) -> _Flat:
        """Return every feature of the block with row_id, labels, the reasons to set rows aside, and counts."""
        with _decoding(block.name):
            native = self._native_columns(block)
            texts = self._native_texts(block)
            flat = self._rows(block, texts)
            own = self._read_texts(block, texts, flat)
            for columns in self._odd_columns(native):
                query = partial(nested_sql, self._registry, block.types, columns=columns)
                self._run(block, query, flat)
            self._by_arrays(block, native, own, flat)
            self._finish(flat)
            for feature in self._registry.features:
                if feature.categorical and not pa.types.is_dictionary(flat.columns[feature.name].type):
                    flat.columns[feature.name] = flat.columns[feature.name].dictionary_encode()
        return flat

    def _native_columns(self, block: Block) -> frozenset[str]:
        native = {
            name
            for name in self._registry.source_columns
            if BY_NAME[name].is_nested and name in block.types and is_native(BY_NAME[name], block.types[name])
        }
        # Lists that are compared with one another need the same engine.
        for overlap in self._overlaps:
            if not {overlap.of, overlap.within} <= native:
                native -= {overlap.of, overlap.within}
        return frozenset(native)

    def _native_texts(self, block: Block) -> frozenset[str]:
        columns = {*own_keys(), *(feature.name for feature in self._registry.features if feature.categorical)} - {"hour"}
        return frozenset(name for name in columns if form_of(block.types.get(name)) == "text")

    def _odd_columns(self, native: frozenset[str]) -> Iterator[list[str]]:
        """Yield the nested columns that are left to SQL, a few at a time: parsed JSON takes much memory."""
        together = [[overlap.of, overlap.within] for overlap in self._overlaps if overlap.of not in native]
        yield from together
        odd = [name for name in self._registry.source_columns if BY_NAME[name].is_nested and name not in native]
        odd = [name for name in odd if not any(name in pair for pair in together)]
        for start in range(0, len(odd), ODD_AT_ONCE):
            yield odd[start : start + ODD_AT_ONCE]

    def _rows(self, block: Block, texts: frozenset[str]) -> _Flat:
        flat = _Flat(block.rows)
        self._run(block, partial(row_sql, self._registry, block.types, labelled=self._labelled, texts=texts), flat)
        return flat

    def _sql(self, query: Callable[..., str], source: str) -> str:
        return query(source=source)

    def _table(self, cursor: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
        return cursor.sql(query).to_arrow_table()

    def _run(self, block: Block, query: Callable[..., str], flat: _Flat) -> None:
        """Run a query over the block and sort its columns into counts, absences, inputs of interactions and finished columns."""
        with self._connection.cursor() as cursor:
            table = self._table(cursor, self._sql(query, block.relation(cursor)))
        for name in table.column_names:
            column = table.column(name)
            if name.startswith(COUNTED):
                flat.counts[name] = pc.sum(column).as_py() or 0
            elif name.startswith("_absent_"):
                flat.absent[name.removeprefix("_absent_")] = column.to_numpy()
            elif name.startswith("_input_"):
                flat.inputs[name.removeprefix("_input_")] = column
            else:
                flat.columns[name] = column

    def _read_texts(self, block: Block, texts: frozenset[str], flat: _Flat) -> dict[str, OwnKey]:
        """Add the text columns as dictionary codes, which no row's text is copied for, and return the impressions' own keys."""
        tables = block.read(sorted(texts))
        own = {}
        for name in sorted({*texts, *own_keys()}):
            if name in texts:
                encoded = pa.concat_arrays([chunk for table in tables for chunk in table.column(name).chunks])
                array = readable_text(encoded)
                flat.counts[f"_unreadable_{name}"] = unreadable_texts(encoded, array)
                flat.absent[name] = array.is_null().to_numpy(zero_copy_only=False)
                if name in self._wanted:
                    flat.columns[name] = array
            else:
                array = flat.columns.pop(f"_own_{name}").combine_chunks().dictionary_encode()
            if name in own_keys():
                own[name] = OwnKey.of(array)
        return own

    def _by_arrays(self, block: Block, native: frozenset[str], own: Mapping[str, OwnKey], flat: _Flat) -> None:
        hour_start = block.hour_start()
        for names in self._shares(block, native):
            part = self._columns(block, names, own, hour_start)
            flat.columns |= part.columns
            flat.counts |= part.counts
            flat.inputs |= part.inputs
            flat.absent |= part.absent

    def _shares(self, block: Block, native: frozenset[str]) -> list[list[str]]:
        """Divide the columns into shares of similar size, small enough that what is decoded at once stays small."""
        weight = dict.fromkeys(sorted(native), 0)
        weight |= {name: size for name, size in block.sizes().items() if name in weight}
        # Lists that are compared with one another stay together.
        units = [[overlap.of, overlap.within] for overlap in self._overlaps if overlap.of in native]
        units += [[name] for name in weight if not any(name in unit for unit in units)]
        sizes = [sum(weight[name] for name in unit) for unit in units]
        shares: list[list[str]] = [[] for _ in range(max(1, -(-sum(weight.values()) // DECODED_AT_ONCE)))]
        filled = [0] * len(shares)
        for index in sorted(range(len(units)), key=lambda i: -sizes[i]):
            lightest = filled.index(min(filled))
            shares[lightest] += units[index]
            filled[lightest] += sizes[index]
        return [share for share in shares if share]

    def _columns(self, block: Block, names: list[str], own: Mapping[str, OwnKey], hour_start: np.ndarray) -> _Flat:
        part = _Flat(block.rows)
        tables = block.read(names)
        entries: dict[str, Entries] = {}
        distinct: dict[str, np.ndarray] = {}
        compared = {name for overlap in self._overlaps for name in (overlap.of, overlap.within)}
        for name in names:
            column = BY_NAME[name]
            array = pa.concat_arrays([chunk for table in tables for chunk in table.column(name).chunks])
            statistics, found = column_statistics(column, array, own.get(own_key_of(column) or ""), hour_start, part.counts)
            part.absent[name] = ~found.present
            for statistic, sparse in statistics.items():
                part.put(feature_name(name, statistic), sparse, self._wanted, self._inputs)
            if name in compared:
                entries[name], distinct[name] = found, statistics["n_unique"].dense(block.rows)
        for overlap in self._overlaps:
            if overlap.of in entries and overlap.within in entries:
                shared = shared_elements(entries[overlap.of], entries[overlap.within])
                with np.errstate(all="ignore"):
                    share = Sparse(shared.rows, shared.values / distinct[overlap.of][shared.rows])
                part.put(overlap.name, shared, self._wanted, self._inputs)
                part.put(f"{overlap.name}_share", share, self._wanted, self._inputs)
        return part

    def _finish(self, flat: _Flat) -> None:
        """Add what combines several columns: missing indicators and interactions."""
        for group in self._registry.groups.values():
            if group.enabled:
                for indicator, columns in group.indicators.items():
                    missing = np.logical_and.reduce([flat.absent[name] for name in columns])
                    flat.columns[f"missing__{indicator}"] = pa.array(missing.astype(np.float32))
        if self._inputs:
            with self._connection.cursor() as cursor:
                cursor.register("interaction_inputs", pa.table({name: flat.inputs[name] for name in sorted(self._inputs)}))
                result = self._table(cursor, self._sql(partial(interaction_sql, self._registry), "interaction_inputs"))
            flat.columns |= {name: result.column(name) for name in result.column_names}
        # A finished block waits for its turn; what only helped to make it shall not wait with it.
        flat.inputs.clear()
        flat.absent.clear()


def flatten_block(block: Block, *, registry: Registry, labelled: bool, memory_limit: str) -> _Flat:
    """One block on its own, for another process: the same columns and counts whoever computes them."""
    with closing(_connect(1, memory_limit)) as connection:
        return FlattenEngine(connection, registry, labelled).flatten(block)


class _Flat:
    """A block on its way to the file: finished columns, counts, and the inputs of what combines several columns."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.columns: dict[str, pa.ChunkedArray | pa.Array] = {}
        self.counts: dict[str, int] = {}
        self.inputs: dict[str, pa.ChunkedArray | pa.Array] = {}
        self.absent: dict[str, np.ndarray] = {}

    def put(self, name: str, sparse: Sparse, wanted: frozenset[str], inputs: frozenset[str]) -> None:
        if name in wanted:
            self.columns[name] = sparse.to_arrow(self.rows)
        if name in inputs:
            self.inputs[name] = pa.array(sparse.dense(self.rows), from_pandas=True)


def _read_columns(source: _Source, names: list[str]) -> pa.Table:
    if not names:
        return pa.table({})
    keys = [leaf for leaf in source.text_leaves if leaf.split(".", 1)[0] in names]
    # Not memory-mapped: a mapped file that its owner cuts short while it is read ends the process.
    with pq.ParquetFile(source.path, metadata=source.metadata, read_dictionary=keys) as parquet:
        if source.metadata.num_row_groups <= 1:
            return parquet.read(columns=names, use_threads=False)
        # Arrow cannot join the dictionaries of nested text from several row groups, so each is read by itself.
        groups = range(source.metadata.num_row_groups) if source.part is None else source.part
        return pa.concat_tables([parquet.read_row_group(group, columns=names, use_threads=False) for group in groups])


class _Sink:
    """Splits what the engine yields into rows to write and rows to set aside, and counts."""

    def __init__(
        self,
        registry: Registry,
        sources: Sequence[_Source],
        repeated: np.ndarray,
        result: FlattenResult,
        writer: _RowGroupWriter,
        sample: Sample,
    ) -> None:
        self.position = 0
        self._sample = sample
        self._sources = [source for source in sources if source.rows]
        self._ends = np.cumsum([source.rows for source in self._sources])
        self._repeated = repeated
        starts = [0, *self._ends.tolist()]
        self._illegible = {start + row: key for start, s in zip(starts, self._sources, strict=False) for row, key in s.illegible.items()}
        self._result = result
        self._writer = writer
        self._registry = registry
        self._keys = pa.array([source.file.datetime_key for source in self._sources], pa.string())
        self._names = flattened_schema(registry).names
        self._counts: Counter[str] = Counter()
        self._nulls: Counter[str] = Counter()
        self._aside: list[pa.Table] = []

    def take(self, flat: _Flat) -> None:
        first, self.position = self.position, self.position + flat.rows
        files = np.searchsorted(self._ends, np.arange(first, self.position), side="right").astype(np.int32)
        self._counts.update(flat.counts)
        row_id, reason, value = (flat.columns[name] for name in ("row_id", "_reason", "_value"))
        low, high = np.searchsorted(self._repeated, [first, self.position])
        if high > low:
            again = np.zeros(flat.rows, bool)
            again[self._repeated[low:high] - first] = True
            newly = pc.and_(pa.chunked_array([again]), pc.is_null(reason))
            reason = pc.if_else(newly, "row_id repeated", reason)
            value = pc.if_else(newly, row_id, value)
        illegible = {row - first: key for row, key in self._illegible.items() if first <= row < self.position}
        if illegible:
            keys = pa.array([illegible.get(row) for row in range(flat.rows)], pa.string())
            reason = pc.if_else(pc.is_valid(keys), NOT_UTF8, reason)
            value = pc.coalesce(keys, value)
        datetimes = pa.DictionaryArray.from_arrays(files, self._keys)
        table = pa.table({name: datetimes if name == "datetime" else flat.columns[name] for name in self._names})
        flat.columns.clear()
        if reason.null_count < len(reason):
            self._set_aside(row_id, files, first, reason, value)
            table = table.filter(pc.is_null(reason))
        for feature in self._registry.features:
            self._nulls[feature.group] += table.column(feature.name).null_count
        self._writer.add(table)

    def finish(self) -> None:
        result, registry = self._result, self._registry
        if self.position != result.rows_in:
            raise DataError(
                f"{self._sources[0].file.path.parent.parent}: {self.position} rows were read, the files' footers say {result.rows_in}"
            )
        result.rows_out = self._writer.rows
        for name, counts in (
            ("_future_", result.future_timestamps),
            ("_ancient_", result.ancient_timestamps),
            ("_nonfinite_", result.nonfinite_values),
            ("_malformed_", result.malformed_json),
            ("_unreadable_", result.unreadable_text),
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
            (result.unreadable_text, "values that are not UTF-8, their unreadable bytes replaced by U+FFFD"),
        ):
            result.warnings += [f"{name}: {count} {text}" for name, count in counts.items()]
        if disagree := int(self._counts["_disagree"]):
            result.warnings.append(f"buyer_d7: {disagree} rows say 0 although iap_revenue_d7 is positive")

    def _set_aside(self, row_id: pa.ChunkedArray, files: np.ndarray, first: int, reason: pa.ChunkedArray, value: pa.ChunkedArray) -> None:
        rows = np.flatnonzero(pc.is_valid(reason).to_numpy())
        files = files[rows]
        begins = np.concatenate([[0], self._ends[:-1]])
        paths = pa.array([str(source.file.path) for source in self._sources], pa.string())
        columns = [
            row_id.take(rows),
            paths.take(files),
            pa.array(first + rows - begins[files], pa.int64()),
            reason.take(rows),
            value.take(rows),
        ]
        self._aside.append(pa.table(columns, names=QUARANTINE_SCHEMA.names).cast(QUARANTINE_SCHEMA))


class _RowGroupWriter:
    """Writes row groups of exactly ``ROW_GROUP`` rows (the last may be shorter), however the rows arrive.

    Compression runs in a thread of its own, one row group at a time, while the engine works on the next.
    """

    def __init__(self, out: Path, registry: Registry) -> None:
        self.rows = 0
        self._schema = flattened_schema(registry)
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        # Dictionaries only where values repeat: on float32 they cost time and save nothing.
        dictionaries = ["datetime", *categorical_names(registry)]
        # The lowest level of zstd needs a third less disk than LZ4; higher levels save three per cent more and write at half
        # the speed. Days are read whole, so minima and maxima of every column would be computed for nobody.
        self._writer = pq.ParquetWriter(
            out, self._schema, compression="zstd", compression_level=1, use_dictionary=dictionaries, write_statistics=["datetime"]
        )
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

    def add(self, table: pa.Table) -> None:
        self.rows += table.num_rows
        self._pending.append(table)
        self._pending_rows += table.num_rows
        if self._pending_rows >= ROW_GROUP:
            self._flush(everything=False)

    def _flush(self, *, everything: bool) -> None:
        if not self._pending_rows:
            return
        table = pa.concat_tables(self._pending)
        whole = table.num_rows if everything else table.num_rows - table.num_rows % ROW_GROUP
        rest = table.slice(whole)
        # A slice would keep the whole block in memory until the next one has come.
        rest = rest.take(pa.array(np.arange(rest.num_rows)))
        self._pending, self._pending_rows = [rest], rest.num_rows
        self._wait()
        self._writing = self._executor.submit(self._write, table.slice(0, whole))

    def _write(self, table: pa.Table) -> None:
        for start in range(0, table.num_rows, ROW_GROUP):
            # Encoding each row group from its own rows alone makes the bytes independent of how batches arrived.
            part = table.slice(start, ROW_GROUP)
            columns = [_encode(part.column(field.name), field.type) for field in self._schema]
            self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema), row_group_size=ROW_GROUP)

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()


def _encode(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    """Return a column as one array; dictionaries are renumbered by first appearance, whatever files their values came from."""
    if not pa.types.is_dictionary(kind):
        return column.cast(kind)
    encoded = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], kind)
    # Equal words must share a code: parquet pages of a dictionary with repetitions end in uninitialised bytes.
    words = encoded.dictionary.cast(kind.value_type).dictionary_encode()
    order = words.indices.take(encoded.indices).dictionary_encode()
    return pa.DictionaryArray.from_arrays(order.indices.cast(kind.index_type), words.dictionary.take(order.dictionary))
