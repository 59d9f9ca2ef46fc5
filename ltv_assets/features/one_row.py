"""Features of one impression without a round trip through the engine.

What belongs here: one JSON impression to the same numbers that ``rows.py`` gives a table of them. What does not: the features
themselves. They come from the registry by the code that flattens whole days: scalars and interactions are the registry's SQL
(``sql.py``) compiled to Python, nested columns are reduced by ``arrays.py`` with the impression's columns of a kind in place of
rows, so every sum is added in the same order. Next to read: ``compiled_sql.py``, ``arrays.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ltv_assets.core.contract import HOUR_DOMAIN, Column
from ltv_assets.core.database import open_duckdb
from ltv_assets.features.arrays import Entries, OwnKey, entry_statistics
from ltv_assets.features.canonical import FLOAT32_MAX
from ltv_assets.features.compiled_sql import compile_sql
from ltv_assets.features.impressions import MalformedRow, read_cell, read_hour, reader_of
from ltv_assets.features.registry import Registry, feature_name
from ltv_assets.features.rows import MEMORY_LIMIT
from ltv_assets.features.sql import interactions, own_keys, row_inputs, scalar_features, written_own_keys
from ltv_assets.features.statistics import Kind, available, kind_of

Floats = NDArray[np.float64]
Owner = dict[str, Any]
"""The impression's own keys by the column they are taken from."""

_NO_NAMES = pa.array([], pa.string())
_PLAIN = frozenset((float, int))
_HOUR_KEY = re.compile(r"([0-9]{1,2})(?:\.0)?")


@dataclass(frozen=True, slots=True)
class FlatRow:
    """One flattened impression: ``numbers`` (n,) float32 with NaN for NULL, and ``texts`` of the categories."""

    numbers: NDArray[np.float32]
    texts: list[str | None]


