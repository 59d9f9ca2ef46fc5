"""Errors of decoding, translated.

What belongs here: which failures mean damaged data and which mean a machine without memory or disk. What does not: reading
(``sources.py``). Next to read: ``sources.py``.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from ltv_assets.core.errors import DataError, TransientError


class UndecodableError(DataError):
    """The bytes of a page, or a value in it, are beyond every reader."""


@contextmanager
def decoding(what: str) -> Iterator[None]:
    """Translate errors: undecodable data becomes UndecodableError, lack of memory or disk becomes TransientError."""
    try:
        yield
    except (duckdb.OutOfMemoryException, MemoryError) as error:
        raise TransientError(f"{what}: not enough memory ({one_line(error)}); raise compute.duckdb_memory_gb or free memory") from error
    except (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException, UndecodableError):
        raise
    except (duckdb.Error, pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise TransientError(f"{what}: the disk is full ({one_line(error)}); make room and run again") from error
        raise UndecodableError(f"{what}: cannot be flattened: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The message of a foreign error on one line of at most 200 characters."""
    return f"{' '.join(str(error).split()):.200}"
