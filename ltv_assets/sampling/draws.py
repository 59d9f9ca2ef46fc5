"""Uniform draws that depend only on (seed, row_id, copy).

What belongs here: hashing of row identifiers and the mixing of hash, seed and copy number into a number in [0, 1). What
does not: use of the draws. There is no generator state, so the order of rows, the size of chunks and the number of workers
do not change a draw. Next to read: ``histos.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def row_hashes(row_id: Sequence[Any] | NDArray[Any] | pd.Series, /) -> NDArray[np.uint64]:
    """64-bit hash of each row identifier, compared by its text; shape (n,), stable across processes and machines."""
    import pandas as pd

    text = pd.Series(row_id).astype(str).to_numpy(dtype=object)
    return pd.util.hash_array(text, categorize=False)


def splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finalizer of SplitMix64 (Steele, Lea, Flood 2014): a bijection whose output bits all depend on all input bits."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def hash_uniform(hashes: NDArray[np.uint64], seed: int, copy: int = 0) -> NDArray[np.float64]:
    """Uniform number in [0, 1) for each row hash; shape (n,).

    ``seed`` separates purposes, ``copy`` separates repeated draws for one row. Both are mixed before they are combined with the
    row's hash, so neighbouring seeds and copies are independent of each other.
    """
    key = np.array([np.uint64(seed & 0xFFFFFFFFFFFFFFFF)], dtype=np.uint64)
    with np.errstate(over="ignore"):
        stream = splitmix64(splitmix64(key + GOLDEN) + GOLDEN * np.uint64(copy + 1))
        mixed = splitmix64(np.asarray(hashes, dtype=np.uint64) ^ stream)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
