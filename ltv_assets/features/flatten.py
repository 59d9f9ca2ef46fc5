"""From the hourly files of one day to one parquet file of flattened rows, streaming, in bounded memory.

What belongs here: reading files block by block, flattening the blocks in order, setting rows aside that have no key or no
usable label, writing deterministic row groups, and counting everything that was missing or unusable. What does not:
physical types (``canonical.py``), the SQL (``sql.py``), deciding which files to read, publishing the result
(``storage/``). Next to read: ``canonical.py``, ``sql.py``.

Each file's columns are made canonical by themselves, so no file's types decide another's. Rows keep the order of the
files and, inside a file, their own.
"""

from __future__ import annotations

import errno
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Protocol

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ltv_assets.core.columns import BY_NAME, LABEL_NAMES, REQUIRED_TEST_COLUMNS, REQUIRED_TRAIN_COLUMNS
from ltv_assets.core.database import open_duckdb
from ltv_assets.core.errors import DataError, TransientError
from ltv_assets.core.memory import release_memory
from ltv_assets.core.parallel import Workers, in_order
from ltv_assets.features.arrays import Entries, OwnKey, Sparse, column_statistics, shared_elements
from ltv_assets.features.canonical import TEXT, Findings, Query, UnreadableTypeError, canonical_type, described, read_column, reads
from ltv_assets.features.naming import contract_names
from ltv_assets.features.registry import Registry, feature_name
from ltv_assets.features.schema import categorical_names, flattened_schema
from ltv_assets.features.sql import STORED_LABELS, interaction_inputs, interaction_sql, own_keys, row_columns, row_sql
from ltv_assets.features.statistics import own_key_of
from ltv_assets.sampling.draws import hash_uniform, row_hashes

ROW_GROUP = 65_536
BLOCK_ROWS = 131_072
"""Files are flattened together up to this many rows, which spares small hours a query each; a larger file stands alone, and
is divided between its row groups where it has several."""

DECODED_AT_ONCE = 32 << 20
"""Bytes of nested columns, as the files' footers state them, that a block decodes at once."""

