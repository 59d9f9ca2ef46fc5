"""Category maps: the frozen values of a column and the codes they have.

What belongs here: one spelling for each value, levels by falling frequency, buckets of missing and unseen values. What does
not: statistics of a category (``target_encoding.py``, ``group_ranks.py``). Next to read: ``target_encoding.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltv_assets.core.errors import DataError

MISSING, UNSEEN, FIRST_KNOWN = 0, 1, 2
"""Levels of every category map: missing, unseen or rare, then the known values by falling frequency."""

Floats = NDArray[np.float64]
Ints = NDArray[np.integer[Any]]


def _text(value: object) -> str:
    """One spelling per category, so that 7, 7.0 and "7" of differently typed days are the same value."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def factorize(column: pd.Series) -> tuple[Ints, list[str]]:
    """Codes (-1 = missing) and the texts they stand for; NaN, None, NA and the empty string are missing."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes = column.cat.codes.to_numpy()
        values: Iterable[object] = column.cat.categories.to_numpy(dtype=object)  # text of Arrow is slow to iterate over
        if len(column.cat.categories) > len(column):  # a short frame with a long dictionary: look up only what occurs
            occurs = np.zeros(len(column.cat.categories) + 1, np.bool_)
            occurs[codes] = True  # code -1 is the last element
            used = np.flatnonzero(occurs[:-1])
            place = np.cumsum(occurs) - 1
            place[-1] = -1
            codes = place[codes]
            values = column.cat.categories[used].to_numpy(dtype=object)
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
class CategoryMap:
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


def is_categorical(column: pd.Series) -> bool:
    """Whether a column holds text or categories; DataError if it holds neither these nor real numbers."""
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype) or pd.api.types.is_object_dtype(dtype) or pd.api.types.is_string_dtype(dtype):
        return True
    if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype):
        return False
    raise DataError(f"column {column.name!r} has type {dtype}: expected numbers, text or categories; turn times into ages first")