class OneRow:
    """Flattens single impressions; safe to call from several threads.

    ``numeric`` and ``categorical`` name what a `FlatRow` holds, each in the registry's order.
    """

    def __init__(self, registry: Registry) -> None:
        self.numeric = [feature.name for feature in registry.features if not feature.categorical]
        self.categorical = [feature.name for feature in registry.features if feature.categorical]
        self._contract = contract = registry.contract
        own = own_keys(contract)
        used = {*registry.source_columns, *own}
        self._scalars = [c for c in contract.inputs if not c.is_nested]
        self._readers = [reader_of(c) for c in self._scalars]
        self._needed = [c.name in used for c in self._scalars]
        self._largest = [FLOAT32_MAX if kind_of(c) == "number" else np.finfo(np.float64).max for c in self._scalars]
        self._is_text = [kind_of(c) == "text" for c in self._scalars]
        slots = _Slots()
        self._own_names = tuple(own)
        scalar = scalar_features(registry)
        self._scalar_at = slots.add(scalar)
        nested = [c for c in contract.inputs if c.is_nested]
        kinds = dict.fromkeys(kind_of(c) for c in nested)
        source = set(registry.source_columns)
        self._groups = [_Group(kind, [c for c in nested if kind_of(c) == kind], source, slots) for kind in kinds]
        enabled = [group for group in registry.groups.values() if group.enabled]
        self._overlaps = [overlap for group in enabled for overlap in group.overlaps]
        self._overlap_at = slots.add(name for o in self._overlaps for name in (o.name, f"{o.name}_share"))
        self._indicators = [columns for group in enabled for columns in group.indicators.values()]
        self._indicator_at = slots.add(f"missing__{name}" for group in enabled for name in group.indicators)
        combined = interactions(registry)
        self._interaction_at = slots.add(combined)
        statistics = {name: "DOUBLE" for group in self._groups for name in group.names}
        words = set(re.findall(r"\w+", " ".join(combined.values())))
        inputs = row_inputs(contract)
        self._statistics = [name for name in statistics if name in words]
        self._statistics_at = np.array([slots.at[name] for name in self._statistics], np.int64)
        self._connection = open_duckdb(threads=1, memory_limit=MEMORY_LIMIT)
        self._of_scalars = compile_sql([*written_own_keys(registry), *scalar.values()], inputs, self._connection)
        self._of_all = compile_sql([*combined.values()], inputs | dict.fromkeys(self._statistics, "DOUBLE"), self._connection)
        self._nothing = np.full(len(slots.at), np.nan)
        self._gather = np.array([slots.at[name] for name in self.numeric], np.int64)
        text_at = {c.name: i for i, c in enumerate(self._scalars)}
        self._texts_at = [text_at[name] for name in self.categorical]

    def features(self, row: Mapping[str, Any], number: int = 0) -> FlatRow:
        """Every feature of an impression; unknown columns and labels are ignored.

        Raises MalformedRow, which names row ``number`` and each of its malformed values.
        """
        problems: list[str] = []
        hour_start = read_hour(self._contract, row, number, problems)
        scalars = self._read_scalars(row, number, problems)
        own_and_scalars = self._of_scalars([hour_start, *scalars])
        own = dict(zip(self._own_names, own_and_scalars, strict=False))
        flat = self._nothing.copy()
        flat[self._scalar_at] = own_and_scalars[len(own) :]
        present = {c.name for c, value in zip(self._scalars, scalars, strict=True) if value is not None}
        lists: dict[str, list[str | None]] = {}
        for group in self._groups:
            group.reduce(row, number, own, hour_start, flat, present, lists, problems)
        if problems:
            raise MalformedRow("; ".join(problems))
        self._compare(lists, flat)
        flat[self._indicator_at] = [float(present.isdisjoint(columns)) for columns in self._indicators]
        known = [None if x != x else x for x in flat[self._statistics_at].tolist()]
        flat[self._interaction_at] = self._of_all([hour_start, *scalars, *known])
        numbers = flat[self._gather]
        numbers[~(np.abs(numbers) <= FLOAT32_MAX)] = np.nan
        return FlatRow(numbers.astype(np.float32), [scalars[at] for at in self._texts_at])

    def _read_scalars(self, row: Mapping[str, Any], number: int, problems: list[str]) -> list[Any]:
        values = []
        plan = zip(self._scalars, self._readers, self._needed, self._largest, self._is_text, strict=True)
        for column, read, needed, largest, is_text in plan:
            value = row.get(column.name)
            if value is not None:
                value = read_cell(column.name, read, value, number, problems)
                if not needed or (not is_text and value is not None and not abs(value) <= largest):
                    value = None
            values.append(value)
        return values

    def _compare(self, lists: Mapping[str, list[str | None]], flat: Floats) -> None:
        """Distinct elements of one list that are also in another, and their share."""
        found: list[float] = []
        for overlap in self._overlaps:
            if overlap.of in lists and overlap.within in lists:
                of, within = ({x for x in lists[name] if x is not None} for name in (overlap.of, overlap.within))
                shared = float(len(of & within))
                found += (shared, shared / len(of) if of else np.nan)
            else:
                found += (np.nan, np.nan)
        flat[self._overlap_at] = found


class _Slots:
    """Places of named values in one array."""

    def __init__(self) -> None:
        self.at: dict[str, int] = {}

    def add(self, names: Any) -> slice:
        first = len(self.at)
        for name in names:
            self.at[name] = len(self.at)
        return slice(first, len(self.at))


