"""Population stability index (PSI) of each feature between two sets of flattened days, computed in SQL.

What belongs here: the PSI. What does not: deciding when to retrain, plots. Next to read: ``features/schema.py`` (the
columns).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from ltv_assets.core.contract import Contract, load_contract
from ltv_assets.core.database import open_duckdb
from ltv_assets.core.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

TOP_CATEGORIES = 20


def without_calendar(features: Iterable[str], contract: Contract | None = None) -> tuple[str, ...]:
    """The features whose column (``column__statistic``) does not depend on the date only: such differ between any two days.

    Without a contract, the calendar's columns are those of the shipped one.
    """
    calendar = (contract or load_contract()).calendar_columns
    return tuple(name for name in features if name.split("__")[0] not in calendar)


def population_stability(
    reference: Sequence[Path],
    current: Sequence[Path],
    features: Sequence[str],
    *,
    bins: int = 10,
    max_rows: int = 50_000,
    threads: int,
    memory_limit: str,
) -> pd.DataFrame:
    """Return the population stability index of each feature, largest first.

    PSI = sum over bins of (c - r) ln(c / r), with r and c the shares of the reference and the current rows in a bin
    (Siddiqi 2006; below 0.1 is commonly read as stable, above 0.25 as shifted). Numbers are cut at the reference's
    quantiles (a value that equals a cut has a bin of its own), categories into the reference's 20 most frequent values
    and the rest; missing is a bin of its own. Half a row is added to every bin, so that an empty one stays finite.

    Args:
        reference, current: flattened files. bins: number of quantile bins.
        max_rows: above it, each side is sampled to about this many rows, chosen by the hash of row_id.
        threads, memory_limit: DuckDB's settings.

    Returns:
        Columns feature, psi, missing_reference, missing_current (shares), sorted by psi, then name.

    Raises:
        DataError: a file or a feature is missing, or one side has no rows.
    """
    import pandas as pd

    if not features:
        return pd.DataFrame({"feature": [], "psi": [], "missing_reference": [], "missing_current": []})
    with open_duckdb(threads=threads, memory_limit=memory_limit) as connection:
        try:
            for side, files in (("reference", reference), ("current", current)):
                _load(connection, side, files, features, max_rows)
            relation = connection.sql("SELECT * FROM reference")
            texts = [name for name, kind in zip(relation.columns, relation.types, strict=True) if str(kind) == "VARCHAR"]
            numbers = [name for name in features if name not in texts]
            parts = []
            if numbers:
                parts.append(connection.sql(_psi_sql(numbers, _NUMBER_BINS.format(quantiles=[i / bins for i in range(1, bins)]))).df())
            if texts:
                parts.append(connection.sql(_psi_sql(texts, _TEXT_BINS)).df())
        except duckdb.Error as error:
            raise DataError(
                f"{', '.join(map(str, [*reference[:1], *current[:1]]))}: stability of features cannot be computed: {error}"
            ) from error
    frame = pd.concat(parts, ignore_index=True)
    return frame.sort_values(["psi", "feature"], ascending=[False, True], ignore_index=True)


def _load(connection: duckdb.DuckDBPyConnection, side: str, files: Sequence[Path], features: Sequence[str], max_rows: int) -> None:
    if not files:
        raise DataError(f"{side}: expected at least one flattened file, found none")
    paths = ", ".join("'" + str(path).replace("'", "''") + "'" for path in files)
    source = f"read_parquet([{paths}], hive_partitioning = false)"
    rows = connection.execute(f"SELECT count(*) FROM {source}").fetchall()[0][0]
    if rows == 0:
        raise DataError(f"{files[0]}: expected rows to compare, found none")
    columns = ", ".join(f'"{name}"' for name in features)
    thin = f" WHERE hash(row_id) % {rows} < {max_rows}" if rows > max_rows else ""
    connection.execute(f"CREATE TEMP TABLE {side} AS SELECT {columns} FROM {source}{thin}")


# Bins of a long table of (feature, value). A value that equals a cut has a bin of its own, so that a shift of a constant or
# a count is detected as well as that of a continuous quantity.
_BIN = "len(list_filter(edges, lambda e: e < value)) + len(list_filter(edges, lambda e: e <= value))"
_NUMBER_BINS = f"""
  cuts AS (SELECT feature, list_sort(list_distinct(quantile_disc(value, {{quantiles}}))) AS edges FROM long_reference GROUP BY feature),
  binned_reference AS (SELECT feature, {_BIN} AS bin FROM long_reference JOIN cuts USING (feature)),
  binned_current AS (SELECT feature, coalesce({_BIN}, 0) AS bin FROM long_current LEFT JOIN cuts USING (feature))"""

_TEXT_BINS = f"""
  counts AS (SELECT feature, value, count(*) AS n FROM long_reference GROUP BY ALL),
  cuts AS (
    SELECT feature, value, value AS bin FROM counts
    QUALIFY row_number() OVER (PARTITION BY feature ORDER BY n DESC, value) <= {TOP_CATEGORIES}
  ),
  binned_reference AS (SELECT feature, coalesce('=' || bin, 'other') AS bin FROM long_reference LEFT JOIN cuts USING (feature, value)),
  binned_current AS (SELECT feature, coalesce('=' || bin, 'other') AS bin FROM long_current LEFT JOIN cuts USING (feature, value))"""


def _psi_sql(features: Sequence[str], binning: str) -> str:
    columns = ", ".join(f'"{name}"' for name in features)
    names = ", ".join("('" + name.replace("'", "''") + "')" for name in features)
    # UNPIVOT drops NULLs, so the missing values are the difference to the number of rows.
    return f"""
