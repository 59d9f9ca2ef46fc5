"""Everything that is learnt from a window's training rows before a model sees them: category maps and encodings.

What belongs here: frozen category codes, smoothed target encodings, category counts and ranks of past spend within a
country or category - statistics that depend on *which days* were used for training, and therefore travel with the model
and are never stored in ``flattened_features``. What does not: anything computable from one row alone (``features/``'s
SQL) and anything fitted to predict (``modeling/``). Next to read: ``modeling/`` where the encoder is used out-of-fold.

Three properties hold by construction and are tested:

* a training row is encoded from *other* periods only, so its own label never reaches its features;
* other days are encoded without refitting: nothing here looks at the labels, or at the other rows, of what it transforms;
* a value that was not seen in training has a bucket of its own, it never borrows the branch of another category.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self, TypeAlias, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from ltv_assets.core.columns import RAW_COLUMNS
from ltv_assets.core.errors import ConfigError, DataError, ModelFileError
from ltv_assets.modeling.dataset import signed_log
from ltv_assets.sampling.draws import GOLDEN, splitmix64

FORMAT = "ltv_assets.WindowEncoder"
VERSION = 2

MISSING, UNSEEN, FIRST_KNOWN = 0, 1, 2
"""Levels of every category map: missing, unseen or rare, then the known values by falling frequency."""

DEFAULT_PAIRS: tuple[tuple[str, str], ...] = (("advertiser_bundle", "country"), ("advertiser_category", "country"))
"""Pairs that are encoded together when both columns are there and ``pairs`` is left at None."""

SPEND_COLUMNS: tuple[str, ...] = tuple(
    f"{c.name}__sum" for c in RAW_COLUMNS if c.role in ("purchases", "whales") and c.meaning == "amount" and c.keyed_by == "bundle"
)
"""Past spend of the user, as flattened: the columns that are ranked within a group when ``spend_columns`` is None."""

HASHED_FOLDS = 5
MAX_FOLDS = 16
RANK_GRID = 256

Floats = NDArray[np.float64]
Ints = NDArray[np.integer[Any]]
Targets: TypeAlias = Mapping[str, ArrayLike] | pd.DataFrame | ArrayLike


def revenue_targets(revenue: ArrayLike) -> dict[str, Floats]:
    """The two targets whose encodings models ask for: ``payer`` = 1{revenue > 0} and ``log_revenue`` = log1p(revenue).

    ``revenue`` is one-dimensional, in USD, finite and not negative; anything else raises ``DataError``.
    """
    values = np.asarray(revenue, dtype=np.float64)
    if values.ndim != 1:
        raise DataError(f"revenue must be one-dimensional, found shape {values.shape}: pass the seven-day column alone")
    bad = int(np.count_nonzero(~np.isfinite(values) | (values < 0)))
    if bad:
        raise DataError(f"revenue has {bad} of {values.size} values that are negative, NaN or infinite: quarantine those rows first")
    return {"payer": (values > 0).astype(np.float64), "log_revenue": np.log1p(values)}


def empirical_bayes(n: Floats, total: Floats, squares: Floats, prior: Floats, smoothing: float | Literal["auto"]) -> Floats:
    """Category means shrunk towards a prior (Micci-Barreca 2001, eq. 4; random-effects moments for the strength).

    For a category with ``n`` rows, mean ``m`` and prior ``q``::

        encoding = q + (m - q) * n / (n + k),      k = within / between

    ``k`` is ``smoothing`` when that is a number of rows. With ``"auto"`` it is estimated per column and target by the
    method of moments of one-way random effects::

        within  = sum_c (squares_c - n_c m_c^2) / (N - C)
        between = max(0, (sum_c n_c (m_c - q_c)^2 - (C - 1) within) / (N - sum_c n_c^2 / N))

    so a column that carries no signal (``between`` = 0) is shrunk to its prior completely.

    Shapes: ``n``, ``total`` (sum of y) and ``squares`` (sum of y^2) are (B, L): B independent fits of L categories;
    ``prior`` broadcasts against them. Categories without rows get the prior. Returns (B, L).
    """
    mean = np.divide(total, n, out=np.broadcast_to(prior, n.shape).copy(), where=n > 0)
    deviation = mean - prior
    if smoothing == "auto":
        rows = n.sum(axis=1)
        categories = (n > 0).sum(axis=1)
        within = np.clip(squares - n * mean**2, 0.0, None).sum(axis=1) / np.maximum(rows - categories, 1.0)
        spread = (n * deviation**2).sum(axis=1) - (categories - 1) * within
        scale = rows - np.divide((n**2).sum(axis=1), rows, out=np.zeros_like(rows), where=rows > 0)
        between = np.divide(np.clip(spread, 0.0, None), scale, out=np.zeros_like(rows), where=(scale > 0) & (rows > categories))
        strength = np.divide(within, between, out=np.full_like(rows, np.inf), where=between > 0)[:, None]
    else:
        strength = np.full((n.shape[0], 1), float(smoothing))
    weight = np.divide(n, n + strength, out=np.zeros_like(n), where=n + strength > 0)
    return cast(Floats, prior + weight * deviation)


def _text(value: object) -> str:
    """One spelling per category, so that 7, 7.0 and "7" of differently typed days are the same value."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _factorize(column: pd.Series) -> tuple[Ints, list[str]]:
    """Codes (-1 = missing) and the texts they stand for; NaN, None, NA and the empty string are missing."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes = column.cat.codes.to_numpy()
        values: Iterable[object] = column.cat.categories
        if len(column.cat.categories) > len(column):  # a short frame with a long dictionary: look up only what occurs
            used, codes = np.unique(codes, return_inverse=True)
            if used.size and used[0] < 0:
                used, codes = used[1:], codes - 1
            values = column.cat.categories[used]
    else:
        try:
            codes, values = pd.factorize(column, use_na_sentinel=True)
        except TypeError as error:
            raise DataError(f"column {column.name!r}: expected numbers, text or categories, found lists or objects ({error})") from None
    return codes.astype(np.int32), [_text(v) for v in values]


def _apply(codes: Ints, by_unique: Ints) -> Ints:
    """Levels of rows from levels of their unique values; code -1 is the last element, MISSING."""
    return np.append(by_unique, MISSING)[codes]


@dataclass(frozen=True)
class _CategoryMap:
    """The frozen values of one column: level 0 missing, 1 unseen or rare, 2.. in order of falling training frequency."""

    values: tuple[str, ...]
    level: dict[str, int]

    @classmethod
    def of(cls, values: Sequence[str]) -> Self:
        level = {v: i + FIRST_KNOWN for i, v in enumerate(values)}
        level[""] = MISSING
        return cls(tuple(values), level)

    @classmethod
    def fit(cls, codes: Ints, texts: Sequence[str], min_count: int) -> Self:
        counts: dict[str, int] = {}
        for text, count in zip(texts, np.bincount(codes[codes >= 0], minlength=len(texts)).tolist(), strict=True):
            if text:
                counts[text] = counts.get(text, 0) + count
        kept = [t for t, c in counts.items() if c >= min_count]
        return cls.of(sorted(kept, key=lambda t: (-counts[t], t)))

    @property
    def size(self) -> int:
        return len(self.values) + FIRST_KNOWN

    def levels(self, codes: Ints, texts: Sequence[str]) -> Ints:
        get = self.level.get
        return _apply(codes, np.fromiter((get(t, UNSEEN) for t in texts), np.int32, len(texts)))


@dataclass(frozen=True)
class _Sums:
    """Rows, sums and squares of a target per category: one line per left-out fold, and the whole window as the last line.

    A line for a fold is the window's sums minus the fold's own, so the work does not grow with the number of folds. The
    last line is summed without regard to folds: ``fit`` and ``fit_transform`` store the same bits.
    """

    n: Floats
    total: Floats
    squares: Floats

    @classmethod
    def of(cls, levels: Ints, size: int, y: Floats, fold: Ints | None, folds: int) -> Self:
        known = ~np.isnan(y)
        if not known.all():
            levels, y, fold = levels[known], y[known], None if fold is None else fold[known]
        return cls(*(_left_out(levels, size, weight, fold, folds) for weight in (None, y, y * y)))


def _left_out(levels: Ints, size: int, weight: Floats | None, fold: Ints | None, folds: int) -> Floats:
    """Weighted counts (folds + 1, size): without each fold in turn, then without none."""
    every = np.bincount(levels, weight, minlength=size).astype(np.float64)[None, :]
    if fold is None:
        return every
    own = np.bincount(fold * size + levels, weight, minlength=folds * size).astype(np.float64).reshape(folds, size)
    return np.vstack([every - own, every])


@dataclass(frozen=True)
class _Encoding:
    """Encodings of one column or pair: a line per left-out fold, the whole window as the last line; (lines, levels)."""

    means: dict[str, Floats]
    log_count: Floats
    prior: dict[str, Floats]

    def last(self) -> _Encoding:
        return _Encoding({t: m[-1:] for t, m in self.means.items()}, self.log_count[-1:], {t: p[-1:] for t, p in self.prior.items()})


def _log_counts(levels: Ints, size: int, fold: Ints | None, folds: int) -> Floats:
    """log1p of the category's rows, left-out lines scaled up to the whole window so that training and scoring agree."""
    rows = _left_out(levels, size, None, fold, folds)
    totals = rows.sum(axis=1, keepdims=True)
    return np.log1p(rows * np.divide(totals[-1:], totals, out=np.zeros_like(totals), where=totals > 0))


