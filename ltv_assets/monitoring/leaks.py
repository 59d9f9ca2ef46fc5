"""Leaked labels among the features: what tells payers apart in training and is gone on the days that are scored.

What belongs here: the search over flattened days. What does not: verdicts (``defs/asset_checks/``), the figures themselves
(``ingestion/separation.py``).

A label that slipped in among the features flatters every figure of the holdout, which has it too, and is worth nothing where it matters.
Few features are absent or constant on a scored day, and only those are read from the training days.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ltv_assets.ingestion.separation import Separation, separate_codes, separate_numbers

MOST_ROWS = 500_000
"""Training rows looked at; of more, evenly spaced ones."""


@dataclass(frozen=True, slots=True)
class Leak:
    """A feature, how it tells payers apart in training, and the one value it has on the scored days (None: it is absent)."""

    feature: str
    separation: Separation
    value: float | str | None

    def said(self) -> str:
        """The finding as part of a sentence."""
        there = "absent" if self.value is None else f"{self.value} everywhere"
        return f"{self.feature} ({self.separation.said()}; {there} on the days to be scored)"


def find_leaks(
    training: Sequence[Path], scored: Sequence[Path], features: Sequence[str], revenue: str, *, auc_max: float, exclusive_max: float
) -> tuple[tuple[Leak, ...], int]:
    """(features that separate payers beyond a bound in training and are absent or constant on the scored days, the worst first; features
    that are absent or constant there at all).

    ``training``, ``scored``: flattened files. ``revenue``: the label whose positive values make a payer.
    """
    silent = constant_features(scored, features)
    if not silent:
        return (), 0
    columns = list(silent)
    table = _spread(training, [revenue, *columns])
    payer = np.nan_to_num(table[revenue].to_numpy()) > 0
    leaks = []
    for name in columns:
        separation = _separation(table[name], payer, silent[name])
        if separation.beyond(auc_max, exclusive_max):
            leaks.append(Leak(name, separation, silent[name]))
    return tuple(sorted(leaks, key=lambda k: -max(k.separation.auc, k.separation.exclusive))), len(silent)


def constant_features(files: Sequence[Path], features: Sequence[str]) -> dict[str, float | str | None]:
    """{feature: its value} of those that have one value, or none (None), in every row of the files; empty if there are no rows."""
    wanted, found = list(features), dict[str, float | str | None]()
    started = False
    for part in _row_groups(files, wanted):
        if not part.num_rows:
            continue
        values = {name: _only_value(part[name]) for name in wanted}
        same = {name: value for name, (alike, value) in values.items() if alike}
        found = {name: value for name, value in same.items() if found[name] == value} if started else same
        started, wanted[:] = True, list(found)
        if not found:
            break
    return found


def _row_groups(files: Sequence[Path], columns: list[str]) -> Iterator[pa.Table]:
    for path in files:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=columns)


def _only_value(column: pa.ChunkedArray) -> tuple[bool, float | str | None]:
    """(whether all rows of a column are alike, their value)."""
    if column.null_count:
        return column.null_count == len(column), None
    first = column[0].as_py()
    words = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
    return bool(pc.all(pc.equal(words, first)).as_py()), first


def _spread(files: Sequence[Path], columns: list[str]) -> pa.Table:
    """Columns of evenly spaced rows of the files, at most about ``MOST_ROWS``."""
    total = sum(pq.ParquetFile(path).metadata.num_rows for path in files)
    every, start, parts = max(1, -(-total // MOST_ROWS)), 0, []
    for part in _row_groups(files, columns):
        parts.append(part.take(pa.array(np.arange(-start % every, part.num_rows, every))) if every > 1 else part)
        start += part.num_rows
    return pa.concat_tables(parts).unify_dictionaries()


def _separation(column: pa.ChunkedArray, payer: NDArray[np.bool_], usual: float | str | None) -> Separation:
    array = pa.concat_arrays(column.chunks)
    if pa.types.is_dictionary(array.type):
        words = array.dictionary.to_pylist()
        code = words.index(usual) if usual in words else -1 if usual is None else len(words)
        return separate_codes(array.indices.fill_null(-1).to_numpy(), payer, code)
    values = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return separate_numbers(values, payer, np.nan if usual is None else float(usual))