WITH
  long_reference AS (UNPIVOT (SELECT {columns} FROM reference) ON {columns} INTO NAME feature VALUE value),
  long_current AS (UNPIVOT (SELECT {columns} FROM current) ON {columns} INTO NAME feature VALUE value),
  {binning.strip()},
  sizes AS (SELECT (SELECT count(*) FROM reference) AS rows_reference, (SELECT count(*) FROM current) AS rows_current),
  filled_reference AS (SELECT feature, bin, count(*) AS n FROM binned_reference GROUP BY ALL),
  filled_current AS (SELECT feature, bin, count(*) AS n FROM binned_current GROUP BY ALL),
  known AS (
    SELECT feature, bin, coalesce(r.n, 0) AS r, coalesce(c.n, 0) AS c
    FROM filled_reference r FULL JOIN filled_current c USING (feature, bin)
  ),
  gaps AS (
    SELECT feature, rows_reference - coalesce(sum(r), 0) AS r, rows_current - coalesce(sum(c), 0) AS c
    FROM (VALUES {names}) AS all_features(feature) CROSS JOIN sizes LEFT JOIN known USING (feature)
    GROUP BY feature, rows_reference, rows_current
  ),
  cells AS (
    SELECT feature, r, c FROM known
    UNION ALL SELECT feature, r, c FROM gaps
  ),
  shares AS (
    SELECT
      feature,
      (r + 0.5) / (rows_reference + 0.5 * count(*) OVER (PARTITION BY feature)) AS r,
      (c + 0.5) / (rows_current + 0.5 * count(*) OVER (PARTITION BY feature)) AS c
    FROM cells CROSS JOIN sizes
  ),
  stability AS (SELECT feature, sum((c - r) * ln(c / r) ORDER BY r, c) AS psi FROM shares GROUP BY feature)
SELECT feature, psi, gaps.r / rows_reference AS missing_reference, gaps.c / rows_current AS missing_current
FROM stability JOIN gaps USING (feature) CROSS JOIN sizes"""


def score_shift(before: Sequence[Path], new: Sequence[Path], column: str, *, threads: int, memory_limit: str) -> float:
    """Population stability index of a column of scores between two sets of scored files with it and ``row_id``."""
    return float(population_stability(list(before), list(new), [column], threads=threads, memory_limit=memory_limit)["psi"].iloc[0])
