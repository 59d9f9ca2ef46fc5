"""The window encoder: everything that is learnt from a window's training rows before a model sees them.

What belongs here: the choice of columns, frozen category codes, target encodings, counts and ranks of past spend put
together, their JSON form - statistics that depend on *which days* were used for training, and therefore travel with the
model and are never stored in ``flattened_features``. What does not: anything computable from one row alone (``features/``'s
SQL) and anything fitted to predict (``modeling/``). Next to read: ``modeling/design_matrix.py``, where it is used out-of-fold.

Three properties hold by construction and are tested:

* a training row is encoded from *other* periods only, so its own label never reaches its features;
* other days are encoded without refitting: nothing here looks at the labels, or at the other rows, of what it transforms;
* a value that was not seen in training has a bucket of its own, it never borrows the branch of another category.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltv_assets.core.contract import Encodings, load_contract
from ltv_assets.core.errors import DataError, ModelFileError
from ltv_assets.modeling.encoding.category_map import FIRST_KNOWN, UNSEEN, CategoryMap, Floats, Ints, factorize, is_categorical
from ltv_assets.modeling.encoding.group_ranks import GroupRanks, rank_name
from ltv_assets.modeling.encoding.target_encoding import (
    CategorySums,
    Encoding,
    Targets,
    additive_prior,
    checked_targets,
    empirical_bayes,
    encode_column,
    encoding_limits,
    left_out_rows,
    log_counts,
)

FORMAT = "ltv_assets.WindowEncoder"
VERSION = 2

MIN_COUNT = 10
"""Values with fewer training rows count as unseen; groups with fewer values of spend are ranked among all rows."""
MAX_CATEGORIES = 255
"""The most frequent values that keep a code of their own; rarer ones get code 1 but keep their target encoding."""
PARAMETERS: Mapping[str, Any] = {
    "aggregates": True,
    "max_categories": MAX_CATEGORIES,
    "min_count": MIN_COUNT,
    "smoothing": "auto",
    "target_encode": None,
}
"""Fixed choices, as the stored format states them; an encoder stored with others cannot be restored."""


@dataclass(frozen=True)
class _Prepared:
    """Rows half-way: numbers, category levels, and the encodings and ranks to look up (one per fold, then the whole)."""

    index: pd.Index
    numeric: NDArray[np.float32]
    levels: dict[str, Ints]
    encodings: Mapping[str, Encoding]
    ranks: Sequence[Mapping[str, GroupRanks]]


@dataclass(frozen=True)
class CrossFitter:
    """A fitted encoder with its encodings without each fold, for the training rows themselves."""

    encoder: WindowEncoder
    encodings: Mapping[str, Encoding]
    ranks: Sequence[Mapping[str, GroupRanks]]

    def transform(self, X: pd.DataFrame, fold: Ints) -> pd.DataFrame:
        """The cross-fitted columns of a block of the training rows, whose fold numbers are ``fold`` (n,)."""
        return self.encoder._encode_held_out(X, fold, self.encodings, self.ranks)


def _frequent(keys: Ints, size: int) -> Ints:
    """Keys within 0..size-1 that occur at least MIN_COUNT times, ascending."""
    if size <= len(keys):
        return np.flatnonzero(np.bincount(keys, minlength=size) >= MIN_COUNT)
    found, counts = np.unique(keys, return_counts=True)
    return found[counts >= MIN_COUNT]


class WindowEncoder:
    """Turn the columns of a window into one float32 matrix, and those of every other day in the same way.

    Output columns, in this order:

    * the columns of the rows: numbers as float32 (infinite values become NaN, gaps stay NaN), categoricals as integer codes
      held in float32: 0 missing, 1 unseen or rare, 2.. the known values by falling frequency;
    * for each categorical column and each pair ``a_x_b``: ``<col>__te_<target>`` for every target (see
      ``empirical_bayes``; a pair shrinks to the sum of its columns' encodings minus the overall mean), then
      ``<col>__count``, the log1p of the training rows with that value (0 for unseen and rare ones);
    * for each spend column and each group column: ``<spend>__rank_in_<group>``, the mid-rank 0..1 among the group's
      training rows, and for the first group column ``<spend>__minus_median_in_<group>``, a difference of signed logs.

    ``fit_blocks`` returns a ``CrossFitter``, which encodes the training rows: the encodings, ranks and medians of each row come
    from the other folds (see ``fold_ids``), by subtraction of sums. ``transform`` is for all other rows.

    Attributes: ``categorical_features_`` (code columns, to be declared categorical to LightGBM), ``numeric_features_``,
    ``targets_``.
    """

    def __init__(self, encodings: Encodings | None = None) -> None:
        """``encodings``: which columns are paired and ranked, as far as they are there; by default those of the shipped contract.

        The first column within which is ranked also gives the median.
        """
        self._asked = load_contract().encodings if encodings is None else encodings

    def fit_blocks(self, template: pd.DataFrame, select: Callable[[list[str]], pd.DataFrame], y: Targets, fold: Ints) -> CrossFitter:
        """Fit on rows that need not be in memory together; returns the cross-fitted encoding of these rows, block by block.

        ``template``: a frame with the columns and types of the rows. ``select``: returns the named columns of every row; asked
        for categories and past spend only. ``y``: targets by name; NaN leaves a row out of that target. ``fold``: fold number
        of every row, see ``fold_ids``.
        """
        targets = self._settle(template, y, len(fold))

        def spend(column: str) -> NDArray[np.float32]:
            values = select([column])[column].to_numpy(dtype=np.float32, na_value=np.nan)
            return np.where(np.isinf(values), np.float32(np.nan), values)

        used = {*self._groups, *(c for pair in self._pairs.values() for c in pair)}
        encodings, ranks = self._learn(lambda c: select([c])[c], spend, targets, fold, keep=used)
        return CrossFitter(self, encodings, ranks)

    def _settle(self, frame: pd.DataFrame, y: Targets, n: int) -> dict[str, Floats]:
        """Resolve columns, their kinds and names from a frame that has them; returns the targets of ``n`` rows."""
        if n == 0:
            raise DataError("the encoder got no rows: a window needs at least one training row")
        odd = [c for c in frame.columns if not isinstance(c, str)]
        if odd or not frame.columns.is_unique:
            repeated = sorted(set(frame.columns[frame.columns.duplicated()]), key=str)
            raise DataError(f"column names must be unique strings; not strings: {odd}, repeated: {repeated}")
        targets = checked_targets(y, n)
        self._columns = list(frame.columns)
        self.categorical_features_ = [c for c in self._columns if is_categorical(frame[c])]
        categorical = set(self.categorical_features_)
        self.numeric_features_ = [c for c in self._columns if c not in categorical]
        self.targets_ = list(targets)
        self._choose_columns()
        self._all_names = self._names = self._column_names()
        self._kept = np.arange(len(self._names))
        return targets

    def _learn(
        self,
        column: Callable[[str], pd.Series],
        spend: Callable[[str], NDArray[np.float32]],
        targets: Mapping[str, Floats],
        fold: Ints,
        *,
        keep: Collection[str],
    ) -> tuple[dict[str, Encoding], list[dict[str, GroupRanks]]]:
        """Encodings and ranks without each fold in turn; those of the whole window stay in the encoder.

        ``column``, ``spend``: give a column of every row, asked for one after the other. ``keep``: columns whose levels are
        held together, those of pairs and groups.
        """
        self._maps: dict[str, CategoryMap] = {}
        levels: dict[str, Ints] = {}
        encodings: dict[str, Encoding] = {}
        folds = int(fold.max()) + 1
        for c in self.categorical_features_:
            codes, texts = factorize(column(c))
            self._maps[c] = CategoryMap.fit(codes, texts, MIN_COUNT)
            found = self._maps[c].levels(codes, texts)
            encodings[c] = encode_column(found, self._maps[c].size, targets, fold, folds)
            if c in keep:
                levels[c] = found
        self._pair_keys: dict[str, Ints] = {}
        for name, (first, second) in self._pairs.items():
            self._pair_keys[name] = _frequent(self._pair_key(levels, first, second), self._maps[first].size * self._maps[second].size)
            slots = self._pair_slots(name, levels)
            encodings[name] = self._encode_pair(name, slots, targets, fold, folds, encodings)
        self._encodings = {name: e.last() for name, e in encodings.items()}
        ranks = self._fit_ranks(spend, levels, fold)
        self._ranks = ranks[-1]
        return encodings, ranks

    def _encode_pair(
        self, name: str, slots: Ints, targets: Mapping[str, Floats], fold: Ints, folds: int, encodings: Mapping[str, Encoding]
    ) -> Encoding:
        """Known pairs shrink to the additive prior of their two columns; slot 0 collects the pairs that are not known."""
        keys = self._pair_keys[name]
        size = keys.size + 1
        first, second = (encodings[c] for c in self._pairs[name])
        width = self._maps[self._pairs[name][1]].size
        rows = left_out_rows(slots, size, fold, folds)
        log_count = log_counts(rows)
        log_count[:, 0] = 0.0
        means = {}
        for target, y in targets.items():
            a, b = first.means[target], second.means[target]
            prior = additive_prior(a[:, keys // width], b[:, keys % width], *encoding_limits(a, b), first.prior[target])
            sums = CategorySums.of(slots, size, y, fold, folds, rows)
            means[target] = np.zeros((log_count.shape[0], size))
            means[target][:, 1:] = empirical_bayes(sums.n[:, 1:], sums.total[:, 1:], sums.squares[:, 1:], prior)
        return Encoding(means, log_count, {})

    def _fit_ranks(
        self, spend: Callable[[str], NDArray[np.float32]], levels: Mapping[str, Ints], fold: Ints
    ) -> list[dict[str, GroupRanks]]:
        """Ranks without each fold in turn, then without none; each spend column is sorted once for all of them."""
        leave_out = [*range(int(fold.max()) + 1), None]
        ranks: list[dict[str, GroupRanks]] = [{} for _ in leave_out]
        for name in self._spends:
            values = spend(name)
            by_value = np.argsort(values, kind="stable")[: np.count_nonzero(~np.isnan(values))]  # NaN sorts last
            for out, left in zip(ranks, leave_out, strict=True):
                rows = by_value if left is None else by_value[fold[by_value] != left]
                for group in self._groups:
                    out[rank_name(name, group)] = GroupRanks.fit(values[rows], levels[group][rows], self._maps[group].size, MIN_COUNT)
        return ranks

    def restrict_to(self, names: Sequence[str]) -> Self:
        """Leave out all output columns but ``names``, which keep their order; the input columns stay as they are.

        ``DataError`` when there is no such column.
        """
        unknown = sorted(set(names) - set(self._all_names))
        if unknown:
            raise DataError(f"no output columns are called {unknown[:5]}: choose among get_feature_names_out()")
        wanted = set(names)
        self._kept = np.array([i for i, name in enumerate(self._all_names) if name in wanted], dtype=np.int64)
        self._names = [self._all_names[i] for i in self._kept]
        self._names_index = pd.Index(self._names)
        return self

    def transform(self, X: pd.DataFrame) -> pd.DataFrame:
        """Encode rows by what was learnt from all training rows; every row on its own, so chunks change nothing.

        Columns may come in any order; a missing or an unknown one raises ``DataError`` naming it.
        """
        frame = self._frame(X)
        levels = {c: self._maps[c].levels(*factorize(frame[c])) for c in self.categorical_features_}
        out = self._empty(len(frame))
        prepared = _Prepared(frame.index, self._numeric(frame), levels, self._encodings, [self._ranks])
        self._write_columns(out, prepared)
        self._write_encodings(out, prepared, None)
        self._write_aggregates(out, prepared, self._ranks, slice(None))
        return self._as_frame(out, prepared)

    def _encode_held_out(
        self, X: pd.DataFrame, fold: Ints, encodings: Mapping[str, Encoding], ranks: Sequence[Mapping[str, GroupRanks]]
    ) -> pd.DataFrame:
        frame = self._frame(X)
        levels = {c: self._maps[c].levels(*factorize(frame[c])) for c in self.categorical_features_}
        return self._cross_fitted(_Prepared(frame.index, self._numeric(frame), levels, encodings, ranks), fold)

    def _cross_fitted(self, prepared: _Prepared, fold: Ints) -> pd.DataFrame:
        out = self._empty(len(prepared.index))
        self._write_columns(out, prepared)
        self._write_encodings(out, prepared, fold)
        for f, ranks in enumerate(prepared.ranks[:-1] if self._spends else ()):
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
            out[:, at] = np.where(level < MAX_CATEGORIES + FIRST_KNOWN, level, UNSEEN)

    def _write_encodings(self, out: NDArray[np.float32], prepared: _Prepared, fold: Ints | None) -> None:
        at = len(self._columns)
        line: Ints | int = 0 if fold is None else fold
        for column in self.categorical_features_:
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
                    low, high = encoding_limits(a.means[target], b.means[target])
                    values[unknown] = additive_prior(
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
        self, out: NDArray[np.float32], prepared: _Prepared, ranks: Mapping[str, GroupRanks], rows: NDArray[np.bool_] | slice
    ) -> None:
        at = len(self._all_names) - len(self._spends) * (len(self._groups) + 1)
        for spend in self._spends:
            values = self._spend(prepared.numeric, spend)[rows]
            for group in self._groups:
                out[rows, at] = ranks[rank_name(spend, group)].rank(values, prepared.levels[group][rows])
                at += 1
            first = self._groups[0]
            out[rows, at] = ranks[rank_name(spend, first)].deviation(values, prepared.levels[first][rows])
            at += 1

    def get_feature_names_out(self) -> NDArray[np.object_]:
        """Names of the output columns."""
        return np.asarray(self._names, dtype=object)

    def _choose_columns(self) -> None:
        """Resolve which of the columns are paired and ranked."""
        categorical, numeric, asked = set(self.categorical_features_), set(self.numeric_features_), self._asked
        self._pairs = {f"{a}_x_{b}": (a, b) for a, b in asked.pairs if a in categorical and b in categorical}
        self._groups = [c for c in asked.ranked_within if c in categorical]
        self._spends = [c for c in asked.ranked if c in numeric] if self._groups else []

    def _column_names(self) -> list[str]:
        names = list(self._columns)
        for column in [*self.categorical_features_, *self._pairs]:
            names += [f"{column}__te_{t}" for t in self.targets_] + [f"{column}__count"]
        for spend in self._spends:
            names += [rank_name(spend, g) for g in self._groups] + [f"{spend}__minus_median_in_{self._groups[0]}"]
        repeated = {c for c in names if names.count(c) > 1} if len(set(names)) < len(names) else set()
        if repeated:
            raise DataError(f"columns of X bear names that encodings need: {sorted(repeated)}; rename them")
        position = {c: i for i, c in enumerate(self._columns)}
        self._numeric_at = [position[c] for c in self.numeric_features_]
        self._codes_at = [position[c] for c in self.categorical_features_]
        self._spend_at = {c: self.numeric_features_.index(c) for c in self._spends}
        self._names_index = pd.Index(names)
        return names

    def _frame(self, X: pd.DataFrame) -> pd.DataFrame:
        """The rows with their columns in the order of the training columns."""
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
        known, (first, second) = self._pair_keys[name], self._pairs[name]
        key, size = self._pair_key(levels, first, second), self._maps[first].size * self._maps[second].size
        if not known.size:
            return np.zeros_like(key)
        if size <= len(key):  # a table of all pairs is smaller than the rows, and faster than a search for each
            slots = np.zeros(size, np.int64)
            slots[known] = np.arange(1, known.size + 1)
            return slots[key]
        at = np.minimum(np.searchsorted(known, key), known.size - 1)
        return np.where(known[at] == key, at + 1, 0)

    def to_dict(self) -> dict[str, Any]:
        """The fitted encoder as plain JSON types; the same fit always gives the same dictionary, floats survive exactly."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "parameters": {
                **PARAMETERS,
                "group_columns": list(self._asked.ranked_within),
                "pairs": [list(pair) for pair in self._asked.pairs],
                "spend_columns": list(self._asked.ranked),
            },
            "columns": list(self._columns),
            "kept": list(self._names),
            "named": True,
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
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ModelFileError(f"the stored {FORMAT} is incomplete or damaged ({error!r}): fit the window again") from error

    @classmethod
    def _restore(cls, stored: Mapping[str, Any]) -> Self:
        parameters = dict(stored["parameters"])
        within, pairs, ranked = (parameters.pop(name) for name in ("group_columns", "pairs", "spend_columns"))
        if parameters != PARAMETERS:
            raise ValueError(f"parameters: expected {PARAMETERS}, found {parameters}")
        # Encoders that do not say their pairs and their ranked features have those of the shipped contract.
        pairs = load_contract().encodings.pairs if pairs is None else tuple(tuple(pair) for pair in pairs)
        ranked = load_contract().encodings.ranked if ranked is None else tuple(ranked)
        self = cls(Encodings(pairs=pairs, ranked_within=tuple(within), ranked=ranked))
        self._columns = list(stored["columns"])
        categories = stored["categories"]
        self.categorical_features_ = [c for c in self._columns if c in categories]
        self.numeric_features_ = [c for c in self._columns if c not in categories]
        self.targets_ = list(stored["targets"])
        self._choose_columns()
        self._maps = {c: CategoryMap.of(categories[c]) for c in self.categorical_features_}
        self._encodings = {
            name: Encoding(
                {t: np.asarray(m, np.float64)[None, :] for t, m in e["means"].items()},
                np.asarray(e["log_count"], np.float64)[None, :],
                {t: np.full((1, 1), p) for t, p in e["prior"].items()},
            )
            for name, e in stored["encodings"].items()
        }
        self._pair_keys = {name: np.asarray(keys, np.int64) for name, keys in stored["pair_keys"].items()}
        self._ranks = {
            name: GroupRanks(
                np.asarray(r["slot"], np.int64),
                np.asarray(r["start"], np.int64),
                np.asarray(r["values"], np.float64),
                np.asarray(r["median"], np.float64),
            )
            for name, r in stored["ranks"].items()
        }
        for name in [*self.categorical_features_, *self._pairs]:
            expected = self._pair_keys[name].size + 1 if name in self._pairs else self._maps[name].size
            for target in self.targets_:
                found = self._encodings[name].means[target].shape[1]
                if found != expected:
                    raise ValueError(f"{name}: {expected} levels, but {found} encodings of {target}")
        self._all_names = self._names = self._column_names()
        return self.restrict_to(stored["kept"])
