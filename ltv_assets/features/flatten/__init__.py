"""From the hourly files of one day to one parquet file of flattened rows, streaming, in bounded memory.

What belongs here: reading files block by block, flattening the blocks in order, setting rows aside that have no key or no
usable label, writing deterministic row groups, and counting everything that was missing or unusable. What does not:
physical types (``features/canonical.py``), the SQL (``features/sql.py``), choice of the files to read, publication of the result
(``storage/``). Next to read: ``files.py``.

Each file's columns are made canonical by themselves, so no file's types decide another's. Rows keep the order of the
files and, inside a file, their own.
"""

from __future__ import annotations

from ltv_assets.features.flatten.accounting import FileAside, FlattenResult
from ltv_assets.features.flatten.decoding import UndecodableError
from ltv_assets.features.flatten.engine import FlattenEngine, flatten_block
from ltv_assets.features.flatten.files import flatten_files
from ltv_assets.features.flatten.sources import RawFile

__all__ = ["FileAside", "FlattenEngine", "FlattenResult", "RawFile", "UndecodableError", "flatten_block", "flatten_files"]
