"""Population stability index (PSI) of each feature between two sets of flattened days.

What belongs here: the PSI. What does not: deciding when to retrain, plots. Next to read: ``features/schema.py`` (the
columns).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ltv_assets.core.contract import Contract, load_contract
from ltv_assets.core.database import open_duckdb
from ltv_assets.core.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

TOP_CATEGORIES = 20

Counts = NDArray[np.int64]


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
            before, after = (
                _load(connection, side, files, features, max_rows) for side, files in (("reference", reference), ("current", current))
            )
        except duckdb.Error as error:
            raise DataError(
                f"{', '.join(map(str, [*reference[:1], *current[:1]]))}: stability of features cannot be computed: {error}"
            ) from error
    rows = []
    for name, old, new in zip(features, before.columns, after.columns, strict=True):
        counted = _text_bins(old, new) if pa.types.is_string(old.type) or pa.types.is_string(new.type) else _number_bins(old, new, bins)
        gaps = np.array([old.null_count, new.null_count])
        rows.append((name, _index(np.vstack([counted, gaps])), gaps[0] / before.num_rows, gaps[1] / after.num_rows))
    frame = pd.DataFrame(rows, columns=["feature", "psi", "missing_reference", "missing_current"])
    return frame.sort_values(["psi", "feature"], ascending=[False, True], ignore_index=True)


def _load(connection: duckdb.DuckDBPyConnection, side: str, files: Sequence[Path], features: Sequence[str], max_rows: int) -> pa.Table:
    if not files:
        raise DataError(f"{side}: expected at least one flattened file, found none")
    paths = ", ".join("'" + str(path).replace("'", "''") + "'" for path in files)
    source = f"read_parquet([{paths}], hive_partitioning = false)"
    rows = connection.execute(f"SELECT count(*) FROM {source}").fetchall()[0][0]
    if rows == 0:
        raise DataError(f"{files[0]}: expected rows to compare, found none")
    columns = ", ".join('"' + name.replace('"', '""') + '"' for name in features)
    thin = f" WHERE hash(row_id) % {rows} < {max_rows}" if rows > max_rows else ""
    return connection.sql(f"SELECT {columns} FROM {source}{thin}").to_arrow_table()


def _number_bins(reference: pa.ChunkedArray, current: pa.ChunkedArray, bins: int) -> Counts:
    """Rows (reference, current) between the reference's quantiles and at each of them, (k, 2).

    A value that equals a cut has a bin of its own, so that a shift of a constant or a count is detected as well as that of a
    continuous quantity.
    """
    sides = [np.sort(side.drop_null().to_numpy()) for side in (reference, current)]
    n = len(sides[0])
    cuts = np.unique(sides[0][[max(-(-n * i // bins), 1) - 1 for i in range(1, bins)]]) if n else sides[0]
    counted = []
    for values in sides:
        edges = np.column_stack([np.searchsorted(values, cuts, "left"), np.searchsorted(values, cuts, "right")]).ravel()
        counted.append(np.diff(edges, prepend=0, append=len(values)))
    return np.column_stack(counted)


def _text_bins(reference: pa.ChunkedArray, current: pa.ChunkedArray) -> Counts:
    """Rows (reference, current) of the reference's most frequent values and of all others together, (k, 2)."""
    old, new = ({c["values"]: c["counts"] for c in side.drop_null().value_counts().to_pylist()} for side in (reference, current))
    common = sorted(old, key=lambda value: (-old[value], value))[:TOP_CATEGORIES]
    counted = [(old[value], new.get(value, 0)) for value in common]
    return np.array([*counted, (sum(old.values()) - sum(o for o, _ in counted), sum(new.values()) - sum(n for _, n in counted))])


def _index(counted: Counts) -> float:
    """PSI of the rows by bin; the last bin, of missing values, always counts, others where either side has rows."""
    cells = np.vstack([counted[:-1][counted[:-1].any(axis=1)], counted[-1:]])
    share = (cells + 0.5) / (cells.sum(axis=0) + 0.5 * len(cells))
    r, c = share[np.lexsort(share.T[::-1])].T
    return float(np.sum((c - r) * np.log(c / r)))


def score_shift(before: Sequence[Path], new: Sequence[Path], column: str, *, threads: int, memory_limit: str) -> float:
    """Population stability index of a column of scores between two sets of scored files with it and ``row_id``."""
    return float(population_stability(list(before), list(new), [column], threads=threads, memory_limit=memory_limit)["psi"].iloc[0])
