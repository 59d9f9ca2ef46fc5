"""Statistics of MAP and LIST columns by segmented reductions over their flat parquet leaves.

What belongs here: the statistics that ``statistics.py`` defines in SQL, computed with numpy for the layouts of the source
data (MAP of numbers or timestamps, MAP of MAP, LIST of text), from canonical arrays. What does not:
physical types (``canonical.py``), scalars (``sql.py``); a test compares both derivations. Next to read:
``flatten/``.

Faster than SQL: a list function of an SQL engine costs time for every row, here only for entries that exist. Keys stay
dictionary codes, so looking up the impression's own key compares integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ltv_assets.core.contract import Column
from ltv_assets.features.canonical import FLOAT32_MAX
from ltv_assets.features.sql import DISTANT_TIMESTAMP, OLDEST_TIMESTAMP
from ltv_assets.features.statistics import Kind, kind_of

Floats = NDArray[np.float64]
Ints = NDArray[np.signedinteger[Any]]


@dataclass(frozen=True, slots=True)
class Sparse:
    """Values of some rows of a block, ascending by row; every other row is NULL."""

    rows: Ints
    values: NDArray

    def dense(self, size: int) -> Floats:
        """Return one float64 a row, NaN where NULL."""
        out = np.full(size, np.nan)
        out[self.rows] = self.values
        return out

    def to_arrow(self, size: int) -> pa.Array:
        """Return a float32 array with one element a row; what is not finite or does not fit a float32 is NULL."""
        values = np.asarray(self.values, np.float64)
        rows = self.rows
        fits = np.abs(values) <= FLOAT32_MAX
        if not fits.all():
            rows, values = rows[fits], values[fits]
        if len(rows) == 0:
            return pa.nulls(size, pa.float32())
        out = np.zeros(size, np.float32)
        out[rows] = values
        if len(rows) == size:
            return pa.array(out)
        valid = np.zeros(size, bool)
        valid[rows] = True
        bitmap = pa.py_buffer(np.packbits(valid, bitorder="little"))
        return pa.Array.from_buffers(pa.float32(), size, [bitmap, pa.py_buffer(out)], size - len(rows))


@dataclass(frozen=True, slots=True)
class OwnKey:
    """The impression's own key of one domain: a code into ``names`` for each row, -1 where it is NULL."""

    codes: Ints
    names: pa.Array

    @classmethod
    def of(cls, encoded: pa.DictionaryArray) -> OwnKey:
        return cls(encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False), encoded.dictionary)

    def codes_in(self, dictionary: pa.Array) -> Ints:
        """Translate into codes of another dictionary; -1 where the key is NULL or not in it."""
        if len(self.names) == 0:
            return self.codes
        positions = pc.index_in(self.names, value_set=dictionary.cast(self.names.type)).fill_null(-1).to_numpy(zero_copy_only=False)
        return np.append(positions, -1)[self.codes]


@dataclass(frozen=True)
class Entries:
    """The entries of a map or list column of a block: for each entry its row, its key's code and, for maps, its value."""

    size: int
    present: NDArray[np.bool_]
    lengths: Ints
    row: Ints
    code: Ints
    dictionary: pa.Array
    value: Floats | None = None
    complete: bool = False

    @property
    def known(self) -> Entries:
        """Entries with a value; ``complete`` says that all do."""
        assert self.value is not None, "a list has no values"
        return self if self.complete else self.select(~np.isnan(self.value))

    @cached_property
    def present_rows(self) -> Ints:
        return np.flatnonzero(self.present)

    def n_entries(self) -> Sparse:
        return Sparse(self.present_rows, self.lengths[self.present_rows])

    def is_own(self, own: OwnKey) -> NDArray[np.bool_]:
        """Return for each entry whether its key is the row's own; an element that is NULL is nobody's."""
        mine = own.codes_in(self.dictionary)[self.row]
        return (self.code == mine) & (mine >= 0)

    def has_own(self, own: OwnKey) -> Sparse:
        """Return 1 or 0 where both the column and the own key are known."""
        found = np.zeros(self.size, bool)
        found[self.row[self.is_own(own)]] = True
        rows = np.flatnonzero(self.present & (own.codes >= 0))
        return Sparse(rows, found[rows])

    def select(self, keep: NDArray[np.bool_]) -> Entries:
        """Return the entries for which ``keep`` holds; presence and lengths still describe the whole column."""
        if keep.all():
            return self
        value = None if self.value is None else self.value[keep]
        return Entries(self.size, self.present, self.lengths, self.row[keep], self.code[keep], self.dictionary, value, True)

    @cached_property
    def segments(self) -> tuple[Ints, Ints, Ints]:
        """Rows that have entries, where each begins among the entries, and for each entry the index of its segment."""
        starts = _starts(self.row)
        lengths = np.diff(starts, append=len(self.row))
        return self.row[starts], starts, np.repeat(np.arange(len(starts), dtype=np.int32), lengths)

    def reduce(self, function: np.ufunc, values: Floats | None = None) -> Sparse:
        """Reduce the values of each row with a ufunc such as ``np.add``; rows without entries are NULL."""
        rows, starts, _ = self.segments
        values = self.value if values is None else values
        assert values is not None, "a list has no values to reduce"
        return Sparse(rows, function.reduceat(values, starts) if len(starts) else np.empty(0))