def _encode_column(
    levels: Ints, size: int, targets: Mapping[str, Floats], fold: Ints | None, folds: int, smoothing: float | Literal["auto"]
) -> _Encoding:
    """Single columns shrink to the mean of all rows; a value no other fold has seen is encoded as unseen, as at scoring."""
    log_count = _log_counts(levels, size, fold, folds)
    log_count[:, UNSEEN] = 0.0
    means, priors = {}, {}
    for name, y in targets.items():
        sums = _Sums.of(levels, size, y, fold, folds)
        rows = sums.n.sum(axis=1, keepdims=True)
        prior = np.divide(sums.total.sum(axis=1, keepdims=True), rows, out=np.zeros_like(rows), where=rows > 0)
        mean = empirical_bayes(sums.n, sums.total, sums.squares, prior, smoothing)
        mean[:, FIRST_KNOWN:] = np.where(sums.n[:, FIRST_KNOWN:] > 0, mean[:, FIRST_KNOWN:], mean[:, [UNSEEN]])
        means[name], priors[name] = mean, prior
    return _Encoding(means, log_count, priors)


def _additive_prior(first: Floats, second: Floats, low: Floats, high: Floats, overall: Floats) -> Floats:
    """What two main effects predict for a pair, kept inside the range of those effects."""
    return cast(Floats, np.clip(first + second - overall, low, high))


