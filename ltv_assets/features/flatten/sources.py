"""Raw files: their footers, and the reading of their columns.

What belongs here: inspection of a footer (names, types, sizes, readable encodings), division of a large file by row groups,
reading named columns. What does not: conversion to canonical types (``../canonical.py``), grouping of files (``blocks.py``).
Next to read: ``blocks.py``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ltv_assets.core.contract import Contract
from ltv_assets.core.database import open_duckdb
from ltv_assets.core.errors import DataError
from ltv_assets.features.canonical import reads
from ltv_assets.features.flatten.moments import INT96_UNIT, hours_of_rows, rows_of_day
from ltv_assets.features.naming import contract_names


@dataclass(frozen=True, slots=True)
class RawFile:
    """One file of impressions and the hour it belongs to (``YYYY-MM-DD-HH-00``, from its folder's name).

    Where folders say no hour, it is the first of the day; where the file says the moments of its rows, the day's rows of it are meant.
    """

    path: Path
    datetime_key: str


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A file after its footer was read; or ``part``, some of its row groups, beginning at its row ``first_row``.

    ``spelled`` has the file's own name of each column of the contract, by which ``types`` and ``sizes`` go; ``coded`` are
    the leaves of text that can be read as dictionary codes. ``kept``: the rows of the file that are meant, ascending, where they
    are not all of them, with the ``hours`` they happened in.
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
    kept: NDArray[np.int64] | None = None
    hours: NDArray[np.int64] | None = None

    def hour_of_rows(self) -> NDArray[np.int64]:
        """Unix seconds of each row's hour, (rows,)."""
        return np.full(self.rows, self.hour_start) if self.hours is None else self.hours

    def row_numbers(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions in the file of rows of the source."""
        return rows if self.kept is None else self.kept[rows]


def inspect_file(file: RawFile, labelled: bool, contract: Contract) -> Source:
    """Read the footer of a file; DataError if it cannot be read, or lacks a key or label column or an hour."""
    try:
        with pq.ParquetFile(file.path, coerce_int96_timestamp_unit=INT96_UNIT) as parquet:
            schema, metadata = parquet.schema_arrow, parquet.metadata
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file.path}: cannot be read as parquet: {error}") from error
    spelled, problems = contract_names(schema.names, contract)
    if problems:
        raise DataError(f"{file.path}: {problems[0]}")
    types = {name: schema.field(written).type for name, written in spelled.items()}
    for column in map(contract.by_name.__getitem__, contract.required(labelled)):
        kind = types.get(column.name)
        if kind is None or not reads(column, kind):
            found = "found none" if kind is None else f"found {kind}"
            raise DataError(
                f"{file.path}: column {column.in_files}: expected {column.type}, {found}; without it no row of the file can be used"
            )
    try:
        hour = datetime.strptime(file.datetime_key, "%Y-%m-%d-%H-00").replace(tzinfo=UTC)
    except ValueError as error:
        raise DataError(f"{file.path}: hour {file.datetime_key!r}: expected YYYY-MM-DD-HH-00, as in the folder's name") from error
    sizes = _sizes(metadata, range(metadata.num_row_groups), spelled)
    if contract.layout is None:
        moments = hours_of_rows(file.path, contract)
        kept = rows_of_day(moments, hour.date())
        coded = _coded_leaves(metadata, spelled[contract.identifier])
        first = int(hour.timestamp())
        return Source(file, len(kept), spelled, types, first, metadata, coded, sizes, kept=kept, hours=moments[kept])
    return Source(
        file,
        metadata.num_rows,
        spelled,
        types,
        int(hour.timestamp()),
        metadata,
        _coded_leaves(metadata, spelled[contract.identifier]),
        sizes,
    )


def _coded_leaves(metadata: pq.FileMetaData, identifier: str) -> tuple[str, ...]:
    """Paths of the text leaves whose values Arrow can hand over as dictionary codes.

    It cannot where a page is delta-encoded or the text has a type of its own; identifiers repeat too rarely to gain by it.
    """
    leaves = []
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    for index in range(metadata.num_columns):
        leaf = metadata.schema.column(index)
        if leaf.physical_type != "BYTE_ARRAY" or leaf.logical_type.type not in ("NONE", "STRING", "ENUM") or leaf.path == identifier:
            continue
        encodings = {e for group in groups for e in group.column(index).encodings}
        if not any(encoding.startswith("DELTA") for encoding in encodings):
            leaves.append(leaf.path)
    return tuple(leaves)


def _sizes(metadata: pq.FileMetaData, groups: range, spelled: Mapping[str, str]) -> Mapping[str, int]:
    """Decoded bytes of each column of the contract in some row groups, as the footer states them."""
    meant = {written: name for name, written in spelled.items()}
    names = [meant.get(metadata.schema.column(i).path.split(".", 1)[0]) for i in range(metadata.num_columns)]
    sizes: Counter[str] = Counter()
    for row_group in map(metadata.row_group, groups):
        for index, name in enumerate(names):
            if name is not None:
                sizes[name] += row_group.column(index).total_uncompressed_size
    return sizes


def divided_by_row_groups(sources: Sequence[Source], largest: int) -> list[Source]:
    """The sources, files with more than ``largest`` rows divided into runs of row groups with at most so many where they can be."""
    divided: list[Source] = []
    for source in sources:
        if source.kept is not None:
            divided += _divided_by_days(source, largest)
            continue
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


def _divided_by_days(source: Source, largest: int) -> list[Source]:
    """Runs of row groups of a file of several days that have rows of the source's day, with at most ``largest`` of them where possible."""
    kept, hours = source.kept, source.hours
    assert kept is not None and hours is not None, "a source of some rows knows which"
    starts = np.cumsum([0, *(source.metadata.row_group(i).num_rows for i in range(source.metadata.num_row_groups))])
    edges = np.searchsorted(kept, starts)
    runs: list[list[int]] = []
    for group, (low, high) in enumerate(pairwise(edges)):
        if low == high:
            continue
        if runs and runs[-1][1] == group and high - edges[runs[-1][0]] <= largest:
            runs[-1][1] = group + 1
        else:
            runs.append([group, group + 1])
    parts = []
    for first, last in runs:
        mine = slice(int(edges[first]), int(edges[last]))
        parts.append(
            replace(
                source,
                rows=mine.stop - mine.start,
                sizes=_sizes(source.metadata, range(first, last), source.spelled),
                part=range(first, last),
                first_row=int(starts[first]),
                kept=kept[mine],
                hours=hours[mine],
            )
        )
    return parts


def read_columns(source: Source, names: Sequence[str]) -> pa.Table:
    """The named columns of a source that it has, with a chunk for each row group that is read."""
    present = [name for name in names if name in source.types]
    if not present:
        return pa.table({"": pa.nulls(source.rows)})
    fixed = [name for name in present if "fixed_size_list" in str(source.types[name])]
    usual = [name for name in present if name not in fixed]
    written = [source.spelled[name] for name in usual]
    coded = [leaf for leaf in source.coded if leaf.split(".", 1)[0] in written]
    # Not memory-mapped: a mapped file that its owner cuts short while it is read ends the process.
    options = {"read_dictionary": coded, "coerce_int96_timestamp_unit": INT96_UNIT}
    with pq.ParquetFile(source.file.path, metadata=source.metadata, **options) as parquet:
        if source.metadata.num_row_groups <= 1:
            table = parquet.read(columns=written, use_threads=False)
        else:
            # Arrow cannot join the dictionaries of nested text from several row groups, so each is read by itself.
            groups = range(source.metadata.num_row_groups) if source.part is None else source.part
            table = pa.concat_tables([parquet.read_row_group(group, columns=written, use_threads=False) for group in groups])
    if source.kept is not None:
        table = _only(table, source.kept - source.first_row)
    found = dict(zip(table.column_names, table.columns, strict=True))  # a table asked by name searches its schema each time
    columns = {name: found[source.spelled[name]] for name in usual}
    return pa.table(columns | _fixed_lists(source, fixed) if fixed else columns)


def _only(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """The given rows of a table, ascending; each chunk by itself, because dictionaries of nested text cannot be joined."""
    pieces, start = [], 0
    for batch in table.to_batches():
        low, high = np.searchsorted(rows, [start, start + batch.num_rows])
        pieces.append(batch.take(pa.array(rows[low:high] - start)))
        start += batch.num_rows
    return pa.Table.from_batches(pieces, schema=table.schema)


def _fixed_lists(source: Source, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    """Columns with lists of fixed size, read by DuckDB: Arrow refuses those that have a NULL."""
    # A bracket or an asterisk in a name must not be taken for a pattern.
    path = re.sub(r"([*?\[])", r"[\1]", str(source.file.path))
    columns = ", ".join(f'"{source.spelled[name]}"' for name in names)
    query = f"SELECT {columns} FROM read_parquet(?, hive_partitioning = false) WHERE file_row_number BETWEEN ? AND ?"
    with closing(open_duckdb(threads=1, memory_limit="500MB")) as connection:
        last = source.first_row + source.rows - 1 if source.kept is None else int(source.kept[-1])
        found = connection.sql(query, params=[path, source.first_row, last]).to_arrow_table()
    if source.kept is not None:
        found = _only(found, source.kept - source.first_row)
    return {name: found.column(place) for place, name in enumerate(names)}
