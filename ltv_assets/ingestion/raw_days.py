"""Which raw files have rows of which hours and days: by the names of folders, or by what the files say.

What belongs here: finding the files of a split below the data root for any layout of the contract, and remembering what files say
of themselves (days, labels) as long as they are unchanged. What does not: whether a file is usable (``inventory.py``), which days
make a window (``calendar.py``). Next to read: ``calendar.py``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ltv_assets.core.config import FIRST_DAY, LAST_DAY, Config, DateRanges
from ltv_assets.core.contract import Contract, contract_of
from ltv_assets.core.errors import DataError
from ltv_assets.core.time_layout import TimeLayout, hour_day, hour_key
from ltv_assets.features.flatten.moments import INT96_UNIT, days_of_hours, hours_of_rows
from ltv_assets.features.naming import contract_names
from ltv_assets.ingestion.footers import read_footer
from ltv_assets.storage.files import write_atomic

Split = Literal["train", "test"]

HIDDEN = (".", "_")
DOCUMENTS = (".md", ".rst", ".html", ".pdf")
"""Endings of what is written about data; such a file beside the folders of days holds no impressions."""
IGNORED_SUFFIXES = (".crc",)
MEMORY = "raw_days.json"
"""File in the warehouse's cache that remembers what files say of their days."""


@dataclass(frozen=True, slots=True)
class RawHour:
    """What is there of an hour, or of a day where nothing says the hour: a folder, or files that were found elsewhere.

    ``rows``: how many rows of each file are meant, where a file has rows of several days.
    """

    folder: Path | None = None
    listed: tuple[Path, ...] = ()
    rows: Mapping[Path, int] = field(default_factory=dict)

    def files(self) -> list[Path]:
        """Every entry that could be data, in order, unopened."""
        return list(self.listed) if self.folder is None else data_files(self.folder)


def data_files(folder: Path) -> list[Path]:
    """Every entry of an hourly folder that could be data, in order, unopened."""
    return sorted(Path(e.path) for e in os.scandir(folder) if not e.name.startswith(HIDDEN) and not e.name.endswith(IGNORED_SUFFIXES))


def split_folder(config: Config, split: Split) -> Path:
    """Folder of one split's raw files."""
    return config.data.root / (config.data.train_folder if split == "train" else config.data.test_folder)


def shares_root(config: Config) -> bool:
    """Whether labelled and unlabelled days stand in one folder, and their labels tell them apart."""
    return config.data.train_folder == config.data.test_folder


_LISTED: ContextVar[dict[tuple[int, Split], dict[str, RawHour]] | None] = ContextVar("_LISTED", default=None)


@contextmanager
def listed_once() -> Iterator[None]:
    """Within the block the raw files of a split are looked for once: for whoever asks about many days at one moment.

    Otherwise a state of n days lists the folders of n days n times.
    """
    token = _LISTED.set({})
    try:
        yield
    finally:
        _LISTED.reset(token)


def hourly_folders(config: Config, split: Split) -> dict[str, RawHour]:
    """{hour key: what is there} of one split, in order of time, cut to ``max_partitions`` if it is set.

    Where files say their moments, a key is the first hour of a day.
    """
    listed = _LISTED.get()
    if listed is None:
        return _hourly_folders(config, split)
    if (id(config), split) not in listed:
        listed[id(config), split] = _hourly_folders(config, split)
    return listed[id(config), split]


def _hourly_folders(config: Config, split: Split) -> dict[str, RawHour]:
    found = found_hours(config, split)
    if shares_root(config):
        mine = days_of_split(config, found, split)
        found = {key: hour for key, hour in found.items() if hour_day(key) in mine}
    limit = (config.data.train if split == "train" else config.data.test).max_partitions
    return dict(list(found.items())[:limit])


def found_hours(config: Config, split: Split) -> dict[str, RawHour]:
    """{hour key: what is there} below the folder of a split, whichever split its days belong to."""
    contract, folder = contract_of(config), split_folder(config, split)
    if contract.layout is not None:
        return {key: RawHour(path) for key, path in scan_hours(folder, contract.layout)[0].items()}
    memory = Memory.of(config)
    found: dict[date, dict[Path, int]] = {}
    for path in files_below(folder):
        for day, said in memory.days(path, contract).items():
            found.setdefault(date.fromisoformat(day), {})[path] = said[0]
    memory.save()
    return {hour_key(day, 0): RawHour(None, tuple(sorted(rows)), rows) for day, rows in sorted(found.items())}


def days_of_split(config: Config, hours: Mapping[str, RawHour], split: Split) -> frozenset[date]:
    """Days of a root that both splits share which belong to one of them: by explicit dates, else by whether any label is there."""
    if isinstance(config.data.dates, DateRanges):
        return frozenset((config.data.dates.train if split == "train" else config.data.dates.test).days())
    contract, memory = contract_of(config), Memory.of(config)
    labelled: dict[date, bool] = {}
    for key, hour in hours.items():
        day = hour_day(key)
        if not labelled.get(day):
            labelled[day] = any(memory.has_labels(path, contract, str(day)) for path in hour.files())
    memory.save()
    return frozenset(day for day, known in labelled.items() if known == (split == "train"))


