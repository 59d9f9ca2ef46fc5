"""Giving memory back to the system.

What belongs here: the one call that returns freed memory. What does not: deciding how much is used (``compute`` in the
configuration). glibc keeps what was freed in one arena for each thread, so work in large blocks on several threads holds
several times what it uses unless it is told to let go.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import pyarrow as pa


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's ``malloc_trim``, None with any other C library (musl, macOS)."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
    return trim


def release_memory() -> None:
    """Return memory that was freed but is still held by Arrow's pool and by glibc; takes milliseconds, elsewhere it does nothing."""
    pa.default_memory_pool().release_unused()
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
