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
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ltv_assets.core.contract import Contract
from ltv_assets.core.database import open_duckdb
from ltv_assets.core.errors import DataError
from ltv_assets.features.canonical import reads
from ltv_assets.features.naming import contract_names

INT96_UNIT = "us"
"""Unit of the timestamps of older writers of Spark and Hive; in nanoseconds a year after 2262 would become another year."""


@dataclass(frozen=True, slots=True)
class RawFile:
    """One file of impressions and the hour it belongs to (``YYYY-MM-DD-HH-00``, from its folder's name)."""

    path: Path
    datetime_key: str


@dataclass(frozen=True, slots=True, eq=False)
class Source:
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
    columns = {name: table.column(source.spelled[name]) for name in usual}
    return pa.table(columns | _fixed_lists(source, fixed) if fixed else columns)


def _fixed_lists(source: Source, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    """Columns with lists of fixed size, read by DuckDB: Arrow refuses those that have a NULL."""
    # A bracket or an asterisk in a name must not be taken for a pattern.
    path = re.sub(r"([*?\[])", r"[\1]", str(source.file.path))
    columns = ", ".join(f'"{source.spelled[name]}"' for name in names)
    query = f"SELECT {columns} FROM read_parquet(?, hive_partitioning = false) WHERE file_row_number BETWEEN ? AND ?"
    with closing(open_duckdb(threads=1, memory_limit="500MB")) as connection:
        found = connection.sql(query, params=[path, source.first_row, source.first_row + source.rows - 1]).to_arrow_table()
    return {name: found.column(place) for place, name in enumerate(names)}
