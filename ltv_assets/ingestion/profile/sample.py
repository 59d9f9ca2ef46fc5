"""A bounded sample of the rows of many files, read column by column.

What belongs here: which rows are looked at, and their values as the project's reader converts them. What does not: judging them
(``columns.py``). Rows are taken from files spread over all days, and within a file from its first row groups; the same files give the
same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ltv_assets.core.errors import DataError
from ltv_assets.ingestion.footers import read_footer
from ltv_assets.ingestion.profile.folders import DataFile, Folders

MOST_ROWS = 40_000
MOST_FILES = 64
LEAST_ROWS_A_FILE = 200


@dataclass(frozen=True)
class SampledFile:
    """A file of the sample, its schema, all its rows, and how many of them are looked at."""

    file: DataFile
    schema: pa.Schema
    rows_in_all: int
    rows: int


@dataclass
class Sample:
    """Rows of some files; ``column`` reads one column of all of them."""

    files: tuple[SampledFile, ...]
    unreadable: tuple[tuple[Path, str], ...]
    connection: duckdb.DuckDBPyConnection
    _rows: int = field(init=False)

    def __post_init__(self) -> None:
        self._rows = sum(f.rows for f in self.files)

    def __len__(self) -> int:
        return self._rows

    @property
    def names(self) -> tuple[str, ...]:
        """Every column of any file, in the order of the first file that has it."""
        return tuple(dict.fromkeys(name for f in self.files for name in f.schema.names))

    def types(self, name: str) -> tuple[pa.DataType, ...]:
        """Physical types of a column, in the order of files; files without it say nothing."""
        return tuple(dict.fromkeys(f.schema.field(name).type for f in self.files if name in f.schema.names))

    def of_files(self, values: Sequence[object]) -> list[object]:
        """One value a file, repeated for each of its rows."""
        return [value for f, value in zip(self.files, values, strict=True) for _ in range(f.rows)]

    def days(self) -> list[date | None]:
        """The day of each row as its folder says it."""
        return [f.file.day for f in self.files for _ in range(f.rows)]

    def parts(self, name: str) -> list[pa.Array]:
        """One array a file, NULL throughout where a file lacks the column."""
        return [_first_rows(f, name) if name in f.schema.names else pa.nulls(f.rows) for f in self.files]

    def query(self, sql: str, table: pa.Table) -> pa.Table:
        """Run SQL over a table that the SQL calls ``cells``, as the reader of columns asks for it."""
        self.connection.register("cells", table)
        try:
            return self.connection.sql(sql).to_arrow_table()
        finally:
            self.connection.unregister("cells")


def take_sample(folders: Folders, connection: duckdb.DuckDBPyConnection) -> Sample:
    """Choose files spread evenly over time, and how many rows of each are looked at.

    Raises DataError if no file can be read or none has a row.
    """
    ordered = sorted(folders.files, key=lambda f: (f.day or date.min, f.split, str(f.path)))
    chosen = [ordered[i] for i in _spread(len(ordered), MOST_FILES)]
    if folders.days:  # the first and the last days say where labels end
        ends = {folders.days[0], folders.days[-1]}
        chosen += [f for day in sorted(ends - {c.day for c in chosen}) for f in ordered if f.day == day][:2]
    chosen = sorted(set(chosen), key=lambda f: (f.day or date.min, f.split, str(f.path)))
    quota = max(LEAST_ROWS_A_FILE, MOST_ROWS // len(chosen))
    files, unreadable = [], []
    for file in chosen:
        try:
            footer = read_footer(file.path)
        except OSError as error:
            footer = error.strerror or str(error)
        if isinstance(footer, str):
            unreadable.append((file.path, footer))
        elif footer.rows:
            files.append(SampledFile(file, footer.schema, footer.rows, min(footer.rows, quota)))
    if not files:
        first = f"; first: {unreadable[0][0]}: {unreadable[0][1]}" if unreadable else "; none of them has a row"
        raise DataError(f"{folders.root}: none of the {len(chosen)} files looked at can be used{first}; deliver the files again")
    return Sample(tuple(files), tuple(unreadable), connection)


def has_values(files: Sequence[DataFile], name: str) -> bool:
    """Whether a column has a value among the first rows of any of some files; a file that cannot be read has none."""
    for file in files:
        footer = read_footer(file.path)
        if not isinstance(footer, str) and name in footer.schema.names and footer.rows:
            looked_at = SampledFile(file, footer.schema, footer.rows, min(footer.rows, LEAST_ROWS_A_FILE))
            if _first_rows(looked_at, name).null_count < looked_at.rows:
                return True
    return False


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` numbers below ``count``, evenly spaced, the first and the last among them."""
    return list(range(count)) if count <= most else sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def _first_rows(sampled: SampledFile, name: str) -> pa.Array:
    """As many values of a column as are looked at, from row groups spread over the file."""
    with pq.ParquetFile(sampled.file.path) as file:
        groups = _spread(file.num_row_groups, 4)
        parts: list[pa.Array] = []
        left = sampled.rows
        sizes = [file.metadata.row_group(g).num_rows for g in groups]
        for place, group in enumerate(groups):
            others = sum(sizes[place + 1 :])
            wanted = min(sizes[place], max(left - others, -(-left // (len(groups) - place))))
            for batch in file.iter_batches(batch_size=max(wanted, 1), row_groups=[group], columns=[name]):
                found = batch.column(batch.schema.get_field_index(name))[:wanted]
                parts.append(found)
                left -= len(found)
                wanted -= len(found)
                if wanted <= 0:
                    break
        whole = pa.chunked_array(parts).combine_chunks() if parts else pa.nulls(0)
    whole = pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole
    if len(whole) < sampled.rows:
        more = pa.nulls(sampled.rows - len(whole), whole.type)
        return pa.concat_arrays([whole, more])
    return whole


def joined(parts: Sequence[pa.Array]) -> pa.Array:
    """Arrays of one type as one; of several dictionaries the words are united."""
    present = [p for p in parts if not pa.types.is_null(p.type)]
    kind = present[0].type if present else pa.null()
    whole = pa.chunked_array([p if not pa.types.is_null(p.type) else pa.nulls(len(p), kind) for p in parts], kind)
    whole = whole.unify_dictionaries() if pa.types.is_dictionary(kind) else whole
    return pa.concat_arrays(whole.chunks) if whole.num_chunks else pa.nulls(0, kind)


def shares(mask: np.ndarray) -> float:
    """Share of True, 0 where there is nothing."""
    return float(mask.mean()) if len(mask) else 0.0