class _Group:
    """The nested columns of one kind, reduced together as the rows of one column would be."""

    def __init__(self, kind: Kind, columns: Sequence[Column], used: set[str], slots: _Slots) -> None:
        self.columns = columns
        self._kind = kind
        self._used = [c.name in used for c in columns]
        self._own = [c.own_key or "" for c in columns]
        self._hours = [c.keyed_by == HOUR_DOMAIN for c in columns]
        self._read = reader_of(columns[0])
        self._nested = kind.startswith("nested")
        statistics = dict.fromkeys(name for c in columns for name in available(c))
        self._at = {statistic: slots.add(feature_name(c.name, statistic) for c in columns).start for statistic in statistics}
        self.names = [feature_name(c.name, statistic) for c in columns for statistic in statistics]

    def reduce(
        self,
        row: Mapping[str, Any],
        number: int,
        own: Owner,
        hour_start: int,
        flat: Floats,
        present: set[str],
        lists: dict[str, list[str | None]],
        problems: list[str],
    ) -> None:
        """Add the statistics of the row's columns to ``flat``, and the names of those that are there to ``present``."""
        size = len(self.columns)
        there, owned = np.zeros(size, bool), np.full(size, -1, np.int64)
        lengths, outer = [0] * size, _Stretch()
        entries = _Stretch()
        for j, column in enumerate(self.columns):
            key = own.get(self._own[j])
            if key is not None:
                owned[j] = 0
            value = row.get(column.name)
            if value is None:
                continue
            cells = _plain_entries(value) if not self._nested and self._kind != "list" else None
            if cells is None:
                read = read_cell(column.name, self._read, value, number, problems)
                if read is None or not self._used[j]:
                    continue
                there[j] = True
                present.add(column.name)
                if self._kind == "list":
                    lists[column.name] = read
                    entries.add_list(j, read, key)
                    lengths[j] = len(read)
                    continue
                if self._nested:
                    inner = [(name, item) for name, items in read for _, item in items or ()]
                    outer.add(j, [name for name, _ in read], (), key)
                    entries.add(j, [name for name, _ in inner], [item for _, item in inner], key)
                    lengths[j] = len(inner)
                    continue
                cells = [name for name, _ in read], [item for _, item in read]
            elif not self._used[j]:
                continue
            else:
                there[j] = True
                present.add(column.name)
            keys, values = cells
            entries.add(j, [_two_digits(name) for name in keys] if self._hours[j] else keys, values, key)
            lengths[j] = len(keys)
        if not there.any():
            return
        made = entries.made(there, np.array(lengths, np.int64), self._kind)
        around = outer.made(there, np.bincount(np.array(outer.rows, np.int64), minlength=size), "list") if self._nested else None
        hours = np.full(size, hour_start, np.int64)
        for name, sparse in entry_statistics(self._kind, "", made, around, OwnKey(owned, _NO_NAMES), hours, {}).items():
            if name in self._at:
                flat[sparse.rows + self._at[name]] = sparse.values


class _Stretch:
    """Entries of one column after the other; the code of a key is 0 where it is the impression's own, else -1."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self._codes: list[int] = []
        self._values: list[Any] = []
        self._width = 1

    def add(self, j: int, keys: Sequence[str], values: Sequence[Any], own: Any) -> None:
        self.rows.extend(repeat(j, len(keys)))
        self._values.extend(values)
        if own is not None and own in keys:
            self._codes.extend([0 if key == own else -1 for key in keys])
        else:
            self._codes.extend(repeat(-1, len(keys)))

    def add_list(self, j: int, elements: Sequence[str | None], own: Any) -> None:
        """Elements of a list have codes of their own, the impression's own key has 0, NULL has -1."""
        codes: dict[str | None, int] = {None: -1}
        if own is not None:
            codes[own] = 0
        for element in elements:
            codes.setdefault(element, len(codes))
        self.rows.extend(repeat(j, len(elements)))
        self._codes.extend([codes[element] for element in elements])
        self._width = max(self._width, len(codes) + 1)

    def made(self, there: NDArray[np.bool_], lengths: NDArray[np.int64], kind: str) -> Entries:
        values = None
        if kind != "list":
            values = np.array(self._values, np.float64)
            values[~(np.abs(values) <= FLOAT32_MAX)] = np.nan
        rows, codes = np.array(self.rows, np.int64), np.array(self._codes, np.int64)
        return Entries(len(there), there, lengths, rows, codes, range(self._width), values)


def _plain_entries(value: Any) -> tuple[list[str], list[Any]] | None:
    """Keys and values of an object of nothing but numbers, which needs no reading entry by entry; else None."""
    if type(value) is not dict or not _PLAIN.issuperset(map(type, value.values())):
        return None
    keys = list(value)
    try:
        return (keys, list(map(float, value.values()))) if "".join(keys).isascii() else None
    except (OverflowError, TypeError):
        return None


def _two_digits(key: str) -> str:
    """An hour of the day as the contract writes it: the keys 5, 5.0 and 05 are one."""
    found = _HOUR_KEY.fullmatch(key)
    return found.group(1).zfill(2) if found else key
