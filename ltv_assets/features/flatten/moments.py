"""When the rows of a file happened, where the file says it itself: the column of moments, read by hours.

What belongs here: that one column, and which rows of a file belong to a day. What does not: folders that are named after their
time (``core/time_layout.py``), the other columns (``sources.py``). Next to read: ``sources.py``.
"""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ltv_assets.core.contract import Column, Contract
from ltv_assets.core.database import open_duckdb
from ltv_assets.core.errors import DataError
from ltv_assets.features.canonical import read_column, reads
from ltv_assets.features.naming import contract_names

DAY_SECONDS, HOUR_SECONDS = 86_400, 3_600
FIRST_SECOND, LAST_SECOND = 946_684_800, 7_258_118_400
"""2000-01-01 and 2200-01-01: moments beyond are no moments of a row."""
NO_HOUR = -1
"""The hour of a row whose moment is missing or impossible."""
INT96_UNIT = "us"
"""Unit of the timestamps of older writers of Spark and Hive; in nanoseconds a year after 2262 would become another year."""


def moment_column(contract: Contract) -> Column:
    """The column of moments as a column of unix seconds, whatever it is declared as."""
    column = contract.by_name[contract.time.column or ""]
    return column.model_copy(update={"role": "feature", "type": "int64", "meaning": "timestamp"})


def hours_of_rows(path: Path, contract: Contract) -> NDArray[np.int64]:
    """Unix seconds of the hour of each row of a file, (n,); ``NO_HOUR`` where its moment is missing or impossible.

    Raises DataError if the file lacks the column, or if no row of it has a moment between 2000 and 2199.
    """
    column = moment_column(contract)
    try:
        with pq.ParquetFile(path, coerce_int96_timestamp_unit=INT96_UNIT) as parquet:
            spelled, problems = contract_names(parquet.schema_arrow.names, contract)
            if problems:
                raise DataError(f"{path}: {problems[0]}")
            written = spelled.get(column.name)
            kind = parquet.schema_arrow.field(written).type if written is not None else None
            if written is None or not reads(column, kind):
                found = "found none" if written is None else f"found {kind}"
                raise DataError(f"{path}: column {column.in_files}: expected the moment of a row, {found}; without it no row has a day")
            table = parquet.read(columns=[written], use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: column {column.in_files} cannot be read: {error}") from error
    with closing(open_duckdb(threads=1, memory_limit="500MB")) as connection:

        def query(sql: str, cells: pa.Table) -> pa.Table:
            return connection.register("cells", cells).sql(sql).to_arrow_table()

        chunks = [read_column(column, chunk, query)[0].to_numpy(zero_copy_only=False) for chunk in table.column(0).chunks]
    seconds = np.concatenate([np.empty(0), *chunks])
    usable = (seconds >= FIRST_SECOND) & (seconds < LAST_SECOND)
    if len(seconds) and not usable.any():
        known = seconds[np.isfinite(seconds)]
        found = f"found {known[0]:.0f} in its first row" if len(known) else "found none"
        raise DataError(
            f"{path}: column {column.in_files}: expected moments between 2000 and 2199 (timestamps, ISO 8601 text or unix seconds), "
            f"{found}; deliver seconds, not milliseconds, or name another column in time.column"
        )
    return np.where(usable, np.where(usable, seconds, 0) // HOUR_SECONDS * HOUR_SECONDS, NO_HOUR).astype(np.int64)


def rows_of_day(hours: NDArray[np.int64], day: date) -> NDArray[np.int64]:
    """Positions of the rows of a day, ascending. Rows without an hour go with the first day of the file, which sets them aside."""
    first = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
    mine = (hours >= first) & (hours < first + DAY_SECONDS)
    known = hours[hours != NO_HOUR]
    if len(known) and known.min() >= first:
        mine |= hours == NO_HOUR
    return np.flatnonzero(mine)


def days_of_hours(hours: NDArray[np.int64]) -> dict[date, NDArray[np.int64]]:
    """{day: positions of its rows} of a file, in order of time."""
    numbers = np.unique(hours[hours != NO_HOUR] // DAY_SECONDS)
    days = [date(1970, 1, 1) + timedelta(days=int(number)) for number in numbers]
    return {day: rows_of_day(hours, day) for day in days}