def read_entries(column: Column, array: pa.Array) -> tuple[Entries, Entries | None]:
    """Return the entries of a canonical column and, for nested maps, also those of the outer level (without values)."""
    kind = kind_of(column)
    lengths, row = _layout(array)
    present = pc.is_valid(array).to_numpy(zero_copy_only=False)
    if kind == "list":
        code, dictionary = _codes(array.flatten())
        return Entries(len(array), present, lengths, row, code, dictionary), None
    keys, items = _flat(array)
    code, dictionary = _codes(keys)
    if not kind.startswith("nested"):
        return Entries(len(array), present, lengths, row, code, dictionary, _values(items), not items.null_count), None
    outer = Entries(len(array), present, lengths, row, code, dictionary)
    inner_lengths, _ = _layout(items)
    _, values = _flat(items)
    inner_row = np.repeat(row, inner_lengths)
    inner = Entries(
        len(array),
        present,
        np.bincount(inner_row, minlength=len(array)),
        inner_row,
        np.repeat(code, inner_lengths),
        dictionary,
        _values(values),
        not values.null_count,
    )
    return inner, outer


def column_statistics(
    column: Column, array: pa.Array, own: OwnKey | None, hour_start: Ints, counts: dict[str, int]
) -> tuple[dict[str, Sparse], Entries]:
    """Return every statistic of a canonical map or list column, and its entries.

    ``hour_start`` holds the unix seconds of each row's hour; impossible timestamps are added to ``counts`` under the
    names of the SQL's bookkeeping columns.
    """
    entries, outer = read_entries(column, array)
    return entry_statistics(kind_of(column), column.name, entries, outer, own, hour_start, counts), entries


def entry_statistics(
    kind: Kind, name: str, entries: Entries, outer: Entries | None, own: OwnKey | None, hour_start: Ints, counts: dict[str, int]
) -> dict[str, Sparse]:
    """Return every statistic of a kind of column from its entries; ``outer`` are those of the outer level of nested maps.

    A row of ``entries`` need not be an impression: ``one_row.py`` hands over one impression whose columns of a kind are the rows.
    """
    with np.errstate(all="ignore"):
        if kind == "list":
            return _list_statistics(entries, own)
        if kind in ("timestamp_map", "nested_timestamps"):
            statistics = _timestamp_statistics(name, entries, own, hour_start, counts)
        else:
            statistics = _number_statistics(entries, own)
        if outer is None:
            statistics["n_keys"] = entries.n_entries()
            if own is not None and kind == "histogram":
                statistics["has_own"] = entries.has_own(own)
        else:
            statistics["n_bundles"] = outer.n_entries()
        if outer is not None and kind == "nested_counts":
            statistics |= {"n_actions": entries.n_entries(), "total": statistics.pop("sum")}
            if own is not None:
                statistics |= {
                    "has_own": outer.has_own(own),
                    "own_n_actions": _own_actions(entries, outer, own),
                    "own_total": statistics.pop("own"),
                }
    return statistics


