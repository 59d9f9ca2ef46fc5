"""The rows of a training window, checked once and held in plain arrays.

What belongs here: validation of inputs and labels, ordering of periods, row hashes. What does not: encodings (``design``)
and fits. Everything after this module may rely on finite, non-negative labels. Next to read: ``folds.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_array, column_or_1d

from ltv_assets.core.contract import Contract, Scores, load_contract
from ltv_assets.core.errors import DataError
from ltv_assets.sampling.draws import row_hashes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def signed_log(x: NDArray[Any]) -> NDArray[Any]:
    """sign(x) * log1p(|x|): a log that accepts zero and negative values."""
    return np.sign(x) * np.log1p(np.abs(x))


class InputError(DataError, ValueError):
    """Rows or labels that no model can be fitted on; a ValueError as well, as scikit-learn's conventions ask."""


BLOCK_ROWS = 65_536
"""Rows of a store that are in memory at a time."""


class RowStore(ABC):
    """Rows that need not be in memory together: read in blocks, by column, or by row number, always in the same order.

    ``scratch``: folder for temporary files about as large as the rows; None means the system's.
    """

    scratch: Path | None = None

    @property
    @abstractmethod
    def columns(self) -> pd.Index:
        """Names of the columns."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, low: int, high: int, rows: Ints | None = None) -> pd.DataFrame:
        """Rows low..high-1; or of these only those with the ascending numbers ``rows``."""

    @abstractmethod
    def select(self, columns: Sequence[str]) -> pd.DataFrame:
        """A few columns of every row."""

    def forget(self) -> None:  # noqa: B027 - most stores hold nothing
        """Give up what was decoded ahead; reading goes on as before."""

    def take(self, rows: Ints) -> pd.DataFrame:
        """The rows with these numbers, which must ascend."""
        parts: list[pd.DataFrame] = []
        for low in range(0, len(self), BLOCK_ROWS):
            first, last = np.searchsorted(rows, [low, low + BLOCK_ROWS])
            if last > first or (not parts and low + BLOCK_ROWS >= len(self)):
                parts.append(self.read(low, min(low + BLOCK_ROWS, len(self)), rows[first:last]))
        self.forget()
        return concat_rows(parts)

    def __contains__(self, column: str) -> bool:
        return column in self.columns

    def __getitem__(self, column: str) -> pd.Series:
        return self.select([column])[column]

    def get(self, column: str) -> pd.Series | None:
        """A column, None if there is none of that name."""
        return None if column not in self.columns else self[column]


class FrameRows(RowStore):
    """The rows of a frame."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame = frame

    @property
    def columns(self) -> pd.Index:
        return self._frame.columns

    def __len__(self) -> int:
        return len(self._frame)

    def read(self, low: int, high: int, rows: Ints | None = None) -> pd.DataFrame:
        return self._frame.iloc[low:high] if rows is None else self._frame.iloc[rows]

    def select(self, columns: Sequence[str]) -> pd.DataFrame:
        return self._frame[list(columns)]


class JoinedRows(RowStore):
    """The rows of several stores or frames with the same columns, one after the other."""

    def __init__(self, parts: Sequence[RowStore | pd.DataFrame]) -> None:
        self._parts = parts
        self.scratch = next((part.scratch for part in parts if isinstance(part, RowStore)), None)
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])])

    @property
    def columns(self) -> pd.Index:
        return self._parts[0].columns

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, low: int, high: int, rows: Ints | None = None) -> pd.DataFrame:
        found = []
        for part, start, end in zip(self._parts, self._starts, self._starts[1:], strict=False):
            first, last = max(low, start) - start, min(high, end) - start
            if first < last:
                own = None if rows is None else rows[(rows >= start) & (rows < end)] - start
                store = part if isinstance(part, RowStore) else FrameRows(part)
                found.append(store.read(first, last, own))
        return concat_rows(found)

    def forget(self) -> None:
        for part in self._parts:
            if isinstance(part, RowStore):
                part.forget()

    def select(self, columns: Sequence[str]) -> pd.DataFrame:
        return concat_rows([part.select(columns) if isinstance(part, RowStore) else part[list(columns)] for part in self._parts])


