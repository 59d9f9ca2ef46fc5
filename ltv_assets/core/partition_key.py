"""The key of a partition, checked once where it enters the program: an argument, Dagster's key, the name of a folder, a record.

What belongs here: the key's type. What does not: which partitions there are (``ingestion/calendar.py``), what is made of one
(``asset_specs.py``). Next to read: ``../storage/warehouse.py``, where a key becomes a path.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

from ltv_assets.core.config import parse_day
from ltv_assets.core.errors import DataError


class PartitionKey(str):
    """A day ``YYYY-MM-DD``, which may name a window, or the first and the last day of a submission with ``_`` between them.

    It is its own text, so it is written, compared and sorted as that; the type says that it was checked and names no path
    elsewhere. Raises DataError for any other text.
    """

    __slots__ = ()

    def __new__(cls, key: str | date) -> PartitionKey:
        """Check a key; a day is one."""
        text = str(key)
        try:
            days = [parse_day(day) for day in text.split("_")]
        except ValueError:
            days = []
        if len(days) not in (1, 2):
            raise DataError(f"partition key {text!r}: expected a day such as 2025-10-06")
        return super().__new__(cls, text)

    @property
    def day(self) -> date:
        """The day; of a submission the last one."""
        return date.fromisoformat(self[-10:])

    @classmethod
    def among(cls, names: Iterable[str]) -> tuple[PartitionKey, ...]:
        """The keys among some names, in order."""
        found = []
        for name in names:
            try:
                found.append(cls(name))
            except DataError:
                continue
        return tuple(sorted(found))