def shared_elements(of: Entries, within: Entries) -> Sparse:
    """Return for rows where both lists are present the number of distinct elements of one that are also in the other."""
    if len(within.dictionary) == 0:
        shared = np.zeros(of.size, np.int64)
    else:
        positions = pc.index_in(of.dictionary, value_set=within.dictionary).fill_null(-1).to_numpy(zero_copy_only=False)
        translated = np.append(positions, -1)[of.code]
        width = np.int64(len(within.dictionary))
        both = np.concatenate([_distinct_pairs(of.row, translated, width), _distinct_pairs(within.row, within.code, width)])
        both.sort()
        shared = np.bincount(both[1:][both[1:] == both[:-1]] // width, minlength=of.size)
    rows = np.flatnonzero(of.present & within.present)
    return Sparse(rows, shared[rows])


def _number_statistics(entries: Entries, own: OwnKey | None) -> dict[str, Sparse]:
    entries = entries.known
    value = entries.value
    assert value is not None
    rows, starts, segment = entries.segments
    total, low, high = entries.reduce(np.add), entries.reduce(np.minimum), entries.reduce(np.maximum)
    lengths = np.diff(starts, append=len(value))
    mean = total.values / lengths
    deviation = value - mean[segment]
    spread = np.where(high.values == low.values, 0.0, np.sqrt(entries.reduce(np.add, deviation * deviation).values / lengths))
    positive = np.where(value > 0, value, 0.0) if len(low.values) and low.values.min() < 0 else value
    mass = entries.reduce(np.add, positive).values
    # A row without any positive value has no shares: NaN, which is written as NULL.
    mass = np.where(mass > 0, mass, np.nan)
    share = positive / mass[segment]
    information = entries.reduce(np.add, np.where(positive > 0, share * np.log(share), 0.0)).values
    statistics = {
        "sum": total,
        "mean": Sparse(rows, mean),
        "max": high,
        "min": low,
        "std": Sparse(rows, spread),
        "entropy": Sparse(rows, np.where(np.isnan(mass), np.nan, 0.0 - information)),
        "top1_share": Sparse(rows, high.values / mass),
    }
    if own is not None:
        mine = entries.select(entries.is_own(own)).reduce(np.add)
        owner_mass = mass[np.searchsorted(rows, mine.rows)]
        statistics["own"] = mine
        statistics["own_share"] = Sparse(mine.rows, np.where(mine.values < 0, 0.0, mine.values) / owner_mass)
    return statistics


def _timestamp_statistics(name: str, entries: Entries, own: OwnKey | None, hour_start: Ints, counts: dict[str, int]) -> dict[str, Sparse]:
    value = entries.value
    assert value is not None
    future, ancient = value > hour_start[entries.row], value < OLDEST_TIMESTAMP
    counts[f"_future_{name}"], counts[f"_ancient_{name}"] = int(np.count_nonzero(future)), int(np.count_nonzero(ancient))
    counts[f"_distant_{name}"] = int(np.count_nonzero(value[future] > DISTANT_TIMESTAMP)) if counts[f"_future_{name}"] else 0
    entries = entries.select(~(future | ancient | np.isnan(value)))

    def days_ago(when: Sparse) -> Sparse:
        return Sparse(when.rows, (hour_start[when.rows] - when.values) / 86400.0)

    statistics = {"days_ago_min": days_ago(entries.reduce(np.maximum)), "days_ago_max": days_ago(entries.reduce(np.minimum))}
    if own is not None:
        statistics["own_days_ago"] = days_ago(entries.select(entries.is_own(own)).reduce(np.maximum))
    return statistics


def _list_statistics(entries: Entries, own: OwnKey | None) -> dict[str, Sparse]:
    width = np.int64(len(entries.dictionary) + 1)
    distinct = np.bincount(_distinct_pairs(entries.row, entries.code, width) // width, minlength=entries.size)
    rows = entries.present_rows
    statistics = {"length": entries.n_entries(), "n_unique": Sparse(rows, distinct[rows])}
    if own is not None:
        statistics["has_own"] = entries.has_own(own)
    return statistics


def _distinct_pairs(row: Ints, code: Ints, width: np.int64) -> Ints:
    """Return row * width + code of every distinct pair with a known code, ascending (sorting is faster than np.unique's hashing)."""
    known = code >= 0
    pairs = row[known] * width + code[known]
    pairs.sort()
    return pairs[_starts(pairs)]


def _starts(ascending: Ints) -> Ints:
    """Return where each run of equal values begins."""
    if len(ascending) == 0:
        return np.empty(0, np.int64)
    change = np.empty(len(ascending), bool)
    change[0] = True
    np.not_equal(ascending[1:], ascending[:-1], out=change[1:])
    return np.flatnonzero(change)


def _own_actions(inner: Entries, outer: Entries, own: OwnKey) -> Sparse:
    owners = outer.select(outer.is_own(own)).segments[0]
    actions = np.bincount(inner.row[inner.is_own(own)], minlength=inner.size)
    return Sparse(owners, actions[owners])


def _layout(array: pa.Array) -> tuple[Ints, Ints]:
    """Return the length of each row of a canonical list or map, and the row of each entry."""
    lengths = np.diff(array.offsets.to_numpy(zero_copy_only=False))
    return lengths, np.repeat(np.arange(len(array), dtype=np.int32), lengths)


def _flat(array: pa.MapArray) -> tuple[pa.Array, pa.Array]:
    """Return the keys and items of a map array's entries, without any that lie outside its offsets."""
    first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
    return array.keys.slice(first, last - first), array.items.slice(first, last - first)


def _codes(encoded: pa.DictionaryArray) -> tuple[Ints, pa.Array]:
    indices = encoded.indices.fill_null(-1) if encoded.null_count else encoded.indices
    return indices.to_numpy(zero_copy_only=False), encoded.dictionary


def _values(values: pa.Array) -> Floats:
    """Values with NaN for NULL."""
    floats: Floats = values.to_numpy(zero_copy_only=False)
    return floats
