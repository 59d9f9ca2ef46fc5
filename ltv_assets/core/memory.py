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

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""Numbers of glibc's parameters of ``mallopt``."""


@cache
def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function of glibc, None with any other C library (musl, macOS)."""
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):
        return None
    return function


def release_memory() -> None:
    """Return memory that was freed but is still held by Arrow's pool and by glibc; takes milliseconds, elsewhere it does nothing."""
    pa.default_memory_pool().release_unused()
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


@cache
def reuse_memory() -> None:
    """Let glibc keep what this process frees, up to 256 MB, for what it asks for next; `release_memory` still returns all of it.

    Arrays of a few megabytes are made and freed for every block of rows. By default each of them is fetched from the system, page by
    page, and given back: half of the system's time in a fit.
    """
    if (set_parameter := _of_glibc("mallopt")) is not None:
        set_parameter(_MMAP_THRESHOLD, 32 << 20)  # the largest that glibc takes
        set_parameter(_TRIM_THRESHOLD, 256 << 20)


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