@dataclass(frozen=True)
class _Ranks:
    """Sorted values of a spend column per level of a group column, thinned to RANK_GRID points, and their medians.

    Slot 0 holds all rows together; ``slot[level]`` is 0 for levels with too few values of their own.
    """

    slot: Ints
    start: Ints
    values: Floats
    median: Floats

    @classmethod
    def fit(cls, values: NDArray[np.float32], groups: Ints, size: int, min_count: int) -> Self:
        """From values that are present and sorted, and their levels: a stable sort by level keeps them sorted in each."""
        counts = np.bincount(groups, minlength=size)
        own = np.flatnonzero(counts >= max(min_count, 2))
        own = own[own != UNSEEN]  # rare and unseen values have nothing in common: they are ranked among all rows
        slot = np.zeros(size, np.int64)
        slot[own] = np.arange(1, own.size + 1)
        keys = slot[groups].astype(np.uint16 if own.size < 2**16 else np.int64)  # numpy sorts small integers in linear time
        by_group = np.argsort(keys, kind="stable")[np.count_nonzero(keys == 0) :]
        stacked = np.concatenate([values, values[by_group]]).astype(np.float64)
        n = np.concatenate([[values.size], counts[own]])
        first = np.concatenate([[0], np.cumsum(n)[:-1]])
        kept = np.minimum(n, RANK_GRID)
        start = np.concatenate([[0], np.cumsum(kept)])
        step = np.arange(start[-1]) - np.repeat(start[:-1], kept)
        grid = stacked[np.repeat(first, kept) + ((2 * step + 1) * np.repeat(n, kept)) // np.maximum(2 * np.repeat(kept, kept), 1)]
        median = 0.5 * (stacked[first + (n - 1) // 2] + stacked[first + n // 2]) if values.size else np.zeros(1)
        return cls(slot, start.astype(np.int64), grid, median)

    def rank(self, spend: NDArray[np.float32], levels: Ints) -> Floats:
        """Mid-rank (share below + half the share equal) among the training values of the same group; NaN where missing."""
        out = np.full(spend.size, np.nan)
        rows = np.flatnonzero(~np.isnan(spend))
        if rows.size and self.values.size:
            slot = self.slot[levels[rows]]
            low, high = self.start[slot], self.start[slot + 1]
            value = spend[rows].astype(np.float64)
            below = self._bisect(value, low, high, strict=True)
            upto = self._bisect(value, low, high, strict=False)
            out[rows] = (0.5 * (below + upto) - low) / (high - low)
        return out

    def _bisect(self, value: Floats, low: Ints, high: Ints, *, strict: bool) -> Ints:
        """``searchsorted`` of every value inside its own segment [low, high), all rows at once."""
        low, high = low.copy(), high.copy()
        for _ in range(int(np.max(high - low)).bit_length()):
            middle = np.minimum((low + high) // 2, self.values.size - 1)
            at = self.values[middle]
            right = (low < high) & ((at < value) if strict else (at <= value))
            low, high = np.where(right, middle + 1, low), np.where(right | (low >= high), high, middle)
        return low

    def deviation(self, spend: NDArray[np.float32], levels: Ints) -> Floats:
        """Signed-log distance to the group's median, s(v) - s(median) with s(v) = sign(v) log1p(|v|); NaN where missing."""
        return signed_log(spend.astype(np.float64)) - signed_log(self.median)[self.slot[levels]]


def _rank_name(spend: str, group: str) -> str:
    return f"{spend}__rank_in_{group}"


def _limits(first: Floats, second: Floats) -> tuple[Floats, Floats]:
    """Smallest and largest encoding of either column, per line: (lines, 1) each."""
    low = np.minimum(first.min(axis=1), second.min(axis=1))
    high = np.maximum(first.max(axis=1), second.max(axis=1))
    return low[:, None], high[:, None]


def _is_categorical(column: pd.Series) -> bool:
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype) or pd.api.types.is_object_dtype(dtype) or pd.api.types.is_string_dtype(dtype):
        return True
    if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype):
        return False
    raise DataError(f"column {column.name!r} has type {dtype}: expected numbers, text or categories; turn times into ages first")


def _targets(y: Targets, n: int) -> dict[str, Floats]:
    """Targets by name as float64; NaN stays (the row is left out of that target), infinities are refused."""
    if y is None:
        raise ValueError("WindowEncoder requires y to be passed, but the target y is None")  # the wording scikit-learn checks for
    if isinstance(y, Mapping):
        named = {str(k): v for k, v in y.items()}
    elif isinstance(y, pd.DataFrame):
        named = {str(k): y[k] for k in y.columns}
    else:
        named = {"target": y}
    out = {}
    for name, values in named.items():
        array = np.asarray(values, dtype=np.float64)
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.shape != (n,):
            raise DataError(f"target {name!r} must have one value per row: expected shape ({n},), found {array.shape}")
        if np.isinf(array).any():
            raise DataError(f"target {name!r} is infinite in {int(np.isinf(array).sum())} rows: quarantine those rows first")
        out[name] = array
    if not out:
        raise DataError("y names no target: pass at least one, for instance revenue_targets(revenue)")
    return out


def _plain(value: object) -> Any:
    """Parameters as JSON types; tuples become lists."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    return value


def fold_ids(n: int, period: ArrayLike | None = None, folds: ArrayLike | None = None) -> Ints:
    """Fold number 0..F-1 of each of ``n`` rows; a row is encoded from the folds it is not in.

    ``folds`` given: its distinct values. Else one fold per distinct ``period``; more than 16 periods are merged into 16
    runs of neighbouring periods with about equally many rows. One period only: five folds by a hash of the row's position.
    ``DataError`` when lengths differ or fewer than two folds come out.
    """
    given, name = (folds, "folds") if folds is not None else (period, "period")
    if given is None:
        codes: Ints = np.zeros(n, np.int64)
    else:
        values = np.asarray(given)
        if values.shape != (n,):
            raise DataError(f"{name} must have one value per row: expected shape ({n},), found {values.shape}")
        sorted_codes, _ = pd.factorize(values, sort=True, use_na_sentinel=True)
        codes = sorted_codes.astype(np.int64)
        if (codes < 0).any():
            raise DataError(f"{name} is missing for {int((codes < 0).sum())} rows: every row needs one")
    count = int(codes.max(initial=0)) + 1
    if folds is not None or 2 <= count <= MAX_FOLDS:
        if count < 2:
            raise DataError("folds holds a single value: cross-fitting needs rows in at least two folds")
        return codes
    if count > MAX_FOLDS:
        before = np.cumsum(np.bincount(codes)) - 0.5 * np.bincount(codes)
        merged = np.minimum((before * MAX_FOLDS / n).astype(np.int64), MAX_FOLDS - 1)
        return np.unique(merged[codes], return_inverse=True)[1].astype(np.int64)
    with np.errstate(over="ignore"):
        mixed = splitmix64(np.arange(n, dtype=np.uint64) + GOLDEN)
    hashed = (mixed % np.uint64(HASHED_FOLDS)).astype(np.int64)
    codes = np.unique(hashed, return_inverse=True)[1].astype(np.int64)
    if n < 2 or codes.max() < 1:
        raise DataError(f"cross-fitting needs rows in at least two folds, found {n} row(s) in one: use fit and transform apart")
    return codes


@dataclass(frozen=True)
class _Prepared:
    """Rows half-way: numbers, category levels, and the encodings and ranks to look up (one per fold, then the whole)."""

    index: pd.Index
    numeric: NDArray[np.float32]
    levels: dict[str, Ints]
    encodings: Mapping[str, _Encoding]
    ranks: Sequence[Mapping[str, _Ranks]]


@dataclass(frozen=True)
class CrossFitter:
    """A fitted encoder with what it knows without each fold, for the rows that taught it."""

    encoder: WindowEncoder
    encodings: Mapping[str, _Encoding]
    ranks: Sequence[Mapping[str, _Ranks]]

    def transform(self, X: pd.DataFrame, fold: Ints) -> pd.DataFrame:
        """The cross-fitted columns of a block of the training rows, whose fold numbers are ``fold`` (n,)."""
        return self.encoder._encode_held_out(X, fold, self.encodings, self.ranks)


class WindowEncoder(TransformerMixin, BaseEstimator):
    """Turns the columns of a window into one float32 matrix and remembers how, for every other day.

    Output columns, in this order:

    * the columns of ``X``: numbers as float32 (infinite values become NaN, gaps stay NaN), categoricals as integer codes
      held in float32: 0 missing, 1 unseen or rare, 2.. the known values by falling frequency;
    * for each target-encoded column and each pair ``a_x_b``: ``<col>__te_<target>`` for every target (see
      ``empirical_bayes``; a pair shrinks to the sum of its columns' encodings minus the overall mean), then
      ``<col>__count``, the log1p of the training rows with that value (0 for unseen and rare ones);
    * for each spend column and each group column: ``<spend>__rank_in_<group>``, the mid-rank 0..1 among the group's
      training rows, and for the first group column ``<spend>__minus_median_in_<group>``, a difference of signed logs.

    ``fit_transform`` is *cross-fitted*: each row's encodings, ranks and medians come from the other folds (see
    ``fold_ids``), by subtraction of sums. It therefore differs from ``fit(...).transform(...)`` on purpose: use it for
    rows that train a model, ``transform`` for all others.

    Parameters
    ----------
    target_encode : columns to encode; None means every categorical column.
    pairs : pairs of categorical columns to encode together; None means ``DEFAULT_PAIRS`` as far as present.
    smoothing : rows' worth of the prior, or "auto" for the empirical-Bayes estimate per column and target.
    min_count : values with fewer training rows are treated like unseen ones; also the least number of non-missing
        values for a group to be ranked by itself.
    max_categories : the most frequent values that keep a *code* of their own; rarer ones get code 1 but keep their
        target encoding.
    aggregates : whether to add the columns that rank past spend within groups.
    group_columns : categorical columns to rank within, as far as present; the first one present also gives the median.
    spend_columns : numeric columns to rank; None means ``SPEND_COLUMNS`` as far as present.

    Attributes: ``feature_names_in_``, ``n_features_in_``, ``categorical_features_`` (code columns, to be declared
    categorical to LightGBM), ``numeric_features_``, ``targets_``.

    >>> X = pd.DataFrame({"country": ["us", "us", "de", "de"], "age": [1.0, 2.0, 3.0, 4.0]})
    >>> encoder = WindowEncoder(min_count=1, smoothing=2.0).fit(X, {"payer": [1.0, 1.0, 0.0, 0.0]})
    >>> encoder.transform(pd.DataFrame({"country": ["us", "fr", None], "age": [5.0, 6.0, 7.0]}))
       country  age  country__te_payer  country__count
    0      3.0  5.0               0.75        1.098612
    1      1.0  6.0               0.50        0.000000
    2      0.0  7.0               0.50        0.000000
    """

    def __init__(
        self,
        *,
        target_encode: Sequence[str] | None = None,
        pairs: Sequence[tuple[str, str]] | None = None,
        smoothing: float | Literal["auto"] = "auto",
        min_count: int = 10,
        max_categories: int = 255,
        aggregates: bool = True,
        group_columns: Sequence[str] = ("country", "advertiser_category"),
        spend_columns: Sequence[str] | None = None,
    ) -> None:
        self.target_encode = target_encode
        self.pairs = pairs
        self.smoothing = smoothing
        self.min_count = min_count
        self.max_categories = max_categories
        self.aggregates = aggregates
        self.group_columns = group_columns
        self.spend_columns = spend_columns

    # ------------------------------------------------------------------ fitting

    def fit(self, X: pd.DataFrame, y: Targets, period: ArrayLike | None = None) -> Self:
        """Learns maps and encodings from all rows. ``period`` only matters to ``fit_transform`` and is ignored here."""
        self._fit(X, y, None)
        return self

    def fit_transform(  # type: ignore[override]
        self, X: pd.DataFrame, y: Targets, period: ArrayLike | None = None, folds: ArrayLike | None = None
    ) -> pd.DataFrame:
        """Fits on all rows and returns the *cross-fitted* columns of these rows.

        ``y``: targets by name (mapping or frame; a plain array is called ``target``); NaN leaves a row out of that target.
        ``period`` orders rows in time (days); ``folds`` overrides it with explicit fold numbers.
        """
        fold = fold_ids(len(X if isinstance(X, pd.DataFrame) else np.asarray(X)), period, folds)
        return self._cross_fitted(self._fit(X, y, fold), fold)

    def fit_blocks(self, template: pd.DataFrame, select: Callable[[list[str]], pd.DataFrame], y: Targets, fold: Ints) -> CrossFitter:
        """``fit_transform`` for rows that are not in memory together: fits, and returns what encodes them block by block.

        ``template``: a frame with the columns and types of the rows. ``select``: returns the named columns of every row; asked
        for categories and past spend only. ``fold``: fold number of every row, see ``fold_ids``.
        """
        self._check_parameters()
        targets = self._settle(self._frame(template, reset=True), y, len(fold))

        def spend(column: str) -> NDArray[np.float32]:
            values = select([column])[column].to_numpy(dtype=np.float32, na_value=np.nan)
            return np.where(np.isinf(values), np.float32(np.nan), values)

        used = {*self._groups, *(c for pair in self._pairs.values() for c in pair)}
        _, encodings, ranks = self._learn(lambda c: select([c])[c], spend, targets, fold, keep=used)
        return CrossFitter(self, encodings, ranks)

    def _settle(self, frame: pd.DataFrame, y: Targets, n: int) -> dict[str, Floats]:
        """Columns, their kinds and names, from a frame that shows them; returns the targets of ``n`` rows."""
        if n == 0:
            raise DataError("WindowEncoder.fit got no rows: a window needs at least one training row")
        targets = _targets(y, n)
        self._columns = list(frame.columns)
        self.categorical_features_ = [c for c in self._columns if _is_categorical(frame[c])]
        categorical = set(self.categorical_features_)
        self.numeric_features_ = [c for c in self._columns if c not in categorical]
        self.targets_ = list(targets)
        self._choose_columns()
        self._all_names = self._names = self._column_names()
        self._kept = np.arange(len(self._names))
        return targets

    def _fit(self, X: pd.DataFrame, y: Targets, fold: Ints | None) -> _Prepared:
        self._check_parameters()
        frame = self._frame(X, reset=True)
        targets = self._settle(frame, y, len(frame))
        numeric = self._numeric(frame)
        every = self.categorical_features_
        levels, encodings, ranks = self._learn(frame.__getitem__, partial(self._spend, numeric), targets, fold, keep=every)
        return _Prepared(frame.index, numeric, levels, encodings, ranks)

    def _learn(
        self,
        column: Callable[[str], pd.Series],
        spend: Callable[[str], NDArray[np.float32]],
        targets: Mapping[str, Floats],
        fold: Ints | None,
        *,
        keep: Collection[str],
    ) -> tuple[dict[str, Ints], dict[str, _Encoding], list[dict[str, _Ranks]]]:
        """Levels of the rows, encodings and ranks without each fold in turn; what the whole window says is kept.

        ``column``, ``spend``: give a column of every row, asked for one after the other. ``keep``: columns whose levels are
        returned, at least those of pairs and groups.
        """
        self._maps: dict[str, _CategoryMap] = {}
        levels: dict[str, Ints] = {}
        single: dict[str, _Encoding] = {}
        folds = 0 if fold is None else int(fold.max()) + 1
        for c in self.categorical_features_:
            codes, texts = _factorize(column(c))
            self._maps[c] = _CategoryMap.fit(codes, texts, self.min_count)
            found = self._maps[c].levels(codes, texts)
            if c in self._needed:
                single[c] = _encode_column(found, self._maps[c].size, targets, fold, folds, self.smoothing)
            if c in keep:
                levels[c] = found
        encodings = {c: single[c] for c in self._needed}
        self._pair_keys: dict[str, Ints] = {}
        for name, (first, second) in self._pairs.items():
            keys, counts = np.unique(self._pair_key(levels, first, second), return_counts=True)
            self._pair_keys[name] = keys[counts >= self.min_count]
            slots = self._pair_slots(name, levels)
            encodings[name] = self._encode_pair(name, slots, targets, fold, folds, encodings)
        self._encodings = {name: e.last() for name, e in encodings.items()}
        ranks = self._fit_ranks(spend, levels, fold)
        self._ranks = ranks[-1]
        return levels, encodings, ranks

    def _encode_pair(
        self, name: str, slots: Ints, targets: Mapping[str, Floats], fold: Ints | None, folds: int, encodings: Mapping[str, _Encoding]
    ) -> _Encoding:
        """Known pairs shrink to the additive prior of their two columns; slot 0 collects the pairs that are not known."""
        keys = self._pair_keys[name]
        size = keys.size + 1
        first, second = (encodings[c] for c in self._pairs[name])
        width = self._maps[self._pairs[name][1]].size
        log_count = _log_counts(slots, size, fold, folds)
        log_count[:, 0] = 0.0
        means = {}
        for target, y in targets.items():
            a, b = first.means[target], second.means[target]
            prior = _additive_prior(a[:, keys // width], b[:, keys % width], *_limits(a, b), first.prior[target])
            sums = _Sums.of(slots, size, y, fold, folds)
            means[target] = np.zeros((log_count.shape[0], size))
            means[target][:, 1:] = empirical_bayes(sums.n[:, 1:], sums.total[:, 1:], sums.squares[:, 1:], prior, self.smoothing)
        return _Encoding(means, log_count, {})

    def _fit_ranks(
        self, spend: Callable[[str], NDArray[np.float32]], levels: Mapping[str, Ints], fold: Ints | None
    ) -> list[dict[str, _Ranks]]:
        """Ranks without each fold in turn, then without none; each spend column is sorted once for all of them."""
        leave_out = [None] if fold is None else [*range(int(fold.max()) + 1), None]
        ranks: list[dict[str, _Ranks]] = [{} for _ in leave_out]
        for name in self._spends:
            values = spend(name)
            by_value = np.argsort(values, kind="stable")[: np.count_nonzero(~np.isnan(values))]  # NaN sorts last
            for out, left in zip(ranks, leave_out, strict=True):
                rows = by_value if left is None or fold is None else by_value[fold[by_value] != left]
                for group in self._groups:
                    out[_rank_name(name, group)] = _Ranks.fit(values[rows], levels[group][rows], self._maps[group].size, self.min_count)
        return ranks

    def restrict_to(self, names: Sequence[str]) -> Self:
        """Leave out all output columns but ``names``, which keep their order; the input columns stay as they are.

        ``DataError`` when there is no such column.
        """
        check_is_fitted(self, "_names")
        unknown = sorted(set(names) - set(self._all_names))
        if unknown:
            raise DataError(f"no output columns are called {unknown[:5]}: choose among get_feature_names_out()")
        wanted = set(names)
        self._kept = np.array([i for i, name in enumerate(self._all_names) if name in wanted], dtype=np.int64)
        self._names = [self._all_names[i] for i in self._kept]
        self._names_index = pd.Index(self._names)
        return self

    # ------------------------------------------------------------------ encoding

    def transform(self, X: pd.DataFrame) -> pd.DataFrame:
        """Encodes rows with what the whole training part taught; every row on its own, so chunks change nothing.

        Columns may come in any order; a missing or an unknown one raises ``DataError`` naming it.
        """
        check_is_fitted(self, "_names")
        frame = self._frame(X, reset=False)
        levels = {c: self._maps[c].levels(*_factorize(frame[c])) for c in self.categorical_features_}
        out = self._empty(len(frame))
        prepared = _Prepared(frame.index, self._numeric(frame), levels, self._encodings, [self._ranks])
        self._write_columns(out, prepared)
        self._write_encodings(out, prepared, None)
        self._write_aggregates(out, prepared, self._ranks, slice(None))
        return self._as_frame(out, prepared)

    def _encode_held_out(
        self, X: pd.DataFrame, fold: Ints, encodings: Mapping[str, _Encoding], ranks: Sequence[Mapping[str, _Ranks]]
    ) -> pd.DataFrame:
        frame = self._frame(X, reset=False)
        levels = {c: self._maps[c].levels(*_factorize(frame[c])) for c in self.categorical_features_}
        return self._cross_fitted(_Prepared(frame.index, self._numeric(frame), levels, encodings, ranks), fold)

    def _cross_fitted(self, prepared: _Prepared, fold: Ints) -> pd.DataFrame:
        out = self._empty(len(prepared.index))
        self._write_columns(out, prepared)
        self._write_encodings(out, prepared, fold)
        for f, ranks in enumerate(prepared.ranks[:-1] if self._spends and self._groups else ()):
            self._write_aggregates(out, prepared, ranks, fold == f)
        return self._as_frame(out, prepared)

    def _empty(self, n: int) -> NDArray[np.float32]:
        return np.empty((n, len(self._all_names)), np.float32, order="F")

    def _as_frame(self, out: NDArray[np.float32], prepared: _Prepared) -> pd.DataFrame:
        return pd.DataFrame(
            out if len(self._kept) == out.shape[1] else out[:, self._kept], index=prepared.index, columns=self._names_index, copy=False
        )

    def _write_columns(self, out: NDArray[np.float32], prepared: _Prepared) -> None:
        out[:, self._numeric_at] = prepared.numeric
        for column, at in zip(self.categorical_features_, self._codes_at, strict=True):
            level = prepared.levels[column]
            out[:, at] = np.where(level < self.max_categories + FIRST_KNOWN, level, UNSEEN)

    def _write_encodings(self, out: NDArray[np.float32], prepared: _Prepared, fold: Ints | None) -> None:
        at = len(self._columns)
        line: Ints | int = 0 if fold is None else fold
        for column in self._encoded:
            encoding, level = prepared.encodings[column], prepared.levels[column]
            for target in self.targets_:
                out[:, at] = encoding.means[target][line, level]
                at += 1
            out[:, at] = encoding.log_count[line, level]
            at += 1
        for name, (first, second) in self._pairs.items():
            slots = self._pair_slots(name, prepared.levels)
            unknown = np.flatnonzero(slots == 0)
            a, b, pair = prepared.encodings[first], prepared.encodings[second], prepared.encodings[name]
            some: Ints | int = 0 if fold is None else fold[unknown]
            for target in self.targets_:
                values = pair.means[target][line, slots]
                if unknown.size:
                    low, high = _limits(a.means[target], b.means[target])
                    values[unknown] = _additive_prior(
                        a.means[target][some, prepared.levels[first][unknown]],
                        b.means[target][some, prepared.levels[second][unknown]],
                        low[some, 0],
                        high[some, 0],
                        a.prior[target][some, 0],
                    )
                out[:, at] = values
                at += 1
            out[:, at] = pair.log_count[line, slots]
            at += 1

    def _write_aggregates(
        self, out: NDArray[np.float32], prepared: _Prepared, ranks: Mapping[str, _Ranks], rows: NDArray[np.bool_] | slice
    ) -> None:
        at = len(self._all_names) - len(self._spends) * (len(self._groups) + 1) if self._groups else len(self._all_names)
        for spend in self._spends if self._groups else ():
            values = self._spend(prepared.numeric, spend)[rows]
            for group in self._groups:
                out[rows, at] = ranks[_rank_name(spend, group)].rank(values, prepared.levels[group][rows])
                at += 1
            first = self._groups[0]
            out[rows, at] = ranks[_rank_name(spend, first)].deviation(values, prepared.levels[first][rows])
            at += 1

    # ------------------------------------------------------------------ names

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> NDArray[np.object_]:
        """Names of the output columns; ``input_features``, if given, must be the training columns."""
        check_is_fitted(self, "_names")
        if input_features is not None and list(np.asarray(input_features, dtype=object)) != self._columns:
            raise ValueError("input_features is not equal to feature_names_in_")
        return np.asarray(self._names, dtype=object)

    def _choose_columns(self) -> None:
        """Settles which columns are encoded, paired and ranked; an explicitly named column that is absent is an error."""
        categorical, numeric = set(self.categorical_features_), set(self.numeric_features_)

        def named(wanted: Iterable[str], known: set[str], parameter: str, kind: str) -> list[str]:
            wanted = list(dict.fromkeys(wanted))
            absent = [c for c in wanted if c not in known]
            if absent:
                raise ConfigError(f"{parameter} names {absent}, which are not {kind} columns of X; remove them or add the columns")
            return wanted

        self._encoded = (
            list(self.categorical_features_)
            if self.target_encode is None
            else named(self.target_encode, categorical, "target_encode", "categorical")
        )
        if self.pairs is None:
            chosen = [(a, b) for a, b in DEFAULT_PAIRS if a in categorical and b in categorical]
        else:
            chosen = [(a, b) for a, b in self.pairs]
            named([c for pair in chosen for c in pair], categorical, "pairs", "categorical")
        self._pairs = {f"{a}_x_{b}": (a, b) for a, b in chosen}
        self._needed = list(dict.fromkeys([*self._encoded, *(c for pair in self._pairs.values() for c in pair)]))
        self._groups = [c for c in self.group_columns if c in categorical] if self.aggregates else []
        if not self.aggregates:
            self._spends = []
        elif self.spend_columns is None:
            self._spends = [c for c in SPEND_COLUMNS if c in numeric]
        else:
            self._spends = named(self.spend_columns, numeric, "spend_columns", "numeric")

    def _column_names(self) -> list[str]:
        names = list(self._columns)
        for column in [*self._encoded, *self._pairs]:
            names += [f"{column}__te_{t}" for t in self.targets_] + [f"{column}__count"]
        for spend in self._spends if self._groups else ():
            names += [_rank_name(spend, g) for g in self._groups] + [f"{spend}__minus_median_in_{self._groups[0]}"]
        repeated = {c for c in names if names.count(c) > 1} if len(set(names)) < len(names) else set()
        if repeated:
            raise DataError(f"columns of X bear names that encodings need: {sorted(repeated)}; rename them")
        position = {c: i for i, c in enumerate(self._columns)}
        self._numeric_at = [position[c] for c in self.numeric_features_]
        self._codes_at = [position[c] for c in self.categorical_features_]
        self._spend_at = {c: self.numeric_features_.index(c) for c in self._spends}
        self._names_index = pd.Index(names)
        return names

    # ------------------------------------------------------------------ input

    def _check_parameters(self) -> None:
        if self.smoothing != "auto" and not (isinstance(self.smoothing, int | float) and 0 <= self.smoothing < np.inf):
            raise ConfigError(f"smoothing must be 'auto' or a finite number of rows >= 0, found {self.smoothing!r}")
        for name in ("min_count", "max_categories"):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < 1:
                raise ConfigError(f"{name} must be an integer >= 1, found {value!r}")

    def _frame(self, X: pd.DataFrame | ArrayLike, *, reset: bool) -> pd.DataFrame:
        if not isinstance(X, pd.DataFrame):
            values = validate_data(self, X, reset=reset, dtype="numeric", ensure_all_finite=False)
            return pd.DataFrame(values, columns=[f"x{i}" for i in range(values.shape[1])])
        if reset:
            odd = [c for c in X.columns if not isinstance(c, str)]
            if odd or not X.columns.is_unique:
                repeated = sorted(set(X.columns[X.columns.duplicated()]), key=str)
                raise DataError(f"column names must be unique strings; not strings: {odd}, repeated: {repeated}")
            self.n_features_in_ = X.shape[1]
            self.feature_names_in_ = np.asarray(X.columns, dtype=object)
            return X
        if list(X.columns) == self._columns:
            return X
        missing = [c for c in self._columns if c not in X.columns]
        unknown = [c for c in X.columns if c not in set(self._columns)]
        if missing or unknown or not X.columns.is_unique:
            raise DataError(
                f"columns differ from those the encoder was fitted on: missing {missing}, unknown {unknown}; "
                "flatten with the same feature configuration, or fit again"
            )
        return X[self._columns]

    def _numeric(self, frame: pd.DataFrame) -> NDArray[np.float32]:
        part = frame[self.numeric_features_] if self.categorical_features_ else frame
        try:
            with np.errstate(over="ignore"):
                values = part.to_numpy(dtype=np.float32, na_value=np.nan)
        except (TypeError, ValueError) as error:
            for column in self.numeric_features_:
                try:
                    pd.to_numeric(part[column]).to_numpy(dtype=np.float32, na_value=np.nan)
                except (TypeError, ValueError):
                    raise DataError(f"column {column!r} was numeric in training and now holds {part[column].dtype}: {error}") from error
            raise DataError(f"the numeric columns cannot be read as float32: {error}") from error
        infinite = np.isinf(values)
        return np.where(infinite, np.float32(np.nan), values) if infinite.any() else values

    def _spend(self, numeric: NDArray[np.float32], column: str) -> NDArray[np.float32]:
        return numeric[:, self._spend_at[column]]

    def _pair_key(self, levels: Mapping[str, Ints], first: str, second: str) -> Ints:
        return levels[first].astype(np.int64) * self._maps[second].size + levels[second]

    def _pair_slots(self, name: str, levels: Mapping[str, Ints]) -> Ints:
        """1 + position of each row's pair among the known ones; 0 for a pair that is rare or new."""
        known = self._pair_keys[name]
        key = self._pair_key(levels, *self._pairs[name])
        if not known.size:
            return np.zeros_like(key)
        at = np.minimum(np.searchsorted(known, key), known.size - 1)
        return np.where(known[at] == key, at + 1, 0)

    # ------------------------------------------------------------------ storage

    def to_dict(self) -> dict[str, Any]:
        """The fitted encoder as plain JSON types; the same fit always gives the same dictionary, floats survive exactly."""
        check_is_fitted(self, "_names")
        parameters = {k: _plain(v) for k, v in self.get_params(deep=False).items()}
        return {
            "format": FORMAT,
            "version": VERSION,
            "parameters": parameters,
            "columns": list(self._columns),
            "kept": list(self._names),
            "named": hasattr(self, "feature_names_in_"),
            "categories": {c: list(self._maps[c].values) for c in self.categorical_features_},
            "targets": list(self.targets_),
            "encodings": {
                name: {
                    "log_count": e.log_count[0].tolist(),
                    "means": {t: m[0].tolist() for t, m in e.means.items()},
                    "prior": {t: float(p[0, 0]) for t, p in e.prior.items()},
                }
                for name, e in self._encodings.items()
            },
            "pair_keys": {name: keys.tolist() for name, keys in self._pair_keys.items()},
            "ranks": {
                name: {"slot": r.slot.tolist(), "start": r.start.tolist(), "values": r.values.tolist(), "median": r.median.tolist()}
                for name, r in self._ranks.items()
            },
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """The encoder that ``to_dict`` described; ``ModelFileError`` if it is of another kind or version, or incomplete."""
        if stored.get("format") != FORMAT or stored.get("version") != VERSION:
            found = f"{stored.get('format')!r} version {stored.get('version')!r}"
            raise ModelFileError(f"expected {FORMAT} version {VERSION}, found {found}: fit the window again with this release")
        try:
            return cls._restore(stored)
        except (KeyError, TypeError, ValueError, IndexError, ConfigError) as error:
            raise ModelFileError(f"the stored {FORMAT} is incomplete or damaged ({error!r}): fit the window again") from error

    @classmethod
    def _restore(cls, stored: Mapping[str, Any]) -> Self:
        self = cls(**stored["parameters"])
        self._columns = list(stored["columns"])
        self.n_features_in_ = len(self._columns)
        if stored["named"]:
            self.feature_names_in_ = np.asarray(self._columns, dtype=object)
        categories = stored["categories"]
        self.categorical_features_ = [c for c in self._columns if c in categories]
        self.numeric_features_ = [c for c in self._columns if c not in categories]
        self.targets_ = list(stored["targets"])
        self._choose_columns()
        self._maps = {c: _CategoryMap.of(categories[c]) for c in self.categorical_features_}
        self._encodings = {
            name: _Encoding(
                {t: np.asarray(m, np.float64)[None, :] for t, m in e["means"].items()},
                np.asarray(e["log_count"], np.float64)[None, :],
                {t: np.full((1, 1), p) for t, p in e["prior"].items()},
            )
            for name, e in stored["encodings"].items()
        }
        self._pair_keys = {name: np.asarray(keys, np.int64) for name, keys in stored["pair_keys"].items()}
        self._ranks = {
            name: _Ranks(
                np.asarray(r["slot"], np.int64),
                np.asarray(r["start"], np.int64),
                np.asarray(r["values"], np.float64),
                np.asarray(r["median"], np.float64),
            )
            for name, r in stored["ranks"].items()
        }
        for name in [*self._needed, *self._pairs]:
            expected = self._pair_keys[name].size + 1 if name in self._pairs else self._maps[name].size
            for target in self.targets_:
                found = self._encodings[name].means[target].shape[1]
                if found != expected:
                    raise ValueError(f"{name}: {expected} levels, but {found} encodings of {target}")
        self._all_names = self._names = self._column_names()
        return self.restrict_to(stored["kept"])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        return tags