@dataclass(frozen=True)
class WindowData:
    """One window's rows in the order they were given.

    X : features by name, in memory or in a store. revenue : (n, horizons) USD, shortest horizon first; a longer one that is absent or
    immature is NaN.
    period : (n,) codes 0..P-1 in time order; period_names : their P labels. hashes : (n,) 64-bit hash of each row_id.
    contract : names the horizons and says which categories are paired and ranked.
    """

    X: pd.DataFrame | RowStore
    revenue: Floats
    period: Ints
    period_names: tuple[str, ...]
    hashes: NDArray[np.uint64]
    contract: Contract = field(default_factory=load_contract)

    def __len__(self) -> int:
        return len(self.X)

    def rows(self, rows: Ints, X: pd.DataFrame | None = None) -> WindowData:
        """The rows with these numbers, which must ascend, in memory; ``X``: their features, where they were read before."""
        if X is None:
            X = self.X.take(rows) if isinstance(self.X, RowStore) else self.X.iloc[rows]
        return WindowData(X, self.revenue[rows], self.period[rows], self.period_names, self.hashes[rows], self.contract)

    @property
    def names(self) -> Scores:
        """What horizons and scores are called."""
        return self.contract.scores

    @property
    def d7(self) -> Floats:
        """Revenue within the shortest horizon in USD, (n,)."""
        return self.revenue[:, 0]

    @property
    def payer(self) -> Floats:
        """1.0 where revenue within the shortest horizon is positive, (n,)."""
        return (self.revenue[:, 0] > 0).astype(np.float64)

    @property
    def log_d7(self) -> Floats:
        """log1p of revenue within the shortest horizon, (n,)."""
        return np.log1p(self.revenue[:, 0])


def as_frame(X: Any) -> pd.DataFrame:
    """X as a frame: arrays, and frames without text as column names, get the names x0, x1, ..."""
    if isinstance(X, pd.DataFrame):
        return X if all(isinstance(c, str) for c in X.columns) else X.set_axis([f"x{c}" for c in X.columns], axis=1)
    values = check_array(X, dtype=None, ensure_all_finite=False, ensure_min_samples=0, input_name="X")
    return pd.DataFrame(values, columns=[f"x{i}" for i in range(values.shape[1])])


def prepare_window(
    X: Any,
    revenue: Any,
    period: ArrayLike | None = None,
    row_id: ArrayLike | None = None,
    *,
    hashes: NDArray[np.uint64] | None = None,
    contract: Contract | None = None,
) -> WindowData:
    """Check a window and put it into arrays.

    X : frame of numeric and categorical columns, or a numeric array. revenue : Series or array of revenue within the shortest
    horizon, or a frame or mapping with ``d7`` and optionally longer horizons (``d14``, or the contract's names), in USD. period :
    orders rows in time, one value a row; None means one period in row order. row_id : identifiers for hash draws; None means positions.
    hashes : their ``row_hashes``, for those who have them already. contract : names the horizons; None means the shipped one.

    Raises InputError (a DataError) when labels are NaN, infinite or negative (with counts), when lengths differ, when there is no row,
    or when nobody in the window paid: a model of revenue would be meaningless.
    """
    frame = X if isinstance(X, RowStore) else as_frame(X)
    n, width = len(frame), len(frame.columns)
    if n == 0 or not width:
        raise InputError(
            f"the training window has {n} row(s) and {width} feature(s) (shape=({n}, {width})) while a minimum of 1 is required: "
            "check the window's days and filters"
        )
    contract = contract or load_contract()
    labels = revenue_matrix(revenue, n, contract)
    codes, names = _period_codes(period, n)
    if hashes is None:
        hashes = row_hashes(np.arange(n) if row_id is None else _one_per_row(row_id, n, "row_id"))
    if not (labels[:, 0] > 0).any():
        raise InputError(
            f"no payer among {n} training rows (revenue {contract.scores.names[0]} is 0 everywhere): a revenue model would be meaningless; "
            "widen the window or check that labels have matured"
        )
    return WindowData(frame, labels, codes, names, _one_per_row(hashes, n, "hashes"), contract)


def revenue_matrix(revenue: Any, n: int, contract: Contract | None = None) -> Floats:
    """Labels as (n, horizons) USD; absent horizons are NaN. The shortest must be complete; longer ones may be NaN row by row."""
    contract = contract or load_contract()
    columns, horizons = _revenue_columns(revenue, contract), contract.scores.names
    out = np.full((n, len(horizons)), np.nan)
    for j, horizon in enumerate(horizons):
        values = columns.get(horizon)
        if values is None:
            continue
        given = _one_per_row(values, n, f"revenue {horizon}")
        try:
            array = given.astype(np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"revenue {horizon}: expected numbers in USD, found {given.dtype} values ({error})") from None
        _check_revenue(array, horizon, may_be_missing=j > 0)
        out[:, j] = array
    return out


