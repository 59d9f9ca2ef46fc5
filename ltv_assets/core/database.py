"""Opening DuckDB: the one place that does.

Every connection runs in UTC, under the threads and the memory that the configuration gives it, and keeps the order of
rows. DuckDB's own defaults are all cores, 80 % of the machine's memory and the machine's time zone. A lint rule refuses
``duckdb.connect`` elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

MEMORY = ":memory:"


def open_duckdb(
    *, threads: int, memory_limit: str, database: Path | str = MEMORY, spill: Path | None = None, **settings: str | bool | int
) -> duckdb.DuckDBPyConnection:
    """Open a database, by default one in memory; the caller closes it.

    Args:
        threads: threads of its queries.
        memory_limit: most memory it may use, as DuckDB writes it, e.g. ``"1.0GB"``.
        database: file to open.
        spill: folder for what exceeds the memory; DuckDB removes it on closing.
        settings: further DuckDB settings.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "threads": threads,
        "memory_limit": memory_limit,
        "preserve_insertion_order": True,
        **settings,
    }
    if spill is not None:
        config["temp_directory"] = str(spill)
    connection = duckdb.connect(str(database), config=config)
    connection.execute("SET TimeZone = 'UTC'")
    return connection