COUNTED = ("_future_", "_ancient_", "_rounded_", "_disagree")
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
    ``lost_values`` has what is there and cannot be read: {column: (values, the first of them and its file)}.
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
    lost_values: dict[str, tuple[int, str]] = field(default_factory=dict)
    unreadable_text: dict[str, int] = field(default_factory=dict)
    rounded_labels: dict[str, int] = field(default_factory=dict)
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
    while True:
        try:
            result = _flatten_sources(sources, registry, labelled, Path(out), threads, memory_limit, progress, sample, workers)
            break
        except UndecodableError:
            # Only now is each file tried alone: whole days cost too much to decode twice.
            broken = _undecodable(sources, registry, labelled, memory_limit)
            if not broken:
                raise
            aside += [FileAside(source.file.path, source.rows, broken[source]) for source in broken]
            sources = [source for source in sources if source not in broken]
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
    except (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException, UndecodableError):
        raise
    except (duckdb.Error, pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise TransientError(f"{what}: the disk is full ({_one_line(error)}); make room and run again") from error
        raise UndecodableError(f"{what}: cannot be flattened: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return f"{' '.join(str(error).split()):.200}"


def _undecodable(sources: Sequence[_Source], registry: Registry, labelled: bool, memory_limit: str) -> dict[_Source, str]:
    """The reason of every file that cannot be flattened even when it is alone."""
    found: dict[_Source, str] = {}
    with closing(open_duckdb(threads=1, memory_limit=memory_limit)) as connection:
        engine = FlattenEngine(connection, registry, labelled)
        for source in sources:
            try:
                if source.rows:
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
            closing(open_duckdb(threads=threads, memory_limit=memory_limit, spill=out.with_name(f".{out.name}.spill"))) as connection,
            ThreadPoolExecutor(threads) as pool,
            _RowGroupWriter(out, registry) as writer,
        ):
            engine = FlattenEngine(connection, registry, labelled)
            repeated = _repeated_rows(engine.query, sources)
            release_memory()
            sink = _Sink(registry, sources, repeated, result, writer, sample)
            # Whole blocks side by side keep every core busy.
            lanes = threads if workers is None else workers.lanes
            blocks = _blocks(_divided(sources, BLOCK_ROWS), largest=min(BLOCK_ROWS, -(-result.rows_in // lanes)))
            if workers is None:
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

    ``spelled`` has the file's own name of each column of the contract, by which ``types`` and ``sizes`` go; ``coded`` are
    the leaves of text that can be read as dictionary codes.
    """

    file: RawFile
    rows: int
    spelled: Mapping[str, str]
    types: Mapping[str, pa.DataType]
    hour_start: int
    metadata: pq.FileMetaData
    coded: tuple[str, ...]
    sizes: Mapping[str, int]
    part: range | None = None
    first_row: int = 0


def _inspect(file: RawFile, labelled: bool) -> _Source:
    try:
        with pq.ParquetFile(file.path) as parquet:
            schema, metadata = parquet.schema_arrow, parquet.metadata
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file.path}: cannot be read as parquet: {error}") from error
    spelled, problems = contract_names(schema.names)
    if problems:
        raise DataError(f"{file.path}: {problems[0]}")
    types = {name: schema.field(written).type for name, written in spelled.items()}
    required = REQUIRED_TRAIN_COLUMNS if labelled else REQUIRED_TEST_COLUMNS
    for name in required:
        if name not in types or not reads(BY_NAME[name], types[name]):
            found = f"found {types[name]}" if name in types else "found none"
            raise DataError(
                f"{file.path}: column {name}: expected {BY_NAME[name].type}, {found}; without it no row of the file can be used"
            )
    try:
        hour = datetime.strptime(file.datetime_key, "%Y-%m-%d-%H-00").replace(tzinfo=UTC)
    except ValueError as error:
        raise DataError(f"{file.path}: hour {file.datetime_key!r}: expected YYYY-MM-DD-HH-00, as in the folder's name") from error
    sizes = _sizes(metadata, range(metadata.num_row_groups), spelled)
    return _Source(file, metadata.num_rows, spelled, types, int(hour.timestamp()), metadata, _coded_leaves(metadata), sizes)


def _coded_leaves(metadata: pq.FileMetaData) -> tuple[str, ...]:
    """Paths of the text leaves whose values Arrow can hand over as dictionary codes.

    It cannot where a page is delta-encoded or the text has a type of its own; identifiers repeat too rarely to gain by it.
    """
    leaves = []
    for index in range(metadata.num_columns):
        leaf = metadata.schema.column(index)
        if (
            leaf.physical_type != "BYTE_ARRAY"
            or leaf.logical_type.type not in ("NONE", "STRING", "ENUM")
            or leaf.path.casefold() == "row_id"
        ):
            continue
        encodings = {e for group in range(metadata.num_row_groups) for e in metadata.row_group(group).column(index).encodings}
        if not any(encoding.startswith("DELTA") for encoding in encodings):
            leaves.append(leaf.path)
    return tuple(leaves)


def _sizes(metadata: pq.FileMetaData, groups: range, spelled: Mapping[str, str]) -> Mapping[str, int]:
    """Decoded bytes of each column of the contract in some row groups, as the footer states them."""
    meant = {written: name for name, written in spelled.items()}
    names = [meant.get(metadata.schema.column(i).path.split(".", 1)[0]) for i in range(metadata.num_columns)]
    sizes: Counter[str] = Counter()
    for group in groups:
        for index, name in enumerate(names):
            if name is not None:
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
                source,
                rows=sum(rows[start:stop]),
                sizes=_sizes(source.metadata, groups, source.spelled),
                part=groups,
                first_row=sum(rows[:start]),
            )
            divided.append(part)
            start = stop
    return divided


def _note_schema_findings(sources: Sequence[_Source], registry: Registry, labelled: bool, result: FlattenResult) -> None:
    def note(columns: Mapping[str, list[_Source]], text: str) -> None:
        for name, where in columns.items():
            result.warnings.append(f"{name}: {text} in {len(where)} of {len(sources)} files, first {where[0].file.path}")

    unusable: dict[str, list[_Source]] = {}
    ignored: dict[str, list[_Source]] = {}
    for source in sources:
        for name in (*registry.source_columns, *(STORED_LABELS if labelled else ())):
            kind = source.types.get(name)
            if kind is not None and not reads(BY_NAME[name], kind):
                unusable.setdefault(f"{name} ({kind})", []).append(source)
        if not labelled:
            for name in LABEL_NAMES:
                if name in source.types and not pa.types.is_null(source.types[name]):
                    ignored.setdefault(name, []).append(source)
    note(unusable, "type cannot be read, taken as missing,")
    note(ignored, "label column on a day without labels, ignored,")


def _blocks(sources: Sequence[_Source], *, largest: int = BLOCK_ROWS) -> Iterator[_Block]:
    """Yield stretches of files, in order, that together have at most ``largest`` rows; a part of a file stands alone."""
    members: list[_Source] = []
    for source in sources:
        if not source.rows:
            continue
        apart = bool(members) and (source.part is not None or members[-1].part is not None)
        if members and (apart or sum(member.rows for member in members) + source.rows > largest):
            yield _Block(tuple(members))
            members = []
        members.append(source)
    if members:
        yield _Block(tuple(members))


def _repeated_rows(query: Query, sources: Sequence[_Source]) -> np.ndarray:
    """Return the positions (in the day's order) of rows whose row_id occurred before, ascending."""

    def identifiers(source: _Source) -> pa.Array:
        with _decoding(f"{source.file.path}: row_id"):
            (column,) = _read_columns(source, ["row_id"]).columns
            return pa.concat_arrays([read_column(BY_NAME["row_id"], chunk, query)[0] for chunk in column.chunks])

    # Hashes first: they are a fraction of the ids' memory, and a day without repetitions needs nothing more.
    hashes = [
        query("SELECT CASE WHEN t <> '' THEN hash(t) END AS h FROM cells", pa.table({"t": identifiers(s)})) for s in sources if s.rows
    ]
    if not hashes:
        return np.empty(0, np.int64)
    column = pa.concat_tables(hashes).column("h")
    known = np.flatnonzero(pc.is_valid(column).to_numpy())
    values = column.drop_null().to_numpy()
    ordered = np.sort(values)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if len(twice) == 0:
        return np.empty(0, np.int64)
    suspects = known[np.isin(values, twice)]
    starts = np.concatenate([[0], np.cumsum([source.rows for source in sources])])
    texts = []
    for source, start, stop in zip(sources, starts[:-1], starts[1:], strict=True):
        rows = suspects[(suspects >= start) & (suspects < stop)] - start
        if len(rows):
            texts.append(identifiers(source).take(pa.array(rows)))
    _, first = np.unique(pa.concat_arrays(texts).to_numpy(zero_copy_only=False).astype(str), return_index=True)
    return np.delete(suspects, first)


@dataclass(frozen=True, slots=True)
class Sample:
    """Which rows of a split are used at all: those whose hash of (seed, row_id) falls below ``fraction``."""

    fraction: float
    seed: int

    def chosen(self, row_id: pa.Array) -> np.ndarray:
        """Boolean array (n,), the same for a row in whatever file or batch it comes."""
        return hash_uniform(row_hashes(row_id.to_numpy(zero_copy_only=False)), self.seed, SAMPLE_DRAW) < self.fraction


class Block(Protocol):
    """Rows that are flattened together, wherever they are: in files, or in memory."""

    @property
    def rows(self) -> int: ...

    @property
    def name(self) -> str:
        """What an error message calls the rows."""
        ...

    def hour_start(self) -> np.ndarray:
        """Unix seconds of each row's hour, (rows,)."""
        ...

    def read(self, names: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
        """The named raw columns piece by piece, in order of rows, each piece with the name of its file."""
        ...

    def sizes(self) -> Mapping[str, int]:
        """About how many bytes each column decodes to."""
        ...


@dataclass(frozen=True, slots=True)
class _Block:
    """Consecutive files that are flattened together."""

    sources: tuple[_Source, ...]

    @property
    def rows(self) -> int:
        return sum(source.rows for source in self.sources)

    @property
    def name(self) -> str:
        return ", ".join(str(source.file.path) for source in self.sources[:3]) + (" ..." if len(self.sources) > 3 else "")

    def hour_start(self) -> np.ndarray:
        return np.repeat([source.hour_start for source in self.sources], [source.rows for source in self.sources])

    def read(self, names: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
        for source in self.sources:
            with _decoding(str(source.file.path)):
                yield str(source.file.path), _read_columns(source, names)

    def sizes(self) -> Mapping[str, int]:
        together: Counter[str] = Counter()
        for source in self.sources:
            together.update(source.sizes)
        return together


class FlattenEngine:
    """Computes the flattened columns of a block: SQL for scalars, array reductions for maps and lists."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, registry: Registry, labelled: bool) -> None:
        self._connection = connection
        self._registry = registry
        self._inputs = frozenset(interaction_inputs(registry))
        self._overlaps = [overlap for group in registry.groups.values() if group.enabled for overlap in group.overlaps]
        self._wanted = frozenset(feature.name for feature in registry.features)
        self._scalars = row_columns(registry, labelled)
        self._texts = tuple(name for name in self._scalars if not BY_NAME[name].is_label and canonical_type(BY_NAME[name]) == TEXT)
        self._nested = [name for name in registry.source_columns if BY_NAME[name].is_nested]
        self._row_sql = row_sql(registry, source="SELECT * FROM cells", labelled=labelled)
        self._interaction_sql = interaction_sql(registry, "cells") if self._inputs else ""

    def query(self, sql: str, cells: pa.Table) -> pa.Table:
        """Run SQL over a table that the SQL calls ``cells``; rows keep their order."""
        with self._connection.cursor() as cursor:
            cursor.register("cells", cells)
            return self._fetch(cursor, sql)

    def _fetch(self, cursor: duckdb.DuckDBPyConnection, sql: str) -> pa.Table:
        return cursor.sql(sql).to_arrow_table()

    def flatten(self, block: Block) -> _Flat:
        """Return every feature of the block with row_id, labels, the reasons to set rows aside, and counts."""
        flat = _Flat(block.rows)
        with _decoding(block.name):
            shares = self._shares(block)
            # Small files are opened once; of large ones only a share is decoded at a time.
            whole = len(shares) <= 1
            columns = self._read(block, [*self._scalars, *(shares[0] if whole and shares else ())], flat)
            own = self._rows(block, {name: columns.pop(name) for name in self._scalars}, flat)
            for names in shares:
                self._reduce(block, columns if whole else self._read(block, names, flat), own, flat)
            self._finish(flat)
        return flat

    def _read(self, block: Block, names: Sequence[str], flat: _Flat) -> dict[str, pa.Array]:
        """The named columns of a block in their canonical types; what they lose is added to the block's findings."""
        pieces = list(block.read(names))
        columns = {}
        for name in names:
            parts: list[pa.Array] = []
            start = 0
            # Pieces that share their type are converted at once; no file's type decides another's.
            for _, run in groupby(_chunks(pieces, name), key=lambda piece: piece[1].type):
                files, chunks = zip(*run, strict=True)
                array = pa.concat_arrays(chunks)
                values, findings = self._canonical(name, array, files[0])
                if findings.lost:
                    flat.lose(name, findings, self._first_to_lose(name, files, chunks))
                flat.note(name, findings, start)
                parts.append(values)
                start += len(array)
            columns[name] = pa.concat_arrays(parts) if parts else pa.nulls(0, canonical_type(BY_NAME[name]))
        return columns

    def _canonical(self, name: str, array: pa.Array, file: str) -> tuple[pa.Array, Findings]:
        column = BY_NAME[name]
        try:
            return read_column(column, array, self.query)
        except UnreadableTypeError:
            # Every value that is there is lost.
            findings = Findings()
            findings.lose(array.is_valid().to_numpy(zero_copy_only=False), lambda i: array[i])
            return pa.nulls(len(array), canonical_type(column)), findings
        except (pa.ArrowException, duckdb.DataError, ValueError) as error:
            raise UndecodableError(f"{file}: column {name} ({array.type}): {_one_line(error)}") from error

    def _first_to_lose(self, name: str, files: Sequence[str], chunks: Sequence[pa.Array]) -> str:
        return next(file for file, chunk in zip(files, chunks, strict=True) if self._canonical(name, chunk, file)[1].lost)

    def _shares(self, block: Block) -> list[list[str]]:
        """Divide the nested columns into shares of similar size, small enough that what is decoded at once stays small."""
        sizes = block.sizes()
        weight = {name: sizes.get(name, 0) for name in sorted(self._nested)}
        # Lists that are compared with one another stay together.
        units = [[overlap.of, overlap.within] for overlap in self._overlaps]
        units += [[name] for name in weight if not any(name in unit for unit in units)]
        weights = [sum(weight[name] for name in unit) for unit in units]
        shares: list[list[str]] = [[] for _ in range(max(1, -(-sum(weight.values()) // DECODED_AT_ONCE)))]
        filled = [0] * len(shares)
        for index in sorted(range(len(units)), key=lambda i: -weights[i]):
            lightest = filled.index(min(filled))
            shares[lightest] += units[index]
            filled[lightest] += weights[index]
        return [share for share in shares if share]

    def _rows(self, block: Block, columns: Mapping[str, pa.Array], flat: _Flat) -> dict[str, OwnKey]:
        """Add everything about the rows but their nested columns, and return the impressions' own keys."""
        for name, column in columns.items():
            flat.absent[name] = column.is_null().to_numpy(zero_copy_only=False)
        table = self.query(self._row_sql, pa.table({**columns, "hour_start": pa.array(block.hour_start())}))
        for name in table.column_names:
            column = table.column(name)
            if name.startswith(COUNTED):
                flat.counts[name] = pc.sum(column).as_py() or 0
            elif name.startswith("_input_"):
                flat.inputs[name.removeprefix("_input_")] = column
            else:
                flat.columns[name] = column
        flat.columns |= {name: columns[name] for name in self._texts if name in self._wanted}
        hours = flat.columns.pop("_own_hour").combine_chunks().dictionary_encode()
        return {name: OwnKey.of(hours if name == "hour" else columns[name]) for name in own_keys()}

    def _reduce(self, block: Block, columns: Mapping[str, pa.Array], own: Mapping[str, OwnKey], flat: _Flat) -> None:
        """Add the statistics of nested columns and of the lists among them that are compared."""
        hour_start = block.hour_start()
        entries: dict[str, Entries] = {}
        distinct: dict[str, np.ndarray] = {}
        compared = {name for overlap in self._overlaps for name in (overlap.of, overlap.within)}
        for name, array in columns.items():
            column = BY_NAME[name]
            statistics, found = column_statistics(column, array, own.get(own_key_of(column) or ""), hour_start, flat.counts)
            flat.absent[name] = ~found.present
            for statistic, sparse in statistics.items():
                flat.put(feature_name(name, statistic), sparse, self._wanted, self._inputs)
            if name in compared:
                entries[name], distinct[name] = found, statistics["n_unique"].dense(block.rows)
        for overlap in self._overlaps:
            if overlap.of in entries and overlap.within in entries:
                shared = shared_elements(entries[overlap.of], entries[overlap.within])
                with np.errstate(all="ignore"):
                    share = Sparse(shared.rows, shared.values / distinct[overlap.of][shared.rows])
                flat.put(overlap.name, shared, self._wanted, self._inputs)
                flat.put(f"{overlap.name}_share", share, self._wanted, self._inputs)

    def _finish(self, flat: _Flat) -> None:
        """Add what combines several columns: missing indicators and interactions."""
        for group in self._registry.groups.values():
            if group.enabled:
                for indicator, columns in group.indicators.items():
                    missing = np.logical_and.reduce([flat.absent[name] for name in columns])
                    flat.columns[f"missing__{indicator}"] = pa.array(missing.astype(np.float32))
        if self._inputs:
            result = self.query(self._interaction_sql, pa.table({name: flat.inputs[name] for name in sorted(self._inputs)}))
            flat.columns |= {name: result.column(name) for name in result.column_names}
        # A finished block waits for its turn; what only helped to make it shall not wait with it.
        flat.inputs.clear()
        flat.absent.clear()


def _chunks(pieces: Sequence[tuple[str, pa.Table]], name: str) -> Iterator[tuple[str, pa.Array]]:
    for file, table in pieces:
        for chunk in table.column(name).chunks if name in table.column_names else [pa.nulls(table.num_rows)]:
            yield file, chunk


def flatten_block(block: Block, *, registry: Registry, labelled: bool, memory_limit: str) -> _Flat:
    """One block on its own, for another process: the same columns and counts whoever computes them."""
    with closing(open_duckdb(threads=1, memory_limit=memory_limit)) as connection:
        return FlattenEngine(connection, registry, labelled).flatten(block)


class _Flat:
    """A block on its way to the file: finished columns, counts, and the inputs of what combines several columns."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.columns: dict[str, pa.ChunkedArray | pa.Array] = {}
        self.counts: dict[str, int] = {}
        self.inputs: dict[str, pa.ChunkedArray | pa.Array] = {}
        self.absent: dict[str, np.ndarray] = {}
        self.lost: dict[str, tuple[int, str]] = {}
        self.illegible: dict[int, str] = {}

    def lose(self, name: str, findings: Findings, file: str) -> None:
        """Add the values of a column that are lost; ``file`` has the first of them."""
        count, example = self.lost.get(name, (0, f"'{findings.example}' in {file}"))
        self.lost[name] = count + findings.lost, example

    def note(self, name: str, findings: Findings, start: int) -> None:
        """Add what else was found in a column from row ``start`` of the block on."""
        for key, count in (("_nonfinite_", findings.nonfinite), ("_unreadable_", findings.unreadable)):
            if count:
                self.counts[f"{key}{name}"] = self.counts.get(f"{key}{name}", 0) + count
        self.illegible |= {start + row: key for row, key in findings.illegible.items()}

    def put(self, name: str, sparse: Sparse, wanted: frozenset[str], inputs: frozenset[str]) -> None:
        if name in wanted:
            self.columns[name] = sparse.to_arrow(self.rows)
        if name in inputs:
            self.inputs[name] = pa.array(sparse.dense(self.rows), from_pandas=True)


def _read_columns(source: _Source, names: Sequence[str]) -> pa.Table:
    """The named columns of a source that it has, with a chunk for each row group that is read."""
    present = [name for name in names if name in source.types]
    if not present:
        return pa.table({"": pa.nulls(source.rows)})
    fixed = [name for name in present if "fixed_size_list" in str(source.types[name])]
    usual = [name for name in present if name not in fixed]
    written = [source.spelled[name] for name in usual]
    coded = [leaf for leaf in source.coded if leaf.split(".", 1)[0] in written]
    # Not memory-mapped: a mapped file that its owner cuts short while it is read ends the process.
    with pq.ParquetFile(source.file.path, metadata=source.metadata, read_dictionary=coded) as parquet:
        if source.metadata.num_row_groups <= 1:
            table = parquet.read(columns=written, use_threads=False)
        else:
            # Arrow cannot join the dictionaries of nested text from several row groups, so each is read by itself.
            groups = range(source.metadata.num_row_groups) if source.part is None else source.part
            table = pa.concat_tables([parquet.read_row_group(group, columns=written, use_threads=False) for group in groups])
    columns = {name: table.column(source.spelled[name]) for name in usual}
    return pa.table(columns | _fixed_lists(source, fixed) if fixed else columns)


def _fixed_lists(source: _Source, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    """Columns with lists of fixed size, read by DuckDB: Arrow refuses those that have a NULL."""
    # A bracket or an asterisk in a name must not be taken for a pattern.
    path = re.sub(r"([*?\[])", r"[\1]", str(source.file.path))
    columns = ", ".join(f'"{source.spelled[name]}"' for name in names)
    query = f"SELECT {columns} FROM read_parquet(?, hive_partitioning = false) WHERE file_row_number BETWEEN ? AND ?"
    with closing(open_duckdb(threads=1, memory_limit="500MB")) as connection:
        found = connection.sql(query, params=[path, source.first_row, source.first_row + source.rows - 1]).to_arrow_table()
    return {name: found.column(place) for place, name in enumerate(names)}


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
        self._result = result
        self._writer = writer
        self._registry = registry
        self._keys = pa.array([source.file.datetime_key for source in self._sources], pa.string())
        self._names = flattened_schema(registry).names
        self._counts: Counter[str] = Counter()
        self._nulls: Counter[str] = Counter()
        self._lost: dict[str, tuple[int, str]] = {}
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
        for name, (count, example) in flat.lost.items():
            before, earlier = self._lost.get(name, (0, example))
            self._lost[name] = before + count, earlier
        if flat.illegible:
            keys = pa.array([flat.illegible.get(row) for row in range(flat.rows)], pa.string())
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
            ("_unreadable_", result.unreadable_text),
            ("_rounded_", result.rounded_labels),
        ):
            counts.update({key.removeprefix(name): int(n) for key, n in sorted(self._counts.items()) if key.startswith(name) and n})
        result.lost_values = dict(sorted(self._lost.items()))
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
            (result.unreadable_text, "values that are not UTF-8, their unreadable bytes replaced by U+FFFD"),
            (result.rounded_labels, "values differ from a shorter horizon by rounding, taken as equal to it"),
        ):
            result.warnings += [f"{name}: {count} {text}" for name, count in counts.items()]
        result.warnings += [
            f"{name}: {count} values cannot be read as {described(BY_NAME[name])}, taken as missing; first {example}"
            for name, (count, example) in result.lost_values.items()
        ]
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