def _revenue_columns(revenue: Any, contract: Contract) -> dict[str, Any]:
    horizons = contract.scores.names
    if isinstance(revenue, pd.DataFrame | Mapping):
        known = {name: h for h, column in zip(horizons, contract.revenue, strict=True) for name in (h, column)}
        found = {known[c]: revenue[c] for c in revenue if c in known}
        if horizons[0] not in found:
            days = contract.horizons[0]
            raise InputError(
                f"revenue has no column of {days} days: expected {horizons[0]!r} or {contract.target!r}, found {list(revenue)}"
            )
        return found
    array = np.asarray(revenue)
    if array.ndim == 2 and array.shape[1] == 1:
        array = column_or_1d(array, warn=True)
    if array.ndim != 1:
        raise InputError(
            f"revenue must be a series of {horizons[0].upper()} revenue or a frame with {', '.join(horizons)}; found shape {array.shape}"
        )
    return {horizons[0]: array}


def _check_revenue(values: Floats, horizon: str, *, may_be_missing: bool) -> None:
    missing = 0 if may_be_missing else int(np.isnan(values).sum())
    infinite, negative = int(np.isinf(values).sum()), int((values < 0).sum())
    if missing or infinite or negative:
        raise InputError(
            f"revenue {horizon}: {missing} NaN, {infinite} infinite and {negative} negative of {len(values)} labels; "
            "expected finite USD >= 0: quarantine those rows before training"
        )


def _one_per_row(values: Any, n: int, name: str) -> NDArray[Any]:
    array = np.asarray(values)
    if array.shape != (n,):
        raise InputError(f"{name} must have one value per row: expected shape ({n},), found {array.shape}")
    return array


def _period_codes(period: Any, n: int) -> tuple[Ints, tuple[str, ...]]:
    if period is None:
        return np.zeros(n, dtype=np.int64), ("all",)
    values = _one_per_row(period, n, "period")
    codes, unique = pd.factorize(values, sort=True)
    if (codes < 0).any():
        raise InputError(f"period is missing for {int((codes < 0).sum())} of {n} rows: every row needs its place in time")
    return codes.astype(np.int64), tuple(str(u) for u in unique)


def concat_windows(first: WindowData, second: WindowData) -> WindowData:
    """Rows of ``first`` followed by those of ``second``; periods are merged by name in sorted order."""
    names: Sequence[str] = sorted({*first.period_names, *second.period_names})
    place = {name: i for i, name in enumerate(names)}
    period = np.concatenate([np.array([place[p] for p in w.period_names], dtype=np.int64)[w.period] for w in (first, second)])
    return WindowData(
        X=_joined(first.X, second.X),
        revenue=np.vstack([first.revenue, second.revenue]),
        period=period,
        period_names=tuple(names),
        hashes=np.concatenate([first.hashes, second.hashes]),
        contract=first.contract,
    )


def _joined(first: pd.DataFrame | RowStore, second: pd.DataFrame | RowStore) -> pd.DataFrame | RowStore:
    if isinstance(first, pd.DataFrame) and isinstance(second, pd.DataFrame):
        return _concat_frames(first, second)
    return JoinedRows([first, second])


def concat_rows(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Concatenate frames with the same columns, their category columns with all values of any."""
    if len(frames) == 1:
        return frames[0].reset_index(drop=True)
    columns = {}
    for name in frames[0].columns:
        parts = [frame[name] for frame in frames]
        if isinstance(parts[0].dtype, pd.CategoricalDtype):
            columns[name] = pd.Series(pd.api.types.union_categoricals(parts, ignore_order=True))
        elif all(part.dtype == np.float32 for part in parts):  # most columns, and pandas takes ten times as long
            columns[name] = pd.Series(np.concatenate([part.to_numpy() for part in parts]))
        else:
            columns[name] = pd.concat(parts, ignore_index=True)
    return pd.DataFrame(columns)


def _concat_frames(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Concatenate by name; category columns with different values are united instead of falling back to object."""
    missing = [c for c in first.columns if c not in second.columns]
    if missing:
        raise InputError(f"the added rows lack the columns {missing[:5]}: both parts of a window need the same features")
    columns = {}
    for name in first.columns:
        a, b = first[name], second[name]
        if isinstance(a.dtype, pd.CategoricalDtype) and isinstance(b.dtype, pd.CategoricalDtype) and a.dtype != b.dtype:
            values = pd.api.types.union_categoricals([a, b], ignore_order=True)
            columns[name] = pd.Series(values)
        else:
            columns[name] = pd.concat([a, b], ignore_index=True)
    return pd.DataFrame(columns)
