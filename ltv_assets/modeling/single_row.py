"""One row through a booster: LightGBM's single-row fast path.

What belongs here: a handle of LightGBM's C interface with its buffers. What does not: what the score means (``boosting.py``).
Next to read: ``boosting.py``.

``Booster.predict`` prepares every call anew, which for one row takes longer than the trees themselves. The fast
path prepares once. It walks the same trees in the same order, so a row gets the same bits.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from typing import Any

import lightgbm as lgb
import numpy as np
from lightgbm import basic
from numpy.typing import NDArray

_FLOAT32, _RAW_SCORE = 0, 1
"""LightGBM's numbers for the type of the data and the kind of prediction."""


class _Handle:
    """LightGBM's prepared prediction of one booster, and the row it reads; for one thread."""

    def __init__(self, booster: lgb.Booster, columns: int) -> None:
        self.row = np.zeros(columns, np.float32)
        self._booster = booster  # the handle points into it
        self._result, self._length = ctypes.c_double(), ctypes.c_int64()
        handle = ctypes.c_void_p()
        library: Any = basic._LIB
        basic._safe_call(
            library.LGBM_BoosterPredictForMatSingleRowFastInit(
                booster._handle,
                ctypes.c_int(_RAW_SCORE),
                ctypes.c_int(0),
                ctypes.c_int(-1),
                ctypes.c_int(_FLOAT32),
                ctypes.c_int32(columns),
                ctypes.c_char_p(b""),
                ctypes.byref(handle),
            )
        )
        self._arguments = (handle, self.row.ctypes.data_as(ctypes.c_void_p), ctypes.byref(self._length), ctypes.byref(self._result))
        self._predict = library.LGBM_BoosterPredictForMatSingleRowFast
        weakref.finalize(self, library.LGBM_FastConfigFree, handle)

    def score(self) -> float:
        """Raw score of ``row``."""
        basic._safe_call(self._predict(*self._arguments))
        return self._result.value


class SingleRowPredictor:
    """Raw scores of single rows of a booster of ``columns`` columns; each thread gets a handle of its own."""

    def __init__(self, booster: lgb.Booster, columns: int) -> None:
        self._booster, self._columns = booster, columns
        self._own = threading.local()

    def score(self, row: NDArray[np.float32], used: NDArray[np.int64]) -> float:
        """Raw score of one row (m,), of whose columns the booster knows those with the numbers ``used`` (columns,)."""
        handle: _Handle | None = getattr(self._own, "handle", None)
        if handle is None:
            handle = self._own.handle = _Handle(self._booster, self._columns)
        row.take(used, out=handle.row)
        return handle.score()
