"""Design matrices: encoded rows, and the folds' own encodings.

What belongs here: one small abstraction through which every fit reads its rows. What does not: models. Next to read:
``boosting.py`` and ``linear.py``, which consume a ``Matrix``.

Each fold has an encoder of its own, fitted without the held-out rows. Sharing the window's encoder would let the labels
of held-out rows into the target encodings of the rows that train the fold's models.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Any, TypeVar

import lightgbm as lgb
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltv_assets.core.config import ModelsConfig
from ltv_assets.core.errors import TransientError
from ltv_assets.core.memory import release_memory, reuse_memory
from ltv_assets.core.parallel import on_threads
from ltv_assets.modeling.dataset import BLOCK_ROWS, Floats, FrameRows, Ints, RowStore, WindowData, concat_rows
from ltv_assets.modeling.encoding.folds import fold_ids
from ltv_assets.modeling.encoding.target_encoding import revenue_targets
from ltv_assets.modeling.encoding.window_encoder import CrossFitter, WindowEncoder
from ltv_assets.modeling.folds import HeldOutRows, TimeFolds, make_folds, time_blocks
from ltv_assets.modeling.selection import SELECTION_ROWS, most_telling, varying_columns
from ltv_assets.sampling.draws import hash_uniform
from ltv_assets.sampling.zeros import AUXILIARY_DRAW as AUXILIARY_ZERO_DRAW
from ltv_assets.sampling.zeros import SERVED_DRAW, ZeroDraw, draw_zeros

# LightGBM tells of categories, and of every port it opens, on standard output, before it has read how much it is to say.
lgb.register_logger(logging.getLogger("lightgbm"))

FloatMatrix = NDArray[np.float32]
T = TypeVar("T")

ENCODER_BLOCKS = 5
"""Rows of a single period are cross-fitted in this many blocks."""
AUXILIARY_DRAW, REFERENCE_DRAW = 0x0A0C, 0x0A0D
"""Separate these draws from those of the sampling plans under the same seed."""
MIN_DRAWN_ROWS = 20_000
"""Auxiliary boosters see all rows of windows that are no larger."""
BIN_SAMPLE_ROWS = BLOCK_ROWS
"""LightGBM finds bins on so many rows, and holds them twice as float64: its own 200,000 took more memory than any fit."""

TILE_ROWS, TILE_COLUMNS = 1024, 16


def bin_params(max_bin: int) -> dict[str, Any]:
    """LightGBM's parameters for finding bins, the same here and on a cluster.

    ``feature_pre_filter`` is off: boosters with different ``min_data_in_leaf`` share the bins.
    """
    return {"max_bin": max_bin, "bin_construct_sample_cnt": BIN_SAMPLE_ROWS, "feature_pre_filter": False, "verbose": -1, "seed": 0}


class EncodedRows(ABC):
    """Encoded rows that are not in memory: read in blocks. ``scratch``: the folder of their file, None if they have none of their own."""

    scratch: Path | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def rows(self, low: int, high: int) -> FloatMatrix:
        """Rows low..high-1, (high - low, m)."""


class EncodedFile(EncodedRows):
    """Encoded rows in a file without a name, which ends with the process whatever becomes of it."""

    def __init__(self, columns: int, folder: Path | None) -> None:
        self._columns = columns
        self._count = 0
        self._folder = self.scratch = folder
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115 - it is closed, and so removed, with its owner

    def __len__(self) -> int:
        return self._count

    def append(self, rows: FloatMatrix) -> None:
        """Add rows (n, columns) at the end. Raises TransientError when the disk is full."""
        try:
            rows.tofile(self._file)
            self._file.flush()
        except OSError as error:
            raise TransientError(
                f"{self._folder or gettempdir()}: no room for the window's encoded rows ({error}); make room and run again"
            ) from error
        self._count += len(rows)

    def rows(self, low: int, high: int) -> FloatMatrix:
        values = np.empty((high - low, self._columns), np.float32)
        # LightGBM asks with 32-bit numbers, which end at 2 GB. Several threads read at once, so there is no place in the file to share.
        os.preadv(self._file.fileno(), [values.data], 4 * self._columns * int(low))
        return values


class SomeColumns(EncodedRows):
    """Some columns of encoded rows."""

    def __init__(self, encoded: EncodedRows, columns: Ints) -> None:
        self._encoded, self._columns, self.scratch = encoded, columns, encoded.scratch

    def __len__(self) -> int:
        return len(self._encoded)

    def rows(self, low: int, high: int) -> FloatMatrix:
        return np.take(self._encoded.rows(low, high), self._columns, axis=1)


@dataclass(frozen=True, eq=False)
class Matrix:
    """Encoded rows (n, m) float32 with NaN for gaps, ``names`` (m,), ``categorical`` column numbers of codes.

    ``encoded``: the rows themselves, or where they come from. Whichever it is, the bins are the same.
    """

    encoded: FloatMatrix | EncodedRows
    names: tuple[str, ...]
    categorical: tuple[int, ...]
    max_bin: int = 255
    _cache: dict[str, lgb.Dataset] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.encoded)

    def blocks(self) -> Iterator[FloatMatrix]:
        """The rows in order, BLOCK_ROWS at a time."""
        for low in range(0, len(self), BLOCK_ROWS):
            yield self.rows(low, min(low + BLOCK_ROWS, len(self)))

    @property
    def values(self) -> FloatMatrix:
        """All rows as an array; made anew each time if they are not in memory."""
        if not isinstance(self.encoded, EncodedRows):
            return self.encoded
        values = np.empty((len(self), len(self.names)), np.float32)
        for low, block in zip(range(0, len(self), BLOCK_ROWS), self.blocks(), strict=True):
            values[low : low + BLOCK_ROWS] = block
        return values

    def rows(self, low: int, high: int) -> FloatMatrix:
        """Rows low..high-1 as an array."""
        return self.encoded.rows(low, high) if isinstance(self.encoded, EncodedRows) else self.encoded[low:high]

    def each_block(self, work: Callable[[slice, FloatMatrix], T], rows: int = BLOCK_ROWS, threads: int = 1) -> Iterator[tuple[slice, T]]:
        """(which rows, ``work`` of which and those rows), in order, ``rows`` at a time; on several threads, a few of them ahead."""
        parts = (slice(low, min(low + rows, len(self))) for low in range(0, len(self), rows))

        def done(part: slice) -> tuple[slice, T]:
            return part, work(part, self.rows(part.start, part.stop))

        return map(done, parts) if threads == 1 else on_threads(done, parts, threads=threads, ahead=threads + 1)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Matrix:
        """The chosen rows, whose numbers must ascend; more than a block of rows from a file stay in one: payers of a large window."""
        if not isinstance(self.encoded, EncodedRows):
            return self._of(self.encoded[rows])
        rows = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        scratch = self.encoded.scratch if len(rows) > BLOCK_ROWS else None
        taken = np.empty((len(rows), len(self.names)), np.float32) if scratch is None else EncodedFile(len(self.names), scratch)
        for low in range(0, len(self), BLOCK_ROWS):
            first, last = np.searchsorted(rows, [low, low + BLOCK_ROWS])
            if last > first:
                block = self.rows(low, min(low + BLOCK_ROWS, len(self)))[rows[first:last] - low]
                if isinstance(taken, EncodedFile):
                    taken.append(block)
                else:
                    taken[first:last] = block
        return self._of(taken)

    def only(self, columns: Ints) -> Matrix:
        """Some columns, whose numbers must ascend; the same matrix if these are all."""
        if len(columns) == len(self.names):
            return self
        encoded = self.encoded
        kept: FloatMatrix | EncodedRows = (
            SomeColumns(encoded, columns) if isinstance(encoded, EncodedRows) else np.ascontiguousarray(encoded[:, columns])
        )
        codes = set(self.categorical)
        names = tuple(self.names[j] for j in columns)
        return Matrix(kept, names, tuple(i for i, j in enumerate(columns) if int(j) in codes), self.max_bin)

    def in_memory(self) -> Matrix:
        """The same rows as an array."""
        return self._of(self.values)

    def put_away(self, folder: Path | None) -> Matrix:
        """The same rows in a temporary file of ``folder``: out of memory except while they are asked for."""
        kept = EncodedFile(len(self.names), folder)
        for block in self.blocks():
            kept.append(block)
        return self._of(kept)

    def _of(self, encoded: FloatMatrix | EncodedRows) -> Matrix:
        return Matrix(encoded, self.names, self.categorical, self.max_bin)

    def binned(self) -> lgb.Dataset:
        """LightGBM's binned form, built once and shared by every booster that trains on these rows."""
        if "base" not in self._cache:
            # Up to so many rows LightGBM looks at all of them to find bins, which costs a sequence more than an array.
            source = _Blocks(self) if isinstance(self.encoded, EncodedRows) and len(self) > BIN_SAMPLE_ROWS else self.values
            labels = np.zeros(len(self))
            dataset = lgb.Dataset(
                source, label=labels, categorical_feature=list(self.categorical), params=bin_params(self.max_bin), free_raw_data=False
            )
            dataset.construct()
            dataset.data = None  # whatever is fitted reads the bins
            self._cache["base"] = dataset
            del source
            release_memory()  # the sample of rows that bins are found on takes more than the bins of a million rows
        return self._cache["base"]

    def forget_bins(self) -> None:
        """Give up the memory of the binned form; it is built again when it is asked for."""
        self._cache.clear()
        release_memory()


