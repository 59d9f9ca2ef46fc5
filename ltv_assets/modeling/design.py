"""Design matrices: encoded rows, and the folds' own encodings.

What belongs here: one small abstraction through which every fit reads its rows. What does not: models. Next to read:
``trees`` and ``linear``, which consume a ``Matrix``.

Each fold has an encoder of its own, fitted without the held-out rows. Sharing the window's encoder would let the labels
of held-out rows into the target encodings of the rows that train the fold's models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from ltv_assets.config import ModelsConfig
from ltv_assets.features.encoders import WindowEncoder, revenue_targets
from ltv_assets.modeling.folds import TimeFolds, make_folds, time_blocks
from ltv_assets.modeling.selection import most_telling, varying
from ltv_assets.modeling.window import Floats, Ints, WindowData
from ltv_assets.sampling.draws import hash_uniform

FloatMatrix = NDArray[np.float32]

ENCODER_BLOCKS = 5
"""Rows of a single period are cross-fitted in this many blocks."""
AUXILIARY_DRAW = 0x0A0C
"""Separates the draw of auxiliary rows from the sampling plans' draws under the same seed."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """Encoded rows: ``values`` (n, m) float32 with NaN for gaps, ``names`` (m,), ``categorical`` column numbers of codes."""

    values: FloatMatrix
    names: tuple[str, ...]
    categorical: tuple[int, ...]
    max_bin: int = 255
    _cache: dict[str, lgb.Dataset] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Matrix:
        """The chosen rows, in the given order."""
        return Matrix(self.values[rows], self.names, self.categorical, self.max_bin)

    def rows(self, low: int, high: int) -> FloatMatrix:
        """Rows low..high-1 as an array."""
        return self.values[low:high]

    def binned(self) -> lgb.Dataset:
        """LightGBM's binned form, built once and shared by every booster that trains on these rows."""
        if "base" not in self._cache:
            # feature_pre_filter=False: boosters with different min_data_in_leaf share the bins.
            params = {"max_bin": self.max_bin, "feature_pre_filter": False, "verbose": -1, "seed": 0}
            categorical = list(self.categorical)
            dataset = lgb.Dataset(
                self.values, label=np.zeros(len(self)), categorical_feature=categorical, params=params, free_raw_data=False
            )
            self._cache["base"] = dataset.construct()
        return self._cache["base"]


@dataclass(frozen=True)
class Split:
    """Rows to fit on and rows to look at; ``train_rows`` and ``held_rows`` are row numbers of the auxiliary sample."""

    train: Matrix
    train_rows: Ints
    held: Matrix
    held_rows: Ints