def scan_hours(folder: Path, layout: TimeLayout) -> tuple[dict[str, Path], list[Path]]:
    """({hour key YYYY-MM-DD-HH-00: its folder} in order of time, other entries) of one folder.

    Hidden entries, those that begin with an underscore (markers, uncommitted output of a job), and documents are neither.
    """
    hours: dict[str, Path] = {}
    others: list[Path] = []
    if folder.is_dir():
        _scan(folder, layout, (), hours, others)
    return dict(sorted(hours.items())), sorted(others)


def _scan(folder: Path, layout: TimeLayout, above: tuple[str, ...], hours: dict[str, Path], others: list[Path]) -> None:
    for entry in os.scandir(folder):
        names = (*above, entry.name)
        path = Path(entry.path)
        # Unlike that of the entry, is_dir answers False for a symbolic link to itself.
        if len(names) < layout.depth and layout.matches(len(above), entry.name) and path.is_dir():
            _scan(path, layout, names, hours, others)
            continue
        found = hour_of_folders(names, layout) if len(names) == layout.depth else None
        if found is not None and path.is_dir():
            hours[hour_key(*found)] = path
        elif not entry.name.startswith(HIDDEN) and not entry.name.endswith(DOCUMENTS):
            others.append(path)


def hour_of_folders(names: Iterable[str], layout: TimeLayout) -> tuple[date, int] | None:
    """(day, hour) of a folder reached through these names; None for other names and for days no row can have."""
    found = layout.read(tuple(names))
    return found if found is not None and FIRST_DAY <= found[0] <= LAST_DAY else None


def files_below(folder: Path) -> list[Path]:
    """Every parquet file below a folder, in order, unless it or a folder above it is hidden or begins with an underscore."""
    if not folder.is_dir():
        return []
    found: list[Path] = []
    for above, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(HIDDEN))
        found += [Path(above, name) for name in sorted(names) if name.endswith(".parquet") and not name.startswith(HIDDEN)]
    return found


class Memory:
    """What files said of their rows when they were last opened: {day: (rows, rows with a label)}; valid while they are unchanged.

    Without a column of moments the only day is empty text.
    """

    _open: dict[tuple[Path, str], Memory] = {}  # noqa: RUF012 - one for each file, as long as the process lives

    def __init__(self, path: Path, root: Path, contract: Contract) -> None:
        self._path, self._root, self._known = path, root, contract.fingerprint()
        self._files: dict[str, Any] = {}
        self._changed = False
        with suppress(OSError, ValueError, AttributeError):
            stored = json.loads(path.read_bytes())
            if stored.get("contract") == self._known:
                self._files = dict(stored["files"])

    @classmethod
    def of(cls, config: Config) -> Memory:
        """The memory of a configuration's warehouse."""
        contract = contract_of(config)
        key = (config.warehouse.root / "cache" / MEMORY, f"{config.data.root} {contract.fingerprint()}")
        return cls._open.setdefault(key, cls(key[0], config.data.root, contract)) if key not in cls._open else cls._open[key]

    def days(self, path: Path, contract: Contract) -> dict[str, tuple[int, int]]:
        """{day: (rows, rows with a label)} of a file; empty if nothing of it can be read, which its inventory says."""
        try:
            stat = path.stat()
        except OSError:
            return {}
        name, seen = str(path), [stat.st_size, stat.st_mtime_ns]
        known = self._files.get(name)
        if known is None or known[0] != seen:
            self._files[name] = known = [seen, *_said(path, contract)]
            self._changed = True
        return {day: (int(rows), int(labelled)) for day, (rows, labelled) in known[1].items()}

    def problem(self, path: Path, contract: Contract) -> str | None:
        """Why no day of a file is known; None if it has days, or no rows."""
        self.days(path, contract)
        known = self._files.get(str(path))
        return "cannot be opened" if known is None else known[2]

    def has_labels(self, path: Path, contract: Contract, day: str) -> bool:
        """Whether a file has a label in a row of a day."""
        said = self.days(path, contract)
        return said.get(day if contract.layout is None else "", (0, 0))[1] > 0

    def save(self) -> None:
        """Write what is new, if there is a warehouse to write it into."""
        if self._changed and self._path.parents[1].is_dir():
            self._path.parent.mkdir(exist_ok=True)
            text = json.dumps({"contract": self._known, "files": self._files}, sort_keys=True)
            write_atomic(self._path, text.encode())
            self._changed = False


def _said(path: Path, contract: Contract) -> tuple[dict[str, list[int]], str | None]:
    """({day: [rows, rows with a label]}, why there is none)."""
    try:
        footer = read_footer(path)
    except OSError as error:
        footer = f"cannot be read: {error.strerror}"
    if isinstance(footer, str):
        return {}, footer
    try:
        with closing(pq.ParquetFile(path, coerce_int96_timestamp_unit=INT96_UNIT)) as parquet:
            written = contract_names(parquet.schema_arrow.names, contract)[0].get(contract.target)
            rows = parquet.metadata.num_rows
            labels = None if written is None else parquet.read(columns=[written], use_threads=False).column(0)
        # Some writers use NaN for NULL.
        known = np.zeros(rows, bool) if labels is None else ~pc.is_null(labels, nan_is_null=True).to_numpy()
        if contract.layout is not None:
            return {"": [rows, int(known.sum())]}, None
        days = days_of_hours(hours_of_rows(path, contract))
        return {str(day): [len(mine), int(known[mine].sum())] for day, mine in days.items()}, None
    except DataError as error:
        return {}, str(error).removeprefix(f"{path}: ")
    except (OSError, pa.ArrowException) as error:
        return {}, f"cannot be read: {error}"
