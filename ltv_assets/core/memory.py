"""The memory budget, and the return of freed memory to the system.

What belongs here: what fits into ``compute.max_memory_gb`` (threads, rows, columns), and the one call that returns freed
memory. What does not: the budget's keys (``config/schema.py``). glibc keeps freed memory in one arena for each thread, so
work in large blocks on several threads holds several times what it uses unless the arenas are trimmed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import pyarrow as pa

from ltv_assets.core.config import ComputeConfig


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


def flatten_threads(compute: ComputeConfig) -> int:
    """Blocks that are flattened at a time: each takes about 0.4 GB beside the 0.6 GB of the process itself."""
    return max(1, min(compute.threads, int((compute.max_memory_gb - 0.6) / 0.4)))


def columns_in_memory(compute: ComputeConfig, rows: int) -> int:
    """Encoded columns whose bins of ``rows`` rows take a fifth of the budget; an informative column takes about 0.8 bytes a row."""
    return max(10, int(compute.max_memory_gb * 1e9 / 5 / (0.8 * rows)))


def rows_of_all_columns(compute: ComputeConfig, features: int) -> int:
    """Rows of which all encoded columns have bins in a fifth of the budget; encodings make the columns a sixth more than the features."""
    return max(1000, int(compute.max_memory_gb * 1e9 / 5 / (0.8 * features * 7 / 6)))


def rows_in_memory(compute: ComputeConfig, features: int) -> int:
    """Rows of a window that fit into half the budget with all six float32 copies that a fit makes of them."""
    return max(1000, int(compute.max_memory_gb * 1e9 / 2 / (6 * 4 * features)))