class Design:
    """A window, encoded: the full matrix for final fits, and lazily the folds for everything out-of-fold.

    ``auxiliary`` (row numbers) is a hash-drawn sample of at most ``models.max_auxiliary_rows`` rows; folds live on it, and
    ``data`` is restricted to it in ``aux``. Windows below that size, or a size of None, use all rows.
    """

    def __init__(self, data: WindowData, models: ModelsConfig, seed: int, threads: int = 2) -> None:
        self.data = data
        self.models = models
        self.seed = seed
        self.threads = threads
        self._splits: dict[int, Split] = {}

    @cached_property
    def auxiliary(self) -> Ints:
        """Row numbers of the rows used by out-of-fold and linear fits, ascending."""
        n, limit = len(self.data), self.models.max_auxiliary_rows
        if limit is None or n <= limit:
            return np.arange(n)
        draw = hash_uniform(self.data.hashes, self.seed, AUXILIARY_DRAW)
        return np.sort(np.argpartition(draw, limit)[:limit])

    @cached_property
    def aux(self) -> WindowData:
        """The auxiliary rows as a window of their own."""
        if len(self.auxiliary) == len(self.data):
            return self.data
        rows, d = self.auxiliary, self.data
        return WindowData(d.X.iloc[rows], d.revenue[rows], d.period[rows], d.period_names, d.hashes[rows])

    @cached_property
    def folds(self) -> TimeFolds:
        """Folds of the auxiliary rows."""
        return make_folds(self.aux.period, self.models.folds)

    @cached_property
    def _encoded(self) -> tuple[WindowEncoder, Matrix]:
        return self._encode(self.data)

    @property
    def encoder(self) -> WindowEncoder:
        """The encoder fitted on every row of the window; it is what scoring uses."""
        return self._encoded[0]

    @property
    def train(self) -> Matrix:
        """All rows, cross-fitted encodings."""
        return self._encoded[1]

    @cached_property
    def aux_train(self) -> Matrix:
        """The auxiliary rows of ``train``."""
        return self.train if len(self.auxiliary) == len(self.data) else self.train.take(self.auxiliary)

    def fold(self, k: int) -> Split:
        """Fold ``k``: encoded without its held-out rows."""
        if k not in self._splits:
            self._splits[k] = self.split(*self.folds.split(k))
        return self._splits[k]

    @property
    def stopping(self) -> Split:
        """The split on which tree counts and penalties are chosen: the time-last fold."""
        return self.fold(self.folds.n_folds - 1)

    def out_of_fold(self, fit: Callable[[Split], Floats]) -> Floats:
        """Held-out predictions of ``fit(split)`` put in row order; (len(aux),) or (len(aux), c)."""
        parts = [(self.fold(k).held_rows, fit(self.fold(k))) for k in range(self.folds.n_folds)]
        out = np.full((len(self.aux), *parts[0][1].shape[1:]), np.nan)
        for rows, values in parts:
            out[rows] = values
        return out

    def split(self, train_rows: Ints, held_rows: Ints) -> Split:
        """Any two disjoint sets of auxiliary rows, encoded without the held-out ones."""
        aux = self.aux
        part = WindowData(aux.X.iloc[train_rows], aux.revenue[train_rows], aux.period[train_rows], aux.period_names, aux.hashes[train_rows])
        encoder, train = self._encode(part)
        return Split(train, train_rows, encode(encoder, aux.X.iloc[held_rows], self.models.max_bin), held_rows)

    def _encode(self, data: WindowData) -> tuple[WindowEncoder, Matrix]:
        encoder = WindowEncoder()
        one_period = data.period.min() == data.period.max()
        period = time_blocks(len(data), ENCODER_BLOCKS) if one_period else data.period
        values = encoder.fit_transform(data.X, revenue_targets(data.d7), period).to_numpy(dtype=np.float32)
        chosen = self._select(_matrix(encoder, values, self.models.max_bin), data.log_d7)
        names = encoder.get_feature_names_out()[chosen]
        return encoder, _matrix(encoder.restrict_to(list(names)), values[:, chosen], self.models.max_bin)

    def _select(self, matrix: Matrix, log_revenue: Floats) -> Ints:
        """Columns that vary, and of these the most telling ``models.max_features``."""
        chosen = varying(matrix.values)
        limit = self.models.max_features
        if limit is None or len(chosen) <= limit:
            return chosen
        codes = np.flatnonzero(np.isin(chosen, matrix.categorical)).tolist()
        return chosen[most_telling(matrix.values[:, chosen], log_revenue, codes, limit, seed=self.seed, threads=self.threads)]


def _matrix(encoder: WindowEncoder, values: FloatMatrix, max_bin: int) -> Matrix:
    names = tuple(str(c) for c in encoder.get_feature_names_out())
    codes = set(encoder.categorical_features_)
    return Matrix(np.ascontiguousarray(values), names, tuple(i for i, name in enumerate(names) if name in codes), max_bin)


def encode(encoder: WindowEncoder, X: object, max_bin: int = 255) -> Matrix:
    """Rows to score, encoded without refitting."""
    return _matrix(encoder, encoder.transform(X).to_numpy(dtype=np.float32), max_bin)