class _Blocks(lgb.Sequence):
    """LightGBM's view of a matrix: it samples single rows in ascending order, then takes all of them in batches."""

    def __init__(self, matrix: Matrix) -> None:
        self.batch_size = BLOCK_ROWS
        self._matrix = matrix
        self._low = -1
        self._block = np.empty((0, 0), np.float32)

    def __len__(self) -> int:
        return len(self._matrix)

    def __getitem__(self, index: int | slice | list[int]) -> NDArray[Any]:
        if isinstance(index, slice):
            return self._matrix.rows(*index.indices(len(self))[:2])
        if isinstance(index, list):
            return np.stack([self[i] for i in index])
        low = index - index % BLOCK_ROWS
        if low != self._low:
            self._low, self._block = low, self._matrix.rows(low, min(low + BLOCK_ROWS, len(self)))
        return self._block[index - low].astype(np.float64)  # LightGBM takes its sample in no other type


@dataclass(frozen=True)
class Split:
    """Rows to fit on and rows to look at; ``train_rows`` and ``held_rows`` are row numbers of the auxiliary sample."""

    train: Matrix
    train_rows: Ints
    held: Matrix
    held_rows: Ints


class Design:
    """A window, encoded: the rows of final fits, and lazily the folds for everything out-of-fold.

    ``auxiliary`` (row numbers) is a hash-drawn sample of at most ``models.max_auxiliary_rows`` rows; folds live on it, and
    ``data`` is restricted to it in ``aux``. Windows below that size, or a size of None, use all rows. ``columns``: the encoded
    columns to be used; None chooses them.
    """

    def __init__(self, data: WindowData, models: ModelsConfig, seed: int, threads: int = 2, columns: Sequence[str] | None = None) -> None:
        self.data = data
        self.models = models
        self.seed = seed
        self.threads = threads
        self._columns = columns
        self._splits: dict[int, Split] = {}
        self._passed: list[pd.DataFrame] = []
        reuse_memory()

    @cached_property
    def auxiliary(self) -> Ints:
        """Row numbers of the rows used by out-of-fold and linear fits, ascending."""
        drawn = self._drawn(self.models.max_auxiliary_rows, AUXILIARY_DRAW, self.data.hashes)
        return np.arange(len(self.data)) if drawn is None else drawn

    @cached_property
    def reference_rows(self) -> Ints | None:
        """Row numbers of ``train``, ascending, on which the reference and the longer horizons are fitted; None means all."""
        return self._drawn(self.models.max_reference_rows, REFERENCE_DRAW, self.data.hashes[self.served_rows])

    def _drawn(self, limit: int | None, number: int, hashes: NDArray[np.uint64]) -> Ints | None:
        if limit is None or len(hashes) <= limit:
            return None
        draw = hash_uniform(hashes, self.seed, number)
        return np.sort(np.argpartition(draw, limit)[:limit])

    @cached_property
    def aux(self) -> WindowData:
        """The auxiliary rows as a window of their own."""
        if len(self.auxiliary) == len(self.data) and isinstance(self.data.X, pd.DataFrame):
            return self.data
        if self._takes_along:
            _ = self._encoded  # its pass over the rows of a store takes them along
        chosen = self.data.rows(self.auxiliary, concat_rows(self._passed) if self._passed else None)
        self._passed = []
        release_memory()
        return chosen

    @cached_property
    def folds(self) -> TimeFolds:
        """Folds of the auxiliary rows."""
        return make_folds(self.data.period[self.auxiliary], self.models.folds)

    @cached_property
    def held_out(self) -> HeldOutRows:
        """Labels and folds of the auxiliary rows, which are scored out of fold."""
        return HeldOutRows(self.data.d7[self.auxiliary], self.data.period[self.auxiliary], self.folds)

    @cached_property
    def served(self) -> ZeroDraw | None:
        """The rows that teach the served boosters: every payer, and zeros within ``models.zero_budget_rows``; None means all rows."""
        budget = self.models.zero_budget_rows
        return None if budget is None else draw_zeros(self.data.d7 > 0, self.data.hashes, self.seed, budget, SERVED_DRAW)

    @cached_property
    def served_rows(self) -> Ints:
        """Numbers of the rows of ``train``, ascending."""
        return np.arange(len(self.data)) if self.served is None else self.served.rows

    def served_weight(self, weight: NDArray[Any] | None = None) -> NDArray[Any] | None:
        """Weights of the rows of ``train``, so that drawn zeros stand for all; ``weight`` (all rows): what else they are multiplied by."""
        if self.served is None:
            return weight
        return self.served.weight if weight is None else self.served.weight * weight[self.served.rows]

    @cached_property
    def _encoded(self) -> tuple[WindowEncoder, list[Matrix]]:
        """The encoder of all rows, the encoded rows of the served boosters, and the auxiliary rows where those are drawn."""
        return self._encode(
            self.data, () if self.served is None else (self.served.rows, self.auxiliary), self._passed if self._takes_along else None
        )

    @property
    def _takes_along(self) -> bool:
        """Whether the pass that encodes the served rows of a store takes the auxiliary ones along: a refit has no folds to encode."""
        return self._columns is None and self.served is not None and isinstance(self.data.X, RowStore)

    @property
    def encoder(self) -> WindowEncoder:
        """The encoder fitted on every row of the window; it is what scoring uses."""
        return self._encoded[0]

    @property
    def train(self) -> Matrix:
        """The rows of the served boosters, cross-fitted encodings."""
        return self._encoded[1][0]

    def few_zeros(
        self, label: Floats, numbers: Ints, weight: NDArray[Any] | None = None
    ) -> tuple[Ints | None, Floats, NDArray[Any] | None]:
        """(which of the rows, their labels, their weights) for an auxiliary booster: payers, labels above 0, and some zeros.

        label, weight (n,) of the window's rows ``numbers``. There are ``models.zeros_per_payer`` zeros for each row that is always kept,
        drawn by hash and weighed back; (None, all labels, all weights) where there are no more than that, or MIN_DRAWN_ROWS rows.
        """
        limit = self.models.zeros_per_payer
        always = (label > 0) | (self.data.d7[numbers] > 0)
        rows = max(MIN_DRAWN_ROWS, round((1.0 + (limit or 0.0)) * np.count_nonzero(always)))
        draw = None if limit is None else draw_zeros(always, self.data.hashes[numbers], self.seed, rows, AUXILIARY_ZERO_DRAW)
        if draw is None:
            return None, label, weight
        return draw.rows, label[draw.rows], draw.weight if weight is None else draw.weight * weight[draw.rows]

    def served_are_fitted(self) -> None:
        """Give up the bins of all rows: with those of the folds they are more than a stage needs at once, where folds have a sample."""
        if len(self.auxiliary) < len(self.data):
            self.train.forget_bins()

    @cached_property
    def aux_train(self) -> Matrix:
        """The auxiliary rows, encoded as ``train``."""
        if self.served is not None:
            return self._encoded[1][1]
        return self.train if len(self.auxiliary) == len(self.data) else self._laid(self.train.take(self.auxiliary))

    def fold(self, k: int) -> Split:
        """Fold ``k``: encoded without its held-out rows."""
        if k not in self._splits:
            self._splits[k] = self.split(*self.folds.split(k))
            release_memory()
        return self._splits[k]

    @property
    def stopping(self) -> Split:
        """The split on which tree counts are chosen: the time-last fold."""
        return self.fold(self.folds.n_folds - 1)

    def out_of_fold(self, fit: Callable[[Split], Floats], last: Floats | None = None) -> Floats:
        """Held-out predictions of ``fit(split)`` put in row order; (auxiliary rows,) or (auxiliary rows, c).

        ``last``: those of the time-last fold, if its models are fitted already.
        """
        folds = range(self.folds.n_folds if last is None else self.folds.n_folds - 1)
        parts = [(self.fold(k).held_rows, fit(self.fold(k))) for k in folds]
        if last is not None:
            parts.append((self.stopping.held_rows, last))
        out = np.full((len(self.auxiliary), *parts[0][1].shape[1:]), np.nan)
        for rows, values in parts:
            out[rows] = values
        return out

    def split(self, train_rows: Ints, held_rows: Ints) -> Split:
        """Any two disjoint sets of auxiliary rows, encoded without the held-out ones."""
        encoder, (train,) = self._encode(self.aux.rows(train_rows))
        return Split(train, train_rows, self._laid(encode(encoder, self.aux.rows(held_rows).X, self.models.max_bin)), held_rows)

    def _laid(self, matrix: Matrix) -> Matrix:
        """The matrix where this window's matrices are: in memory, or in files if the window itself is not in memory."""
        X = self.data.X
        return matrix.put_away(X.scratch) if isinstance(X, RowStore) else matrix.in_memory()

    def _encode(
        self, data: WindowData, parts: Sequence[Ints] = (), passed: list[pd.DataFrame] | None = None
    ) -> tuple[WindowEncoder, list[Matrix]]:
        """An encoder fitted on all rows, and these rows encoded; or only those of ``parts``, of which the first decides on the columns.

        ``passed``: takes the rows of the last part as they are stored, in blocks.
        """
        encoder = WindowEncoder(data.contract.encodings)
        one_period = data.period.min() == data.period.max()
        period = time_blocks(len(data), ENCODER_BLOCKS) if one_period else data.period
        # Frames as well in blocks: encoding all rows at once would need several copies of them.
        store = data.X if isinstance(data.X, RowStore) else FrameRows(data.X)
        fold = fold_ids(period)
        fitter = encoder.fit_blocks(store.read(0, 1), store.select, revenue_targets(data.d7), fold)
        release_memory()
        if self._columns is not None:
            encoder.restrict_to(self._columns)
        matrices = self._lay(store, fitter, fold, parts or (np.arange(len(data)),), passed)
        store.forget()
        release_memory()
        if self._columns is None:
            first = matrices[0]
            chosen = self._select(first, data.log_d7[parts[0]] if parts else data.log_d7)
            encoder.restrict_to([first.names[j] for j in chosen])
            matrices = [matrix.only(chosen) for matrix in matrices]
            release_memory()
        return encoder, matrices

    def _lay(
        self,
        store: RowStore,
        fitter: CrossFitter,
        fold: NDArray[np.integer[Any]],
        parts: Sequence[Ints],
        passed: list[pd.DataFrame] | None,
    ) -> list[Matrix]:
        """Some rows of a store, encoded, for each of ``parts``, from one pass; in memory, or in files if the window is not in memory."""
        names, categorical = encoded_columns(fitter.encoder)
        scratch = self.data.X.scratch if isinstance(self.data.X, RowStore) else None
        laid: list[EncodedFile | FloatMatrix] = [
            EncodedFile(len(names), scratch) if isinstance(self.data.X, RowStore) else np.empty((len(rows), len(names)), np.float32)
            for rows in parts
        ]
        numbers = parts[0] if len(parts) == 1 else np.unique(np.concatenate(parts))

        def read(low: int) -> tuple[Ints, pd.DataFrame]:
            high = min(low + BLOCK_ROWS, len(store))
            own = numbers[slice(*np.searchsorted(numbers, [low, high]))]
            return own, store.read(low, high, None if len(own) == high - low else own)

        starts = (np.unique(numbers // BLOCK_ROWS) * BLOCK_ROWS).tolist()
        for own, X in on_threads(read, starts, threads=1, ahead=2):  # one block is decoded while the one before it is encoded
            encoded = _by_rows(fitter.transform(X, fold[own]).to_numpy(dtype=np.float32))
            if passed is not None:
                last = parts[-1][slice(*np.searchsorted(parts[-1], [own[0], own[-1] + 1]))]
                passed.append(X.iloc[np.searchsorted(own, last)])
            for rows, kept in zip(parts, laid, strict=True):
                part = slice(*np.searchsorted(rows, [own[0], own[-1] + 1]))
                mine = encoded if len(rows[part]) == len(own) else encoded[np.searchsorted(own, rows[part])]
                if isinstance(kept, EncodedFile):
                    kept.append(mine)
                else:
                    kept[part] = mine
        return [Matrix(kept, names, categorical, self.models.max_bin) for kept in laid]

    def _select(self, matrix: Matrix, log_revenue: Floats) -> Ints:
        """Columns that vary, and of these the most telling ``models.max_features``, from one pass over the rows."""
        limit = self.models.max_features
        every = -(-len(matrix) // SELECTION_ROWS)
        count = 0 if limit is None or len(matrix.names) <= limit else -(-len(matrix) // every)
        sampled = np.empty((count, len(matrix.names)), np.float32)

        def blocks() -> Iterator[FloatMatrix]:
            for low, block in zip(range(0, len(matrix), BLOCK_ROWS), matrix.blocks(), strict=True):
                if count:
                    sampled[-(-low // every) : -(-(low + len(block)) // every)] = block[-low % every :: every]
                yield block

        chosen = varying_columns(blocks())
        if limit is None or len(chosen) <= limit:
            return chosen
        sampled = sampled[:, chosen]
        codes = np.flatnonzero(np.isin(chosen, matrix.categorical)).tolist()
        return chosen[most_telling(sampled, log_revenue[::every], codes, limit, seed=self.seed, threads=self.threads)]


def _matrix(encoder: WindowEncoder, values: FloatMatrix, max_bin: int) -> Matrix:
    return Matrix(np.ascontiguousarray(values), *encoded_columns(encoder), max_bin)


def encoded_columns(encoder: WindowEncoder) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names of the encoded columns, and the numbers of those that hold category codes."""
    names = tuple(str(c) for c in encoder.get_feature_names_out())
    codes = set(encoder.categorical_features_)
    return names, tuple(i for i, name in enumerate(names) if name in codes)


def encode(encoder: WindowEncoder, X: object, max_bin: int = 255) -> Matrix:
    """Rows to score, encoded without refitting."""
    return _matrix(encoder, _by_rows(encoder.transform(X).to_numpy(dtype=np.float32)), max_bin)


def _by_rows(values: FloatMatrix) -> FloatMatrix:
    """A matrix that lies in memory by columns, laid by rows: in tiles that a cache holds, which takes a third of the time."""
    if values.flags.c_contiguous:
        return values
    turned = np.empty(values.shape, np.float32)
    for low in range(0, len(values), TILE_ROWS):
        for left in range(0, values.shape[1], TILE_COLUMNS):
            tile = slice(low, low + TILE_ROWS), slice(left, left + TILE_COLUMNS)
            turned[tile] = values[tile]
    return turned
